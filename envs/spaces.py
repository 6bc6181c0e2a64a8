"""Spaces that sagax can take, and small helpers that the adapters of foreign environments share."""

from __future__ import annotations

from collections.abc import Iterable

import gymnasium
import jax
import numpy as np
from gymnasium import spaces

from envs.base import Action, NonFiniteEnvironmentError, PyTree, UnsupportedSpaceError

_LEAVES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def leaves(space: gymnasium.Space, path: str = "") -> list[tuple[str, gymnasium.Space]]:
    """The spaces without parts in ``space``, each with its path, such as ``"['map'][0]"``; ``""`` is the root."""
    if isinstance(space, spaces.Dict):
        parts: Iterable = ((f"{path}[{key!r}]", part) for key, part in space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        parts = ((f"{path}[{index}]", part) for index, part in enumerate(space.spaces))
    else:
        return [(path, space)]
    return [leaf for part_path, part in parts for leaf in leaves(part, part_path)]


def validate_supported(space: gymnasium.Space, role: str) -> None:
    """Refuses a space that has a part which is not an array of fixed shape.

    Args:
      space: the space of one environment.
      role: what it is, for the message: ``"observation"`` or ``"action"``.

    Raises:
      UnsupportedSpaceError: names the part and what is supported.
    """
    for path, leaf in leaves(space):
        if not isinstance(leaf, _LEAVES):
            raise UnsupportedSpaceError(
                f"{role} space{path} is {type(leaf).__name__}: supported are "
                f"{', '.join(kind.__name__ for kind in _LEAVES)}, and Dict and Tuple of these"
            )


def as_batch(space: gymnasium.Space, action: Action, num_envs: int) -> Action:
    """``action`` as numpy arrays ``[B, ...]`` of the types of ``space``, the action space of one environment.

    Raises:
      ValueError: an array of another shape.
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
    """An action whose discrete parts count from 0, as a policy samples it, in the numbering of ``space``.

    ``Discrete(n, start=s)`` and ``MultiDiscrete(..., start=s)`` name their actions ``s, ..., s + n - 1``; a
    categorical distribution names them ``0, ..., n - 1``. All other parts pass through. Leading axes are free.
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
    """Refuses NaN and infinity in a batch that a host is about to return; costs microseconds when all is well.

    Args:
      name: the environment, for the message.
      step: steps of the host since its reset, for the message.
      **parts: pytrees of numpy arrays ``[B, ...]`` by the name that the message gives them.

    Raises:
      NonFiniteEnvironmentError: names the environment's index, the step, the part and the value.
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


def environment_seeds(seed: int | Iterable[int], num_envs: int) -> list[int]:
    """One seed per environment: ``seed + i`` from an integer; a sequence is checked and passes through.

    Raises:
      ValueError: if a sequence has not ``num_envs`` entries.
    """
    if isinstance(seed, int | np.integer):
        return [int(seed) + index for index in range(num_envs)]
    seeds = [int(each) for each in seed]
    if len(seeds) != num_envs:
        raise ValueError(f"reset got {len(seeds)} seeds, expected {num_envs}: one per environment")
    return seeds
