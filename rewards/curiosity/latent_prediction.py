"""Curiosity as the prediction error of a world model in latent space: BYOL-Explore and BYOL-Hindsight.

A closed-loop recurrence reads observations and actions, and an open-loop one continues from its state with actions
alone for ``i = 1..K`` steps:

    b_t = closed(b_{t-1}, encoder(o_t), a_{t-1}),    b_{t,i} = open(b_{t,i-1}, a_{t+i-1}),    b_{t,0} = b_t

Both variants predict ``w_{t+i}``, the encoding of ``o_{t+i}`` by a slowly moving copy of the encoder. All vectors that
are compared are scaled to length 1.

* BYOL-Explore (Guo et al., 2022) predicts ``w_{t+i}`` from ``b_{t,i}``. Where the environment is random, the error
  never goes away.
* BYOL-Hindsight (Jarrett et al., 2023) reconstructs ``w_{t+i}`` from ``b_{t,i}`` and a latent variable ``Z``, which a
  generator computes from ``b_{t,i}``, the target ``w_{t+i}`` itself and noise. ``Z`` is meant to hold only what could
  not be predicted: a critic estimates the mutual information of ``Z`` and ``b_{t,i}``, and the generator minimises it.
  Both terms can become 0 where the environment is random.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces

from agents.base import DataSpec
from agents.networks.base import Head
from agents.networks.encoders import action_features, feature_size
from agents.networks.sequence import NetworkConfig, network, own_numbers
from agents.optimisers import chained
from agents.permutation import permutation
from agents.recurrence import gated_recurrence
from agents.state import fields
from agents.statistics import masked_mean
from envs.base import EnvironmentSpec, PyTree, Trajectory
from rewards.base import RewardTransform, write_channel
from rewards.fitting import check_fit, fit, random_minibatches, take_items
from rewards.moments import Fading, episode_starts, fading_deviation, no_fading, prioritised, update_fading


class Parameters(NamedTuple):
    """Parameters of all networks.

    Attributes:
      model: by network; minimises the loss.
      critic: by network; maximises the loss. ``{}`` without hindsight.
      target: of the slowly moving copy of the encoder.
    """

    model: dict[str, PyTree]
    critic: dict[str, PyTree]
    target: PyTree


class Memory(NamedTuple):
    """What the closed loop remembers of each environment: its carry ``[B, memory_size]`` and the last action
    ``[B, features]``."""

    carry: jax.Array
    action: jax.Array


class LatentPredictionState(NamedTuple):
    """State of ``latent_prediction``.

    Attributes:
      params: parameters of the networks.
      scoring: the parameters before the last update; rewards are computed with these.
      optimiser: the optimiser's state.
      scale: running averages of the losses.
      entering, leaving: the memory at the start and at the end of the last unroll.
      key: the key of the noise and the contrasts of the last update; rewards are computed with it.
    """

    params: Parameters
    scoring: Parameters
    optimiser: PyTree
    scale: Fading
    entering: Memory
    leaving: Memory
    key: jax.Array


class Losses(NamedTuple):
    """Losses per horizon and step, ``[K, T, B]`` each.

    Attributes:
      reconstruction: ``L_rec``, 0 where not valid.
      information: ``L_inv``, 0 where not valid and without hindsight.
      valid: whether the horizon ends within the episode and the unroll, bool.
    """

    reconstruction: jax.Array
    information: jax.Array
    valid: jax.Array


# --- horizons ------------------------------------------------------------------------------------------


def ahead(x: jax.Array, steps: int) -> jax.Array:
    """``y_t = x_{t + steps}``, 0 behind the end of ``x [T, ...]``."""
    return jnp.concatenate([x[steps:], jnp.zeros_like(x[:steps])])


def behind(x: jax.Array, steps: int) -> jax.Array:
    """``y_t = x_{t - steps}``, 0 before the start of ``x [T, ...]``."""
    return jnp.concatenate([jnp.zeros_like(x[:steps]), x[: max(x.shape[0] - steps, 0)]])


def valid_horizons(mask: jax.Array, ends: jax.Array, horizon: int) -> jax.Array:
    """Whether ``o_{t+i}`` can be predicted at step ``t``: rows ``t`` to ``t + i - 1`` are valid and of one episode.

    Args:
      mask, ends: ``[T, B]``; ``ends`` is ``terminated | truncated``.
      horizon: ``K``.

    Returns:
      ``bool [K, T, B]``, ``i = 1..K`` first. The observation after an episode's last step is its final one.
    """
    valid = [mask > 0]
    going = (mask > 0) & ~ends
    for _ in range(1, horizon):
        valid.append(going & ahead(valid[-1], 1))
    return jnp.stack(valid)


def aggregate(losses: jax.Array) -> jax.Array:
    """The uncertainty of the transition from ``o_t`` to ``o_{t+1}`` (Guo et al., 2022).

        l_t = sum_{p + q = t + 1} l(p, q)

    This is the sum of the losses of all predictions of ``o_{t+1}``, made up to ``K`` steps before. At the start of an
    unroll or an episode there are fewer of them.

    Args:
      losses: ``l(p, q)``, ``[K, T, B]`` with ``q = 1..K`` first; 0 where not valid.

    Returns:
      ``[T, B]``.
    """
    return sum((behind(losses[q], q) for q in range(losses.shape[0])), jnp.zeros_like(losses[0]))


# --- contrast ------------------------------------------------------------------------------------------


def contrastive_information(scores: jax.Array, valid: jax.Array) -> jax.Array:
    """A contrastive estimate of the pointwise mutual information of a context and its ``Z`` (Jarrett et al., 2023).

        information_n = log e^{g_nn} - log (mean_m e^{g_nm})

    The mean is over the valid ``Z_m``, including the sample's own. With the optimal critic,
    ``g = log p(Z | context) / p(Z)`` up to a function of the context, the estimate tends to the pointwise mutual
    information as the number of samples ``N`` grows; it is at most ``log N``.

    Args:
      scores: ``g(context_n, Z_m)``, ``[..., N, N]``.
      valid: ``bool [..., N]``.

    Returns:
      ``[..., N]``, 0 where not valid.
    """
    count = jnp.maximum(jnp.sum(valid, axis=-1, keepdims=True), 1)
    others = jax.nn.logsumexp(jnp.where(valid[..., None, :], scores, -1e9), axis=-1)
    own = jnp.diagonal(scores, axis1=-2, axis2=-1)
    return jnp.where(valid, own - others + jnp.log(count), 0.0)


def _blocks(key: jax.Array, items: int, size: int) -> jax.Array:
    """A random order of ``items``, ``[ceil(items / size), size]``; the value ``items`` marks an empty place."""
    order = permutation(key, items)
    return jnp.pad(order, (0, -items % size), constant_values=items).reshape(-1, size)


def unit(x: jax.Array) -> jax.Array:
    """``x / |x|`` along the last axis; 0 stays 0."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def latent_prediction(
    spec: EnvironmentSpec,
    *,
    data: DataSpec,
    network_config: NetworkConfig = NetworkConfig(),  # noqa: B008  (frozen)
    hindsight: bool = False,
    horizon: int = 1,
    embedding_size: int = 128,
    memory_size: int = 128,
    hidden_size: int = 128,
    latent_size: int = 32,
    noise_size: int = 32,
    contrast: int = 64,
    reconstruction_weight: float = 10.0,
    updates: int = 1,
    minibatches: int = 1,
    learning_rate: float = 1e-3,
    critic_learning_rate: float = 1e-2,
    target_decay: float = 0.99,
    scale_decay: float = 0.99,
    normalised: bool = True,
    flatten: bool = True,
    channel: str = "curiosity",
) -> RewardTransform:
    """Pays for the prediction error of a world model: BYOL-Explore, or BYOL-Hindsight with ``hindsight``.

    ``byol_explore`` and ``byol_hindsight`` are these two. With all compared vectors scaled to length 1 and ``w`` held
    constant, the loss of a step and a horizon is

        L_rec(t, i) = |predictor(b_{t,i}) - w_{t+i}|^2,     in hindsight |reconstructor(b_{t,i}, Z_{t,i}) - w_{t+i}|^2
        L_inv(t, i) = log( e^{g(b, Z)} / mean_m e^{g(b, Z_m)} ),    Z_{t,i} = generator(b_{t,i}, w_{t+i}, noise)
        l(t, i) = reconstruction_weight * L_rec(t, i) + L_inv(t, i)

    The model minimises the mean over valid steps of ``mean_i l(t, i)``, over the horizons that end within the episode
    and the unroll; the critic ``g`` maximises it with an optimiser of its own. The reward is

        r_t = max(l_t / sigma - mu, 0),    l_t = sum_{p + q = t + 1} l(p, q)

    with the running standard deviation ``sigma`` of ``l`` and the running mean ``mu`` of ``l / sigma``. After every
    optimiser step the target follows the encoder: ``target <- target_decay * target + (1 - target_decay) * encoder``.
    Rewards are computed with the parameters from before the update and with the noise and the contrasts of the update.
    The closed loop's memory goes on from one unroll to the next.

    Use BYOL-Explore in environments that are deterministic or nearly so, and BYOL-Hindsight where noise would attract
    a curious agent.

    Three choices differ from the papers. ``b_{t,i}`` has already read ``a_{t+i-1}``, so that no head takes the action
    again. The gradients of critic and generator stop at ``b``: a model that forgot the past would share nothing with
    any ``Z``, which would make ``L_inv`` small for the wrong reason. ``g(b, Z)`` is a scalar product of the outputs of
    two networks, so that ``N^2`` pairs cost as much as ``N``, and ``Z_m`` come from all steps of the batch at the same
    horizon.

    Args:
      spec: the environment.
      data: the rollouts, ``[T, B]`` per update.
      network_config: the encoder; it is feed-forward in any case.
      hindsight: see above.
      horizon: ``K``, at most the steps of an unroll. Heads and open loop cost in proportion. Guo et al. use 8.
      embedding_size, memory_size: sizes of ``w`` and of ``b``.
      hidden_size: the width of the one hidden layer of every head.
      latent_size, noise_size: sizes of ``Z`` and of the noise.
      contrast: ``N``, how many samples are contrasted with each other.
      reconstruction_weight: the paper's ``1 / lambda``. If it is too small, ``Z`` carries nothing: at first, telling
        what cannot be predicted costs more information than the error that it removes.
      updates: optimiser steps per call of ``update``.
      minibatches: each optimiser step takes one of this many random, equal parts of the environments.
      learning_rate, critic_learning_rate: Adam's, for the model and for the critic, which has to stay ahead.
      target_decay: 1 keeps the target at its random initial parameters.
      scale_decay: of the running averages behind ``sigma`` and ``mu``.
      normalised: ``False`` writes ``l_t`` itself.
      flatten: update all parameters as one vector, see ``agents.optimisers``; False for large or sharded networks.
      channel: the channel that is written.

    Raises:
      ValueError: counts out of range, a horizon longer than the data, or a network of another kind than ``sequence``.
      UnsupportedSpaceError: if a part of the observation or the action cannot be encoded.
    """
    counts = {"horizon": horizon, "embedding_size": embedding_size, "memory_size": memory_size}
    counts |= {"hidden_size": hidden_size, "latent_size": latent_size, "noise_size": noise_size}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"latent_prediction: {name}={value}: expected at least 1")
    check_fit("latent_prediction", updates=updates, minibatches=minibatches, items=data.batch, unit="environments")
    if contrast < 2:
        raise ValueError(f"latent_prediction: contrast={contrast}: expected at least 2 samples")
    if horizon > data.length:
        raise ValueError(f"latent_prediction: horizon={horizon}: expected at most data.length={data.length}")
    actions = feature_size(spec.action_space)
    config = own_numbers(network_config, "latent_prediction")
    head_config = NetworkConfig(hidden=(hidden_size,), activation=config.activation)
    encoder = network(spec.observation_space, {"embedding": Head(embedding_size)}, config)
    closed = gated_recurrence(embedding_size + actions, memory_size)
    opened = gated_recurrence(actions, memory_size)

    def head(features, size):
        return network(spaces.Box(-1, 1, (features,)), {"output": Head(size)}, head_config)

    if hindsight:
        heads = {
            "generator": head(memory_size + embedding_size + noise_size, latent_size),
            "reconstructor": head(memory_size + latent_size, embedding_size),
        }
        critics = {"context": head(memory_size, hidden_size), "latent": head(latent_size, hidden_size)}
    else:
        heads, critics = {"predictor": head(memory_size, embedding_size)}, {}
    optimisers = {"model": chained(optax.adam(learning_rate), flatten=flatten), "target": optax.set_to_zero()}
    if hindsight:
        # The critic ascends the loss that the model descends.
        optimisers["critic"] = chained(optax.scale(-1.0), optax.adam(critic_learning_rate), flatten=flatten)
    groups: Any = ("model", "critic" if hindsight else {}, "target")
    optimiser = optax.partition(optimisers, Parameters(*groups))

    def output(network, params, *inputs):
        """``[K, N, ...]`` to ``[K, N, size]``."""
        return network.apply(params, jnp.concatenate(inputs, axis=-1))[0]["output"]

    def contexts(model, memory: Memory, trajectory: Trajectory):
        """``b_{t,i}``, ``[K, T, B, size]``, and the memory after the last row."""
        starts = episode_starts(trajectory)[..., None]
        action = action_features(spec.action_space, trajectory.action)
        previous = jnp.where(starts, 0.0, jnp.concatenate([memory.action[None], action[:-1]]))
        embedding = encoder.apply(model["encoder"], trajectory.observation)[0]["embedding"]
        projected = closed.project(model["closed"], jnp.concatenate([embedding, previous], axis=-1))

        def observe(carry, inputs):
            projected, start = inputs
            carry = closed.step(model["closed"], jnp.where(start, 0.0, carry), projected)
            return carry, carry

        last, beliefs = jax.lax.scan(observe, memory.carry, (projected, starts))
        projected_actions = opened.project(model["opened"], action)

        def imagine(belief, projected):
            belief = opened.step(model["opened"], belief, projected)
            return belief, belief

        _, imagined = jax.lax.scan(imagine, beliefs, jnp.stack([ahead(projected_actions, i) for i in range(horizon)]))
        return imagined, Memory(last, action[-1])

    def losses(params: Parameters, memory: Memory, trajectory: Trajectory, key) -> tuple[Losses, Memory]:
        model, critic, target = params
        ends = trajectory.terminated | trajectory.truncated
        context, left = contexts(model, memory, trajectory)
        valid = valid_horizons(trajectory.mask, ends, horizon)
        goal = unit(encoder.apply(target, trajectory.next_observation)[0]["embedding"])
        goal = jax.lax.stop_gradient(jnp.stack([ahead(goal, i) for i in range(horizon)]))
        shape, items = valid.shape, valid[0].size
        context, goal = (x.reshape(horizon, items, -1) for x in (context, goal))
        if not hindsight:
            guess = output(heads["predictor"], model["predictor"], context)
            error = jnp.sum(jnp.square(unit(guess) - goal), axis=-1).reshape(shape)
            return Losses(jnp.where(valid, error, 0.0), jnp.zeros(shape), valid), left
        noise_key, order_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (horizon, items, noise_size))
        given = jax.lax.stop_gradient(context)
        latent = jnp.tanh(output(heads["generator"], model["generator"], given, goal, noise))
        guess = output(heads["reconstructor"], model["reconstructor"], context, latent)
        error = jnp.sum(jnp.square(unit(guess) - goal), axis=-1).reshape(shape)
        order = _blocks(order_key, items, min(contrast, items))

        def block(x):
            """``[K, N, ...]`` to ``[K, blocks, contrast, ...]``, 0 in empty places."""
            return x.at[:, order].get(mode="fill", fill_value=0)

        left_side = block(output(critics["context"], critic["context"], given))
        right_side = block(output(critics["latent"], critic["latent"], latent))
        scores = jnp.einsum("kbnd,kbmd->kbnm", left_side, right_side) / hidden_size**0.5
        found = contrastive_information(scores, block(valid.reshape(horizon, items)))
        information = jnp.zeros((horizon, items)).at[:, order].set(found, mode="drop").reshape(shape)
        return Losses(jnp.where(valid, error, 0.0), information, valid), left

    def combined(found: Losses):
        """``l(t, i)``, ``[K, T, B]``."""
        return reconstruction_weight * found.reconstruction + found.information

    def loss_fn(params, memory, trajectory, key):
        found, _ = losses(params, memory, trajectory, key)
        horizons = jnp.maximum(jnp.sum(found.valid, axis=0), 1)
        return masked_mean(jnp.sum(combined(found), axis=0) / horizons, trajectory.mask), {}

    def follow(params):
        target = optax.incremental_update(params.model["encoder"], params.target, 1.0 - target_decay)
        return params._replace(target=target)

    def blank(batch):
        return Memory(jnp.zeros((batch, memory_size)), jnp.zeros((batch, actions)))

    def memory_of(memory, trajectory):
        """``memory``, or an empty one where the trajectory does not continue the environments of the last unroll."""
        batch = trajectory.mask.shape[1]
        return memory if data.kind == "unroll" and batch == data.batch else blank(batch)

    def init_fn(key, **extra):
        del extra
        names = {"encoder": encoder, "closed": closed, "opened": opened, **heads}
        model = {name: part.init(jax.random.fold_in(key, index)) for index, (name, part) in enumerate(names.items())}
        critic = {
            name: part.init(jax.random.fold_in(key, len(names) + index))
            for index, (name, part) in enumerate(critics.items())
        }
        params = Parameters(model, critic, model["encoder"])
        return LatentPredictionState(
            params=params,
            scoring=params,
            optimiser=optimiser.init(params),
            scale=no_fading(),
            entering=blank(data.batch),
            leaving=blank(data.batch),
            key=jax.random.fold_in(key, len(names) + len(critics)),
        )

    def apply_fn(state, trajectory, **extra):
        del extra
        memory = memory_of(state.entering, trajectory)
        found, _ = losses(state.scoring, memory, trajectory, state.key)
        rewards = aggregate(combined(found)) * trajectory.mask
        if normalised:
            rewards = prioritised(state.scale, rewards, scale_decay) * trajectory.mask
        metrics = {"reward_mean": masked_mean(rewards, trajectory.mask)}
        return write_channel(trajectory, channel, rewards), metrics

    def update_fn(state, trajectory, key, **extra):
        del extra
        memory = memory_of(state.leaving, trajectory)
        # Only what is learned from, so that nothing else is gathered for a minibatch.
        learned_from = trajectory._replace(rewards={}, extras={"episode_start": episode_starts(trajectory)})
        scoring_key, order_key, key = jax.random.split(key, 3)
        found, left = losses(state.params, memory, learned_from, scoring_key)

        def minibatch(draw):
            key, index = draw
            return take_items(memory, index, axis=0), take_items(learned_from, index, axis=1), key

        chosen = random_minibatches(order_key, trajectory.mask.shape[1], minibatches=minibatches, updates=updates)
        draws = (jax.random.split(key, updates), chosen)
        fitted = fit(loss_fn, optimiser, state.params, state.optimiser, draws, minibatch, after_step=follow)
        total = aggregate(combined(found))
        new_state = LatentPredictionState(
            params=fitted.params,
            scoring=state.params,
            optimiser=fitted.optimiser,
            scale=update_fading(state.scale, total, trajectory.mask, scale_decay),
            entering=memory,
            leaving=left,
            key=scoring_key,
        )
        metrics = {
            "reconstruction": masked_mean(found.reconstruction, found.valid),
            "information": masked_mean(found.information, found.valid),
            "loss": masked_mean(total, trajectory.mask),
            "loss_std": fading_deviation(new_state.scale, scale_decay),
        }
        return new_state, metrics

    return RewardTransform(init_fn, apply_fn, update_fn, remembered=fields("entering", "leaving"))


byol_explore = partial(latent_prediction, hindsight=False)
byol_hindsight = partial(latent_prediction, hindsight=True)
