"""The spaces that sagax supports, and helpers shared by the adapters of other libraries' environments."""

from __future__ import annotations

from collections.abc import Iterable

import gymnasium
import jax
import numpy as np
from gymnasium import spaces

from envs.base import (
    NARROW,
    Action,
    NonFiniteEnvironmentError,
    Observation,
    ObservationRangeError,
    PyTree,
    UnsupportedSpaceError,
)

_LEAVES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
# What to declare instead of a space whose values are not arrays of fixed shape.
_NEAREST = {
    "Text": "Box(0, 255, (max_length,), uint8) with the bytes of the text, padded with 0",
    "Sequence": "Box with room for the longest sequence, padded, and a Discrete for its length",
    "Graph": "Dict of Boxes with room for the largest graph: nodes, edges, and a mask of each",
    "OneOf": "Dict of a Discrete, which says which space it is, and of all the spaces",
}


def leaves(space: gymnasium.Space, path: str = "") -> list[tuple[str, gymnasium.Space]]:
    """The leaves of ``space``, each with its path, such as ``"['map'][0]"``; ``""`` if ``space`` itself is a leaf."""
    if isinstance(space, spaces.Dict):
        parts: Iterable = ((f"{path}[{key!r}]", part) for key, part in space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        parts = ((f"{path}[{index}]", part) for index, part in enumerate(space.spaces))
    else:
        return [(path, space)]
    return [leaf for part_path, part in parts for leaf in leaves(part, part_path)]


def validate_supported(space: gymnasium.Space, role: str) -> None:
    """Refuses a space with a part whose values are not arrays of fixed shape.

    Args:
      space: the space of one environment.
      role: ``"observation"`` or ``"action"``, for the message.

    Raises:
      UnsupportedSpaceError: the space has such a part; the message names it and the supported spaces.
    """
    for path, leaf in leaves(space):
        if not isinstance(leaf, _LEAVES):
            name = type(leaf).__name__
            hint = f"; the nearest: {_NEAREST[name]}" if name in _NEAREST else ""
            raise UnsupportedSpaceError(
                f"{role} space{path} is {name}: supported are "
                f"{', '.join(kind.__name__ for kind in _LEAVES)}, and Dict and Tuple of these{hint}"
            )


def as_batch(space: gymnasium.Space, action: Action, num_envs: int) -> Action:
    """``action`` as numpy arrays ``[B, ...]`` with the types of ``space``, the action space of one environment.

    Raises:
      ValueError: an array has the wrong shape.
    """
    if isinstance(space, spaces.Dict):
        return {key: as_batch(part, action[key], num_envs) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(as_batch(part, value, num_envs) for part, value in zip(space.spaces, action, strict=True))
    array, shape = np.asarray(action, dtype=space.dtype), (num_envs, *(space.shape or ()))
    if array.shape != shape:
        raise ValueError(f"action has shape {array.shape}, expected {shape} for {space}")
    return array


def from_indices(space: gymnasium.Space, action: Action) -> Action:
    """Converts an action whose discrete parts count from 0, as a policy samples it, to the numbering of ``space``.

    ``Discrete(n, start=s)`` and ``MultiDiscrete(..., start=s)`` number their actions ``s, ..., s + n - 1``; a
    categorical distribution numbers them ``0, ..., n - 1``. All other parts are returned unchanged. The arrays may
    have any leading axes.
    """
    if isinstance(space, spaces.Dict):
        return {key: from_indices(part, action[key]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(from_indices(part, value) for part, value in zip(space.spaces, action, strict=True))
    if isinstance(space, spaces.Discrete):
        return action + space.start if space.start else action
    if isinstance(space, spaces.MultiDiscrete):
        return action + space.start if space.start.any() else action
    return action


def _all_finite(tree: PyTree) -> bool:
    if isinstance(tree, np.ndarray):
        return tree.dtype.kind != "f" or bool(np.isfinite(tree).all())
    return all(map(_all_finite, tree.values() if isinstance(tree, dict) else tree))


def check_finite(name: str, step: int, **parts: PyTree) -> None:
    """Refuses NaN and infinity in a batch that a host is about to return; a check takes microseconds.

    Args:
      name: the environment, for the message.
      step: number of steps since the host's reset, for the message.
      **parts: pytrees of numpy arrays ``[B, ...]``, by the name to use in the message.

    Raises:
      NonFiniteEnvironmentError: a number is not finite; the message names the environment's index, the step, the part
        and the value.
    """
    for part, tree in parts.items():
        if _all_finite(tree):
            continue
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
                position = tuple(np.argwhere(~np.isfinite(leaf))[0])
                inner = f"[{', '.join(map(str, position[1:]))}]" if len(position) > 1 else ""
                raise NonFiniteEnvironmentError(
                    f"{name}: environment {position[0]}, step {step}: {part}{jax.tree_util.keystr(path)}{inner} is "
                    f"{leaf[position]}, expected a finite number"
                )


def _limits(space: gymnasium.Space) -> tuple[np.ndarray, np.ndarray, str] | None:
    """The least and the largest value that an observation of a leaf space may have, and why; ``None`` for no limits."""
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start), np.asarray(space.start + space.n - 1), f"the values of {space}"
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1, f"the values of {space}"
    if isinstance(space, spaces.MultiBinary):
        return np.asarray(0), np.asarray(1), f"the values of {space}"
    narrow = NARROW.get(np.dtype(space.dtype).name)
    if narrow is None:
        return None
    if narrow.kind == "f":
        largest = float(np.finfo(np.float32).max)
        return np.asarray(-largest), np.asarray(largest), f"what {narrow.name} holds"
    integers = np.iinfo(narrow.name)
    return np.asarray(integers.min), np.asarray(integers.max), f"what {narrow.name} holds"


def must_be_narrowed(space: gymnasium.Space) -> bool:
    """Whether ``narrowed`` has anything to do for observations of ``space``."""
    return any(_limits(leaf) is not None for _, leaf in leaves(space))


def narrowed(name: str, step: int, space: gymnasium.Space, observation: Observation, path: str = "") -> Observation:
    """Converts a batch of observations to 32 bits, after checking that every value is in range.

    Without the check jax would silently wrap a larger integer around, and a network would see only zeros for a discrete
    value outside of its space.

    Args:
      name: the environment, for the message.
      step: number of steps since the host's reset, for the message.
      space: the observation space of one environment.
      observation: numpy arrays ``[B, ...]``.
      path: where ``observation`` is within the whole observation, for the message.

    Raises:
      ObservationRangeError: a value is out of range; the message names the environment's index, the step, the part of
        the observation and the value.
    """
    if isinstance(space, spaces.Dict):
        parts = space.spaces.items()
        return {key: narrowed(name, step, part, observation[key], f"{path}[{key!r}]") for key, part in parts}
    if isinstance(space, spaces.Tuple):
        pairs = enumerate(zip(space.spaces, observation, strict=True))
        return tuple(narrowed(name, step, part, value, f"{path}[{index}]") for index, (part, value) in pairs)
    limits = _limits(space)
    if limits is None:
        return observation
    low, high, meaning = limits
    # Infinity has the same meaning in 32 and 64 bits; ``check_finite`` decides whether it is refused.
    outside = ((observation < low) | (observation > high)) & ~np.isinf(observation)
    if outside.any():
        position = tuple(np.argwhere(outside)[0])
        inner = f"[{', '.join(map(str, position[1:]))}]" if len(position) > 1 else ""
        smallest, largest = (np.broadcast_to(limit, outside.shape)[position] for limit in (low, high))
        raise ObservationRangeError(
            f"{name}: environment {position[0]}, step {step}: observation{path}{inner} is {observation[position]}, "
            f"expected {smallest} to {largest}, {meaning}; correct the observation space, or show another number by "
            "a wrapper such as gymnasium.wrappers.TransformObservation"
        )
    return observation.astype(NARROW.get(observation.dtype.name, observation.dtype), copy=False)


def environment_seeds(seed: int | Iterable[int], num_envs: int) -> list[int]:
    """One seed per environment: ``seed + i`` for an integer; the seeds themselves for a sequence.

    Raises:
      ValueError: a sequence does not have ``num_envs`` entries.
    """
    if isinstance(seed, int | np.integer):
        return [int(seed) + index for index in range(num_envs)]
    seeds = [int(each) for each in seed]
    if len(seeds) != num_envs:
        raise ValueError(f"reset got {len(seeds)} seeds, expected {num_envs}: one per environment")
    return seeds
