"""Constraints on the totals of channels, met by learned weights of credit entries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.base import DataSpec
from agents.channels import read_channel
from agents.limits import SENSES, sign_of
from agents.state import fields
from agents.statistics import masked_mean
from envs.base import PyTree, Trajectory
from envs.choices import require_known
from rewards.base import Metrics, RewardTransform, write_channel
from rewards.constraints.multipliers import Multiplier, dual_ascent
from rewards.moments import episode_starts

MIXINGS = ("sum", "normalised", "share")


@dataclass(frozen=True)
class Constraint:
    """A limit on a channel's total over an episode.

    Attributes:
      channel: whose total it is.
      limit: in units of the channel.
      sense: ``at_most`` (a cost), ``at_least`` (a goal) or ``equal``.
    """

    channel: str
    limit: float | jax.Array
    sense: str = "at_most"


class LagrangianState(NamedTuple):
    """State of ``lagrangian``; ``K`` constraints, ``B`` environments.

    Attributes:
      multiplier: of the rule.
      total: ``[K]``, the running estimate of each constrained total.
      length: ``[]``, that of the length of an episode, in steps.
      best: ``[K]``, the total of the batch that was least violated so far.
      batches: ``[]``, how many batches had an episode that ended.
      running: ``[K, B]``, the totals of the running episodes.
      factor: ``[B]``, the discount of their next step.
    """

    multiplier: PyTree
    total: jax.Array
    length: jax.Array
    best: jax.Array
    batches: jax.Array
    running: jax.Array
    factor: jax.Array


def lagrangian(
    *,
    data: DataSpec,
    constraints: Mapping[str, Constraint],
    multiplier: Multiplier = dual_ascent(),  # noqa: B008  (a tuple of functions)
    objective: str = "env",
    mixing: str = "normalised",
    channel: str | None = None,
    smoothing: float | jax.Array = 0.0,
    discount: float | jax.Array = 1.0,
    tail: float | jax.Array = 1.0,
) -> RewardTransform:
    """Weighs the credit entries of ``constraints`` by Lagrange multipliers that it learns.

    For constraint ``k`` with total ``J_k``, sign ``s_k`` (-1 for ``at_least``, else 1) and multiplier ``lambda_k``:

        J_k      = mean over the episodes that ended of sum_t discount^t c_kt         (``tail``: over the worst of them)
        g_k      = s_k (J_k - limit_k)
        lambda  <- multiplier(lambda, g)
        A        = w_0 A_0 - sum_k w_k s_k A_k

        sum         w_0 = 1                              w_k = lambda_k
        normalised  w_0 = 1 / (1 + sum_k |lambda_k|)     w_k = lambda_k / (1 + sum_k |lambda_k|)
        share       w_0 = K - sum_k lambda_k             w_k = lambda_k

    ``update`` learns from the totals of whole episodes, not from a critic, whose first values are wrong. ``apply``
    writes ``w_0`` as the weight of the entry ``objective`` and ``-w_k s_k`` as that of the entry ``k``
    (``extras["credit_weight"]``). With ``channel``, it replaces that channel by ``w_0 r - sum_k w_k s_k c_k`` instead,
    so that a single critic values the sum (RCPO: Tessler et al., 2019). An update in which no episode ended leaves the
    multipliers as they are.

    Agents that find multipliers of their own (CPO, ``agents.trust_region``) read ``extras["violation"]``: by entry, for
    ``at_most``, the violation over the length of an episode, the same number in every step.

    Use ``normalised`` (Stooke et al., 2020, section 4.1) so that the size of a policy gradient does not grow with the
    multipliers, and ``share`` with multipliers in (0, 1) or (-1, 1) (Moskovitz et al., 2024, equation 4.4).

    Metrics: ``total/NAME``, ``violation/NAME``, ``multiplier/NAME`` and ``best/NAME``, the least violated total of a
    batch so far: where it stays on the wrong side of a limit while the multiplier grows, the limit cannot be met.

    Args:
      data: the rollouts.
      constraints: by credit entry.
      multiplier: the rule, see ``rewards.constraints.multipliers``.
      objective: the credit entry of what is maximised; not used with ``channel``.
      mixing: see above.
      channel: the channel of what is maximised, which is rewritten in place of credit weights; ``None`` for these.
      smoothing: weight of the past in the running estimate of ``J_k``, in [0, 1).
      discount: of a total, per step.
      tail: the share of the worst episodes that ``J_k`` is the mean of, above 0 and at most 1: below 1, the conditional
        value at risk of the total.

    Raises:
      ValueError: no constraint, one named as the objective, an unknown sense or mixing; a rule that cannot serve an
        equation; when applied, if the trajectory lacks a channel.
    """
    require_known("mixing", mixing, MIXINGS, "of lagrangian")
    if not constraints:
        raise ValueError("lagrangian: constraints is empty: expected at least one, by the name of its credit entry")
    if objective in constraints:
        raise ValueError(f"lagrangian: {objective!r} is the objective and a constraint: expected another entry")
    for name, constraint in constraints.items():
        require_known("sense", constraint.sense, SENSES, f"of constraint {name!r}")
    count, batch = len(constraints), data.batch
    equality = np.array([one.sense == "equal" for one in constraints.values()])
    sign = np.array([sign_of(one.sense) for one in constraints.values()], np.float32)
    # Traced alone: a rule refuses here what it cannot serve.
    jax.eval_shape(lambda: multiplier.init(equality))

    def limits():
        return jnp.stack([jnp.asarray(one.limit, jnp.float32) for one in constraints.values()])

    def channels(trajectory):
        """``[K, T, B]``, 0 where masked."""
        named = ((f"constraint {name!r}", one.channel) for name, one in constraints.items())
        return jnp.stack([read_channel(trajectory, each, who) for who, each in named]) * trajectory.mask

    def weights(state):
        """``w_0 []`` and ``-w_k s_k [K]``."""
        learned = multiplier.value(state.multiplier)
        scale = 1.0 / (1.0 + jnp.sum(jnp.abs(learned))) if mixing == "normalised" else 1.0
        first = count - jnp.sum(learned) if mixing == "share" else jnp.ones(())
        return scale * first, -scale * learned * sign

    def init_fn(key, **extra):
        del key, extra
        zeros = jnp.zeros(count)
        return LagrangianState(
            multiplier.init(equality),
            zeros,
            jnp.ones(()),
            zeros,
            jnp.zeros(()),
            jnp.zeros((count, batch)),
            jnp.ones(batch),
        )

    def apply_fn(state, trajectory, **extra):
        del extra
        first, others = weights(state)
        if channel is not None:
            mixed = first * read_channel(trajectory, channel, "lagrangian") * trajectory.mask
            return write_channel(trajectory, channel, mixed + jnp.tensordot(others, channels(trajectory), 1)), {}
        shape = trajectory.mask.shape
        written = {objective: jnp.broadcast_to(first, shape)}
        written |= {name: jnp.broadcast_to(each, shape) for name, each in zip(constraints, others, strict=True)}
        before = trajectory.extras.get("credit_weight", {})
        # Another transform may weigh the same entry, by how far it trusts it for instance.
        written = {name: weight * before.get(name, 1.0) for name, weight in written.items()}
        excess = (state.total - limits()) / state.length
        named = zip(constraints, excess, sign, equality, strict=True)
        violation = {name: jnp.broadcast_to(each, shape) for name, each, up, equal in named if up > 0 and not equal}
        extras = {"credit_weight": before | written, "violation": violation}
        return trajectory._replace(extras=trajectory.extras | extras), {}

    def update_fn(state, trajectory, key, **extra):
        del key, extra
        costs, limit = channels(trajectory), limits()
        totals, running, factor = episode_totals(costs, state.running, state.factor, trajectory, discount)
        ended = (trajectory.terminated | trajectory.truncated) & (trajectory.mask > 0)
        measured = sign * worst_mean((sign[:, None, None] * totals).reshape(count, -1), ended.reshape(-1), tail)
        length = masked_mean(trajectory.extras["episode_length"], ended)
        any_ended = jnp.any(ended)
        first = state.batches == 0
        total = jnp.where(first, measured, smoothing * state.total + (1 - smoothing) * measured)
        violation = sign * (total - limit)

        def missed(value):
            return jnp.where(equality, jnp.abs(value - limit), sign * (value - limit))

        learned = LagrangianState(
            multiplier.update(state.multiplier, violation, equality),
            total,
            jnp.where(first, length, smoothing * state.length + (1 - smoothing) * length),
            jnp.where(first | (missed(measured) < missed(state.best)), measured, state.best),
            state.batches + 1,
            running,
            factor,
        )
        kept = state._replace(running=running, factor=factor)
        new = jax.tree.map(lambda one, other: jnp.where(any_ended, one, other), learned, kept)
        metrics: Metrics = {}
        shown = {
            "total": new.total,
            "violation": sign * (new.total - limit),
            "multiplier": multiplier.value(new.multiplier),
            "best": new.best,
        }
        for what, values in shown.items():
            metrics |= {f"{what}/{name}": value for name, value in zip(constraints, values, strict=True)}
        return new, metrics

    return RewardTransform(init_fn, apply_fn, update_fn, remembered=fields("running", "factor"))


def weighed_entries(
    *, constraints: Mapping[str, Any], objective: str = "env", channel: str | None = None, **others: Any
) -> tuple[str, ...]:
    """The credit entries whose weight ``lagrangian`` writes, from its section of a configuration."""
    del others
    return () if channel is not None else (objective, *constraints)


def episode_totals(
    costs: jax.Array, running: jax.Array, factor: jax.Array, trajectory: Trajectory, discount: float | jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The discounted total of each episode up to each step, ``sum_{k <= t} discount^k c_k``.

    Args:
      costs: ``[K, T, B]``, 0 where masked.
      running: ``[K, B]``, the totals of the episodes that were running before the first row.
      factor: ``[B]``, the discount of their next step.
      trajectory: says where episodes start.
      discount: per step.

    Returns:
      The totals ``[K, T, B]``, and ``running`` and ``factor`` after the last row.
    """

    def step(carry, inputs):
        running, factor = carry
        cost, valid, start = inputs
        running, factor = jnp.where(start, 0.0, running), jnp.where(start, 1.0, factor)
        running = running + factor * cost
        return (running, jnp.where(valid > 0, factor * discount, factor)), running

    rows = jnp.moveaxis(costs, 1, 0), trajectory.mask, episode_starts(trajectory)
    (running, factor), totals = jax.lax.scan(step, (running, factor), rows, unroll=8)
    return jnp.moveaxis(totals, 0, 1), running, factor


def worst_mean(values: jax.Array, valid: jax.Array, share: float | jax.Array) -> jax.Array:
    """The mean of the largest ``share`` of the valid ``values``, in each row; 0 without a valid one.

    Of ``n`` valid values the largest ``n * share`` count, the last of them in part, and at least one:

    >>> worst_mean(jnp.array([[1.0, 2.0, 3.0, 9.0]]), jnp.array([True, True, True, False]), 0.5).tolist()
    [2.6666667461395264]

    Args:
      values: ``[K, N]``.
      valid: ``bool [N]``.
      share: above 0 and at most 1.

    Returns:
      ``[K]``.
    """
    ordered = -jnp.sort(jnp.where(valid, -values, jnp.inf), axis=-1)
    number = jnp.maximum(share * jnp.sum(valid), 1.0)
    weight = jnp.clip(number - jnp.arange(values.shape[-1]), 0.0, 1.0)
    mean = jnp.sum(jnp.where(ordered > -jnp.inf, weight * ordered, 0.0), -1) / number
    # Sorting moves a NaN behind all others, where no weight is left: it must not be lost.
    return jnp.where(jnp.any(jnp.isnan(values) & valid, -1), jnp.nan, mean)
