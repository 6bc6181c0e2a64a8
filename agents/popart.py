"""PopArt: value heads that predict returns in units of their running standard deviation.

A head predicts ``n(s)``, and the value of a state is

    v(s) = std n(s) + mean,

where ``mean`` and ``std`` are running statistics of the head's targets. The head learns from the error
``n(s) - (target - mean) / std``, which is of order 1 whatever the size of the rewards. The two halves of the name:

* adaptively rescaling targets: ``add_targets``;
* preserving outputs precisely: when ``mean`` and ``std`` become ``mean'`` and ``std'``, the weights ``w`` and the bias
  ``b`` of the head's last layer become

      w' = std / std' w,      b' = (std b + mean - mean') / std',

  so that ``std' n' + mean' = std n + mean`` for every state: ``change_of_units``.

van Hasselt et al., 2016, "Learning values across many orders of magnitude", sections 2 and 2.1; in actor-critic agents:
Hessel et al., 2019, "Multi-task deep reinforcement learning with PopArt".
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from agents.moments import SMALLEST_STD
from agents.statistics import masked_mean

# A standard deviation is at most this much (Hessel et al., 2019), and at least ``SMALLEST_STD``.
LARGEST_STD = 1e6


class TargetStatistics(NamedTuple):
    """Exponentially weighted statistics of the targets of one value head.

    Attributes:
      weight: the sum of the weights of all targets so far, ``float32 []``, from 0 to 1.
      mean: of the targets, in units of the reward, ``[]``.
      variance: of the targets, ``[]``. It is the second moment less the squared mean; that difference would lose its
        digits to rounding where the mean is large.
    """

    weight: jax.Array
    mean: jax.Array
    variance: jax.Array

    @property
    def std(self) -> jax.Array:
        """The standard deviation, from 1e-4 to 1e6, ``[]``."""
        return jnp.clip(jnp.sqrt(self.variance), SMALLEST_STD, LARGEST_STD)

    def normalise(self, values: jax.Array) -> jax.Array:
        """``(values - mean) / std``, of any shape."""
        return (values - self.mean) / self.std

    def restore(self, normalised: jax.Array) -> jax.Array:
        """``std normalised + mean``, of any shape."""
        return self.std * normalised + self.mean


def no_targets() -> TargetStatistics:
    """Statistics before any target was seen: mean 0, standard deviation 1."""
    return TargetStatistics(jnp.zeros(()), jnp.zeros(()), jnp.ones(()))


def add_targets(
    statistics: TargetStatistics, targets: jax.Array, mask: jax.Array, step_size: float | jax.Array
) -> TargetStatistics:
    """Moves the moments of ``statistics`` towards those of a batch of ``N`` valid targets.

        w = 1 - (1 - step_size)^N,      weight' = weight + (1 - weight) w,      rate = w / weight'
        mean' = mean + rate (E[target] - mean)
        E'[target^2] = E_old[target^2] + rate (E[target^2] - E_old[target^2]),  as a variance

    Every target counts as one step of size ``step_size``, as in the papers, so that the memory is ``1 / step_size``
    targets whatever the size of a batch; the targets of one batch all count the same, in no order. The rate corrects
    the bias towards the first moments as Adam does (Kingma and Ba, 2015, section 3): after the first batch the
    statistics are those of the batch.

    Args:
      statistics: before the batch.
      targets: ``[T, B]``, in units of the reward.
      mask: which of them are valid, ``[T, B]``; without any, nothing changes.
      step_size: above 0 and below 1.
    """
    chex.assert_equal_shape((targets, mask))
    # 1 - (1 - step_size)^N, without the rounding of a small step size.
    batch_weight = -jnp.expm1(jnp.sum(mask) * jnp.log1p(-step_size))
    weight = statistics.weight + (1 - statistics.weight) * batch_weight
    rate = batch_weight / jnp.maximum(weight, jnp.finfo(weight.dtype).tiny)
    mean = masked_mean(targets, mask)
    variance = masked_mean(jnp.square(targets - mean), mask)
    delta = mean - statistics.mean
    return TargetStatistics(
        weight,
        statistics.mean + rate * delta,
        (1 - rate) * (statistics.variance + rate * jnp.square(delta)) + rate * variance,
    )


def change_of_units(old: TargetStatistics, new: TargetStatistics) -> tuple[jax.Array, jax.Array]:
    """``scale`` and ``shift``, ``[]`` each, with ``new.restore(scale n + shift) = old.restore(n)`` for every ``n``.

    >>> old = TargetStatistics(1.0, 10.0, jnp.float32(4.0))
    >>> new = TargetStatistics(1.0, 40.0, jnp.float32(25.0))
    >>> scale, shift = change_of_units(old, new)
    >>> float(old.restore(3.0)), round(float(new.restore(scale * 3.0 + shift)), 5)
    (16.0, 16.0)
    """
    return old.std / new.std, (old.mean - new.mean) / new.std
