"""JAX's persistent compilation cache: a second start of the same run compiles nothing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import jax

from experiments.errors import reason, say

VARIABLE = "SAGAX_COMPILATION_CACHE"


def enable_compilation_cache() -> None:
    """Keeps compiled programs in ``$SAGAX_COMPILATION_CACHE``, or in ``~/.cache/sagax`` where it is not set.

    Where that folder cannot be written, or there is no home folder, every start compiles anew, and one line says so.
    """
    try:
        folder = Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "sagax")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:
        why = reason(error) if isinstance(error, OSError) else "there is no home folder"
        say(f"compiled programs are not kept ({why}): {VARIABLE} names a folder for them")
        return
    jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
