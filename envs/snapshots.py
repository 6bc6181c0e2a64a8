"""The saved state of host environments, as data.

A snapshot may be in a folder that somebody else sent. It therefore holds JSON values and numpy arrays, which never
execute anything. Only environments that can be saved by pickle alone add a pickle, in a part of its own; code that
restores a snapshot removes that part unless it knows where the snapshot came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Snapshot(NamedTuple):
    """The state of a ``VectorHost``.

    Attributes:
      values: JSON values, a dictionary with strings as keys.
      arrays: numpy arrays by name, none with objects as elements.
      pickled: the state of environments that can be saved by pickle alone. Unpickling runs code.
    """

    values: dict[str, Any]
    arrays: dict[str, np.ndarray]
    pickled: bytes | None = None


class SnapshotError(ValueError):
    """A snapshot that cannot be restored: it is of other environments, damaged, or lacks a pickle that it needs."""


def wrap(inside: Snapshot | None, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Snapshot:
    """The snapshot of a wrapper with state of its own around environments with the snapshot ``inside``."""
    named = {f"own/{name}": array for name, array in arrays.items()}
    if inside is None:
        return Snapshot({"inside": None, "own": dict(values)}, named)
    named |= {f"inside/{name}": array for name, array in inside.arrays.items()}
    return Snapshot({"inside": inside.values, "own": dict(values)}, named, inside.pickled)


def unwrap(snapshot: Snapshot) -> tuple[Snapshot | None, dict[str, Any], dict[str, np.ndarray]]:
    """The inverse of ``wrap``.

    Raises:
      SnapshotError: the snapshot was not made by ``wrap``.
    """
    inside, own = snapshot.values.get("inside"), snapshot.values.get("own")
    if not isinstance(own, dict) or not (inside is None or isinstance(inside, dict)):
        raise SnapshotError("the snapshot lacks the parts 'inside' and 'own'")

    def arrays_of(part: str) -> dict[str, np.ndarray]:
        prefix = f"{part}/"
        found = snapshot.arrays.items()
        return {name.removeprefix(prefix): array for name, array in found if name.startswith(prefix)}

    within = None if inside is None else Snapshot(inside, arrays_of("inside"), snapshot.pickled)
    return within, own, arrays_of("own")


def array_like(arrays: Mapping[str, np.ndarray], name: str, expected: Any) -> np.ndarray:
    """The array ``name``, which must have the shape and type of ``expected``.

    Raises:
      SnapshotError: the array is missing, or has another shape or type.
    """
    found = arrays.get(name)
    wanted = f"{np.dtype(expected.dtype)}{list(expected.shape)}"
    held = "nothing" if found is None else f"{found.dtype}{list(found.shape)}"
    if found is None or held != wanted:
        raise SnapshotError(f"the snapshot holds {held} as {name!r}, expected {wanted}")
    return found


def generator_state(generator: np.random.Generator) -> list[Any]:
    """The state of a ``numpy.random.default_rng`` generator as JSON; its 128-bit integers become strings."""
    state = generator.bit_generator.state
    return [f"{state['state']['state']:x}", f"{state['state']['inc']:x}", state["has_uint32"], state["uinteger"]]


def generator_from(state: Any) -> np.random.Generator:
    """The inverse of ``generator_state``.

    Raises:
      SnapshotError: ``state`` was not made by ``generator_state``.
    """
    generator = np.random.default_rng(0)
    try:
        position, increment, has_half, half = state
        inner = {"state": int(position, 16), "inc": int(increment, 16)}
        whole = {"bit_generator": "PCG64", "state": inner, "has_uint32": has_half, "uinteger": half}
        generator.bit_generator.state = whole
    except (TypeError, ValueError, OverflowError) as error:
        raise SnapshotError(f"the snapshot holds no state of a random generator: {error}") from error
    return generator
