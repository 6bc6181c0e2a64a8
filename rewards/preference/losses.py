"""Losses of preferences and outcome labels: Bradley-Terry over pairs, cross-entropy over single scores."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def pairwise_preference(scores: jax.Array, positive: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The Bradley-Terry loss over every pair of a positive and a negative rollout of one group, and its accuracy.

        loss     = mean over pairs of -log sigmoid(scores[positive] - scores[negative])
        accuracy = mean over pairs of [scores[positive] > scores[negative]], where a tie counts 1/2

    Both means are over all pairs of all groups. With ``scores = beta log(pi / pi_ref)`` this is the DPO loss (Rafailov
    et al., 2023, equation 7). Groups whose rollouts are all positive or all negative contribute no pair; without any
    pair the loss is 0 and the accuracy 1/2. Use it where rollouts of one start state are compared; use
    ``outcome_cross_entropy`` where each score has a label of its own.

    Args:
      scores: one score per rollout, ``[G, N]``: ``G`` groups of ``N`` rollouts.
      positive: whether the rollout's outcome is positive, ``bool [G, N]``.

    Returns:
      ``(loss [], accuracy [])``.

    Raises:
      AssertionError: unless both arguments have rank 2.
    """
    chex.assert_rank([scores, positive], 2)
    pair = (positive[:, :, None] & ~positive[:, None, :]).astype(scores.dtype)
    margin = scores[:, :, None] - scores[:, None, :]
    count = jnp.sum(pair)
    loss = jnp.sum(pair * jax.nn.softplus(-margin)) / jnp.maximum(count, 1.0)
    wins = jnp.sum(pair * ((margin > 0) + 0.5 * (margin == 0).astype(scores.dtype)))
    return loss, jnp.where(count > 0, wins / jnp.maximum(count, 1.0), 0.5)


def outcome_cross_entropy(scores: jax.Array, outcome: jax.Array) -> jax.Array:
    """The binary cross-entropy of each score as a logit (Yuan et al., 2024, equation 5).

        loss = -(outcome * log sigmoid(scores) + (1 - outcome) * log(1 - sigmoid(scores)))

    It is computed as ``softplus(scores) - outcome * scores``, which is finite for large scores.

    Args:
      scores, outcome: any equal shape; ``outcome`` is in [0, 1], and 0.5 stands for a tie.

    Returns:
      The loss, of that shape.

    Raises:
      AssertionError: if the shapes differ.
    """
    chex.assert_equal_shape((scores, outcome))
    return jax.nn.softplus(scores) - outcome * scores
