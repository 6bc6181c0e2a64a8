"""Observations normalised by running moments, which a network keeps among its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from agents.moments import SMALLEST_STD, Moments, merge_moments, no_moments
from agents.networks.encoders import space_leaves
from envs.base import PyTree

# Where a network's parameters hold the moments.
MOMENTS = "observation_moments"


class ObservationNormaliser(NamedTuple):
    """What normalises observations of one space, as pure functions of moments.

    Attributes:
      space: of what is normalised: a Tuple of the leaves.
      init: ``() -> moments``, one for every leaf that is normalised, of nothing seen.
      merge: ``(moments, observation [T, B, ...], mask [T, B]) -> moments`` with the valid steps added.
      normalise: ``(moments, observation [T, B, ...]) -> leaves``, a tuple in the order of ``jax.tree.leaves``.
    """

    space: gymnasium.spaces.Tuple
    init: Callable[[], tuple[Moments, ...]]
    merge: Callable[[tuple[Moments, ...], PyTree, jax.Array], tuple[Moments, ...]]
    normalise: Callable[[tuple[Moments, ...], PyTree], tuple[jax.Array, ...]]


def observation_normaliser(
    space: gymnasium.Space, *, limit: float | jax.Array, images: bool = False
) -> ObservationNormaliser:
    """Normalises every entry of a Box by its running mean and standard deviation.

        x <- clip((x - mean) / max(std, 1e-4), -limit, limit)

    Before the first step was seen, mean and standard deviation are 0 and 1. An entry that never changes is 0.

    Args:
      space: of the observations.
      limit: in standard deviations.
      images: whether three-dimensional Boxes are normalised, too; otherwise they pass as they are, as all leaves do
        that are not Boxes.

    Raises:
      UnsupportedSpaceError: a space that cannot be encoded.
    """
    leaves = [leaf for _, leaf in space_leaves(space)]
    boxes = [isinstance(leaf, gymnasium.spaces.Box) and (images or len(leaf.shape) != 3) for leaf in leaves]
    # Floats without bounds: a network would divide a normalised integer by its upper bound once more.
    normalised = [
        gymnasium.spaces.Box(-np.inf, np.inf, leaf.shape, np.float32) if box else leaf
        for leaf, box in zip(leaves, boxes, strict=True)
    ]

    def init_fn():
        return tuple(no_moments(leaf.shape) for leaf, box in zip(leaves, boxes, strict=True) if box)

    def merge(moments, observation, mask):
        seen = [leaf for leaf, box in zip(jax.tree.leaves(observation), boxes, strict=True) if box]
        return tuple(merge_moments(own, x.astype(jnp.float32), mask) for own, x in zip(moments, seen, strict=True))

    def normalise(moments, observation):
        remaining = iter(moments)
        inputs = []
        for leaf, box in zip(jax.tree.leaves(observation), boxes, strict=True):
            if box:
                own = next(remaining)
                std = jnp.where(own.count > 0, jnp.maximum(own.std, SMALLEST_STD), 1.0)
                leaf = jnp.clip((leaf.astype(jnp.float32) - own.mean) / std, -limit, limit)
            inputs.append(leaf)
        return tuple(inputs)

    return ObservationNormaliser(gymnasium.spaces.Tuple(normalised), init_fn, merge, normalise)


class Normalised(NamedTuple):
    """``init``, ``apply``, ``observe`` and ``learned`` of a network that normalises its observations; see
    ``agents.networks.base.Network``."""

    init: Callable[[jax.Array], PyTree]
    apply: Callable[..., PyTree]
    observe: Callable[[PyTree, PyTree, jax.Array], PyTree]
    learned: Callable[[PyTree], PyTree]


def with_normaliser(
    normaliser: ObservationNormaliser, init: Callable[[jax.Array], PyTree], apply: Callable[..., PyTree]
) -> Normalised:
    """A network that sees normalised observations.

    Its parameters are those of the network, and under ``MOMENTS`` the moments, through which no gradient flows: they
    change by ``observe`` alone. They are copied wherever parameters are, so that a target network, a reference policy
    and a checkpoint each normalise as they did when they were made.

    Args:
      normaliser: from ``observation_normaliser``.
      init: ``(key) -> params``, a dictionary.
      apply: ``(params, leaves, ...)``, called with the normalised leaves of the observation.
    """

    def init_fn(key):
        return init(key) | {MOMENTS: normaliser.init()}

    def apply_fn(params, observation, *others):
        weights = {name: part for name, part in params.items() if name != MOMENTS}
        moments = jax.lax.stop_gradient(params[MOMENTS])
        return apply(weights, normaliser.normalise(moments, observation), *others)

    def observe(params, observation, mask):
        return params | {MOMENTS: normaliser.merge(params[MOMENTS], observation, mask)}

    def learned(params):
        return {name: jax.tree.map(lambda _, name=name: name != MOMENTS, part) for name, part in params.items()}

    return Normalised(init_fn, apply_fn, observe, learned)
