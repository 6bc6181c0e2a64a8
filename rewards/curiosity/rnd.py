"""Random network distillation: the intrinsic reward is the error in predicting a fixed random network."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from agents.base import DataSpec
from agents.moments import Moments, merge_moments, no_moments
from agents.networks.base import Head
from agents.networks.normaliser import observation_normaliser
from agents.networks.sequence import NetworkConfig, network, own_numbers
from agents.optimisers import chained
from agents.state import fields
from agents.statistics import masked_mean
from envs.base import EnvironmentSpec, PyTree
from rewards.base import RewardTransform, write_channel
from rewards.fitting import check_fit, fit, random_minibatches, take_items
from rewards.moments import discounted_sums


class RNDState(NamedTuple):
    """State of ``rnd``.

    Attributes:
      predictor, target: parameters of both networks; the target's never change.
      scoring: the predictor's parameters before the last update; rewards are computed with these.
      optimiser: the optimiser's state.
      observations: moments of every leaf of the observation that is whitened, a tuple.
      returns: moments of the discounted intrinsic return.
      running: the discounted intrinsic return of each environment up to its last step, ``[B]``.
    """

    predictor: PyTree
    target: PyTree
    scoring: PyTree
    optimiser: PyTree
    observations: tuple[Moments, ...]
    returns: Moments
    running: jax.Array


def rnd(
    spec: EnvironmentSpec,
    *,
    data: DataSpec,
    network_config: NetworkConfig = NetworkConfig(),  # noqa: B008  (frozen)
    embedding_size: int = 128,
    predictor_layers: int = 2,
    updates: int = 4,
    minibatches: int = 4,
    learning_rate: float = 1e-4,
    discount: float = 0.99,
    limit: float = 5.0,
    flatten: bool = True,
    channel: str = "curiosity",
) -> RewardTransform:
    """Pays for next observations on which a network predicts a fixed random network badly (Burda et al., 2019).

        r_t = mean_j (predictor_j(x) - target_j(x))^2 / sigma
        x   = clip((o_{t+1} - mean) / std, -limit, limit)

    ``mean`` and ``std`` are running moments of every entry of a Box; discrete parts of the observation are one-hot.
    ``sigma`` is the running standard deviation of ``R_t = discount * R_{t-1} + r_t`` before the division, so that the
    reward is in units of its own return (section 2.4). ``R`` runs along time in each environment, from one unroll to
    the next and through the ends of episodes. Rewards are computed with the predictor from before the update. The
    observation after the last step of an episode is its final one, before any reset.

    Use it for the novelty of observations where a model of the dynamics is not needed. It is the cheapest of the
    learned curiosities, and noise in the observation attracts it as long as new values keep coming.

    Args:
      spec: the environment.
      data: the rollouts, ``[T, B]`` per update.
      network_config: the target; it is feed-forward in any case.
      embedding_size: outputs of both networks; the paper uses 512.
      predictor_layers: dense layers of ``embedding_size`` units that the predictor has in addition to the target's.
      updates: optimiser steps per call of ``update``.
      minibatches: each optimiser step takes one of this many random, equal parts of the steps. The paper trains on a
        fourth of the steps, so that the effective batch does not grow with the number of environments.
      learning_rate: Adam's.
      discount: of the intrinsic return, per step.
      limit: whitened entries are clipped to this many standard deviations.
      flatten: update all parameters as one vector, see ``agents.optimisers``; False for large or sharded networks.
      channel: the channel that is written.

    Raises:
      ValueError: counts out of range, or a network of another kind than ``sequence``.
      UnsupportedSpaceError: if a part of the observation cannot be encoded.
    """
    if embedding_size < 1 or predictor_layers < 0:
        raise ValueError(
            f"rnd: embedding_size={embedding_size}, predictor_layers={predictor_layers}: expected at least 1 and at "
            "least 0"
        )
    check_fit("rnd", updates=updates, minibatches=minibatches, items=data.length * data.batch, unit="steps")
    normaliser = observation_normaliser(spec.observation_space, limit=limit, images=True)
    config = own_numbers(network_config, "rnd")
    deeper = replace(config, hidden=(*config.hidden, *(embedding_size,) * predictor_layers))
    heads = {"embedding": Head(embedding_size)}
    target = network(normaliser.space, heads, config)
    predictor = network(normaliser.space, heads, deeper)
    optimiser = chained(optax.adam(learning_rate), flatten=flatten)

    def errors(predictor_params, inputs, goal):
        """``[T, B]``."""
        return jnp.mean(jnp.square(predictor.apply(predictor_params, inputs)[0]["embedding"] - goal), axis=-1)

    def embed(target_params, inputs):
        return target.apply(target_params, inputs)[0]["embedding"]

    def loss_fn(params, inputs, goal, mask):
        loss = masked_mean(errors(params, inputs, goal), mask)
        return loss, {"loss": loss}

    def init_fn(key, **extra):
        del extra
        predictor_key, target_key = jax.random.split(key)
        params = predictor.init(predictor_key)
        return RNDState(
            predictor=params,
            target=target.init(target_key),
            scoring=params,
            optimiser=optimiser.init(params),
            observations=normaliser.init(),
            returns=no_moments(),
            running=jnp.zeros(data.batch),
        )

    def apply_fn(state, trajectory, **extra):
        del extra
        inputs = normaliser.normalise(state.observations, trajectory.next_observation)
        raw = errors(state.scoring, inputs, embed(state.target, inputs)) * trajectory.mask
        rewards = raw / jnp.maximum(state.returns.std, 1e-8)
        metrics = {
            "reward_mean": masked_mean(rewards, trajectory.mask),
            "error": masked_mean(raw, trajectory.mask),
            "return_std": state.returns.std,
        }
        return write_channel(trajectory, channel, rewards), metrics

    def update_fn(state, trajectory, key, **extra):
        del extra
        mask = trajectory.mask
        observations = normaliser.merge(state.observations, trajectory.next_observation, mask)
        inputs = normaliser.normalise(observations, trajectory.next_observation)
        goal = embed(state.target, inputs)
        raw = errors(state.predictor, inputs, goal) * mask
        sums = discounted_sums(raw, state.running, mask, discount)
        returns = merge_moments(state.returns, sums, mask)

        steps = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), (inputs, goal, mask))
        draws = random_minibatches(key, mask.size, minibatches=minibatches, updates=updates)
        fitted = fit(
            loss_fn, optimiser, state.predictor, state.optimiser, draws, lambda index: take_items(steps, index, axis=1)
        )
        new_state = RNDState(
            predictor=fitted.params,
            target=state.target,
            scoring=state.predictor,
            optimiser=fitted.optimiser,
            observations=observations,
            returns=returns,
            running=sums[-1],
        )
        return new_state, fitted.metrics

    return RewardTransform(init_fn, apply_fn, update_fn, remembered=fields("running"))
