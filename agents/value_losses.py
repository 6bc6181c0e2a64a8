"""Losses of value learning, as functions of arrays with one loss per item; the caller takes means.

A head predicts an expected return, a distribution on fixed atoms, or quantiles of the return; each has its own loss
against a target that is a constant.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def huber_loss(error: jax.Array, delta: float | jax.Array) -> jax.Array:
    """``error^2 / 2`` where ``|error| <= delta``, beyond it ``delta (|error| - delta / 2)`` (Huber, 1964); any
    shape.

    >>> huber_loss(jnp.array([0.5, 3.0]), delta=1.0).tolist()
    [0.125, 2.5]
    """
    size = jnp.abs(error)
    quadratic = jnp.minimum(size, delta)
    return 0.5 * jnp.square(quadratic) + delta * (size - quadratic)


def midpoints(count: int) -> jax.Array:
    """``(2 i + 1) / (2 count)`` for i from 0 to ``count - 1``: the midpoints of ``count`` equally likely quantiles."""
    return (2 * jnp.arange(count, dtype=jnp.float32) + 1) / (2 * count)


def categorical_projection(
    atoms: jax.Array, reward: jax.Array, discount: jax.Array, probabilities: jax.Array
) -> jax.Array:
    """The distribution of ``reward + discount * Z`` on the same atoms (Bellemare, Dabney and Munos, 2017, equation 7).

    Each atom is shifted to ``reward + discount * atom`` and clipped to the range; its probability is divided between
    the two neighbouring atoms by linear interpolation. Where nothing is clipped, the mean is exact.

    Args:
      atoms: ``[K]``, equally spaced, increasing.
      reward, discount: ``[...]``; with a discount of 0 all probability is at the reward.
      probabilities: ``[..., K]``, the distribution of ``Z``.

    Returns:
      ``[..., K]``.
    """
    shifted = jnp.clip(reward[..., None] + discount[..., None] * atoms, atoms[0], atoms[-1])
    step = (atoms[-1] - atoms[0]) / (atoms.shape[0] - 1)
    # [..., K new, K old]
    share = jnp.clip(1 - jnp.abs(shifted[..., None, :] - atoms[:, None]) / step, 0.0, 1.0)
    return jnp.sum(share * probabilities[..., None, :], axis=-1)


def categorical_cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """``-sum_k target_k log softmax(logits)_k``, from logits and probabilities ``[..., K]`` to ``[...]``."""
    chex.assert_equal_shape((logits, target))
    return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


def quantile_huber_loss(
    quantiles: jax.Array,
    fractions: jax.Array,
    targets: jax.Array,
    *,
    kappa: float | jax.Array,
) -> jax.Array:
    """The quantile Huber loss (Dabney et al., 2018a, equation 10; Dabney et al., 2018b, equation 3).

    ``L = sum_i mean_j |tau_i - 1{u_ij < 0}| L_kappa(u_ij) / kappa`` with ``u_ij = target_j - quantile_i`` and
    ``L_kappa`` the Huber loss. ``kappa = 0`` gives the quantile loss itself, with ``|u_ij|`` in place of
    ``L_kappa / kappa``. With midpoints as fractions this is QR-DQN's loss, with sampled fractions IQN's.

    Args:
      quantiles: ``[..., N]``, the prediction at ``fractions``.
      fractions: ``[N]`` or ``[..., N]``, each in (0, 1).
      targets: ``[..., M]``, samples of the target distribution.
      kappa: at least 0; may be traced.

    Returns:
      ``[...]``.
    """
    error = targets[..., None, :] - quantiles[..., :, None]
    size = jnp.abs(error)
    # Where kappa is 0 the quadratic branch is not selected, but its gradient must be finite all the same.
    width = jnp.where(jnp.asarray(kappa) > 0, kappa, 1.0)
    core = jnp.where(size < kappa, 0.5 * jnp.square(error) / width, size - 0.5 * kappa)
    side = jnp.abs(fractions[..., :, None] - (jax.lax.stop_gradient(error) < 0))
    loss = side * core
    return jnp.sum(jnp.mean(loss, axis=-1), axis=-1)
