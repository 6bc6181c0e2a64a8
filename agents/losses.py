"""Losses: small functions of arrays, masked means over ``[T, B]`` left to the caller unless stated."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def clipped_surrogate(
    log_ratio: jax.Array,
    advantage: jax.Array,
    clip_low: float | jax.Array,
    clip_high: float | jax.Array,
    dual_clip: float | None = None,
) -> jax.Array:
    """PPO's clipped surrogate, as a loss per step (Schulman et al., 2017, equation 7).

    ``-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)`` with ``rho = exp(log_ratio)`` the ratio of the whole
    action (step level). With ``dual_clip = c > 1``, a step of negative advantage loses at most
    ``-c A`` (Ye et al., 2020, equation 5).

    Args:
      log_ratio, advantage: any equal shape.

    Returns:
      The loss, of that shape.
    """
    chex.assert_equal_shape((log_ratio, advantage))
    ratio = jnp.exp(log_ratio)
    objective = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)
    if dual_clip is not None:
        objective = jnp.where(advantage < 0, jnp.maximum(objective, dual_clip * advantage), objective)
    return -objective


def value_loss(
    values: jax.Array, targets: jax.Array, old_values: jax.Array | None = None, clip: float | None = None
) -> jax.Array:
    """``(v - target)^2 / 2`` per step; with ``clip``, no less than the same for ``v`` clipped around ``old_values``."""
    chex.assert_equal_shape((values, targets))
    loss = jnp.square(values - targets)
    if clip is not None:
        clipped = old_values + jnp.clip(values - old_values, -clip, clip)
        loss = jnp.maximum(loss, jnp.square(clipped - targets))
    return 0.5 * loss
