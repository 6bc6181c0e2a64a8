"""Settings of every test: JAX on the CPU, compiled programs kept between runs, reproducible property tests."""

import gc
import os
import sys
from importlib import metadata
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings

# Before anything imports jax, and for the processes that tests start too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_CACHE = Path(__file__).resolve().parents[1] / ".pytest_cache" / "compiled"
os.environ.setdefault("SAGAX_COMPILATION_CACHE", str(_CACHE))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.environ["SAGAX_COMPILATION_CACHE"])
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Most of a test is compiling, which is faster in one thread, and where XLA still has it, by the older code generator.
_FLAGS = ["--xla_cpu_parallel_codegen_split_count=1"]
if metadata.version("jaxlib").startswith("0.10."):
    # An unknown flag ends the process.
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()

# Tracing makes many objects and few cycles: a twentieth of all time went to looking for those. ``forgotten_programs``
# collects them after each file.
gc.set_threshold(100_000, 50, 100)

settings.register_profile("sagax", deadline=None, derandomize=True)
settings.load_profile("sagax")

# The files that take longest, the longest first: a process that got one of them last would work alone at the end.
LONGEST = (
    "test_configs.py",
    "test_resume.py",
    "test_notebooks.py",
    "test_kills.py",
    "test_drivers.py",
    "test_benchmark.py",
    "test_devices.py",
    "test_value_based.py",
    "test_value_based_learning.py",
    "test_implicit_prm.py",
    "test_run_folders_of_others.py",
    "test_sweep.py",
)


def pytest_collection_modifyitems(items):
    """Sorts the items by how long their file takes; the order within a file stays."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(request):
    """Compiles without optimisation, in this process and its children: most programs of tests run for moments.

    Files that are marked ``optimised`` or ``study`` compute for longer than they compile: they compile as users do.
    """
    quick = not any(request.node.get_closest_marker(name) for name in ("optimised", "study"))
    # Read when jax is imported, which tests of commands and documents may never do.
    with mock.patch.dict(os.environ, JAX_DISABLE_MOST_OPTIMIZATIONS=str(quick)):
        if "jax" in sys.modules:
            sys.modules["jax"].config.update("jax_disable_most_optimizations", quick)
        yield


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs():
    """Forgets compiled programs after each file: kept, those of all tests would take 3 GB."""
    yield
    # Tests of commands and documents may never have imported jax.
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
