"""The intrinsic curiosity module: the error of a forward model, among features that tell what the agent did."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces

from agents.base import DataSpec
from agents.distributions import distribution_for
from agents.networks import Head, NetworkConfig, action_features, action_size, network
from agents.optimisers import chained
from agents.statistics import masked_mean
from envs.base import EnvironmentSpec, PyTree
from rewards.base import RewardTransform
from rewards.fitting import check_fit, random_parts


class ICMState(NamedTuple):
    """State of ``icm``: parameters by ``encoder``, ``forward`` and ``inverse``, those before the last update, which
    score, and the optimiser's state."""

    params: dict[str, PyTree]
    scoring: dict[str, PyTree]
    optimiser: PyTree


def icm(
    spec: EnvironmentSpec,
    *,
    data: DataSpec,
    network_config: NetworkConfig = NetworkConfig(),  # noqa: B008  (frozen)
    continuous: str = "gaussian",
    embedding_size: int = 128,
    updates: int = 1,
    parts: int = 1,
    learning_rate: float = 1e-3,
    forward_share: float = 0.2,
    scale: float = 0.01,
    flatten: bool = True,
    channel: str = "curiosity",
) -> RewardTransform:
    """``r_t = scale / 2 |forward(phi_t, a_t) - phi_{t+1}|^2`` (Pathak et al., 2017, equation 6).

    All three networks descend the mean over valid steps of

        (1 - forward_share) L_I + forward_share L_F,
        L_I = -log p(a_t | inverse(phi_t, phi_{t+1})),   L_F = 1/2 |forward(phi_t, a_t) - phi_{t+1}|^2

    (equations 3, 5 and 7 without the policy's term, which is the agent's), so that the features hold what tells the
    actions. ``p`` is the policy's kind of distribution: cross-entropy for Discrete actions. ``phi_{t+1}`` is of
    what followed before any reset. The model scores as it was before the update.

    Args:
      spec, data: the environment and the rollouts.
      network_config: of the encoder; feed-forward in any case.
      continuous: distribution for Box actions, see ``distribution_for``.
      embedding_size: of ``phi``, and the width of the one hidden layer of both models; the paper has 288 and 256.
      updates: optimiser steps per call of ``update``.
      parts: every optimiser step takes one of so many random equal parts of the steps.
      learning_rate: of Adam.
      forward_share, scale: ``beta`` and ``eta``.
      flatten: update all parameters as one vector, see ``agents.optimisers``; False for large or sharded networks.
      channel: see above.

    Raises:
      ValueError: counts out of range.
      UnsupportedSpaceError: spaces without encoder or distribution.
    """
    if embedding_size < 1:
        raise ValueError(f"icm: embedding_size={embedding_size}: expected at least 1")
    check_fit("icm", updates=updates, parts=parts, items=data.length * data.batch, unit="steps")
    config = replace(network_config, recurrent_size=0)
    model_config = NetworkConfig(hidden=(embedding_size,), activation=config.activation)
    distribution = distribution_for(spec.action_space, continuous=continuous)
    encoder = network(spec.observation_space, {"embedding": Head(embedding_size)}, config)

    def model(features, size):
        return network(spaces.Box(-1, 1, (features,)), {"output": Head(size)}, model_config)

    forward = model(embedding_size + action_size(spec.action_space), embedding_size)
    inverse = model(2 * embedding_size, distribution.num_parameters)
    optimiser = chained(optax.adam(learning_rate), flatten=flatten)

    def losses(params, observation, next_observation, action):
        """``(L_I, L_F)``, ``[T, B]`` each."""
        both = jax.tree.map(lambda *x: jnp.concatenate(x), observation, next_observation)
        now, later = jnp.split(encoder.apply(params["encoder"], both)[0]["embedding"], 2)
        told = inverse.apply(params["inverse"], jnp.concatenate([now, later], -1))[0]["output"]
        features = action_features(spec.action_space, action)
        predicted = forward.apply(params["forward"], jnp.concatenate([now, features], -1))[0]["output"]
        return -distribution.log_prob(told, action), 0.5 * jnp.sum(jnp.square(predicted - later), -1)

    def loss_fn(params, observation, next_observation, action, mask):
        found = losses(params, observation, next_observation, action)
        inverse_loss, forward_loss = (masked_mean(x, mask) for x in found)
        total = (1 - forward_share) * inverse_loss + forward_share * forward_loss
        return total, {"inverse_loss": inverse_loss, "forward_loss": forward_loss}

    def init_fn(key, **extra):
        del extra
        keys = jax.random.split(key, 3)
        params = {"encoder": encoder.init(keys[0]), "forward": forward.init(keys[1]), "inverse": inverse.init(keys[2])}
        return ICMState(params, params, optimiser.init(params))

    def apply_fn(state, trajectory, **extra):
        del extra
        taken = (trajectory.observation, trajectory.next_observation, trajectory.action)
        rewards = scale * losses(state.scoring, *taken)[1] * trajectory.mask
        metrics = {"reward_mean": masked_mean(rewards, trajectory.mask)}
        return trajectory._replace(rewards=trajectory.rewards | {channel: rewards}), metrics

    def update_fn(state, trajectory, key, **extra):
        del extra
        learned = (trajectory.observation, trajectory.next_observation, trajectory.action, trajectory.mask)
        flat = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), learned)

        def step(carry, index):
            params, optimiser_state = carry
            part = jax.tree.map(lambda x: jnp.take(x, index, axis=1), flat) if parts > 1 else flat
            (_, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, *part)
            changes, optimiser_state = optimiser.update(gradient, optimiser_state, params)
            return (optax.apply_updates(params, changes), optimiser_state), metrics

        chosen = random_parts(key, trajectory.mask.size, parts=parts, updates=updates)
        carry, metrics = jax.lax.scan(step, (state.params, state.optimiser), chosen)
        return ICMState(carry[0], state.params, carry[1]), jax.tree.map(lambda x: jnp.sum(x[-1:]), metrics)

    return RewardTransform(init_fn, apply_fn, update_fn)
