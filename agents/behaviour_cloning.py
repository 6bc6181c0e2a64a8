"""Behaviour cloning: fitting a policy to demonstrations, as a warm start for learning."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from agents.distributions import Distribution
from agents.networks.base import Network
from envs.base import PyTree


class Demonstrations(NamedTuple):
    """``M`` demonstrated steps: ``observation`` and ``action``, pytrees of ``[M, ...]``."""

    observation: PyTree
    action: PyTree


def behaviour_cloning(
    network: Network, distribution: Distribution, *, learning_rate: float, steps: int, batch: int = 256
):
    """Builds ``fit(params, demonstrations, key) -> (params, metrics)``.

    ``fit`` minimises ``-mean log pi(action | observation)`` with Adam, over minibatches drawn with replacement
    (Pomerleau, 1989). Use it where a policy that starts at random hardly ever finds a reward. A recurrent network sees
    each step as the first of an episode.

    Args:
      network: with the head ``policy``; ``fit`` takes and returns its parameters.
      distribution: over actions.
      learning_rate: of Adam.
      steps: optimiser steps.
      batch: demonstrated steps per optimiser step.

    Returns:
      ``fit``; its metrics hold ``cloning_loss``, the loss of the last minibatch in nats.

    Raises:
      ValueError: ``steps`` or ``batch`` below 1; from ``fit``, no demonstrations.
    """
    if steps < 1 or batch < 1:
        raise ValueError(f"behaviour_cloning: steps={steps}, batch={batch}: expected at least 1")
    optimiser = optax.adam(learning_rate)

    def loss_fn(params, part: Demonstrations):
        observation, action = jax.tree.map(lambda x: x[None], part)
        carry = network.initial_carry(batch)
        parameters = network.apply(params, observation, carry, None)[0]["policy"]
        return -jnp.mean(distribution.log_prob(parameters, action))

    def fit(params: PyTree, demonstrations: Demonstrations, key: jax.Array):
        count = jax.tree.leaves(demonstrations.action)[0].shape[0]
        if count < 1:
            raise ValueError("behaviour_cloning got 0 demonstrations: expected at least 1")

        def step(carry, step_key):
            params, state = carry
            index = jax.random.randint(step_key, (batch,), 0, count)
            part = jax.tree.map(lambda x: x[index], demonstrations)
            loss, gradient = jax.value_and_grad(loss_fn)(params, part)
            changes, state = optimiser.update(gradient, state, params)
            return (optax.apply_updates(params, changes), state), loss

        (params, _), losses = jax.lax.scan(step, (params, optimiser.init(params)), jax.random.split(key, steps))
        return params, {"cloning_loss": losses[-1]}

    return fit
