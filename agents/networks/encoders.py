"""Observations and actions of any space as arrays of floats."""

from __future__ import annotations

import math

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from envs.base import PyTree, UnsupportedSpaceError
from envs.rollout import bounded_action
from envs.spaces import from_indices

# An integer bound of at least this size says what the type can hold, not what the environment shows.
_NO_BOUND = 2.0**30


def _scale(space: gymnasium.spaces.Box) -> np.ndarray:
    """What each component of an integer Box is divided by: ``max(high, 1)``, or 1 where there is no real bound."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    bounded = np.maximum(np.abs(low), np.abs(high)) < _NO_BOUND
    return np.where(bounded, np.maximum(high, 1.0), 1.0).astype(np.float32)


def _is_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an image is ``[C, H, W]``: fewer than half as many entries on the first axis as on either other one."""
    return 2 * shape[0] < min(shape[1:])


def encode_leaf(space: gymnasium.Space, x: jax.Array) -> jax.Array:
    """One leaf as floats: ``[T, B, features]``, or ``[T, B, H, W, C]`` for an image.

    Components of an integer Box are divided by their upper bound, except where a bound is that of the type (2^30 or
    more in magnitude): such values pass as they are. Images ``[C, H, W]`` become ``[H, W, C]``.
    """
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Discrete):
        return jax.nn.one_hot(x - int(space.start), int(space.n), dtype=jnp.float32)
    if isinstance(space, spaces.MultiDiscrete):
        parts = [
            jax.nn.one_hot(x[..., i] - int(space.start[i]), int(n), dtype=jnp.float32) for i, n in enumerate(space.nvec)
        ]
        return jnp.concatenate(parts, axis=-1)
    if isinstance(space, spaces.MultiBinary):
        return x.astype(jnp.float32).reshape(*x.shape[:2], -1)
    x = x.astype(jnp.float32)
    if np.issubdtype(space.dtype, np.integer):
        scale = _scale(space)
        # XLA neither drops a division by an array of ones nor stores an array of one number as that number.
        distinct = np.unique(scale)
        if distinct.tolist() != [1.0]:
            x = x / (distinct[0] if distinct.size == 1 else scale)
    if len(space.shape) != 3:
        return x.reshape(*x.shape[:2], -1)
    return jnp.moveaxis(x, 2, -1) if _is_channels_first(space.shape) else x


def space_leaves(space: gymnasium.Space) -> list[tuple[tuple, gymnasium.Space]]:
    """``(path, leaf space)`` of an observation space, in the order of ``jax.tree.leaves``.

    Raises:
      UnsupportedSpaceError: for a leaf that is not Box, Discrete, MultiDiscrete or MultiBinary.
    """
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Dict):
        return [((name, *p), leaf) for name in sorted(space.spaces) for p, leaf in space_leaves(space.spaces[name])]
    if isinstance(space, spaces.Tuple):
        return [((i, *p), leaf) for i, part in enumerate(space.spaces) for p, leaf in space_leaves(part)]
    flat_choices = isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1
    if flat_choices or isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiBinary)):
        return [((), space)]
    raise UnsupportedSpaceError(
        f"no encoder for the observation space {space}: expected Box, Discrete, one-dimensional MultiDiscrete, "
        "MultiBinary, or a Dict or Tuple of these"
    )


def encodable_leaves(observation_space: gymnasium.Space) -> tuple[gymnasium.Space, ...]:
    """The leaf spaces of an observation space, in the order of ``jax.tree.leaves``, at least one.

    Raises:
      UnsupportedSpaceError: if a leaf of the space cannot be encoded, or there is none.
    """
    leaves = tuple(leaf for _, leaf in space_leaves(observation_space))
    if not leaves:
        raise UnsupportedSpaceError(f"no encoder for the observation space {observation_space}: it has no parts")
    return leaves


def blank(leaves: tuple[gymnasium.Space, ...]) -> list[jax.Array]:
    """One observation of zeros, ``[1, 1, ...]``, from which the shapes of the parameters follow."""
    return [jnp.zeros((1, 1, *leaf.shape), jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in leaves]


def observation_features(space: gymnasium.Space, observation: PyTree) -> jax.Array:
    """Observations ``[T, B, ...]`` as floats ``[T, B, features]``, encoded as for a network but with images flattened.

    Raises:
      UnsupportedSpaceError: if a leaf of the space cannot be encoded.
    """
    leaves = zip(encodable_leaves(space), jax.tree.leaves(observation), strict=True)
    parts = [encode_leaf(leaf, x) for leaf, x in leaves]
    return jnp.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=-1)


def action_features(space: gymnasium.Space, action: PyTree) -> jax.Array:
    """Actions ``[T, B, ...]`` as floats ``[T, B, features]``, after what the environment does to them.

    Discrete parts are one-hot, Box parts are clipped to their bounds and flattened, and the parts of a Dict or Tuple
    are joined.

    Raises:
      UnsupportedSpaceError: for a part that is not Box, Discrete, MultiDiscrete or MultiBinary.
    """
    return observation_features(space, from_indices(space, bounded_action(space, action)))


def feature_size(space: gymnasium.Space) -> int:
    """The number of features that ``observation_features`` or ``action_features`` makes of ``space``."""

    def size(leaf):
        if isinstance(leaf, gymnasium.spaces.Discrete):
            return int(leaf.n)
        if isinstance(leaf, gymnasium.spaces.MultiDiscrete):
            return int(np.sum(leaf.nvec))
        return math.prod(leaf.shape)

    return sum(map(size, encodable_leaves(space)))
