"""Running statistics that reward transforms carry: moments of all that was seen, moments that forget, and counts within
episodes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from agents.base import DataSpec
from agents.statistics import masked_mean
from envs.base import Trajectory

# Counts that a transform may keep in all: 64 MiB.
LARGEST_TABLE = 2**24


class Moments(NamedTuple):
    """Running count ``[]``, mean and sum of squared deviations ``[...]`` of the values seen."""

    count: jax.Array
    mean: jax.Array
    squares: jax.Array

    @property
    def std(self) -> jax.Array:
        """Of the population: ``sqrt(squares / max(count, 1))``."""
        return jnp.sqrt(self.squares / jnp.maximum(self.count, 1.0))


def no_moments(shape: tuple[int, ...] = ()) -> Moments:
    """The moments of nothing."""
    return Moments(jnp.zeros(()), jnp.zeros(shape), jnp.zeros(shape))


def merge_moments(moments: Moments, values: jax.Array, mask: jax.Array) -> Moments:
    """``moments`` with the valid ones of ``values [T, B, ...]``, ``mask [T, B]`` (Chan, Golub and LeVeque, 1979)."""
    weight = mask.reshape(*mask.shape, *(1,) * (values.ndim - mask.ndim))
    count = jnp.sum(mask)
    mean = masked_mean(values, weight, (0, 1))
    squares = jnp.sum(weight * jnp.square(values - mean), (0, 1))
    total = moments.count + count
    delta = mean - moments.mean
    safe = jnp.maximum(total, 1.0)
    return Moments(
        total,
        moments.mean + delta * count / safe,
        moments.squares + squares + jnp.square(delta) * moments.count * count / safe,
    )


class Fading(NamedTuple):
    """Exponential moving averages ``[]`` of a batch's mean, mean square and mean over the deviation, and how many
    batches there were."""

    batches: jax.Array
    mean: jax.Array
    square: jax.Array
    relative: jax.Array


def no_fading() -> Fading:
    """The averages of nothing."""
    return Fading(*(jnp.zeros(()) for _ in Fading._fields))


def fading_deviation(fading: Fading, decay: float | jax.Array) -> jax.Array:
    """``sqrt(max(E[x^2] - E[x]^2, 0) + 1e-8)`` with the averages freed of their start at zero; ``[]``."""
    seen = jnp.maximum(1.0 - jnp.asarray(decay) ** fading.batches, 1e-8)
    return jnp.sqrt(jnp.maximum(fading.square / seen - jnp.square(fading.mean / seen), 0.0) + 1e-8)


def update_fading(fading: Fading, values: jax.Array, mask: jax.Array, decay: float | jax.Array) -> Fading:
    """``fading`` with a batch more: ``average <- decay average + (1 - decay) mean_m(x)``, likewise of ``x^2`` and of
    ``x / sigma`` with the new deviation ``sigma``. A batch without a valid step changes nothing."""

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
    """``max(x / sigma - mu, 0)`` with ``mu`` the running mean of ``x / sigma``: what surprises more than usual
    (Guo et al., 2022)."""
    seen = jnp.maximum(1.0 - jnp.asarray(decay) ** fading.batches, 1e-8)
    return jnp.maximum(values / fading_deviation(fading, decay) - fading.relative / seen, 0.0)


def discounted_sums(rewards: jax.Array, before: jax.Array, mask: jax.Array, discount: float | jax.Array) -> jax.Array:
    """``R_t = discount * R_{t-1} + r_t`` along time in each column, ``[T, B]``, from ``R_{-1} = before [B]``.

    It runs through the ends of episodes, as the intrinsic return does that is not episodic, and stands still where
    masked.
    """

    def step(sums, inputs):
        reward, valid = inputs
        sums = jnp.where(valid > 0, discount * sums + reward, sums)
        return sums, sums

    return jax.lax.scan(step, before, (rewards, mask), unroll=8)[1]


def episode_starts(trajectory: Trajectory) -> jax.Array:
    """Whether a row is the first of an episode, ``[T, B]`` bool; of a trajectory that does not say so, the rows after
    an end and the first."""
    if "episode_start" in trajectory.extras:
        return trajectory.extras["episode_start"]
    ends = trajectory.terminated | trajectory.truncated
    return jnp.concatenate([jnp.ones_like(ends[:1]), ends[:-1]])


def check_episode_counts(name: str, batch: int, buckets: int) -> None:
    """Refuses counts of every environment's episode that would fill the memory.

    Args:
      name: of the transform, for the message.
      batch: environments.
      buckets: counts of each.

    Raises:
      ValueError: more than ``LARGEST_TABLE`` in all.
    """
    if batch * buckets > LARGEST_TABLE:
        most = LARGEST_TABLE // batch
        raise ValueError(
            f"{name}: {buckets} counts for each of the {batch} environments: expected at most {LARGEST_TABLE} in all, "
            f"which is bits={most.bit_length() - 1}"
        )


def counts_within_episodes(buckets: jax.Array, counted: jax.Array, starts: jax.Array, entering: jax.Array) -> jax.Array:
    """How often the last thing of each row occurred in its episode up to now, itself included.

    Rows are compared each with each: memory is ``[K, T, T, B]``.

    Args:
      buckets: what each of ``K`` things of a row is counted as, ``int32 [K, T, B]``.
      counted: whether it counts, ``bool [K, T, B]``.
      starts: whether a row is the first of an episode, ``bool [T, B]``.
      entering: the counts of the episodes that were running before the first row, ``[B, buckets]``.

    Returns:
      ``float32 [T, B]``.
    """
    episode = jnp.cumsum(starts, axis=0)
    length, batch = episode.shape
    earlier = jnp.tri(length, dtype=bool)[:, :, None] & (episode[:, None] == episode[None])
    same = (buckets[-1][None, :, None] == buckets[:, None]) & counted[:, None] & earlier
    counts = jnp.sum(same, axis=(0, 2)).astype(jnp.float32)
    return counts + jnp.where(episode == 0, entering[jnp.arange(batch), buckets[-1]], 0.0)


def counts_carried_on(counts: jax.Array, buckets: jax.Array, counted: jax.Array, starts: jax.Array) -> jax.Array:
    """``counts [B, buckets]`` after an unroll, of the episodes that the next one goes on with; arguments as in
    ``counts_within_episodes``."""
    episode = jnp.cumsum(starts, axis=0)
    counts = jnp.where(jnp.any(starts, axis=0)[:, None], 0.0, counts)
    running = counted & (episode == episode[-1])

    def add(counts, buckets, weight):
        return counts.at[buckets].add(weight.astype(counts.dtype))

    return jax.vmap(add, (0, 2, 2))(counts, buckets, running)


def entering_counts(entering: jax.Array, batch: int, data: DataSpec) -> jax.Array:
    """``entering``, or zeros for a trajectory of ``batch`` environments that does not go on with those episodes: whole
    episodes and replayed data begin anew."""
    if data.kind == "unroll" and batch == data.batch:
        return entering
    return jnp.zeros((batch, entering.shape[-1]))
