"""PPO and GRPO on Sokoban as one function each, to measure what sagax's parts cost.

Not meant to be built on: one environment, one network and one optimiser, written out by hand in the order of execution.
The algorithm, its numbers and its random draws are those of ``oprl_sokoban:ppo`` and ``:grpo``, so that both sides do
the same work and reach the same parameters. What sagax adds is missing here: named channels, next observations,
carries, most metrics, and the check that an update is finite. Only the generation of rooms is shared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict

from envs.native.sokoban_rooms import SokobanState, move, observe
from envs.rollout import ACT, RESET
from experiments.assembly.build import build_environment
from experiments.training.learn import AGENT_UPDATE, ROLLOUT, stream

# Dense layers from input to output, (kernel, bias) each.
Layers = list[tuple[jax.Array, jax.Array]]


class FusedState(NamedTuple):
    """Parameters by network, Adam's two moments as vectors of all parameters, and its count."""

    params: dict[str, Layers]
    mean: jax.Array
    square: jax.Array
    count: jax.Array


def layers_of(network_params: dict[str, Any]) -> Layers:
    """The dense layers of a network of sagax, hidden layers first, the head last."""
    names = sorted(name for name in network_params if name.startswith("dense_"))
    names += [name for name in network_params if name.startswith("head_")]
    return [(network_params[name]["kernel"], network_params[name]["bias"]) for name in names]


def fused_state(params: dict[str, Any]) -> FusedState:
    """The initial state from sagax's ``params`` (keys ``policy`` and, where there is one, ``critic``), copied."""
    layers = {name: jax.tree.map(jnp.copy, layers_of(part)) for name, part in params.items() if part}
    zeros = jnp.zeros_like(ravel_pytree(layers)[0])
    return FusedState(layers, zeros, jnp.copy(zeros), jnp.zeros((), jnp.int32))


def fused_chunk(config: ConfigDict) -> Callable[..., tuple[FusedState, jax.Array]]:
    """``(state, key, first_iteration, iterations) -> (state, episodes solved)`` for a configuration of
    ``oprl_sokoban:ppo`` or ``:grpo``; ``iterations`` is static.

    Raises:
      ValueError: for a configuration that asks for something else.
    """
    agent, data, estimator = config.agent, config.data, config.credit.env.estimator
    plain = (
        agent.value_clip is None
        and agent.dual_clip is None
        and agent.clip_high is None
        and not agent.shared_critic
        and not agent.get("popart", False)
        and agent.schedule == "constant"
        and agent.surrogate == "clip"
        and agent.reduction == "steps"
        and config.network.activation == "tanh"
        and config.environment.observation == "symbolic"
        and data.length == config.environment.time_limit
        and (estimator, agent.whiten) in (("gae", "minibatch"), ("group_outcome", "none"))
        and len(config.credit) == 1
    )
    if not plain:
        raise ValueError("the fused loops are written for oprl_sokoban:ppo and :grpo alone, symbolic observations")
    ppo = estimator == "gae"
    # The time limit's inner room: a frozen dataclass that mypy knows as an Environment only.
    limited: Any = build_environment(config).pure
    length, batch, group_size = data.length, data.batch, data.group_size
    items, minibatches = length * batch, agent.minibatches

    def network(layers, x):
        for kernel, bias in layers[:-1]:
            x = jnp.tanh(x @ kernel + bias)
        kernel, bias = layers[-1]
        return x @ kernel + bias

    def flat(observation):
        return observation.reshape(*observation.shape[:-3], -1).astype(jnp.float32)

    def loss(params, part):
        x, mask = flat(part["observation"]), part["mask"]
        log_probabilities = jax.nn.log_softmax(network(params["policy"], x))
        chosen = part["action"][:, None] == jnp.arange(log_probabilities.shape[-1])
        log_ratio = jnp.sum(jnp.where(chosen, log_probabilities, 0.0), -1) - part["log_prob"]
        ratio = jnp.exp(jnp.where(mask > 0, log_ratio, 0.0))
        count = jnp.maximum(jnp.sum(mask), 1.0)
        advantage = part["advantage"]
        if ppo:
            centred = advantage - jnp.sum(advantage * mask) / count
            advantage = mask * centred * jax.lax.rsqrt(jnp.sum(jnp.square(centred) * mask) / count + 1e-8)
        clipped = jnp.clip(ratio, 1 - agent.clip, 1 + agent.clip)
        entropy = -jnp.sum(jnp.exp(log_probabilities) * log_probabilities, -1)
        gain = jnp.minimum(ratio * advantage, clipped * advantage) + agent.entropy_weight * entropy
        total = -jnp.sum(part["weight"] * gain)
        if ppo:
            error = network(params["critic"], x)[:, 0] - part["target"]
            total += agent.value_weight * 0.5 * jnp.sum(jnp.square(error) * mask) / count
        return total

    def adam(state, gradient):
        # On one vector of all parameters, as the sagax does it.
        gradient, by_layer = ravel_pytree(gradient)
        gradient *= jnp.minimum(1.0, agent.max_gradient_norm / jnp.sqrt(jnp.sum(jnp.square(gradient))))
        count = state.count + 1
        mean = 0.9 * state.mean + 0.1 * gradient
        square = 0.999 * state.square + 0.001 * jnp.square(gradient)
        mean_scale, square_scale = 1 / (1 - 0.9**count), 1 / (1 - 0.999**count)
        change = agent.learning_rate * mean * mean_scale / (jnp.sqrt(square * square_scale) + agent.adam_epsilon)
        return FusedState(jax.tree.map(jnp.subtract, state.params, by_layer(change)), mean, square, count)

    def iteration(state, key, index):
        params = state.params
        rollout_key = stream(key, ROLLOUT, index)
        act_key = jax.random.fold_in(rollout_key, ACT)
        keys = jax.random.split(jax.random.fold_in(rollout_key, RESET), batch // group_size)
        rooms = jax.vmap(limited.environment.reset)(keys)[0]
        wall, target, box, player = (jnp.repeat(x, group_size, axis=0) for x in rooms)

        def step(carry, t):
            box, player, alive = carry
            room = SokobanState(wall, target, box, player)
            observation = jax.vmap(observe)(room)
            x = flat(observation)
            logits = network(params["policy"], x)
            action = jax.random.categorical(jax.random.fold_in(act_key, t), logits).astype(jnp.int32)
            chosen = action[:, None] == jnp.arange(logits.shape[-1])
            log_prob = jnp.sum(jnp.where(chosen, jax.nn.log_softmax(logits), 0.0), -1)
            after = jax.vmap(move)(room, action)
            solved = alive & ~jnp.any(after.box & ~target, axis=(1, 2))
            row = {
                "observation": observation,
                "action": action,
                "log_prob": log_prob,
                "mask": alive.astype(jnp.float32),
                "reward": solved.astype(jnp.float32),
            }
            if ppo:
                row["value"] = network(params["critic"], x)[:, 0]
            return (after.box, after.player, alive & ~solved), row

        (box, player, alive), rows = jax.lax.scan(step, (box, player, jnp.ones(batch, bool)), jnp.arange(length))
        reward, mask = rows.pop("reward"), rows["mask"]
        if ppo:
            entry = config.credit.env
            values = rows.pop("value")
            # What the time limit cut is worth what the critic says of where it stopped.
            last = jax.vmap(observe)(SokobanState(wall, target, box, player))
            cut = jnp.where(alive, network(params["critic"], flat(last))[:, 0], 0.0)

            def backwards(carry, row):
                later, next_value = carry
                reward, value = row
                goes_on = 1.0 - reward
                later = (
                    reward
                    + entry.discount * goes_on * next_value
                    - value
                    + (entry.discount * entry.gae_lambda * goes_on * later)
                )
                return (later, value), later

            start = (jnp.zeros(batch), cut)
            _, advantage = jax.lax.scan(backwards, start, (reward, values), reverse=True, unroll=8)
            rows["advantage"] = advantage * mask
            rows["target"] = rows["advantage"] + values
        else:
            outcome = jnp.sum(reward, axis=0).reshape(-1, group_size)
            centred = outcome - jnp.mean(outcome, axis=1, keepdims=True)
            score = centred / (jnp.std(outcome, axis=1, keepdims=True, ddof=1) + 1e-6)
            rows["advantage"] = score.reshape(-1) * mask
        rows["weight"] = mask * (minibatches / jnp.maximum(jnp.sum(mask), 1.0))
        table = jax.tree.map(lambda x: x.reshape(items, *x.shape[2:]), rows)

        def minibatch(state, chosen):
            part = jax.tree.map(lambda x: x[chosen], table)
            return adam(state, jax.grad(loss)(state.params, part)), None

        def epoch(state, epoch_key):
            order = jax.random.permutation(epoch_key, items).reshape(minibatches, -1)
            return jax.lax.scan(minibatch, state, order)

        state, _ = jax.lax.scan(epoch, state, jax.random.split(stream(key, AGENT_UPDATE, index), agent.epochs))
        return state, jnp.sum(reward)

    def chunk(state, key, first_iteration, iterations):
        indices = first_iteration + jnp.arange(iterations)
        state, solved = jax.lax.scan(lambda state, index: iteration(state, key, index), state, indices)
        return state, jnp.sum(solved)

    return chunk
