"""Running moments: the mean and the standard deviation of everything seen so far, merged batch by batch."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from agents.statistics import masked_mean

# What is divided by a standard deviation is divided by at least this much.
SMALLEST_STD = 1e-4


class Moments(NamedTuple):
    """Moments of the values seen so far.

    Attributes:
      count: how many values, ``float32 []``.
      mean: their mean, ``[...]``.
      squares: their sum of squared deviations from the mean, ``[...]``.
    """

    count: jax.Array
    mean: jax.Array
    squares: jax.Array

    @property
    def std(self) -> jax.Array:
        """The standard deviation of the population, ``sqrt(squares / max(count, 1))``."""
        return jnp.sqrt(self.squares / jnp.maximum(self.count, 1.0))


def no_moments(shape: tuple[int, ...] = ()) -> Moments:
    """Moments before any value was seen, for values of ``shape``."""
    return Moments(jnp.zeros(()), jnp.zeros(shape), jnp.zeros(shape))


def merge_moments(moments: Moments, values: jax.Array, mask: jax.Array) -> Moments:
    """Adds the valid values of a batch to ``moments`` (Chan, Golub and LeVeque, 1979).

    Args:
      moments: before the batch.
      values: ``[T, B, ...]``.
      mask: which steps are valid, ``[T, B]``.
    """
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
