"""The policy-gradient family: PPO, GRPO, RLOO, Dr.GRPO, REINFORCE++, PRIME, OPRL, GiGPO and others as configurations.

These methods differ in their ``Credit`` and in a handful of numbers; the learner is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import gymnasium
import jax
import optax

from agents.actor_critic import STATISTICS, ActorCritic, act, action_probabilities, actor_critic
from agents.base import Agent, DataSpec
from agents.bootstrap import boundaries, critic_on_rows, next_values, rows_at_a_time
from agents.credit import WHITENINGS, Assigned, Credit, assign, require_groups
from agents.losses import (
    REDUCTIONS,
    SURROGATES,
    LossData,
    PolicyLoss,
    explained_variance,
    policy_gradient_loss,
    step_weights,
)
from agents.minibatches import minibatch_epochs, require_minibatches
from agents.networks.base import NetworkBuilder
from agents.networks.sequence import NetworkConfig
from agents.optimisers import chained, gradient_norm
from agents.statistics import masked_std
from envs.base import EnvironmentSpec, PyTree, Trajectory
from envs.choices import require_known


class PolicyGradientState(NamedTuple):
    """``params`` has the keys ``policy`` and ``critic`` (``{}`` without a separate critic), and with PopArt
    ``target_statistics`` by critic head."""

    params: dict[str, PyTree]
    optimiser: PyTree


def policy_gradient(
    spec: EnvironmentSpec,
    *,
    credit: Credit,
    data: DataSpec,
    network_config: NetworkBuilder = NetworkConfig(),  # noqa: B008  (frozen)
    critic_config: NetworkBuilder | None = None,
    shared_critic: bool = False,
    continuous: str = "gaussian",
    initial_std: float | jax.Array = 1.0,
    surrogate: str = "clip",
    clip: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    epochs: int = 2,
    minibatches: int = 1,
    learning_rate: float | optax.Schedule = 1e-3,
    adam_epsilon: float = 1e-5,
    max_gradient_norm: float | None = 0.5,
    flatten: bool = True,
    entropy_weight: float = 0.01,
    value_weight: float = 0.5,
    value_clip: float | None = None,
    popart: bool = False,
    popart_step_size: float | jax.Array = 3e-4,
    reduction: str = "steps",
) -> Agent:
    """Builds a policy-gradient agent.

    ``update`` turns the channels of a fresh trajectory into one advantage (``agents.credit.assign``), which stays
    constant while ``agents.losses.policy_gradient_loss`` is minimised with Adam in ``epochs`` passes of ``minibatches``
    parts each.

    Args:
      spec: the environment.
      credit: channels to advantage; an entry whose estimator needs a critic gets a value head of its name.
      data: unrolls, or episodes in groups.
      network_config, critic_config: what builds policy and critic, of any kind; the critic's defaults to the policy's.
      shared_critic: value heads on the policy's own network instead of a separate one.
      continuous, initial_std: distribution for Box actions, see ``agents.distributions.distribution_for``.
      surrogate: ``clip`` (PPO) or ``plain`` (``-log pi A``).
      clip, clip_high: clip range below and above 1; ``clip_high`` defaults to ``clip``.
      dual_clip: see ``agents.losses.clipped_surrogate``.
      epochs, minibatches: passes over the data and parts per pass. Feed-forward networks shuffle steps, recurrent ones
        whole columns.
      learning_rate: a number or an optax schedule over optimiser steps.
      adam_epsilon, max_gradient_norm: optimiser; ``None`` for no clipping of the global gradient norm.
      flatten: update all parameters as one vector, see ``agents.optimisers``; False for large or sharded networks.
      entropy_weight, value_weight, value_clip: see ``agents.losses.PolicyLoss``.
      popart: normalise every value head by running statistics of its targets, see ``agents.popart``. Use it where the
        size of the returns is unknown, changes while learning, or differs between channels. Advantages stay in units of
        the reward; the value loss and ``value_clip`` are in standard deviations of the targets. Where rewards are far
        below 1, scale them (``rewards.shaping``): the values at the start, of order 1, are preserved as well, and
        dominate the statistics for some ``1 / popart_step_size`` targets.
      popart_step_size: of these statistics, per target: their memory is ``1 / popart_step_size`` targets. The default
        is that of Hessel et al. (2019).
      reduction: weight of a step in the policy loss: ``steps``, ``episodes`` or ``constant``, see
        ``agents.losses.step_weights``.

    Raises:
      ValueError: an unknown surrogate, reduction or whitening; counts below 1; an estimator that needs whole episodes
        or groups which ``data`` does not have; data that cannot be cut into ``minibatches`` equal parts; ``popart``
        without a critic, or with a network that cannot rescale its heads.
      UnsupportedSpaceError: an action or observation space that is not supported.
    """
    _validate(credit, data, surrogate, reduction, epochs, minibatches)
    model = actor_critic(
        spec,
        network_config,
        critic_config or network_config,
        critics=credit.critics,
        shared=shared_critic,
        continuous=continuous,
        initial_std=initial_std,
        popart=popart_step_size if popart else None,
    )
    require_minibatches(minibatches, data.batch if model.recurrent else data.batch * data.length)
    steps = [] if max_gradient_norm is None else [optax.clip_by_global_norm(max_gradient_norm)]
    optimiser = chained(*steps, optax.adam(learning_rate, eps=adam_epsilon), flatten=flatten)
    settings = PolicyLoss(
        surrogate=surrogate,
        clip_low=clip,
        clip_high=clip if clip_high is None else clip_high,
        dual_clip=dual_clip,
        entropy_weight=entropy_weight,
        value_weight=value_weight,
        value_clip=value_clip,
        whiten=credit.whiten == "minibatch",
    )

    def init_fn(key):
        params = model.init(key)
        return PolicyGradientState(params, optimiser.init(params))

    def loss_fn(params, part, carry):
        start = part.get("episode_start")
        parameters, values, _ = model.forward(params, part["observation"], carry, start, normalised=True)
        log_prob = model.distribution.log_prob(parameters, part["action"])
        entropy = model.distribution.entropy(parameters)
        return policy_gradient_loss(log_prob, entropy, values, part["loss"], settings)

    def gradient_step(state, part, carry):
        params, optimiser_state = state
        carry = carry if model.recurrent else model.initial_carry(1)
        (_, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, part, carry)
        metrics["gradient_norm"] = gradient_norm(gradient, flatten=flatten)
        updates, optimiser_state = optimiser.update(gradient, optimiser_state, params)
        return PolicyGradientState(optax.apply_updates(params, updates), optimiser_state), metrics

    def update_fn(state, trajectory: Trajectory, key):
        assigned = assign_credit(credit, model, state.params, trajectory, data, spec.max_episode_steps)
        # PopArt's statistics come before the gradient steps: a target of a size never seen before has a normalised
        # error of order 1 at once. Values, and hence the advantages above, are the same before and after. The
        # optimiser's moments are left as they are, as in the papers: they are of gradients of normalised errors, which
        # are of order 1 under the old statistics as under the new ones.
        params = model.rescale(state.params, assigned.value_targets, trajectory.mask)
        state = state._replace(params=params)
        # The loss of a minibatch is a sum, scaled so that its expectation is the loss of the whole batch.
        weight = step_weights(trajectory.mask, reduction) * minibatches
        values = trajectory.extras["value"]
        batch = {
            "observation": trajectory.observation,
            "action": trajectory.action,
            "loss": LossData(
                trajectory.extras["log_prob"],
                trajectory.mask,
                assigned.advantage,
                weight,
                model.normalise(params, assigned.value_targets),
                model.normalise(params, values),
            ),
        }
        start_carry: PyTree = ()
        if model.recurrent:
            batch["episode_start"] = trajectory.extras["episode_start"]
            start_carry = jax.tree.map(lambda x: x[0], trajectory.extras["carry"])
        state, metrics = minibatch_epochs(
            gradient_step,
            state,
            batch,
            start_carry,
            key,
            epochs=epochs,
            minibatches=minibatches,
            whole_columns=model.recurrent,
        )
        params = model.observe(state.params, trajectory.observation, trajectory.mask)
        metrics |= credit_metrics(assigned, values, trajectory.mask)
        for name, statistics in params.get(STATISTICS, {}).items():
            metrics |= {f"popart_mean/{name}": statistics.mean, f"popart_std/{name}": statistics.std}
        return state._replace(params=params), metrics

    discrete = isinstance(spec.action_space, gymnasium.spaces.Discrete)
    probabilities = partial(action_probabilities, model) if discrete else None
    return Agent(init_fn, model.initial_carry, partial(act, model), update_fn, data, probabilities)


def assign_credit(
    credit: Credit,
    model: ActorCritic,
    params: PyTree,
    trajectory: Trajectory,
    data: DataSpec,
    max_episode_steps: int | None,
) -> Assigned:
    """``agents.credit.assign`` with the values that acting recorded and, after each step, bootstrapped values."""
    values, following = trajectory.extras["value"], {}
    if model.critics:
        whole_episodes = data.kind == "episodes"
        following = next_values(
            values,
            boundaries(trajectory, whole_episodes=whole_episodes),
            critic_on_rows(model, params, trajectory),
            rows=rows_at_a_time(trajectory.mask.shape[0], max_episode_steps, whole_episodes=whole_episodes),
        )
    return assign(credit, trajectory, data.group_size, values, following)


def credit_metrics(assigned: Assigned, values: Mapping[str, jax.Array], mask: jax.Array) -> dict[str, jax.Array]:
    """``advantage_std``, ``credit_std/ENTRY`` (of the entry's own advantage) and ``explained_variance/HEAD``."""
    metrics = {"advantage_std": masked_std(assigned.advantage, mask)}
    for name, targets in assigned.value_targets.items():
        metrics[f"explained_variance/{name}"] = explained_variance(targets, values[name], mask)
    return metrics | {f"credit_std/{name}": masked_std(part, mask) for name, part in assigned.parts.items()}


def _validate(credit, data, surrogate, reduction, epochs, minibatches):
    require_known("surrogate", surrogate, SURROGATES)
    require_known("reduction", reduction, REDUCTIONS)
    if epochs < 1 or minibatches < 1:
        raise ValueError(f"epochs={epochs}, minibatches={minibatches}: expected at least 1")
    require_credit(credit, data, "policy_gradient")


def require_credit(credit: Credit, data: DataSpec, family: str) -> None:
    """Refuses a credit that cannot be assigned to fresh ``data``; ``family`` is named in messages.

    Raises:
      ValueError: an unknown whitening; an entry with a critic whose head would be named ``policy``; replayed data;
        estimators that need whole episodes or groups which ``data`` does not have.
    """
    require_known("whiten", credit.whiten, WHITENINGS)
    if "policy" in credit.critics:
        raise ValueError("credit 'policy': an entry with a critic names its value head, and the head 'policy' is taken")
    if data.kind not in ("unroll", "episodes"):
        raise ValueError(f"{family} learns from fresh data: data.kind={data.kind!r}, expected 'unroll' or 'episodes'")
    if credit.grouped and data.kind != "episodes":
        names = [name for name, entry in credit.entries.items() if entry.estimator.grouped]
        raise ValueError(f"credit {names} needs whole episodes: data.kind={data.kind!r}, expected 'episodes'")
    require_groups(credit, data.group_size)
