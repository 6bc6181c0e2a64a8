"""The intrinsic curiosity module: the error of a forward model on features that tell which action was taken."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces

from agents.base import DataSpec
from agents.distributions import distribution_for
from agents.networks.base import Head
from agents.networks.encoders import action_features, feature_size
from agents.networks.sequence import NetworkConfig, network, own_numbers
from agents.optimisers import chained
from agents.statistics import masked_mean
from envs.base import EnvironmentSpec, PyTree
from rewards.base import RewardTransform, write_channel
from rewards.fitting import check_fit, fit, random_minibatches, take_items


class ICMState(NamedTuple):
    """State of ``icm``.

    Attributes:
      params: parameters of the networks ``encoder``, ``forward`` and ``inverse``.
      scoring: the parameters before the last update; rewards are computed with these.
      optimiser: the optimiser's state.
    """

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
    minibatches: int = 1,
    learning_rate: float = 1e-3,
    forward_share: float = 0.2,
    scale: float = 0.01,
    flatten: bool = True,
    channel: str = "curiosity",
) -> RewardTransform:
    """Pays for the error of a forward model in a learned feature space (Pathak et al., 2017, equation 6).

        r_t = scale / 2 * |forward(phi_t, a_t) - phi_{t+1}|^2,    phi_t = encoder(o_t)

    All three networks minimise the mean over valid steps of

        (1 - forward_share) * L_I + forward_share * L_F
        L_I = -log p(a_t | inverse(phi_t, phi_{t+1}))
        L_F = 1/2 * |forward(phi_t, a_t) - phi_{t+1}|^2

    which are equations 3, 5 and 7 without the policy's own loss, so that the features keep what reveals the action and
    may drop what the agent does not influence. ``p`` is the policy's kind of distribution, which makes ``L_I`` the
    cross-entropy for Discrete actions. ``phi_{t+1}`` encodes the observation before any reset. Rewards are computed
    with the parameters from before the update, so that a transition is not learned away before it is paid for.

    Use it where what is new can be told from what the agent did. It ignores distractions that do not depend on the
    action, but not noise that the action switches on; use ``byol_hindsight`` there.

    Args:
      spec: the environment.
      data: the rollouts, ``[T, B]`` per update.
      network_config: the encoder; it is feed-forward in any case.
      continuous: the distribution for Box actions, see ``distribution_for``.
      embedding_size: the size of ``phi``, and the width of the one hidden layer of both models. The paper uses 288
        and 256.
      updates: optimiser steps per call of ``update``.
      minibatches: each optimiser step takes one of this many random, equal parts of the steps.
      learning_rate: Adam's.
      forward_share: the paper's ``beta``, in [0, 1].
      scale: the paper's ``eta``, in units of reward per squared feature.
      flatten: update all parameters as one vector, see ``agents.optimisers``; False for large or sharded networks.
      channel: the channel that is written.

    Raises:
      ValueError: counts out of range, or a network of another kind than ``sequence``.
      UnsupportedSpaceError: spaces without an encoder or a distribution.
    """
    if embedding_size < 1:
        raise ValueError(f"icm: embedding_size={embedding_size}: expected at least 1")
    check_fit("icm", updates=updates, minibatches=minibatches, items=data.length * data.batch, unit="steps")
    config = own_numbers(network_config, "icm")
    model_config = NetworkConfig(hidden=(embedding_size,), activation=config.activation)
    distribution = distribution_for(spec.action_space, continuous=continuous)
    encoder = network(spec.observation_space, {"embedding": Head(embedding_size)}, config)

    def model(features, size):
        return network(spaces.Box(-1, 1, (features,)), {"output": Head(size)}, model_config)

    forward = model(embedding_size + feature_size(spec.action_space), embedding_size)
    inverse = model(2 * embedding_size, distribution.num_parameters)
    optimiser = chained(optax.adam(learning_rate), flatten=flatten)

    def losses(params, observation, next_observation, action):
        """``(L_I, L_F)``, ``[T, B]`` each."""
        both = jax.tree.map(lambda *x: jnp.concatenate(x), observation, next_observation)
        now, later = jnp.split(encoder.apply(params["encoder"], both)[0]["embedding"], 2)
        guessed = inverse.apply(params["inverse"], jnp.concatenate([now, later], -1))[0]["output"]
        features = action_features(spec.action_space, action)
        predicted = forward.apply(params["forward"], jnp.concatenate([now, features], -1))[0]["output"]
        return -distribution.log_prob(guessed, action), 0.5 * jnp.sum(jnp.square(predicted - later), -1)

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
        inputs = (trajectory.observation, trajectory.next_observation, trajectory.action)
        rewards = scale * losses(state.scoring, *inputs)[1] * trajectory.mask
        metrics = {"reward_mean": masked_mean(rewards, trajectory.mask)}
        return write_channel(trajectory, channel, rewards), metrics

    def update_fn(state, trajectory, key, **extra):
        del extra
        inputs = (trajectory.observation, trajectory.next_observation, trajectory.action, trajectory.mask)
        steps = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), inputs)
        draws = random_minibatches(key, trajectory.mask.size, minibatches=minibatches, updates=updates)
        fitted = fit(
            loss_fn, optimiser, state.params, state.optimiser, draws, lambda index: take_items(steps, index, axis=1)
        )
        return ICMState(fitted.params, state.params, fitted.optimiser), fitted.metrics

    return RewardTransform(init_fn, apply_fn, update_fn)
