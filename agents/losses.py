"""Losses of the policy-gradient family, as functions of arrays ``[T, B]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from agents.statistics import masked_mean, masked_std, whiten

SURROGATES = ("clip", "plain")
REDUCTIONS = ("steps", "episodes", "constant")


def clipped_surrogate(
    log_ratio: jax.Array,
    advantage: jax.Array,
    clip_low: float | jax.Array,
    clip_high: float | jax.Array,
    dual_clip: float | None = None,
) -> jax.Array:
    """PPO's clipped surrogate, as a loss per step (Schulman et al., 2017, equation 7).

    ``-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)``, where ``rho = exp(log_ratio)`` is the ratio of the whole
    action's probabilities. With ``dual_clip = c > 1``, a step of negative advantage loses at most ``-c A`` (Ye et al.,
    2020, equation 5).

    Args:
      log_ratio: ``log pi(a) - log pi_old(a)``, any shape; 0 where masked, so that the exponential cannot overflow.
      advantage: the same shape.
      clip_low, clip_high: how far the ratio may move below and above 1.
      dual_clip: above 1, or ``None``.

    Returns:
      The loss, in the same shape.
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
    """``(v - target)^2 / 2`` per step, in any shape.

    With ``clip`` it is the larger of that and the same loss of ``v`` clipped to within ``clip`` of ``old_values``
    (value clipping, as in the original PPO implementation).
    """
    chex.assert_equal_shape((values, targets))
    loss = jnp.square(values - targets)
    if clip is not None:
        clipped = old_values + jnp.clip(values - old_values, -clip, clip)
        loss = jnp.maximum(loss, jnp.square(clipped - targets))
    return 0.5 * loss


def step_weights(mask: jax.Array, reduction: str) -> jax.Array:
    """The weight ``[T, B]`` of every step in the policy loss, which is a weighted sum.

    * ``steps``: ``m / sum(m)``, the mean over valid steps;
    * ``episodes``: ``m / sum_t(m) / B``, the mean over each column's steps, then over columns;
    * ``constant``: ``m / (T B)``: no episode length in the weight (Dr.GRPO, Liu et al., 2025). The entropy bonus is
      then the smaller the more padding there is.

    >>> mask = jnp.array([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    >>> for reduction in ("steps", "episodes", "constant"):
    ...     print(step_weights(mask, reduction)[0].tolist())
    [0.125, 0.125, 0.125, 0.125]
    [0.0625, 0.125, 0.25, 0.25]
    [0.0625, 0.0625, 0.0625, 0.0625]
    """
    if reduction == "steps":
        return mask / jnp.maximum(jnp.sum(mask), 1.0)
    if reduction == "constant":
        return mask / mask.size
    return mask / jnp.maximum(jnp.sum(mask, axis=0, keepdims=True), 1.0) / mask.shape[1]


class PolicyLoss(NamedTuple):
    """The settings of ``policy_gradient_loss``.

    Attributes:
      surrogate: ``clip`` (``clipped_surrogate``) or ``plain`` (``-log pi A``).
      clip_low, clip_high, dual_clip: see ``clipped_surrogate``.
      entropy_weight, value_weight: of the entropy bonus and of each value loss.
      value_clip: see ``value_loss``.
      whiten: whether the advantage is whitened over the valid steps of the minibatch.
    """

    surrogate: str = "clip"
    clip_low: float | jax.Array = 0.2
    clip_high: float | jax.Array = 0.2
    dual_clip: float | None = None
    entropy_weight: float | jax.Array = 0.0
    value_weight: float | jax.Array = 0.5
    value_clip: float | None = None
    whiten: bool = False


class LossData(NamedTuple):
    """The constants of ``policy_gradient_loss``, one number per step, ``[T, B]`` each.

    Attributes:
      log_prob: ``log pi_old`` of the action, under the policy that took it.
      mask: 1 for valid steps.
      advantage: constant during the update.
      weight: of the step in the policy loss, see ``step_weights``.
      target: value targets by head.
      value: values at the time of acting, by head; with PopArt both are normalised, as ``values`` of the loss are.
    """

    log_prob: jax.Array
    mask: jax.Array
    advantage: jax.Array
    weight: jax.Array
    target: Mapping[str, jax.Array]
    value: Mapping[str, jax.Array]


def policy_gradient_loss(
    log_prob: jax.Array, entropy: jax.Array, values: Mapping[str, jax.Array], data: LossData, settings: PolicyLoss
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a minibatch.

        sum(weight * (surrogate(log_prob - data.log_prob, advantage) - entropy_weight * entropy))
            + value_weight * sum_k masked_mean(value_loss_k)

    Args:
      log_prob, entropy: of the present policy at the recorded actions, ``[T, B]``.
      values: of the present critic by head, ``[T, B]``.
      data: the minibatch.
      settings: which surrogate, and the weights.

    Returns:
      The loss ``[]``, and metrics: ``loss``, ``policy_loss``, ``entropy`` (nats), ``approximate_kl`` (the mean of
      ``rho - 1 - log rho``, nats), ``clip_fraction`` and ``value_loss/HEAD``.
    """
    mask, advantage, weight = data.mask, data.advantage, data.weight
    chex.assert_equal_shape((log_prob, entropy, mask, advantage, weight, data.log_prob))
    if settings.whiten:
        advantage = whiten(advantage, mask)
    # Masked before the exponential: a padded step must not overflow.
    log_ratio = jnp.where(mask > 0, log_prob - data.log_prob, 0.0)
    if settings.surrogate == "clip":
        clips = settings.clip_low, settings.clip_high, settings.dual_clip
        policy_loss = clipped_surrogate(log_ratio, advantage, *clips)
    else:
        policy_loss = -log_prob * advantage
    change = jnp.expm1(log_ratio)
    total = jnp.sum(weight * (policy_loss - settings.entropy_weight * entropy))
    metrics = {
        "policy_loss": jnp.sum(weight * policy_loss),
        "entropy": masked_mean(entropy, mask),
        "approximate_kl": masked_mean(change - log_ratio, mask),
        "clip_fraction": masked_mean((change > settings.clip_high) | (change < -settings.clip_low), mask),
    }
    for name, value in values.items():
        loss = masked_mean(value_loss(value, data.target[name], data.value[name], settings.value_clip), mask)
        total += settings.value_weight * loss
        metrics[f"value_loss/{name}"] = loss
    return total, metrics | {"loss": total}


def explained_variance(targets: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
    """``1 - var(targets - values) / var(targets)`` over valid steps; 1 for a perfect critic, 0 for a constant one."""
    residual, spread = masked_std(targets - values, mask), masked_std(targets, mask)
    return 1 - jnp.square(residual) / jnp.maximum(jnp.square(spread), 1e-8)
