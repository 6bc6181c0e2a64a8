"""The policy-gradient family: PPO, GRPO, RLOO, Dr.GRPO, REINFORCE++, PRIME, OPRL, GiGPO, ... as configurations.

What differs between these methods is the ``Credit`` and a handful of numbers; the learner is one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from agents.base import Agent, DataSpec
from agents.credit import WHITENINGS, Credit, assign, require_groups
from agents.distributions import Distribution, distribution_for
from agents.losses import clipped_surrogate, value_loss
from agents.networks import Head, Network, NetworkConfig, network
from agents.statistics import masked_mean, masked_std, whiten
from envs.base import EnvironmentSpec, PyTree, Trajectory
from envs.choices import require_known

SURROGATES = ("clip", "plain")
REDUCTIONS = ("steps", "episodes", "constant")


class PolicyGradientState(NamedTuple):
    """``params`` has the keys ``policy`` and ``critic`` (``{}`` without critic heads)."""

    params: dict[str, PyTree]
    optimiser: PyTree


def policy_network(
    spec: EnvironmentSpec, config: NetworkConfig, *, continuous: str = "gaussian", critics: tuple[str, ...] = ()
) -> tuple[Network, Distribution]:
    """The policy of ``spec`` with head ``policy`` (and value heads in ``critics``), and its action distribution."""
    distribution = distribution_for(spec.action_space, continuous=continuous)
    heads = {"policy": Head(distribution.num_parameters, scale=0.01, num_free=distribution.num_free)}
    heads |= {name: Head(1) for name in critics}
    return network(spec.observation_space, heads, config), distribution


def policy_gradient(
    spec: EnvironmentSpec,
    *,
    credit: Credit,
    data: DataSpec,
    network_config: NetworkConfig = NetworkConfig(),  # noqa: B008  (frozen)
    critic_config: NetworkConfig | None = None,
    shared_critic: bool = False,
    continuous: str = "gaussian",
    surrogate: str = "clip",
    clip: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    epochs: int = 2,
    minibatches: int = 1,
    learning_rate: float | optax.Schedule = 1e-3,
    adam_epsilon: float = 1e-5,
    max_gradient_norm: float | None = 0.5,
    entropy_weight: float = 0.01,
    value_weight: float = 0.5,
    value_clip: float | None = None,
    reduction: str = "steps",
) -> Agent:
    """Builds a policy-gradient agent.

    Minimises, over ``epochs`` passes of ``minibatches`` each,

        sum_m( w * (surrogate(log pi - log pi_old, A) - entropy_weight * H) ) + value_weight * sum_k mean_m(L_k)

    with ``A`` from ``agents.credit.assign`` (constant during the passes), ``w`` the weights of ``reduction`` and
    ``L_k`` the value loss of head k.

    Args:
      spec: the environment.
      credit: channels to advantage; an entry whose estimator needs a critic gets a value head of its name.
      data: unrolls or episodes in groups.
      network_config, critic_config: policy and critic; the critic's defaults to the policy's.
      shared_critic: value heads on the policy's own network instead of a separate one.
      continuous: distribution for Box actions, see ``distribution_for``.
      surrogate: ``clip`` (PPO, ratio of the whole action) or ``plain`` (``-log pi A``).
      clip, clip_high: clip range below and above 1; ``clip_high`` defaults to ``clip``.
      dual_clip: see ``clipped_surrogate``.
      epochs, minibatches: passes over the data and parts per pass. Feed-forward networks shuffle steps,
        recurrent ones whole columns.
      learning_rate: a number or an optax schedule over optimiser steps.
      adam_epsilon, max_gradient_norm: optimiser; ``None`` for no clipping of the global gradient norm.
      entropy_weight, value_weight, value_clip: see above.
      reduction: ``steps`` (mean over valid steps), ``episodes`` (mean over each column's steps, then over
        columns) or ``constant`` (sum over ``T * B``: no length in the weight, Dr.GRPO; the entropy bonus, too, is then
        the smaller the more padding there is).

    Raises:
      ValueError: unknown surrogate or reduction; a group estimator on data without groups; data that cannot be
        cut into ``minibatches`` equal parts.
      UnsupportedSpaceError: spaces without encoder or distribution.
    """
    _validate(credit, data, surrogate, reduction, epochs, minibatches)
    critics = credit.critics
    policy, distribution = policy_network(
        spec, network_config, continuous=continuous, critics=critics if shared_critic else ()
    )
    separate = bool(critics) and not shared_critic
    critic = (
        network(spec.observation_space, {name: Head(1) for name in critics}, critic_config or network_config)
        if separate
        else None
    )
    steps = [] if max_gradient_norm is None else [optax.clip_by_global_norm(max_gradient_norm)]
    # One vector instead of a dozen leaves: a small network's update is mostly the overhead of many small operations.
    optimiser = optax.flatten(optax.chain(*steps, optax.adam(learning_rate, eps=adam_epsilon)))
    recurrent = policy.recurrent or (critic is not None and critic.recurrent)
    _validate_minibatches(minibatches, data.batch if recurrent else data.batch * data.length)
    clip_above = clip if clip_high is None else clip_high

    def init_fn(key):
        policy_key, critic_key = jax.random.split(key)
        params = {"policy": policy.init(policy_key), "critic": critic.init(critic_key) if critic else {}}
        return PolicyGradientState(params, optimiser.init(params))

    def initial_carry(batch):
        return {"policy": policy.initial_carry(batch), "critic": critic.initial_carry(batch) if critic else ()}

    def forward(params, observation, carry, episode_start):
        """Policy parameters ``[T, B, P]``, values by head ``[T, B]`` and the next carry."""
        outputs, policy_carry = policy.apply(params["policy"], observation, carry["policy"], episode_start)
        critic_carry = carry["critic"]
        if critic is not None:
            value_outputs, critic_carry = critic.apply(params["critic"], observation, critic_carry, episode_start)
            outputs = outputs | value_outputs
        values = {name: outputs[name][..., 0] for name in critics}
        return outputs["policy"], values, {"policy": policy_carry, "critic": critic_carry}

    def act_fn(params, carry, observation, key, *, greedy=False, action=None):
        observation = jax.tree.map(lambda x: x[None], observation)
        outputs, values, carry = forward(params, observation, carry, None)
        parameters = outputs[0]
        if action is None:
            action = distribution.mode(parameters) if greedy else distribution.sample(key, parameters)
        extras = {
            "log_prob": distribution.log_prob(parameters, action),
            "distribution": parameters,
            "value": {name: value[0] for name, value in values.items()},
        }
        return action, carry, extras

    def bootstrap(params, trajectory):
        """``next_values`` by head, ``[T, B]``: the value of what followed, before any reset.

        Inside an episode that is the value of the next row. At a boundary, that is where an episode was truncated
        and at the last row, the critic is asked. Most rows are none: they are asked ``rows`` per column at a time
        until no column has one left, and once is enough where only the time limit truncates.
        """
        length = trajectory.mask.shape[0]
        boundary = trajectory.truncated
        limit = spec.max_episode_steps
        if data.kind == "episodes":
            rows = 1
        else:
            boundary = boundary.at[-1].set(True)
            rows = length if limit is None else min(length, (length - 1) // limit + 2)

        def ask(index):
            """Values by head at the rows ``index [K, B]``, all rows where it is ``None``; ``[K, B]``."""
            pick = _picker(index)
            observations = jax.tree.map(
                lambda now, later: jnp.stack([pick(now), pick(later)]).reshape(2, -1, *now.shape[2:]),
                trajectory.observation,
                trajectory.next_observation,
            )
            if recurrent:
                carry = jax.tree.map(lambda x: pick(x).reshape(-1, *x.shape[2:]), trajectory.extras["carry"])
            else:
                carry = initial_carry(1)
                observations = jax.tree.map(lambda x: x[1:], observations)
            _, values, _ = forward(params, observations, carry, None)
            return {name: values[name][-1].reshape(-1, boundary.shape[1]) for name in critics}

        def ask_some(state):
            first, asked = state
            wanted = first + 1 + jnp.arange(rows)
            index = jnp.argmax(boundary & (rank == wanted[:, None, None]), axis=1)
            columns = jnp.arange(boundary.shape[1])[None]
            some = ask(index)
            return first + rows, {name: asked[name].at[index, columns].set(some[name]) for name in critics}

        if rows == length:
            asked = ask(None)
        else:
            # Counted, not sorted: sorting is slow on every device.
            rank = jnp.cumsum(boundary, axis=0)
            most = jnp.max(rank[-1])
            asked = {name: jnp.zeros_like(trajectory.mask) for name in critics}
            _, asked = jax.lax.while_loop(lambda state: state[0] < most, ask_some, (0, asked))
        return {
            name: jnp.where(
                boundary, asked[name], jnp.concatenate([trajectory.extras["value"][name][1:], asked[name][-1:]])
            )
            for name in critics
        }

    def loss_fn(params, batch):
        parameters, values, _ = forward(params, batch["observation"], batch["carry"], batch["episode_start"])
        mask, advantage, weight = batch["mask"], batch["advantage"], batch["weight"]
        if credit.whiten == "minibatch":
            advantage = whiten(advantage, mask)
        log_prob = distribution.log_prob(parameters, batch["action"])
        # Masked before the exponential: a padded step must not overflow.
        log_ratio = jnp.where(mask > 0, log_prob - batch["log_prob"], 0.0)
        if surrogate == "clip":
            policy_loss = clipped_surrogate(log_ratio, advantage, clip, clip_above, dual_clip)
        else:
            policy_loss = -log_prob * advantage
        entropy, change = distribution.entropy(parameters), jnp.expm1(log_ratio)
        total = jnp.sum(weight * (policy_loss - entropy_weight * entropy))
        metrics = {
            "policy_loss": jnp.sum(weight * policy_loss),
            "entropy": masked_mean(entropy, mask),
            "approximate_kl": masked_mean(change - log_ratio, mask),
            "clip_fraction": masked_mean((change > clip_above) | (change < -clip), mask),
        }
        for name in critics:
            loss = value_loss(values[name], batch["target"][name], batch["value"][name], value_clip)
            loss = masked_mean(loss, mask)
            total += value_weight * loss
            metrics[f"value_loss/{name}"] = loss
        return total, metrics

    def step_weights(mask):
        if reduction == "steps":
            return mask / jnp.maximum(jnp.sum(mask), 1.0)
        if reduction == "constant":
            return mask / mask.size
        return mask / jnp.maximum(jnp.sum(mask, axis=0, keepdims=True), 1.0) / mask.shape[1]

    def update_fn(state, trajectory: Trajectory, key):
        values = trajectory.extras["value"]
        next_values = bootstrap(state.params, trajectory) if critics else {}
        assigned = assign(credit, trajectory, data.group_size, values, next_values)
        batch = {
            "observation": trajectory.observation,
            "action": trajectory.action,
            "log_prob": trajectory.extras["log_prob"],
            "mask": trajectory.mask,
            "advantage": assigned.advantage,
            # A minibatch's loss is a sum; scaled so that its expectation is the whole batch's.
            "weight": step_weights(trajectory.mask) * minibatches,
            "target": assigned.value_targets,
            "value": values,
        }
        if recurrent:
            batch["episode_start"] = trajectory.extras["episode_start"]
        start_carry = jax.tree.map(lambda x: x[0], trajectory.extras["carry"]) if recurrent else None
        length, width = trajectory.mask.shape
        items = width if recurrent else length * width

        # Rows of a matrix, made once: to pick among arrays of more dimensions is several times as slow on the CPU.
        table = batch if recurrent else jax.tree.map(lambda x: x.reshape(items, -1), batch)

        def pick(rows, like, index):
            """Of ``like [T, B, ...]`` the columns ``index`` for recurrent networks, else the steps, ``[1, N, ...]``."""
            if recurrent:
                return jnp.take(rows, index, axis=1)
            return rows[index].reshape(1, -1, *like.shape[2:])

        def minibatch_step(carry, index):
            params, optimiser_state = carry
            part, part_carry = batch, start_carry
            if index is not None:
                part = jax.tree.map(lambda rows, like: pick(rows, like, index), table, batch)
                part_carry = jax.tree.map(lambda x: jnp.take(x, index, axis=0), start_carry)
            part = part | {
                "carry": part_carry if recurrent else initial_carry(1),
                "episode_start": part.get("episode_start"),
            }
            (_, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, part)
            metrics["gradient_norm"] = optax.tree.norm(ravel_pytree(gradient)[0])
            updates, optimiser_state = optimiser.update(gradient, optimiser_state, params)
            return (optax.apply_updates(params, updates), optimiser_state), metrics

        def epoch_step(carry, epoch_key):
            if minibatches == 1:
                return minibatch_step(carry, None)
            order = jax.random.permutation(epoch_key, items).reshape(minibatches, -1)
            return jax.lax.scan(minibatch_step, carry, order)

        carry = (state.params, state.optimiser)
        (params, optimiser_state), passes = jax.lax.scan(epoch_step, carry, jax.random.split(key, epochs))
        metrics: dict[str, Any] = jax.tree.map(jnp.mean, passes)
        mask = trajectory.mask
        metrics["advantage_std"] = masked_std(assigned.advantage, mask)
        for name in critics:
            residual = masked_std(assigned.value_targets[name] - values[name], mask)
            spread = masked_std(assigned.value_targets[name], mask)
            metrics[f"explained_variance/{name}"] = 1 - jnp.square(residual) / jnp.maximum(jnp.square(spread), 1e-8)
        for name, part in assigned.parts.items():
            metrics[f"credit_std/{name}"] = masked_std(part, mask)
        return PolicyGradientState(params, optimiser_state), metrics

    return Agent(init_fn, initial_carry, act_fn, update_fn, data)


def _picker(index):
    """``pick(x [T, B, ...])`` takes the rows ``index [K, B]`` of every column; all of them where it is ``None``."""
    if index is None:
        return lambda x: x

    def pick(x):
        return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=0)

    return pick


def _validate(credit, data, surrogate, reduction, epochs, minibatches):
    require_known("surrogate", surrogate, SURROGATES)
    require_known("reduction", reduction, REDUCTIONS)
    require_known("whiten", credit.whiten, WHITENINGS)
    if epochs < 1 or minibatches < 1:
        raise ValueError(f"epochs={epochs}, minibatches={minibatches}: expected at least 1")
    if "policy" in credit.critics:
        raise ValueError("credit 'policy': an entry with a critic names its value head, and the head 'policy' is taken")
    if data.kind not in ("unroll", "episodes"):
        raise ValueError(
            f"policy_gradient learns from fresh data: data.kind={data.kind!r}, expected 'unroll' or 'episodes'"
        )
    if credit.grouped and data.kind != "episodes":
        names = [name for name, entry in credit.entries.items() if entry.estimator.grouped]
        raise ValueError(f"credit {names} needs whole episodes: data.kind={data.kind!r}, expected 'episodes'")
    require_groups(credit, data.group_size)


def _validate_minibatches(minibatches, items):
    if items % minibatches:
        near = min((n for n in range(1, items + 1) if items % n == 0), key=lambda n: abs(n - minibatches))
        raise ValueError(f"minibatches={minibatches} does not divide {items}: the nearest that does is {near}")
