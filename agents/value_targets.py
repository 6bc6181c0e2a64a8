"""Targets of value learning: n-step segments, the target's return distribution, and the loss of each kind of head."""

from __future__ import annotations

from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp

from agents.action_masks import masked_logits
from agents.return_networks import ReturnDistribution
from agents.returns import generalised_advantage
from agents.value_losses import (
    categorical_cross_entropy,
    categorical_projection,
    huber_loss,
    midpoints,
    quantile_huber_loss,
)
from envs.base import Observation, PyTree, Trajectory
from envs.stock import with_start

QUANTILE_HEADS = ("quantile", "implicit_quantile")


class Segment(NamedTuple):
    """The rewards and the continuation of n consecutive rows, ``[B]`` each.

    Attributes:
      reward: the discounted sum of rewards up to the first end, or up to the last row.
      discount: the factor of the value that follows; 0 where the episode terminated.
      last: ``int32``, index of the row after which that value is taken.
      weight: 1 where all rows up to ``last`` are valid, else 0.
    """

    reward: jax.Array
    discount: jax.Array
    last: jax.Array
    weight: jax.Array


def n_step_return(
    rewards: jax.Array, terminated: jax.Array, truncated: jax.Array, mask: jax.Array, discount: float | jax.Array
) -> Segment:
    """Sums ``[n, B]`` rows up to the first end.

        reward = sum_{k <= last} discount^k r_k,    discount = discount^(last + 1) (1 - terminated_last)

    A truncated episode ends the sum as well, but the value after its last row is bootstrapped.
    """
    ends = (terminated | truncated).astype(jnp.int32)
    # A row counts while no row before it ended the episode.
    counts = (jnp.cumsum(ends, axis=0) - ends) == 0
    last = jnp.sum(counts, axis=0) - 1
    powers = jnp.asarray(discount) ** jnp.arange(rewards.shape[0] + 1)
    total = jnp.sum(jnp.where(counts, powers[:-1, None] * rewards, 0.0), axis=0)
    stopped = jnp.any(counts & terminated, axis=0)
    weight = jnp.min(jnp.where(counts, mask, 1.0), axis=0)
    return Segment(total, jnp.where(stopped, 0.0, powers[last + 1]), last, weight)


def trace_return(
    rewards: jax.Array,
    following: jax.Array,
    terminated: jax.Array,
    ends: jax.Array,
    discount: float | jax.Array,
    trace_decay: float | jax.Array,
    *,
    cut: jax.Array | None = None,
) -> jax.Array:
    """The lambda-return of action values, ``[T, B]``: a mixture of the n-step returns of every length.

        G_t = r_t + discount (1 - terminated_t) ((1 - l_t) following_t + l_t G_{t + 1})
        l_t = trace_decay (1 - ends_t) (1 - cut_t),    l_{T - 1} = 0

    With ``following_t = max_a Q(s_{t + 1}, a)`` this is Peng's Q(lambda) (Peng and Williams, 1996), which does not
    correct for actions that were not greedy: it learns fast, and where exploration stays it is biased towards the
    behaviour. Watkins' Q(lambda) (Watkins, 1989) cuts the trace at those actions. ``trace_decay`` 0 gives the one-step
    target, 1 the sum of rewards up to the first end or the last row, and the value that follows there.

    Args:
      rewards: ``[T, B]``.
      following: ``[T, B]``, the value of the observation that followed each step, before any reset.
      terminated, ends: ``[T, B]`` bool. A truncated row ends the sum, and the value that follows it is bootstrapped.
      discount, trace_decay: in [0, 1].
      cut: ``[T, B]`` bool, whether the row after this one is not to be followed; ``None`` for no cuts.

    >>> rewards, following, off = jnp.ones((2, 1)), jnp.full((2, 1), 4.0), jnp.zeros((2, 1), bool)
    >>> [trace_return(rewards, following, off, off, 0.5, decay)[0, 0].item() for decay in (0.0, 1.0)]
    [3.0, 2.5]
    """
    # The value of a row is what follows the one before; that of the first row cancels, as others do after an end.
    values = jnp.concatenate([jnp.zeros_like(following[:1]), following[:-1]])
    stops = ends if cut is None else ends | cut
    return values + generalised_advantage(rewards, values, following, terminated, stops, discount, trace_decay)


def untaken(policy: jax.Array, action: jax.Array) -> jax.Array:
    """``[...]`` bool: whether ``policy [..., A]`` never takes ``action [...]``."""
    return jnp.sum(jax.nn.one_hot(action, policy.shape[-1]) * policy, axis=-1) == 0


class Batch(NamedTuple):
    """The data of one gradient step, ``[B, ...]``.

    Attributes:
      observation, action: whose predicted return is learned.
      following: the observation after the segment, from which the target bootstraps.
      segment: rewards in between.
      importance: weight of the segment in the loss.
    """

    observation: Observation
    action: jax.Array
    following: Observation
    segment: Segment
    importance: jax.Array


def batch_of(rows: Trajectory, reward: jax.Array, importance: jax.Array, discount: float | jax.Array) -> Batch:
    """The batch of sampled segments ``rows [n, B]`` with the rewards ``reward [n, B]``."""
    segment = n_step_return(reward, rows.terminated, rows.truncated, rows.mask, discount)
    columns = jnp.arange(importance.shape[0])
    return Batch(
        observation=jax.tree.map(lambda x: x[0], rows.observation),
        action=rows.action[0],
        following=jax.tree.map(lambda x: x[segment.last, columns], rows.next_observation),
        segment=segment,
        importance=importance,
    )


def with_other_stocks(
    key: jax.Array, batch: Batch, space: gymnasium.spaces.Box, *, copies: int, discount: float | jax.Array
) -> Batch:
    """``batch``, followed by ``copies`` copies of it as if begun from other start stocks; ``[(1 + copies) B, ...]``.

    The start stocks are drawn uniformly from ``space``. The stock enters the observations alone, so that actions,
    rewards and ends of a copy are those of the original.
    """
    size = batch.action.shape[0]
    drawn = jax.random.uniform(key, (copies * size, *space.shape))
    start = space.low + (space.high - space.low) * drawn

    def extended(observation):
        repeated = jax.tree.map(lambda x: jnp.concatenate([x] * copies), observation)
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), observation, with_start(repeated, start, discount))

    action, importance, segment = jax.tree.map(
        lambda x: jnp.tile(x, 1 + copies), (batch.action, batch.importance, batch.segment)
    )
    return Batch(extended(batch.observation), action, extended(batch.following), segment, importance)


def target_policy(key: jax.Array, best: jax.Array, *, head: str, share_ties: bool) -> jax.Array:
    """The probabilities ``[B, A]`` by which the distributions of the actions are mixed in the target.

    Args:
      key: for drawing one of the tied actions.
      best: uniform over the best actions, ``[B, A]``, see ``agents.return_networks.best_actions``.
      head: of the network.
      share_ties: without it, the first of the best actions is taken. With it, the target is the uniform mixture of the
        best actions, for quantile heads in expectation, by drawing one of them: their loss is linear in the target's
        distribution, and the particles of all actions would cost A times as many pairs.
    """
    actions = best.shape[-1]
    if not share_ties:
        return jax.nn.one_hot(jnp.argmax(best, axis=-1), actions, dtype=jnp.float32)
    if head in QUANTILE_HEADS:
        return jax.nn.one_hot(jax.random.categorical(key, jnp.log(best)), actions, dtype=jnp.float32)
    return best


def mix_actions(distribution: ReturnDistribution, policy: jax.Array, *, head: str) -> tuple[jax.Array, jax.Array]:
    """The return distribution when actions are taken by ``policy [B, A]``: particles and probabilities ``[B, N]``.

    A categorical head mixes the probabilities of its common atoms. The other heads mix particles, which is right for
    expected returns, and for quantiles where the policy puts everything on one action. Where it does not, quantiles of
    equal fractions are averaged, as Munchausen-IQN does: the mean is right, and the shape is narrower than a mixture's.
    """
    if head == "categorical":
        return distribution.particles[:, 0], jnp.sum(policy[..., None] * distribution.weights, axis=1)
    particles = jnp.sum(policy[..., None] * distribution.particles, axis=1)
    return particles, jnp.broadcast_to(distribution.weights, particles.shape)


def soft_policy(
    values: jax.Array, temperature: float | jax.Array, allowed: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """``pi = softmax(values / temperature)`` over the allowed actions, and ``temperature log pi``; ``[B, A]`` each.

    >>> policy, scaled = soft_policy(jnp.array([[0.0, 1.0]]), 0.5)
    >>> [round(float(each), 4) for each in (policy[0, 1], scaled[0, 1])]
    [0.8808, -0.0635]
    """
    held = values if allowed is None else jnp.where(allowed, values, -jnp.inf)
    logits = (values - jnp.max(held, axis=-1, keepdims=True)) / temperature
    log_policy = jax.nn.log_softmax(logits if allowed is None else masked_logits(logits, allowed))
    return jnp.exp(log_policy), temperature * log_policy


def log_policy_bonus(
    scaled: jax.Array, action: jax.Array, munchausen: float | jax.Array, floor: float | jax.Array
) -> jax.Array:
    """``munchausen * clip(scaled(a), floor, 0)``, ``[B]``: what Munchausen adds to the reward of ``action [B]``.

    ``scaled [B, A]`` is ``temperature log pi``, see ``soft_policy``. It is not bounded below, where an action becomes
    impossible (Vieillard, Pietquin and Geist, 2020, "Munchausen reinforcement learning", section 3).
    """
    taken = jnp.sum(jax.nn.one_hot(action, scaled.shape[-1]) * scaled, axis=-1)
    return munchausen * jnp.clip(taken, floor, 0.0)


def bellman_target(
    segment: Segment, particles: jax.Array, probabilities: jax.Array, *, head: str, atoms: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """``segment.reward + segment.discount * Z`` in the form that the head's loss takes, and its mean ``[B]``.

    Args:
      segment: ``[B]``.
      particles, probabilities: the distribution of ``Z``, ``[B, N]``.
      head: ``expected`` gives numbers ``[B]``, ``categorical`` probabilities ``[B, N]`` on ``atoms``, a quantile head
        samples ``[B, N]``.
      atoms: ``[N]`` of a categorical head.
    """
    if head == "expected":
        value = segment.reward + segment.discount * particles[:, 0]
        return value, value
    if head == "categorical":
        projected = categorical_projection(atoms, segment.reward, segment.discount, probabilities)
        return projected, jnp.sum(atoms * projected, axis=-1)
    shifted = segment.reward[:, None] + segment.discount[:, None] * particles
    return shifted, jnp.mean(shifted, axis=-1)


def head_loss(
    outputs: jax.Array, target: jax.Array, *, head: str, fractions: jax.Array | None, huber: float | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The loss of the taken actions' ``outputs [B, N]``, and their priority in a prioritised buffer; ``[B]`` each.

    * ``expected``: Huber loss of the error; the priority is the absolute error;
    * ``categorical``: cross-entropy to the target;
    * quantile heads: quantile Huber loss at ``fractions`` (``None`` for the midpoints).

    The priority of the distributional heads is the loss.
    """
    if head == "expected":
        error = target - outputs[:, 0]
        return huber_loss(error, huber), jnp.abs(error)
    if head == "categorical":
        loss = categorical_cross_entropy(outputs, target)
    else:
        fractions = midpoints(outputs.shape[-1]) if fractions is None else fractions
        loss = quantile_huber_loss(outputs, fractions, target, kappa=huber)
    return loss, loss


def follow_online(
    target: PyTree, online: PyTree, gradient_steps: jax.Array, *, rate: float | jax.Array, period: int | None
) -> PyTree:
    """The target network's parameters after a gradient step: ``target + rate (online - target)``, and a copy of
    ``online`` after every ``period`` gradient steps (``None`` for never)."""
    target = jax.tree.map(lambda old, new: old + rate * (new - old), target, online)
    if period is None:
        return target
    copies = gradient_steps % period == 0
    return jax.tree.map(lambda old, new: jnp.where(copies, new, old), target, online)
