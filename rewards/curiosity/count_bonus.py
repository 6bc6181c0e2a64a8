"""Counts as curiosity: a state pays by how seldom it was visited."""

from __future__ import annotations

import math
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from agents.base import DataSpec
from agents.networks import observation_features, space_leaves
from agents.observation_hash import observation_hash
from agents.state import NO_PART, fields
from agents.statistics import masked_mean
from envs.base import EnvironmentSpec, PyTree, Trajectory
from envs.choices import require_known
from rewards.base import RewardTransform
from rewards.moments import (
    LARGEST_TABLE,
    check_episode_counts,
    counts_carried_on,
    counts_within_episodes,
    entering_counts,
    episode_starts,
)

IDENTITIES = ("exact", "hash", "projection")


class CountBonusState(NamedTuple):
    """State of ``count_bonus``.

    Attributes:
      counts: visits, ``float32 [buckets]``, or ``[B, buckets]`` of the running episodes.
      entering: the counts with which the last unroll began, ``()`` unless they are the episodes'.
      projection: random directions ``[features, bits]``, ``()`` unless they make the buckets.
    """

    counts: jax.Array
    entering: PyTree
    projection: PyTree


def count_bonus(
    spec: EnvironmentSpec,
    *,
    data: DataSpec,
    identify: str = "exact",
    bits: int = 16,
    episodic: bool = False,
    weight: float = 1.0,
    channel: str = "curiosity",
) -> RewardTransform:
    """``r_t = weight / sqrt(n(o_{t+1}))`` with ``n`` the visits of a state, this one included.

    The bonus of Strehl and Littman (2008), on observations. All visits of an unroll count before it is paid for, so
    that equal observations of one unroll get an equal bonus; within an episode (``episodic``) visits are counted one
    after the other, the first observation included, and the counts restart with every episode. What followed the last
    step of an episode is its final observation, not the first of the next.

    Args:
      spec, data: the environment and the rollouts. Episodic counts are carried from unroll to unroll; replayed data
        begin with every segment.
      identify: which observations are one state. ``exact``: equal ones, in a table of all there can be; ``hash``: those
        whose words hash to one of ``2 ** bits`` buckets; ``projection``: those on the same side of ``bits`` random
        hyperplanes through the origin, so that similar ones share (SimHash: Tang et al., 2017, section 2.2).
      bits: see above.
      episodic: count within the episode instead of over the run.
      weight, channel: see above.

    Raises:
      ValueError: an unknown ``identify``; ``bits`` out of range; ``exact`` on an observation that is not made of
        bounded integers, or that can take too many values for a table; counts of too many episodes at a time.
      UnsupportedSpaceError: if a part of the observation cannot be encoded.
    """
    require_known("identify", identify, IDENTITIES, "of count_bonus")
    largest = int(math.log2(LARGEST_TABLE))
    if not 1 <= bits <= largest:
        raise ValueError(f"count_bonus: bits={bits}: expected a number from 1 to {largest}")
    space = spec.observation_space
    ranges = _ranges(space) if identify == "exact" else None
    buckets = 2**bits if ranges is None else math.prod(int(np.prod(size)) for _, size in ranges)
    if episodic:
        check_episode_counts("count_bonus", data.batch, buckets)

    def bucket(state, observation):
        """``int32 [T, B]``."""
        if ranges is not None:
            return _mixed_radix(ranges, observation)
        if identify == "hash":
            return (observation_hash(observation)[0] & jnp.uint32(buckets - 1)).astype(jnp.int32)
        sides = observation_features(space, observation) @ state.projection > 0
        return jnp.sum(jnp.where(sides, 2 ** jnp.arange(bits, dtype=jnp.int32), 0), axis=-1)

    def visits(state, trajectory: Trajectory):
        """Buckets and whether they count, ``[2, T, B]`` each: of an episode's first observation, and of every next."""
        stacked = jax.tree.map(lambda *x: jnp.concatenate(x), trajectory.observation, trajectory.next_observation)
        valid = trajectory.mask > 0
        both = bucket(state, stacked).reshape(2, *valid.shape)
        return both, jnp.stack([valid & episode_starts(trajectory), valid])

    def within_episode(state, trajectory):
        """Visits of ``o_{t+1}`` in its episode up to now, ``[T, B]``."""
        entering = entering_counts(state.entering, trajectory.mask.shape[1], data)
        both, valid = visits(state, trajectory)
        return counts_within_episodes(both, valid, episode_starts(trajectory), entering)

    def init_fn(key, **extra):
        del extra
        projection: PyTree = ()
        if identify == "projection":
            features = observation_features(space, _one(spec)).shape[-1]
            projection = jax.random.normal(key, (features, bits))
        if episodic:
            return CountBonusState(jnp.zeros((data.batch, buckets)), jnp.zeros((data.batch, buckets)), projection)
        return CountBonusState(jnp.zeros(buckets), (), projection)

    def apply_fn(state, trajectory, **extra):
        del extra
        if episodic:
            counts = within_episode(state, trajectory)
        else:
            counts = state.counts[bucket(state, trajectory.next_observation)]
        bonus = weight * jax.lax.rsqrt(jnp.maximum(counts, 1.0)) * trajectory.mask
        metrics = {"reward_mean": masked_mean(bonus, trajectory.mask)}
        return trajectory._replace(rewards=trajectory.rewards | {channel: bonus}), metrics

    def update_fn(state, trajectory, key, **extra):
        del key, extra
        both, valid = visits(state, trajectory)
        if not episodic:
            counts = state.counts.at[both].add(valid.astype(state.counts.dtype))
            return state._replace(counts=counts), {"visited": jnp.mean(counts > 0)}
        counts = counts_carried_on(state.counts, both, valid, episode_starts(trajectory))
        return state._replace(counts=counts, entering=state.counts), {"visited": jnp.mean(counts > 0)}

    # Counts of the whole run are learned; those of an episode follow its environment.
    remembered = fields("counts", "entering") if episodic else NO_PART
    return RewardTransform(init_fn, apply_fn, update_fn, remembered=remembered)


def _one(spec: EnvironmentSpec) -> PyTree:
    """One observation of zeros, ``[1, 1, ...]``."""
    return jax.tree.map(lambda leaf: jnp.zeros((1, 1, *leaf.shape), leaf.dtype), spec.observation_template())


Ranges = list[tuple[np.ndarray, np.ndarray]]


def _ranges(space: gymnasium.Space) -> Ranges:
    """Lowest value and number of values of every entry of every leaf of ``space``.

    Raises:
      ValueError: see ``count_bonus``.
    """
    spaces, ranges = gymnasium.spaces, []
    for _, leaf in space_leaves(space):
        if isinstance(leaf, spaces.Discrete):
            ranges.append((np.asarray(leaf.start), np.asarray(leaf.n)))
        elif isinstance(leaf, spaces.MultiDiscrete):
            ranges.append((np.asarray(leaf.start), np.asarray(leaf.nvec)))
        elif isinstance(leaf, spaces.MultiBinary):
            ranges.append((np.zeros(leaf.shape, np.int64), np.full(leaf.shape, 2)))
        elif np.issubdtype(leaf.dtype, np.integer) and leaf.is_bounded():
            ranges.append((leaf.low.astype(np.int64), leaf.high.astype(np.int64) - leaf.low.astype(np.int64) + 1))
        else:
            raise ValueError(
                f"count_bonus: identify='exact' counts bounded integers, the observation has {leaf}: "
                "expected identify='hash' or 'projection'"
            )
    size = sum(float(np.sum(np.log2(sizes.astype(np.float64)))) for _, sizes in ranges)
    if size > math.log2(LARGEST_TABLE):
        raise ValueError(
            f"count_bonus: identify='exact' would need a table of 2 ** {size:.1f} states for {space}: expected at most "
            f"2 ** {math.log2(LARGEST_TABLE):.0f}, or identify='hash'"
        )
    return ranges


def _mixed_radix(ranges: Ranges, observation: PyTree) -> jax.Array:
    """The number of every observation among all there can be, ``int32 [T, B]``."""
    number: jax.Array | int = 0
    for (low, sizes), leaf in zip(ranges, jax.tree.leaves(observation), strict=True):
        digits = leaf.astype(jnp.int32).reshape(*leaf.shape[:2], -1) - low.reshape(-1)
        places = np.concatenate([[1], np.cumprod(sizes.reshape(-1))]).astype(np.int64)
        number = number * int(places[-1]) + jnp.sum(digits * places[:-1].astype(np.int32), axis=-1)
    return jnp.asarray(number)
