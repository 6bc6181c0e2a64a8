"""Settings of every test: JAX on the CPU, compiled programs kept between runs, reproducible property tests."""

import os
from pathlib import Path

from hypothesis import settings

# Before anything imports jax, and for the processes that tests start too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_CACHE = Path(__file__).resolve().parents[1] / ".pytest_cache" / "compiled"
os.environ.setdefault("SAGAX_COMPILATION_CACHE", str(_CACHE))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.environ["SAGAX_COMPILATION_CACHE"])
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

settings.register_profile("sagax", deadline=None, derandomize=True)
settings.load_profile("sagax")
