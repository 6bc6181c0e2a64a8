"""Count-based curiosity: the intrinsic reward falls with the number of visits of a state."""

from __future__ import annotations

import math
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from agents.base import DataSpec
from agents.networks.encoders import observation_features, space_leaves
from agents.observation_hash import observation_hash
from agents.state import NO_PART, fields
from agents.statistics import masked_mean
from envs.base import EnvironmentSpec, PyTree, Trajectory
from envs.choices import require_known
from rewards.base import RewardTransform, write_channel
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
      counts: visits over the run, ``float32 [buckets]``; with ``episodic`` those of each environment's running episode,
        ``[B, buckets]``.
      entering: with ``episodic``, the counts at the start of the last unroll, ``[B, buckets]``; ``()`` otherwise.
      projection: with ``identify="projection"``, random directions ``[features, bits]``; ``()`` otherwise.
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
    """Pays for observations that were seldom visited, by the bonus of Strehl and Littman (2008).

        r_t = weight / sqrt(n(o_{t+1}))

    ``n`` counts the visits of an observation, this one included. Over the run, all visits of an unroll are counted
    before any of them is paid for, so that equal observations of one unroll get an equal bonus. With ``episodic``,
    visits are counted one after the other, starting with the episode's first observation, and the counts begin anew
    with every episode. The observation after the last step of an episode is its final one, not the first of the next.

    Use it where observations repeat exactly or can be grouped by a hash; where almost every observation is new, use
    ``rnd`` or ``byol_explore``.

    Args:
      spec: the environment.
      data: the rollouts. Episodic counts are carried from one unroll to the next; in replayed data they begin with
        every segment.
      identify: which observations count as one state. ``exact``: equal ones, in a table of all possible observations;
        ``hash``: those whose hashes fall into the same of ``2 ** bits`` buckets; ``projection``: those on the same
        side of ``bits`` random hyperplanes through the origin, so that similar observations share a count (SimHash:
        Tang et al., 2017, section 2.2).
      bits: see ``identify``.
      episodic: count within the episode instead of over the run.
      weight: the reward of a first visit.
      channel: the channel that is written.

    Raises:
      ValueError: an unknown ``identify``; ``bits`` out of range; ``exact`` on an observation that does not consist of
        bounded integers or has too many values for a table; episodic counts that need too much memory.
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
        """Buckets and whether they count, ``[2, T, B]`` each: of the row's observation, which counts where it is the
        first of an episode, and of its next observation."""
        stacked = jax.tree.map(lambda *x: jnp.concatenate(x), trajectory.observation, trajectory.next_observation)
        valid = trajectory.mask > 0
        both = bucket(state, stacked).reshape(2, *valid.shape)
        return both, jnp.stack([valid & episode_starts(trajectory), valid])

    def within_episode(state, trajectory):
        """Visits of ``o_{t+1}`` in its episode so far, ``[T, B]``."""
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
        return write_channel(trajectory, channel, bonus), metrics

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
    """The lowest value and the number of values of every entry of every leaf of ``space``.

    Raises:
      ValueError: a leaf does not consist of bounded integers, or the table would be too large.
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
            # As integers of Python: from the smallest of 64 bits to the largest there are more than 64 bits count.
            ranges.append((leaf.low.astype(np.int64), leaf.high.astype(object) - leaf.low.astype(object) + 1))
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
    return [(low, sizes.astype(np.int64)) for low, sizes in ranges]


def _mixed_radix(ranges: Ranges, observation: PyTree) -> jax.Array:
    """The index of every observation among all possible ones, ``int32 [T, B]``."""
    number: jax.Array | int = 0
    for (low, sizes), leaf in zip(ranges, jax.tree.leaves(observation), strict=True):
        digits = leaf.astype(jnp.int32).reshape(*leaf.shape[:2], -1) - low.reshape(-1)
        places = np.concatenate([[1], np.cumprod(sizes.reshape(-1))]).astype(np.int64)
        number = number * int(places[-1]) + jnp.sum(digits * places[:-1].astype(np.int32), axis=-1)
    return jnp.asarray(number)
