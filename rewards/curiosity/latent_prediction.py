"""Curiosity as the error of a world model in latent space, blind or in hindsight: BYOL-Explore and BYOL-Hindsight.

A closed-loop recurrence ``b_t = h_c(b_{t-1}, f(o_t), a_{t-1})`` takes in what was seen, an open-loop one
``b_{t,i} = h_o(b_{t,i-1}, a_{t+i-1})`` goes ``i = 1..K`` steps on without looking, and both variants are asked for the
target ``w_{t+i}``, the slowly moving encoder's view of ``o_{t+i}``, with all vectors scaled to length 1:

* BYOL-Explore (Guo et al., 2022) predicts it from ``b_{t,i}``. Where the environment is random, the error stays.
* BYOL-Hindsight (Jarrett et al., 2023) reconstructs it from ``b_{t,i}`` and ``Z``, which a generator makes of
  ``b_{t,i}``, the target itself and noise. ``Z`` is to hold what could not be predicted and nothing else: a critic
  estimates what ``Z`` and ``b_{t,i}`` tell of each other, and the generator makes that small. Where the environment is
  random, both terms can still be 0.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from gymnasium import spaces

from agents.base import DataSpec
from agents.networks import Head, NetworkConfig, action_features, action_size, network
from agents.optimisers import chained
from agents.recurrence import gated_recurrence
from agents.state import fields
from agents.statistics import masked_mean
from envs.base import EnvironmentSpec, PyTree, Trajectory
from rewards.base import RewardTransform
from rewards.fitting import check_fit, random_parts
from rewards.moments import Fading, episode_starts, fading_deviation, no_fading, prioritised, update_fading


class Parameters(NamedTuple):
    """``model`` (by part) descends, ``critic`` ascends (``{}`` without hindsight), ``target`` follows the encoder."""

    model: dict[str, PyTree]
    critic: dict[str, PyTree]
    target: PyTree


class Memory(NamedTuple):
    """What the closed loop remembers of each environment: its carry ``[B, size]`` and the last action ``[B,
    features]``."""

    carry: jax.Array
    action: jax.Array


class LatentPredictionState(NamedTuple):
    """State of ``latent_prediction``.

    Attributes:
      params: of the networks.
      scoring: those before the last update, which score.
      optimiser: of the model and of the critic.
      scale: running averages of the losses.
      entering, leaving: the memory with which the last unroll began and ended.
      key: of the noise and the contrasts of the last update, for scoring.
    """

    params: Parameters
    scoring: Parameters
    optimiser: tuple[PyTree, PyTree]
    scale: Fading
    entering: Memory
    leaving: Memory
    key: jax.Array


class Losses(NamedTuple):
    """Per horizon and step, ``[K, T, B]`` each: ``L_rec``, ``L_inv`` (0 without hindsight), and whether they count."""

    reconstruction: jax.Array
    information: jax.Array
    valid: jax.Array


# --- horizons ------------------------------------------------------------------------------------------


def ahead(x: jax.Array, steps: int) -> jax.Array:
    """``y_t = x_{t + steps}``, zero behind the end; ``x [T, ...]``."""
    return jnp.concatenate([x[steps:], jnp.zeros_like(x[:steps])])


def behind(x: jax.Array, steps: int) -> jax.Array:
    """``y_t = x_{t - steps}``, zero before the start; ``x [T, ...]``."""
    return jnp.concatenate([jnp.zeros_like(x[:steps]), x[: max(x.shape[0] - steps, 0)]])


def valid_horizons(mask: jax.Array, ends: jax.Array, horizon: int) -> jax.Array:
    """Whether step ``t`` can be asked for ``o_{t+i}``: rows ``t`` to ``t + i - 1`` are real and of one episode.

    Args:
      mask, ends: ``[T, B]``; ``ends`` is ``terminated | truncated``.
      horizon: ``K``.

    Returns:
      ``bool [K, T, B]``, ``i = 1..K`` first. The observation behind an episode's last step is its final one.
    """
    valid = [mask > 0]
    going = (mask > 0) & ~ends
    for _ in range(1, horizon):
        valid.append(going & ahead(valid[-1], 1))
    return jnp.stack(valid)


def aggregate(losses: jax.Array) -> jax.Array:
    """``l_t = sum_{p + q = t + 1} l(p, q)``: all that was said of ``o_{t+1}``, from up to ``K`` steps before.

    The uncertainty of the transition from ``o_t`` to ``o_{t+1}`` (Guo et al., 2022). At the start of an unroll or an
    episode fewer predictions are at hand.

    Args:
      losses: ``l(p, q)``, ``[K, T, B]`` with ``q = 1..K`` first; 0 where not valid.

    Returns:
      ``[T, B]``.
    """
    return sum((behind(losses[q], q) for q in range(losses.shape[0])), jnp.zeros_like(losses[0]))


# --- contrast ------------------------------------------------------------------------------------------


def contrastive_information(scores: jax.Array, valid: jax.Array) -> jax.Array:
    """``log e^{g_nn} - log (mean_m e^{g_nm})``, what sample ``n``'s own ``Z`` and context tell of each other.

    The mean is over the valid ``Z_m``, the own one included (Jarrett et al., 2023). With the best critic,
    ``g = log p(Z | context) / p(Z)`` up to a function of the context, this tends to the pointwise mutual information
    as the samples grow; it is at most ``log N``.

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
    """A random order of ``items``, ``[ceil(items / size), size]``; ``items`` stands for nothing."""
    order = jax.random.permutation(key, items)
    return jnp.pad(order, (0, -items % size), constant_values=items).reshape(-1, size)


def unit(x: jax.Array) -> jax.Array:
    """``x / |x|`` along the last axis; 0 stays."""
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
    parts: int = 1,
    learning_rate: float = 1e-3,
    critic_learning_rate: float = 1e-2,
    target_decay: float = 0.99,
    scale_decay: float = 0.99,
    normalised: bool = True,
    flatten: bool = True,
    channel: str = "curiosity",
) -> RewardTransform:
    """Builds BYOL-Explore, or BYOL-Hindsight with ``hindsight``; ``byol_explore`` and ``byol_hindsight`` are these.

    With ``x = unit(x)`` for every vector compared and ``w`` held constant, a step and horizon lose

        L_rec(t, i) = |predictor(b_{t,i}) - w_{t+i}|^2,     in hindsight |reconstructor(b_{t,i}, Z_{t,i}) - w_{t+i}|^2
        L_inv(t, i) = log( e^{g(b, Z)} / mean_m e^{g(b, Z_m)} ),    Z_{t,i} = generator(b_{t,i}, w_{t+i}, noise)
        l(t, i) = reconstruction_weight L_rec(t, i) + L_inv(t, i),

    and the model descends the mean over valid steps of ``mean_i l(t, i)`` over the horizons that end within the episode
    (and the unroll), while the critic ``g`` ascends it with an optimiser of its own. The reward is

        r_t = max(l_t / sigma - mu, 0),    l_t = sum_{p + q = t + 1} l(p, q),

    with running deviation ``sigma`` and mean ``mu`` (of ``l / sigma``). The target follows the encoder,
    ``target <- target_decay target + (1 - target_decay) encoder``, after every optimiser step. The model scores as it
    was before the update, with the noise and the contrasts of the update. The closed loop goes on from unroll to
    unroll.

    Three choices are ours. ``b_{t,i}`` has seen ``a_{t+i-1}``, so that no head takes the action again. ``b`` is given
    to critic and generator, not learned for them: a model that forgot the past would have nothing in common with any
    ``Z``. ``g(b, Z)`` is a scalar product of two networks' outputs, so that ``N^2`` pairs cost as much as ``N``, and
    ``Z_m`` are drawn from all steps of the batch, at the same horizon.

    Args:
      spec, data: the environment and the rollouts.
      network_config: of the encoder; feed-forward in any case.
      hindsight: see above.
      horizon: ``K``; at most as many as an unroll has steps. Heads and open loop cost in proportion. Guo et al. go 8
        steps on.
      embedding_size, memory_size: of ``w`` and of ``b``.
      hidden_size: of the one hidden layer of every head.
      latent_size, noise_size: of ``Z`` and of the noise.
      contrast: ``N``, how many samples are contrasted with each other.
      reconstruction_weight: ``1 / lambda``. Too small, and ``Z`` stays silent: what it would tell at first costs more
        information than the error that it takes away.
      updates: optimiser steps per call of ``update``.
      parts: every optimiser step takes one of so many random equal parts of the environments.
      learning_rate, critic_learning_rate: of Adam, for the model and for the critic, which has to keep ahead.
      target_decay: 1 keeps the target as it began, random.
      scale_decay: of ``sigma`` and ``mu``.
      normalised: ``False`` writes ``l_t`` itself.
      flatten: update all parameters as one vector, see ``agents.optimisers``; False for large or sharded networks.
      channel: see above.

    Raises:
      ValueError: counts out of range, or a horizon longer than the data.
      UnsupportedSpaceError: if a part of the observation or the action cannot be encoded.
    """
    counts = {"horizon": horizon, "embedding_size": embedding_size, "memory_size": memory_size}
    counts |= {"hidden_size": hidden_size, "latent_size": latent_size, "noise_size": noise_size}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"latent_prediction: {name}={value}: expected at least 1")
    check_fit("latent_prediction", updates=updates, parts=parts, items=data.batch, unit="environments")
    if contrast < 2:
        raise ValueError(f"latent_prediction: contrast={contrast}: expected at least 2 samples")
    if horizon > data.length:
        raise ValueError(f"latent_prediction: horizon={horizon}: expected at most data.length={data.length}")
    actions = action_size(spec.action_space)
    config = replace(network_config, recurrent_size=0)
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
    model_optimiser = chained(optax.adam(learning_rate), flatten=flatten)
    critic_optimiser = chained(optax.adam(critic_learning_rate), flatten=flatten)

    def ask(network, params, *inputs):
        """``[K, N, ...]`` to ``[K, N, size]``."""
        return network.apply(params, jnp.concatenate(inputs, axis=-1))[0]["output"]

    def contexts(model, memory: Memory, trajectory: Trajectory):
        """``b_{t,i}``, ``[K, T, B, size]``, and the memory after the last row."""
        starts = episode_starts(trajectory)[..., None]
        action = action_features(spec.action_space, trajectory.action)
        previous = jnp.where(starts, 0.0, jnp.concatenate([memory.action[None], action[:-1]]))
        embedding = encoder.apply(model["encoder"], trajectory.observation)[0]["embedding"]
        projected = closed.project(model["closed"], jnp.concatenate([embedding, previous], axis=-1))

        def look(carry, inputs):
            projected, start = inputs
            carry = closed.step(model["closed"], jnp.where(start, 0.0, carry), projected)
            return carry, carry

        last, beliefs = jax.lax.scan(look, memory.carry, (projected, starts))
        moves = opened.project(model["opened"], action)

        def go_on(belief, move):
            belief = opened.step(model["opened"], belief, move)
            return belief, belief

        _, imagined = jax.lax.scan(go_on, beliefs, jnp.stack([ahead(moves, i) for i in range(horizon)]))
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
            guess = ask(heads["predictor"], model["predictor"], context)
            error = jnp.sum(jnp.square(unit(guess) - goal), axis=-1).reshape(shape)
            return Losses(jnp.where(valid, error, 0.0), jnp.zeros(shape), valid), left
        noise_key, order_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (horizon, items, noise_size))
        given = jax.lax.stop_gradient(context)
        latent = jnp.tanh(ask(heads["generator"], model["generator"], given, goal, noise))
        guess = ask(heads["reconstructor"], model["reconstructor"], context, latent)
        error = jnp.sum(jnp.square(unit(guess) - goal), axis=-1).reshape(shape)
        order = _blocks(order_key, items, min(contrast, items))

        def block(x):
            """``[K, N, ...]`` to ``[K, blocks, contrast, ...]``, zero where there is nothing."""
            return x.at[:, order].get(mode="fill", fill_value=0)

        left_side = block(ask(critics["context"], critic["context"], given))
        right_side = block(ask(critics["latent"], critic["latent"], latent))
        scores = jnp.einsum("kbnd,kbmd->kbnm", left_side, right_side) / hidden_size**0.5
        told = contrastive_information(scores, block(valid.reshape(horizon, items)))
        information = jnp.zeros((horizon, items)).at[:, order].set(told, mode="drop").reshape(shape)
        return Losses(jnp.where(valid, error, 0.0), information, valid), left

    def combined(found: Losses):
        """``l(t, i)``, ``[K, T, B]``."""
        return reconstruction_weight * found.reconstruction + found.information

    def loss_fn(learned, target, memory, trajectory, key):
        found, _ = losses(Parameters(learned[0], learned[1], target), memory, trajectory, key)
        horizons = jnp.maximum(jnp.sum(found.valid, axis=0), 1)
        return masked_mean(jnp.sum(combined(found), axis=0) / horizons, trajectory.mask)

    def blank(batch):
        return Memory(jnp.zeros((batch, memory_size)), jnp.zeros((batch, actions)))

    def memory_of(memory, trajectory):
        """``memory``, or none where it is not that of this trajectory's environments."""
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
            optimiser=(model_optimiser.init(model), critic_optimiser.init(critic) if critic else ()),
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
        return trajectory._replace(rewards=trajectory.rewards | {channel: rewards}), metrics

    def update_fn(state, trajectory, key, **extra):
        del extra
        memory = memory_of(state.leaving, trajectory)
        # What is learned from, and no more, to take parts of.
        learned_from = trajectory._replace(rewards={}, extras={"episode_start": episode_starts(trajectory)})
        scoring_key, parts_key, key = jax.random.split(key, 3)
        found, left = losses(state.params, memory, learned_from, scoring_key)

        def step(carry, inputs):
            params, (model_state, critic_state) = carry
            key, index = inputs
            part, part_memory = learned_from, memory
            if parts > 1:
                part = jax.tree.map(lambda x: jnp.take(x, index, axis=1), learned_from)
                part_memory = jax.tree.map(lambda x: jnp.take(x, index, axis=0), memory)
            down, up = jax.grad(loss_fn)((params.model, params.critic), params.target, part_memory, part, key)
            changes, model_state = model_optimiser.update(down, model_state, params.model)
            model, critic = optax.apply_updates(params.model, changes), params.critic
            if hindsight:
                # Where the model descends, the critic climbs.
                changes, critic_state = critic_optimiser.update(jax.tree.map(jnp.negative, up), critic_state, critic)
                critic = optax.apply_updates(critic, changes)
            target = optax.incremental_update(model["encoder"], params.target, 1.0 - target_decay)
            return (Parameters(model, critic, target), (model_state, critic_state)), None

        chosen = random_parts(parts_key, trajectory.mask.shape[1], parts=parts, updates=updates)
        carry, _ = jax.lax.scan(step, (state.params, state.optimiser), (jax.random.split(key, updates), chosen))
        total = aggregate(combined(found))
        new_state = LatentPredictionState(
            params=carry[0],
            scoring=state.params,
            optimiser=carry[1],
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
