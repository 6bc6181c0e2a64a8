"""Dynamic programming for the expected return on a known model: value iteration, policy iteration and evaluation.

    Q(s, a) = sum_o p(o | s, a) (r_o + discount (1 - terminated_o) V(s'_o))

There are two kinds of problems. With ``horizon`` (by default the model's) the episode ends after that many steps, the
result is exact and the policy has one row per time step. With ``iterations`` the episode has no time limit, the
discount is below 1, the result comes with a bound on its error and the policy is stationary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.native.tabular import TabularModel, validated

TIE_TOLERANCE = 1e-6


class Plan(NamedTuple):
    """A policy and its values.

    Attributes:
      policy: ``int32 [H, S]``, the action at each time step; ``[1, S]``, stationary, without a time limit. Value
        iteration takes the lowest of tied actions.
      values: ``[S]``, at time 0.
      action_values: ``[S, A]``, at time 0.
      bound: on ``max_s |values - V*|``; 0 with a horizon.
      rounds: evaluations that policy iteration needed; 1 for value iteration.
    """

    policy: jax.Array
    values: jax.Array
    action_values: jax.Array
    bound: float
    rounds: int


class Evaluation(NamedTuple):
    """The values of a policy.

    Attributes:
      values: ``[S]``, at time 0.
      action_values: ``[S, A]``, at time 0.
      bound: on ``max_s |values - V|``; 0 with a horizon.
    """

    values: jax.Array
    action_values: jax.Array
    bound: float


def resolve_length(
    model: TabularModel, discount: float, horizon: int | None, iterations: int | None
) -> tuple[int, bool]:
    """The number of backups, and whether the problem has a time limit.

    Raises:
      ValueError: a discount outside (0, 1]; both ``horizon`` and ``iterations``, or neither where the model has no time
        limit; one of them below 1; discount 1 without a time limit.
    """
    if not 0 < discount <= 1:
        raise ValueError(f"discount={discount}: expected a number above 0 and at most 1")
    if iterations is None:
        horizon = model.horizon if horizon is None else horizon
        if horizon is None:
            raise ValueError("the model has no time limit: expected horizon=H, or iterations=n with a discount below 1")
        if horizon < 1:
            raise ValueError(f"horizon={horizon}: expected at least 1")
        return int(horizon), True
    if horizon is not None:
        raise ValueError(f"horizon={horizon} and iterations={iterations}: expected one of them")
    if iterations < 1:
        raise ValueError(f"iterations={iterations}: expected at least 1")
    if discount == 1:
        raise ValueError(f"discount=1 with iterations={iterations}: expected a discount below 1, or horizon=H")
    return int(iterations), False


def lowest_best(values: jax.Array, axis: int = -1) -> jax.Array:
    """The lowest action whose value is within ``1e-6 max(1, |best|)`` of the best one along ``axis``; ``int32``."""
    return jnp.argmax(tied(values, axis), axis=axis).astype(jnp.int32)


def tied(values: jax.Array, axis: int = -1) -> jax.Array:
    """``bool``, whether a value is within ``1e-6 max(1, |best|)`` of the best one along ``axis``."""
    best = jnp.max(values, axis=axis, keepdims=True)
    return values >= best - TIE_TOLERANCE * jnp.maximum(1.0, jnp.abs(best))


def kept_or_best(values: jax.Array, actions: jax.Array, axis: int = -1) -> jax.Array:
    """``actions`` (without ``axis``) where they tie with the best along ``axis``, else the lowest best; ``int32``."""
    keeps = jnp.take_along_axis(tied(values, axis), jnp.expand_dims(actions, axis), axis)
    return jnp.where(jnp.squeeze(keeps, axis), actions, lowest_best(values, axis))


def value_iteration(
    model: TabularModel, *, discount: float = 1.0, horizon: int | None = None, iterations: int | None = None
) -> Plan:
    """``V <- max_a Q``, from ``V = 0``: backward induction with a horizon, else ``iterations`` backups.

    Without a time limit, the bound is the smaller of ``discount ** n / (1 - discount) max |r|`` and
    ``discount / (1 - discount) max |V_n - V_(n-1)|``, plus a few units in the last place for rounding.

    Raises:
      ValueError: see ``resolve_length`` and ``tabular.validated``; vector rewards.
    """
    model = validated(model)
    length, finite = resolve_length(model, discount, horizon, iterations)
    tables = tables_of(model)
    policy, values, previous, action_values = _optimal(tables, jnp.asarray(discount, float), length)
    bound = 0.0 if finite else _bound(model, discount, length, values, previous)
    return Plan(policy if finite else policy[:1], values, action_values, bound, 1)


def policy_evaluation(
    model: TabularModel,
    policy: Any,
    *,
    discount: float = 1.0,
    horizon: int | None = None,
    iterations: int | None = None,
) -> Evaluation:
    """``V <- sum_a policy(a | s) Q(s, a)`` from ``V = 0``; exact with a horizon, bounded as in ``value_iteration``.

    Args:
      model: with scalar rewards.
      policy: probabilities ``[S, A]``, or ``[H, S, A]`` by time step.
      discount, horizon, iterations: of the problem.

    Raises:
      ValueError: see ``resolve_length`` and ``tabular.validated``; vector rewards; a policy of another shape or
        whose rows do not sum to one.
    """
    model = validated(model)
    length, finite = resolve_length(model, discount, horizon, iterations)
    probabilities = np.asarray(policy, np.float64)
    shape = (model.num_states, model.num_actions)
    if probabilities.shape not in (shape, (length, *shape)) or (probabilities.ndim == 3 and not finite):
        stages = f" or {(length, *shape)}" if finite else ""
        raise ValueError(f"policy has shape {probabilities.shape}, expected {shape}{stages}")
    if (probabilities < 0).any() or (abs(probabilities.sum(-1) - 1) > 1e-5).any():
        raise ValueError("policy: expected probabilities that sum to one over the actions of every state")
    stages = jnp.broadcast_to(jnp.asarray(probabilities, float), (length, *shape))
    values, previous, action_values = _evaluate(tables_of(model), stages, jnp.asarray(discount, float))
    return Evaluation(values, action_values, 0.0 if finite else _bound(model, discount, length, values, previous))


def policy_iteration(
    model: TabularModel,
    *,
    discount: float = 1.0,
    horizon: int | None = None,
    iterations: int | None = None,
    rounds: int = 1000,
) -> Plan:
    """Evaluates a policy and improves it greedily, starting with action 0 everywhere, until no action changes.

    With a horizon, one backward pass evaluates a policy and finds the greedy one, and at most ``H + 1`` passes are
    needed. Without one, each evaluation takes ``iterations`` backups. An action is replaced only by a better one, so
    that ties end the search. The bound covers the error of the evaluation and of the last improvement.

    Args:
      model: with scalar rewards.
      discount, horizon, iterations: of the problem.
      rounds: the largest number of evaluations.

    Raises:
      ValueError: see ``resolve_length`` and ``tabular.validated``; vector rewards.
      RuntimeError: actions still change after ``rounds`` evaluations.
    """
    model = validated(model)
    length, finite = resolve_length(model, discount, horizon, iterations)
    tables, factor = tables_of(model), jnp.asarray(discount, float)
    policy = jnp.zeros((length if finite else 1, model.num_states), jnp.int32)
    for count in range(1, rounds + 1):
        improved, values, action_values = _improve(tables, policy, factor, length, finite)
        if bool((improved == policy).all()):
            gap = float(jnp.max(jnp.abs(jnp.max(action_values, -1) - values)))
            bound = 0.0 if finite else gap / (1 - discount) + _rounding(values, discount)
            return Plan(policy, values, action_values, bound, count)
        policy = improved
    raise RuntimeError(
        f"actions still change after {rounds} rounds: expected more rounds, or more than {length} backups"
    )


class Tables(NamedTuple):
    """A model for compiled backups: ``probability``, ``next_state`` and ``continues`` (1 where an episode goes on),
    ``[S, A, O]`` each, and the expected ``reward [S, A]``."""

    probability: jax.Array
    next_state: jax.Array
    reward: jax.Array
    continues: jax.Array


def tables_of(model: TabularModel) -> Tables:
    """The tables of a model with scalar rewards.

    Raises:
      ValueError: vector rewards.
    """
    if model.reward_dimension:
        raise ValueError(
            f"rewards are vectors of {model.reward_dimension}: expected numbers; scalarised(model, weights) makes them"
        )
    expected = (model.probability * model.reward).sum(-1)
    return Tables(
        jnp.asarray(model.probability, float),
        jnp.asarray(model.next_state),
        jnp.asarray(expected, float),
        jnp.asarray(~model.terminated, float),
    )


def _backup(tables: Tables, values: jax.Array, discount: jax.Array) -> jax.Array:
    following = tables.continues * values[tables.next_state]
    return tables.reward + discount * jnp.sum(tables.probability * following, axis=-1)


@jax.jit(static_argnames="length")
def _optimal(tables: Tables, discount: jax.Array, length: int):
    def step(carry, _):
        values, _, _ = carry
        action_values = _backup(tables, values, discount)
        return (jnp.max(action_values, -1), values, action_values), lowest_best(action_values)

    zeros = jnp.zeros(tables.reward.shape[0])
    start = (zeros, zeros, jnp.zeros_like(tables.reward))
    (values, previous, action_values), policy = jax.lax.scan(step, start, length=length)
    return policy[::-1], values, previous, action_values


def values_under(tables: Tables, policy: jax.Array, discount: float | jax.Array = 1.0) -> jax.Array:
    """The values ``[S]`` at time 0 of ``policy [H, S, A]``, which may be traced, with ``H`` steps to go."""
    return _evaluate(tables, policy, jnp.asarray(discount, float))[0]


@jax.jit
def _evaluate(tables: Tables, stages: jax.Array, discount: jax.Array):
    def step(carry, probabilities):
        values, _, _ = carry
        action_values = _backup(tables, values, discount)
        return (jnp.sum(probabilities * action_values, -1), values, action_values), None

    zeros = jnp.zeros(tables.reward.shape[0])
    start = (zeros, zeros, jnp.zeros_like(tables.reward))
    carry, _ = jax.lax.scan(step, start, stages, reverse=True)
    return carry


@jax.jit(static_argnames=("length", "finite"))
def _improve(tables: Tables, policy: jax.Array, discount: jax.Array, length: int, finite: bool):
    """Evaluates ``policy [H, S]`` (``[1, S]`` where not finite): its greedy policy, values and action values."""
    states = jnp.arange(tables.reward.shape[0])

    def step(values, actions):
        action_values = _backup(tables, values, discount)
        return action_values[states, actions], (kept_or_best(action_values, actions), action_values)

    zeros = jnp.zeros(tables.reward.shape[0])
    if finite:
        values, (improved, action_values) = jax.lax.scan(step, zeros, policy, reverse=True)
        return improved, values, action_values[0]
    values = jax.lax.fori_loop(0, length, lambda _, values: step(values, policy[0])[0], zeros)
    action_values = _backup(tables, values, discount)
    return kept_or_best(action_values, policy[0])[None], values, action_values


def _bound(model: TabularModel, discount: float, length: int, values: jax.Array, previous: jax.Array) -> float:
    largest = float(np.abs(model.reward[model.probability > 0]).max())
    tail = discount**length / (1 - discount) * largest
    contraction = discount / (1 - discount) * float(jnp.max(jnp.abs(values - previous)))
    return min(tail, contraction) + _rounding(values, discount)


def _rounding(values: jax.Array, discount: float) -> float:
    # Each backup rounds by a few units in the last place; this bounds the discounted sum over all backups.
    return 4 * float(jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))) / (1 - discount)
