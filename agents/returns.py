"""Returns and advantages over time-major arrays ``[T, B]``, one scan each.

``ends`` is ``terminated | truncated``: nothing flows back over the end of an episode. Whether the value of the final
observation counts is a separate question, answered by ``terminated`` alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def return_to_go(rewards: jax.Array, ends: jax.Array, discount: float | jax.Array) -> jax.Array:
    """The discounted sum of rewards from each step to the end of its episode.

        G_t = r_t + discount * (1 - ends_t) * G_{t+1},    G_T = 0

    Args:
      rewards: ``[T, B]``, zero where masked.
      ends: ``[T, B]`` bool.
      discount: in [0, 1].

    Returns:
      ``G``, ``[T, B]``.

    >>> rewards, ends = jnp.array([[1.0], [2.0], [4.0]]), jnp.array([[False], [True], [False]])
    >>> return_to_go(rewards, ends, discount=0.5)[:, 0].tolist()
    [2.0, 2.0, 4.0]
    """

    def step(later, inputs):
        reward, end = inputs
        now = reward + discount * jnp.where(end, 0.0, later)
        return now, now

    _, returns = jax.lax.scan(step, jnp.zeros_like(rewards[0]), (rewards, ends), reverse=True, unroll=8)
    return returns


def generalised_advantage(
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    terminated: jax.Array,
    ends: jax.Array,
    discount: float | jax.Array,
    gae_lambda: float | jax.Array,
) -> jax.Array:
    """Generalised advantage estimation (Schulman et al., 2016, equations 11 to 16); a time limit is not a termination.

        delta_t = r_t + discount * (1 - terminated_t) * next_values_t - values_t
        A_t = delta_t + discount * gae_lambda * (1 - ends_t) * A_{t+1}

    Args:
      rewards, values: ``[T, B]``.
      next_values: ``[T, B]``, the value of the observation that followed each step, before any reset.
      terminated, ends: ``[T, B]`` bool.
      discount, gae_lambda: in [0, 1]; ``gae_lambda`` is the lambda of Schulman et al.

    Returns:
      Advantages ``[T, B]``; ``A + values`` is the value target.
    """
    delta = rewards + discount * jnp.where(terminated, 0.0, next_values) - values
    return return_to_go(delta, ends, discount * gae_lambda)
