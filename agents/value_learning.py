"""Gradient steps of the value-based family, on replayed and on fresh data: examples with targets, and their loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import optax

from agents.bootstrap import boundaries, next_values, row_picker, rows_at_a_time
from agents.channels import credit_weights, read_channel
from agents.functionals import Functional
from agents.minibatches import minibatch_epochs
from agents.optimisers import gradient_norm
from agents.priority_tree import PriorityTree
from agents.replay import ReplayState, importance_weights, replay_prioritise, replay_sample
from agents.return_networks import ReturnNetwork, best_actions, utilities
from agents.statistics import masked_mean
from agents.value_targets import (
    Batch,
    batch_of,
    bellman_target,
    follow_online,
    head_loss,
    log_policy_bonus,
    mix_actions,
    soft_policy,
    target_policy,
    trace_return,
    untaken,
    with_other_stocks,
)
from envs.base import Observation, PyTree, Trajectory


class LearningRule(NamedTuple):
    """The settings of a gradient step, in the words of ``value_based``.

    Attributes:
      returns: the network.
      optimiser, flatten: of its parameters; see ``agents.optimisers``.
      actions: how many there are.
      allowed: which of them an observation allows, see ``agents.action_masks``; ``None`` for all.
      channels: weight by reward channel.
      functional, return_scale, use_stock: of the greedy policy.
      start_stocks: the space from which ``stock_edits`` draw, or ``None``.
      max_episode_steps: the time limit of the environment, or ``None``.
      stock_edits, discount, n_step, trace_decay, trace_cut, batch_size, epochs, minibatches, double, munchausen,
        temperature, log_policy_floor, quantiles, huber, prioritised, priority_exponent, importance_exponent,
        target_rate, target_period: see ``value_based``.
    """

    returns: ReturnNetwork
    optimiser: optax.GradientTransformation
    flatten: bool
    actions: int
    allowed: Callable[[Observation], jax.Array] | None
    channels: Mapping[str, float]
    functional: Functional | None
    return_scale: float | jax.Array
    use_stock: bool
    start_stocks: gymnasium.spaces.Box | None
    max_episode_steps: int | None
    stock_edits: int
    discount: float | jax.Array
    n_step: int
    trace_decay: float | jax.Array | None
    trace_cut: bool
    batch_size: int
    epochs: int
    minibatches: int
    double: bool
    munchausen: float | jax.Array
    temperature: float | jax.Array | None
    log_policy_floor: float | jax.Array
    quantiles: int
    huber: float | jax.Array
    prioritised: bool
    priority_exponent: float | jax.Array
    importance_exponent: float | jax.Array
    target_rate: float | jax.Array
    target_period: int | None


class Learner(NamedTuple):
    """The part of the state that gradient steps on replayed data change: all but the buffer's transitions."""

    online: PyTree
    target: PyTree
    optimiser: PyTree
    gradient_steps: jax.Array
    priority: PriorityTree | None
    largest: jax.Array | None


def greedy_policy(rule: LearningRule, outputs: jax.Array, observation: Observation) -> jax.Array:
    """Uniform over the actions that are best by the network's ``outputs [B, A, N]``; ``[B, A]``."""
    distribution = rule.returns.distribution(outputs)
    scale, use_stock = rule.return_scale, rule.use_stock
    utility = utilities(distribution, observation, rule.functional, return_scale=scale, use_stock=use_stock)
    return best_actions(utility, None if rule.allowed is None else rule.allowed(observation))


def target_of(
    rule: LearningRule, key: jax.Array, target: PyTree, online: PyTree, batch: Batch, fractions: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The target of every segment in the form that the head's loss takes, and its mean ``[B]``.

    ``fractions [B, N]`` are the fractions at which an implicit head predicts the target's quantiles. With
    ``rule.temperature`` it is the soft target of one row, see ``value_based``.
    """
    if rule.temperature is not None:
        return soft_target(rule, target, batch, fractions)
    outputs = chooser = rule.returns.apply(target, batch.following, fractions)
    if rule.double or fractions is not None:
        # Actions are not chosen by the fractions sampled for the target: a maximum over noise is biased upwards.
        chooser = rule.returns.apply(online if rule.double else target, batch.following)
    head, best = rule.returns.head, greedy_policy(rule, chooser, batch.following)
    policy = target_policy(key, best, head=head, share_ties=rule.functional is not None)
    particles, probabilities = mix_actions(rule.returns.distribution(outputs), policy, head=head)
    return bellman_target(batch.segment, particles, probabilities, head=head, atoms=rule.returns.atoms)


def soft_target(
    rule: LearningRule, target: PyTree, batch: Batch, fractions: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The target of Munchausen and of soft Q-learning, as ``target_of`` returns it.

        reward + munchausen clip(temperature log pi(a | s), log_policy_floor, 0)
               + discount (1 - terminated) sum_a pi(a | s') (Z(s', a) - temperature log pi(a | s'))

    ``pi`` is ``softmax(Q / temperature)`` of the target network, at both observations.
    """

    def policy_at(observation):
        # As for greedy actions, not by the fractions sampled for the target.
        values = utilities(rule.returns.distribution(rule.returns.apply(target, observation)), observation, None)
        return soft_policy(values, rule.temperature, None if rule.allowed is None else rule.allowed(observation))

    _, scaled = policy_at(batch.observation)
    bonus = log_policy_bonus(scaled, batch.action, rule.munchausen, rule.log_policy_floor)
    policy, scaled = policy_at(batch.following)
    outputs = rule.returns.apply(target, batch.following, fractions)
    particles, probabilities = mix_actions(rule.returns.distribution(outputs), policy, head=rule.returns.head)
    particles = particles - jnp.sum(policy * scaled, axis=-1, keepdims=True)
    segment = batch.segment._replace(reward=batch.segment.reward + bonus)
    return bellman_target(segment, particles, probabilities, head=rule.returns.head, atoms=rule.returns.atoms)


class Examples(NamedTuple):
    """What one optimiser step learns from, ``[B, ...]``.

    Attributes:
      observation, action: whose predicted return is moved.
      target: where to, in the form that the head's loss takes.
      mean: of the target.
      importance: weight in the loss.
      valid: 1, or 0 where nothing is to be learned.
    """

    observation: Observation
    action: jax.Array
    target: jax.Array
    mean: jax.Array
    importance: jax.Array
    valid: jax.Array


def draw_fractions(rule: LearningRule, key: jax.Array, size: int) -> tuple[jax.Array | None, jax.Array | None]:
    """The fractions ``[size, N]`` at which an implicit head predicts, and those of its target; else ``None``."""
    if rule.returns.head != "implicit_quantile":
        return None, None
    fractions, target_fractions = jax.random.uniform(key, (2, size, rule.quantiles))
    return fractions, target_fractions


def segment_examples(
    rule: LearningRule,
    edit_key: jax.Array,
    tie_key: jax.Array,
    rows: Trajectory,
    importance: jax.Array,
    target: PyTree,
    online: PyTree,
    fractions: jax.Array | None,
) -> Examples:
    """The examples of segments ``rows [n, B]``, one of the first row of each; ``[(1 + stock_edits) B, ...]``.

    With ``rule.trace_decay`` the target is the lambda-return over the rows, otherwise that of all of them.

    Args:
      rule: the settings.
      edit_key, tie_key: for other start stocks, and for drawing one of tied actions.
      rows: consecutive rows.
      importance: ``[B]``.
      target, online: parameters of the network that evaluates, and of the one that learns.
      fractions: see ``target_of``.
    """
    reward = weighted_reward(rows, rule.channels)
    batch = batch_of(rows, reward, importance, rule.discount)
    if rule.trace_decay is not None:
        following, best = greedy_values(rule, target, online, rows.next_observation)
        # Inside an episode, what follows a row is the observation of the next one.
        cut = untaken(best, jnp.roll(rows.action, -1, axis=0)) if rule.trace_cut else None
        goal = trace_targets(rule, rows, reward, following, cut)[0]
        return Examples(batch.observation, batch.action, goal, goal, importance, batch.segment.weight)
    if rule.start_stocks is not None:
        copies, discount = rule.stock_edits, rule.discount
        batch = with_other_stocks(edit_key, batch, rule.start_stocks, copies=copies, discount=discount)
    goal, mean = target_of(rule, tie_key, target, online, batch, fractions)
    return Examples(batch.observation, batch.action, goal, mean, batch.importance, batch.segment.weight)


def greedy_values(
    rule: LearningRule, target: PyTree, online: PyTree, observation: Observation
) -> tuple[jax.Array, jax.Array]:
    """Of an ``expected`` head, the value of the greedy action at ``observation [K, B, ...]``, ``[K, B]``, and the
    uniform policy over the greedy actions, ``[K, B, A]``."""
    rows, columns = jax.tree.leaves(observation)[0].shape[:2]
    flat = jax.tree.map(lambda x: x.reshape(rows * columns, *x.shape[2:]), observation)
    outputs = rule.returns.apply(target, flat)
    best = greedy_policy(rule, rule.returns.apply(online, flat) if rule.double else outputs, flat)
    first = jax.nn.one_hot(jnp.argmax(best, axis=-1), rule.actions, dtype=outputs.dtype)
    values, _ = mix_actions(rule.returns.distribution(outputs), first, head=rule.returns.head)
    return values[:, 0].reshape(rows, columns), best.reshape(rows, columns, -1)


def trace_targets(
    rule: LearningRule, rows: Trajectory, reward: jax.Array, following: jax.Array, cut: jax.Array | None
) -> jax.Array:
    """The lambda-returns of ``rows [T, B]``, see ``agents.value_targets.trace_return``."""
    assert rule.trace_decay is not None
    ends = rows.terminated | rows.truncated
    return trace_return(reward, following, rows.terminated, ends, rule.discount, rule.trace_decay, cut=cut)


def unroll_examples(rule: LearningRule, key: jax.Array, trajectory: Trajectory, online: PyTree) -> Examples:
    """The examples of every step of an unroll ``[T, B]``, one after the other; the network ``online`` evaluates.

    With ``rule.trace_decay`` the target is the lambda-return to the end of the unroll, otherwise that of one step.
    """
    edit_key, fraction_key, tie_key = jax.random.split(key, 3)
    length, width = trajectory.mask.shape
    weights = {name: trajectory.extras[name] for name in ("credit_weight",) if name in trajectory.extras}
    trajectory = trajectory._replace(extras=weights)
    if rule.trace_decay is None:
        row = jax.tree.map(lambda x: x.reshape(1, length * width, *x.shape[2:]), trajectory)
        _, fractions = draw_fractions(rule, fraction_key, length * width * (1 + rule.stock_edits))
        return segment_examples(rule, edit_key, tie_key, row, jnp.ones(length * width), online, online, fractions)
    values, best = greedy_values(rule, online, online, trajectory.observation)

    def evaluate(index):
        following = jax.tree.map(row_picker(index), trajectory.next_observation)
        return {"value": greedy_values(rule, online, online, following)[0]}

    rows = rows_at_a_time(length, rule.max_episode_steps, whole_episodes=False)
    following = next_values({"value": values}, boundaries(trajectory, whole_episodes=False), evaluate, rows=rows)
    cut = None
    if rule.trace_cut:
        cut = jnp.roll(untaken(best, trajectory.action), -1, axis=0)
    goal = trace_targets(rule, trajectory, weighted_reward(trajectory, rule.channels), following["value"], cut)
    examples = Examples(
        trajectory.observation, trajectory.action, goal, goal, jnp.ones((length, width)), trajectory.mask
    )
    return jax.tree.map(lambda x: x.reshape(length * width, *x.shape[2:]), examples)


def unroll_steps(
    rule: LearningRule, key: jax.Array, trajectory: Trajectory, online: PyTree, optimiser: PyTree
) -> tuple[PyTree, PyTree, dict[str, jax.Array]]:
    """``epochs * minibatches`` optimiser steps on the steps of an unroll, whose targets are those of ``online`` at the
    start; the parameters and the optimiser's state after them, and means of the metrics."""
    example_key, shuffle_key, step_key = jax.random.split(key, 3)
    examples = unroll_examples(rule, example_key, trajectory, online)

    def step(state, part, carry):
        del carry
        online, optimiser, key = state
        key, fraction_key = jax.random.split(key)
        part = jax.tree.map(lambda x: x[0], part)
        fractions, _ = draw_fractions(rule, fraction_key, part.action.shape[0])
        online, optimiser, _, metrics = optimiser_step(rule, online, optimiser, part, fractions)
        return (online, optimiser, key), metrics

    (online, optimiser, _), metrics = minibatch_epochs(
        step,
        (online, optimiser, step_key),
        jax.tree.map(lambda x: x[None], examples),
        (),
        shuffle_key,
        epochs=rule.epochs,
        minibatches=rule.minibatches,
        whole_columns=False,
    )
    return online, optimiser, metrics


def batch_loss(
    rule: LearningRule, online: PyTree, examples: Examples, fractions: jax.Array | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """``sum(valid * importance * head_loss) / sum(valid)`` at the taken actions; with it the priorities ``[B]`` and the
    mean predicted value ``[]``."""
    outputs = rule.returns.apply(online, examples.observation, fractions)
    # A masked sum, not a gather: the gradient of a gather is a scatter, which is slow on every device.
    outputs = jnp.sum(jax.nn.one_hot(examples.action, rule.actions, dtype=outputs.dtype)[..., None] * outputs, axis=1)
    head, huber = rule.returns.head, rule.huber
    loss, priority = head_loss(outputs, examples.target, head=head, fractions=fractions, huber=huber)
    value = utilities(rule.returns.distribution(outputs[:, None]), examples.observation, None)[:, 0]
    total = jnp.sum(examples.valid * examples.importance * loss) / jnp.maximum(jnp.sum(examples.valid), 1.0)
    return total, (priority, masked_mean(value, examples.valid))


def optimiser_step(
    rule: LearningRule, online: PyTree, optimiser: PyTree, examples: Examples, fractions: jax.Array | None
) -> tuple[PyTree, PyTree, jax.Array, dict[str, jax.Array]]:
    """One step on ``batch_loss``: the parameters, the optimiser's state, the priorities ``[B]`` and metrics."""
    loss_and_gradient = jax.value_and_grad(partial(batch_loss, rule), has_aux=True)
    (loss, (priority, value)), gradient = loss_and_gradient(online, examples, fractions)
    change, optimiser = rule.optimiser.update(gradient, optimiser, online)
    metrics = {
        "loss": loss,
        "value": value,
        "target": masked_mean(examples.mean, examples.valid),
        "gradient_norm": gradient_norm(gradient, flatten=rule.flatten),
    }
    return optax.apply_updates(online, change), optimiser, priority, metrics


def gradient_steps(
    rule: LearningRule,
    replay: ReplayState,
    relabel: Callable[[Trajectory], Trajectory] | None,
    keys: jax.Array,
    learner: Learner,
) -> tuple[Learner, dict[str, jax.Array]]:
    """One ``gradient_step`` for each of ``keys``; the learner after them, and means of their metrics."""
    sampled = None
    if not rule.prioritised:
        # Without priorities no gradient step changes what the next one samples, so that all sample at once.
        sampled = jax.vmap(partial(_sample, rule, replay))(keys)
    learner, metrics = jax.lax.scan(partial(gradient_step, rule, replay, relabel), learner, (keys, sampled))
    # Typed: where 64 bits are enabled, the branch that waits for data must still agree.
    return learner, {name: jnp.mean(each).astype(jnp.float32) for name, each in metrics.items()}


def no_metrics() -> dict[str, jax.Array]:
    """The metrics of gradient steps where none was taken."""
    return {name: jnp.float32(0) for name in ("loss", "value", "target", "gradient_norm")}


def _sample(rule: LearningRule, replay: ReplayState, key: jax.Array) -> tuple[Trajectory, jax.Array, jax.Array]:
    return replay_sample(replay, jax.random.split(key, 4)[0], batch=rule.batch_size, length=rule.n_step)


def gradient_step(
    rule: LearningRule,
    replay: ReplayState,
    relabel: Callable[[Trajectory], Trajectory] | None,
    learner: Learner,
    inputs: tuple[jax.Array, Any],
) -> tuple[Learner, dict[str, jax.Array]]:
    """One optimiser step on sampled segments, then the updates of target network and priorities.

    Args:
      rule: the settings.
      replay: the buffer; its priorities are those of ``learner``.
      relabel: see ``value_based``.
      learner: the parameters, optimiser state and priorities before the step.
      inputs: a key, and what was sampled with it (see ``replay_sample``), or ``None`` to sample here.
    """
    key, sampled = inputs
    _, edit_key, fraction_key, tie_key = jax.random.split(key, 4)
    replay = replay._replace(priority=learner.priority, largest=learner.largest)
    rows, index, probability = _sample(rule, replay, key) if sampled is None else sampled
    rows = rows if relabel is None else relabel(rows)
    importance = jnp.ones(rule.batch_size)
    if rule.prioritised:
        importance = importance_weights(probability, rule.importance_exponent)
    fractions, target_fractions = draw_fractions(rule, fraction_key, rule.batch_size * (1 + rule.stock_edits))
    examples = segment_examples(
        rule, edit_key, tie_key, rows, importance, learner.target, learner.online, target_fractions
    )
    online, optimiser, priority, metrics = optimiser_step(rule, learner.online, learner.optimiser, examples, fractions)
    # Counted within the period, because all gradient steps together may have more than 32 bits.
    count = saturating_sum(learner.gradient_steps, 1)
    count = count if rule.target_period is None else count % rule.target_period
    followed = follow_online(learner.target, online, count, rate=rule.target_rate, period=rule.target_period)
    if rule.prioritised:
        replay = replay_prioritise(replay, index, priority[: rule.batch_size], exponent=rule.priority_exponent)
    return Learner(online, followed, optimiser, count, replay.priority, replay.largest), metrics


def saturating_sum(count: jax.Array, more: jax.Array | int) -> jax.Array:
    """``min(count + more, 2 ** 31 - 1)`` for integers of 32 bits that are at least 0."""
    largest = jnp.iinfo(jnp.int32).max
    return jnp.where(count > largest - more, largest, count + more)


def weighted_reward(trajectory: Trajectory, weights: Mapping[str, float]) -> jax.Array:
    """``sum_c weights_c * credit_weight_c * rewards_c`` over the channels in ``weights``, ``[T, B]``.

    ``credit_weight_c`` is 1 unless a reward transform wrote ``extras["credit_weight"]``: the value-based family has one
    credit entry per channel, of the channel's name.

    Raises:
      ValueError: at trace time, a channel that is missing or not ``[T, B]``, or a credit weight of no channel.
    """
    learned = credit_weights(trajectory, weights)
    parts = (
        weight * learned.get(name, 1.0) * read_channel(trajectory, name, "agent.channels")
        for name, weight in weights.items()
    )
    return sum(parts, jnp.zeros_like(trajectory.mask))
