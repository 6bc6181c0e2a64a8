"""Optimisers in two forms, over all parameters as one vector or leaf by leaf, and schedules of their learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from envs.choices import require_known

PyTree = Any

# By name: ``(learning_rate, *, eps) -> steps``. Adam (Kingma and Ba, 2015), and RAdam (Liu et al., 2020, "On the
# variance of the adaptive learning rate and beyond"), whose first steps are those of momentum alone, until the second
# moments are known well enough to divide by them.
OPTIMISERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adam": optax.adam, "radam": optax.radam}
# By name: the factor of the learning rate after the share ``p`` of the run, from 0 to 1.
SCHEDULES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "constant": jnp.ones_like,
    "linear": lambda p: 1 - p,
    "cosine": lambda p: (1 + jnp.cos(jnp.pi * p)) / 2,
    "exponential": lambda p: 0.01**p,
}
# The keys of a section ``agent`` that describe a schedule.
SCHEDULE_KEYS = ("schedule", "warmup")


def chained(*steps: optax.GradientTransformation, flatten: bool = True) -> optax.GradientTransformation:
    """``optax.chain(*steps)``, over one vector or leaf by leaf; both compute the same to rounding.

    >>> params = {"weight": jax.numpy.ones((2, 3)), "bias": jax.numpy.zeros(3)}
    >>> flat, by_leaf = (chained(optax.adam(1e-3), flatten=flatten).init(params)[0][0] for flatten in (True, False))
    >>> flat.mu.shape, {name: moment.shape for name, moment in by_leaf.mu.items()}
    ((9,), {'bias': (3,), 'weight': (2, 3)})

    Args:
      steps: applied in this order.
      flatten: as one vector, which is faster for a network of a dozen small leaves on one device, because its update
        is mostly the overhead of many small operations. The vector copies every gradient, and leaves that are sharded
        would be gathered for it: use False for a large network and for one that is sharded itself.
    """
    chained = optax.chain(*steps)
    return optax.flatten(chained) if flatten else chained


def gradient_norm(gradient: PyTree, *, flatten: bool = True) -> jax.Array:
    """``sqrt(sum_i gradient_i^2)`` over all leaves, ``[]``; ``flatten`` as in ``chained``."""
    return optax.tree.norm(ravel_pytree(gradient)[0] if flatten else gradient)


def has_schedule(section: Mapping[str, Any]) -> bool:
    """Whether the learning rate of a section ``agent`` changes over the run."""
    return section.get("schedule", "constant") != "constant" or section.get("warmup", 0.0) > 0


def learning_rate_schedule(
    learning_rate: float | jax.Array,
    *,
    schedule: str = "constant",
    warmup: float | jax.Array = 0.0,
    optimiser_steps: int,
) -> float | jax.Array | optax.Schedule:
    """``learning_rate`` times a factor that depends on the share of the run that is done.

    It rises linearly from 0 to 1 over the share ``warmup`` of the optimiser's steps. Over the rest, of which the share
    ``p`` is done, it is

    * ``constant``: 1;
    * ``linear``: ``1 - p``;
    * ``cosine``: ``(1 + cos(pi p)) / 2`` (Loshchilov and Hutter, 2017, without restarts);
    * ``exponential``: ``0.01 ** p``.

    >>> rate = learning_rate_schedule(2.0, schedule="linear", warmup=0.2, optimiser_steps=10)
    >>> [round(float(rate(step)), 2) for step in (0, 1, 2, 6, 10)]
    [0.0, 1.0, 2.0, 1.0, 0.0]

    Args:
      learning_rate: the largest; may be traced.
      schedule: one of ``SCHEDULES``.
      warmup: from 0 up to, but not including, 1; may be traced.
      optimiser_steps: of the whole run.

    Returns:
      A function of the optimiser's step, or ``learning_rate`` itself where it is constant.

    Raises:
      ValueError: an unknown schedule.
    """
    require_known("schedule", schedule, SCHEDULES)
    if schedule == "constant" and not isinstance(warmup, jax.core.Tracer) and warmup == 0:
        return learning_rate

    def rate(step):
        done = jnp.asarray(step) / optimiser_steps
        rest = jnp.clip((done - warmup) / (1 - warmup), 0.0, 1.0)
        return learning_rate * jnp.where(done < warmup, done / jnp.maximum(warmup, 1e-8), SCHEDULES[schedule](rest))

    return rate
