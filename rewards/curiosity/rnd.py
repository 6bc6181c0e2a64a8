"""Random network distillation: what a network cannot yet say of a fixed random one is new."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax

from agents.base import DataSpec
from agents.networks import Head, NetworkConfig, network, space_leaves
from agents.optimisers import chained
from agents.state import fields
from agents.statistics import masked_mean
from envs.base import EnvironmentSpec, PyTree
from rewards.base import RewardTransform
from rewards.fitting import check_fit, random_parts
from rewards.moments import Moments, discounted_sums, merge_moments, no_moments

_SMALLEST_STD = 1e-4


class RNDState(NamedTuple):
    """State of ``rnd``.

    Attributes:
      predictor, target: parameters; the target's never change.
      scoring: the predictor's before the last update: it scores.
      optimiser: its state.
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
    parts: int = 4,
    learning_rate: float = 1e-4,
    discount: float = 0.99,
    limit: float = 5.0,
    flatten: bool = True,
    channel: str = "curiosity",
) -> RewardTransform:
    """``r_t = mean_j (predictor_j(x) - target_j(x))^2 / sigma`` of the next observation (Burda et al., 2019).

    ``x = clip((o_{t+1} - mean) / std, -limit, limit)`` with running moments for every entry of a Box; discrete parts
    are one-hot as everywhere. ``sigma`` is the running deviation of ``R_t = discount R_{t-1} + r_t`` (section 2.4). It
    runs along time in each environment, on from unroll to unroll and through the ends of episodes. The predictor
    scores as it was before the update. What followed the last step of an episode is its final observation.

    Args:
      spec, data: the environment and the rollouts.
      network_config: of the target; feed-forward in any case.
      embedding_size: outputs of both networks; the paper has 512.
      predictor_layers: dense layers of ``embedding_size`` that the predictor has beyond the target.
      updates: optimiser steps per call of ``update``.
      parts: every optimiser step takes one of so many random equal parts of the steps; the paper trains on a share of
        0.25, so that the effective batch does not grow with the number of environments.
      learning_rate: of Adam.
      flatten: update all parameters as one vector, see ``agents.optimisers``; False for large or sharded networks.
      discount, limit, channel: see above.

    Raises:
      ValueError: counts out of range.
      UnsupportedSpaceError: if a part of the observation cannot be encoded.
    """
    if embedding_size < 1 or predictor_layers < 0:
        raise ValueError(
            f"rnd: embedding_size={embedding_size}, predictor_layers={predictor_layers}: expected at least 1 and at "
            "least 0"
        )
    check_fit("rnd", updates=updates, parts=parts, items=data.length * data.batch, unit="steps")
    leaves = [leaf for _, leaf in space_leaves(spec.observation_space)]
    boxes = [isinstance(leaf, gymnasium.spaces.Box) for leaf in leaves]
    # Floats in place of integers: a whitened entry must not be divided by its largest value again.
    whitened_space = gymnasium.spaces.Tuple(
        [
            gymnasium.spaces.Box(-np.inf, np.inf, x.shape, np.float32) if box else x
            for x, box in zip(leaves, boxes, strict=True)
        ]
    )
    config = replace(network_config, recurrent_size=0)
    deeper = replace(config, hidden=(*config.hidden, *(embedding_size,) * predictor_layers))
    heads = {"embedding": Head(embedding_size)}
    target = network(whitened_space, heads, config)
    predictor = network(whitened_space, heads, deeper)
    optimiser = chained(optax.adam(learning_rate), flatten=flatten)

    def whitened(moments, observation):
        """The leaves of ``observation [T, B, ...]``, those of a Box whitened."""
        remaining = iter(moments)
        parts = []
        for leaf, box in zip(jax.tree.leaves(observation), boxes, strict=True):
            if box:
                own = next(remaining)
                leaf = (leaf.astype(jnp.float32) - own.mean) / jnp.maximum(own.std, _SMALLEST_STD)
                leaf = jnp.clip(leaf, -limit, limit)
            parts.append(leaf)
        return tuple(parts)

    def errors(predictor_params, inputs, goal):
        """``[T, B]``."""
        return jnp.mean(jnp.square(predictor.apply(predictor_params, inputs)[0]["embedding"] - goal), axis=-1)

    def embed(target_params, inputs):
        return target.apply(target_params, inputs)[0]["embedding"]

    def init_fn(key, **extra):
        del extra
        predictor_key, target_key = jax.random.split(key)
        params = predictor.init(predictor_key)
        return RNDState(
            predictor=params,
            target=target.init(target_key),
            scoring=params,
            optimiser=optimiser.init(params),
            observations=tuple(no_moments(x.shape) for x, box in zip(leaves, boxes, strict=True) if box),
            returns=no_moments(),
            running=jnp.zeros(data.batch),
        )

    def apply_fn(state, trajectory, **extra):
        del extra
        inputs = whitened(state.observations, trajectory.next_observation)
        raw = errors(state.scoring, inputs, embed(state.target, inputs)) * trajectory.mask
        rewards = raw / jnp.maximum(state.returns.std, 1e-8)
        metrics = {
            "reward_mean": masked_mean(rewards, trajectory.mask),
            "error": masked_mean(raw, trajectory.mask),
            "return_std": state.returns.std,
        }
        return trajectory._replace(rewards=trajectory.rewards | {channel: rewards}), metrics

    def update_fn(state, trajectory, key, **extra):
        del extra
        mask = trajectory.mask
        seen = [x for x, box in zip(jax.tree.leaves(trajectory.next_observation), boxes, strict=True) if box]
        observations = tuple(
            merge_moments(own, x.astype(jnp.float32), mask) for own, x in zip(state.observations, seen, strict=True)
        )
        inputs = whitened(observations, trajectory.next_observation)
        goal = embed(state.target, inputs)
        raw = errors(state.predictor, inputs, goal) * mask
        sums = discounted_sums(raw, state.running, mask, discount)
        returns = merge_moments(state.returns, sums, mask)

        flat = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), (inputs, goal, mask))

        def loss_fn(params, inputs, goal, mask):
            return masked_mean(errors(params, inputs, goal), mask)

        def step(carry, index):
            params, optimiser_state = carry
            part = jax.tree.map(lambda x: jnp.take(x, index, axis=1), flat)
            loss, gradient = jax.value_and_grad(loss_fn)(params, *part)
            changes, optimiser_state = optimiser.update(gradient, optimiser_state, params)
            return (optax.apply_updates(params, changes), optimiser_state), loss

        chosen = random_parts(key, mask.size, parts=parts, updates=updates)
        (params, optimiser_state), losses = jax.lax.scan(step, (state.predictor, state.optimiser), chosen)
        new_state = RNDState(params, state.target, state.predictor, optimiser_state, observations, returns, sums[-1])
        return new_state, {"loss": jnp.sum(losses[-1:])}

    return RewardTransform(init_fn, apply_fn, update_fn, remembered=fields("running"))
