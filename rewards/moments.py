"""Running statistics of reward transforms: exponential averages, discounted sums, counts within episodes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from agents.base import DataSpec
from agents.statistics import masked_mean
from envs.base import Trajectory

# The largest number of counts that a transform may keep: 64 MiB of float32.
LARGEST_TABLE = 2**24


class Fading(NamedTuple):
    """Exponential moving averages over batches, ``[]`` each.

    Attributes:
      batches: how many batches there were.
      mean: of the batch's mean.
      square: of the batch's mean square.
      relative: of the batch's mean divided by the standard deviation at the time.
    """

    batches: jax.Array
    mean: jax.Array
    square: jax.Array
    relative: jax.Array


def no_fading() -> Fading:
    """Averages before the first batch."""
    return Fading(*(jnp.zeros(()) for _ in Fading._fields))


def fading_deviation(fading: Fading, decay: float | jax.Array) -> jax.Array:
    """The running standard deviation ``sqrt(max(E[x^2] - E[x]^2, 0) + 1e-8)``, ``[]``.

    ``E`` are the averages divided by ``1 - decay ** batches``, which corrects their start at 0.
    """
    seen = jnp.maximum(1.0 - jnp.asarray(decay) ** fading.batches, 1e-8)
    return jnp.sqrt(jnp.maximum(fading.square / seen - jnp.square(fading.mean / seen), 0.0) + 1e-8)


def update_fading(fading: Fading, values: jax.Array, mask: jax.Array, decay: float | jax.Array) -> Fading:
    """Adds a batch: ``average <- decay * average + (1 - decay) * mean(x)`` over the valid steps.

    The same holds for ``x^2`` and for ``x / sigma`` with the updated standard deviation ``sigma``. A batch without a
    valid step changes nothing.

    Args:
      fading: before the batch.
      values, mask: ``[T, B]``.
      decay: in [0, 1).
    """

    def average(old, new):
        return decay * old + (1 - decay) * new

    mean = masked_mean(values, mask)
    now = fading._replace(
        batches=fading.batches + 1,
        mean=average(fading.mean, mean),
        square=average(fading.square, masked_mean(jnp.square(values), mask)),
    )
    now = now._replace(relative=average(fading.relative, mean / fading_deviation(now, decay)))
    return jax.tree.map(lambda new, old: jnp.where(jnp.any(mask > 0), new, old), now, fading)


def prioritised(fading: Fading, values: jax.Array, decay: float | jax.Array) -> jax.Array:
    """``max(x / sigma - mu, 0)`` with the running mean ``mu`` of ``x / sigma`` (Guo et al., 2022).

    Only values above their running mean stay positive. ``values`` may have any shape.
    """
    seen = jnp.maximum(1.0 - jnp.asarray(decay) ** fading.batches, 1e-8)
    return jnp.maximum(values / fading_deviation(fading, decay) - fading.relative / seen, 0.0)


def discounted_sums(
    rewards: jax.Array,
    before: jax.Array,
    mask: jax.Array,
    discount: float | jax.Array,
    starts: jax.Array | None = None,
) -> jax.Array:
    """``R_t = discount * R_{t-1} + r_t`` along time in each column, ``[T, B]``, from ``R_{-1} = before [B]``.

    The sum does not change at masked steps. Where ``starts`` is given, ``bool [T, B]``, it begins anew with the first
    step of every episode; otherwise it continues through the ends of episodes, as the return of a non-episodic
    intrinsic reward does.
    """

    def step(sums, inputs):
        reward, valid, start = inputs
        sums = jnp.where(valid > 0, discount * jnp.where(start, 0.0, sums) + reward, sums)
        return sums, sums

    starts = jnp.zeros(rewards.shape, bool) if starts is None else starts
    return jax.lax.scan(step, before, (rewards, mask, starts), unroll=8)[1]


def episode_starts(trajectory: Trajectory) -> jax.Array:
    """Whether a row is the first of an episode, ``bool [T, B]``.

    A trajectory without ``extras["episode_start"]`` starts an episode at its first row and after every end.
    """
    if "episode_start" in trajectory.extras:
        return trajectory.extras["episode_start"]
    ends = trajectory.terminated | trajectory.truncated
    return jnp.concatenate([jnp.ones_like(ends[:1]), ends[:-1]])


def check_episode_counts(name: str, batch: int, buckets: int) -> None:
    """Refuses tables of episodic counts that would fill the memory.

    Args:
      name: the transform's, for the message.
      batch: the number of environments.
      buckets: the number of counts of each environment.

    Raises:
      ValueError: more than ``LARGEST_TABLE`` counts in total.
    """
    if batch * buckets > LARGEST_TABLE:
        most = LARGEST_TABLE // batch
        raise ValueError(
            f"{name}: {buckets} counts for each of the {batch} environments: expected at most {LARGEST_TABLE} in "
            f"total, which is bits={most.bit_length() - 1}"
        )


def counts_within_episodes(buckets: jax.Array, counted: jax.Array, starts: jax.Array, entering: jax.Array) -> jax.Array:
    """How often the last of the ``K`` items of each row occurred in its episode so far, itself included.

    Every row is compared with every other, which takes memory for ``[K, T, T, B]`` bools.

    Args:
      buckets: the bucket in which each of the ``K`` items of a row is counted, ``int32 [K, T, B]``.
      counted: whether the item counts, ``bool [K, T, B]``.
      starts: whether a row is the first of an episode, ``bool [T, B]``.
      entering: the counts of the episodes that were running before the first row, ``[B, buckets]``.

    Returns:
      The counts, ``float32 [T, B]``.
    """
    episode = jnp.cumsum(starts, axis=0)
    length, batch = episode.shape
    earlier = jnp.tri(length, dtype=bool)[:, :, None] & (episode[:, None] == episode[None])
    same = (buckets[-1][None, :, None] == buckets[:, None]) & counted[:, None] & earlier
    counts = jnp.sum(same, axis=(0, 2)).astype(jnp.float32)
    return counts + jnp.where(episode == 0, entering[jnp.arange(batch), buckets[-1]], 0.0)


def counts_carried_on(counts: jax.Array, buckets: jax.Array, counted: jax.Array, starts: jax.Array) -> jax.Array:
    """The counts ``[B, buckets]`` of the episodes that are running after an unroll.

    ``counts`` are those before the unroll; the other arguments are as in ``counts_within_episodes``.
    """
    episode = jnp.cumsum(starts, axis=0)
    counts = jnp.where(jnp.any(starts, axis=0)[:, None], 0.0, counts)
    running = counted & (episode == episode[-1])

    def add(counts, buckets, weight):
        return counts.at[buckets].add(weight.astype(counts.dtype))

    return jax.vmap(add, (0, 2, 2))(counts, buckets, running)


def entering_counts(entering: jax.Array, batch: int, data: DataSpec) -> jax.Array:
    """The counts with which a trajectory of ``batch`` environments starts, ``[B, buckets]``.

    They are ``entering`` where the trajectory continues the environments of the last unroll, and zeros for whole
    episodes and replayed data.
    """
    if data.kind == "unroll" and batch == data.batch:
        return entering
    return jnp.zeros((batch, entering.shape[-1]))
