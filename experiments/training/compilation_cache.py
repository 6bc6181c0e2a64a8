"""JAX's persistent compilation cache: a second start of the same run compiles nothing."""

from __future__ import annotations

import os
from pathlib import Path

import jax

VARIABLE = "SAGAX_COMPILATION_CACHE"


def enable_compilation_cache() -> None:
    """Keeps compiled programs in ``$SAGAX_COMPILATION_CACHE``, or in ``~/.cache/sagax`` where it is not set."""
    folder = os.environ.get(VARIABLE) or str(Path.home() / ".cache" / "sagax")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
