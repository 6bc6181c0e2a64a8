"""A setting of XLA's CPU compiler, without which some programs compute wrong numbers.

XLA hands reductions on a CPU, with what leads up to them, to the library YNNPACK. Where an array that a program closes
over is part of such a reduction, the program may read that array's memory after it was given back. Whether it does is
settled when it is compiled: most compilations are right, and the others compute something else in every call, without
an error. jaxlib 0.10.2 and 0.12.0 do so; with XLA's own reductions neither does (``tests/study/test_compiler.py``).
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from importlib import metadata

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
# The versions of jaxlib, from the first to before the second, that are known to have the flag: an unknown one ends the
# process.
VERSIONS = (0, 10), (0, 13)


def without_library_reductions(environment: MutableMapping[str, str]) -> None:
    """Adds to ``XLA_FLAGS`` that XLA compiles reductions itself, unless they say what is left to the library.

    It takes effect if nothing was computed with JAX before.

    Args:
      environment: of this process; changed in place.
    """
    found = re.match(r"(\d+)\.(\d+)", metadata.version("jaxlib"))
    first, end = VERSIONS
    flags = environment.get("XLA_FLAGS", "")
    if found and first <= tuple(map(int, found.groups())) < end and FLAG not in flags:
        environment["XLA_FLAGS"] = f"{flags} {FLAG}=-reduce".strip()
