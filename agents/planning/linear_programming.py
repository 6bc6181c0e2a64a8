"""The exact optimum of a constrained Markov decision process on a known model, by linear programming.

The unknowns are the occupancies ``x(t, s, a)``: how often, in expectation and discounted, action ``a`` is taken in
state ``s`` at time ``t``. Totals are linear in them (Altman, 1999, "Constrained Markov decision processes", chapters 3
and 6):

    maximise    sum x(t, s, a) r_0(s, a)
    subject to  sum x(t, s, a) r_k(s, a) <= limit_k            for each constraint (or >=, or =)
                sum_a x(0, s, a)     = initial(s)
                sum_a x(t+1, s', a)  = discount sum_{s, a} P(s', goes on | s, a) x(t, s, a)

Without a time limit there is one ``t``, and the last two rows are one, ``sum_a x(s', a) = initial(s') + discount ...``.
The best policy may have to draw its actions: with ``K`` constraints it mixes up to ``K + 1`` deterministic ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from envs.choices import require_known
from envs.native.tabular import TabularModel, validated

SENSES = ("at_most", "at_least", "equal")
# HiGHS meets constraints to within 1e-7 by default; models of rewards of order 1 can be solved more closely.
_TOLERANCE = 1e-9


class Limit(NamedTuple):
    """A limit on the expected total of the component ``component`` of a vector reward."""

    component: int
    limit: float
    sense: str = "at_most"


class InfeasibleError(ValueError):
    """No policy meets all limits."""


class ConstrainedPlan(NamedTuple):
    """An optimal policy under constraints.

    Attributes:
      policy: probabilities ``[H, S, A]``; ``[1, S, A]``, stationary, without a time limit. Uniform where the policy
        never comes.
      occupancy: ``[H, S, A]`` or ``[1, S, A]``, see the head of this module.
      totals: ``[m]``, the expected total of every component of the reward.
      multipliers: ``[K]``, one per limit, in its order: by how much the optimum would grow if the limit were looser by
        one unit; at least 0, and of any sign for ``equal``.
    """

    policy: np.ndarray
    occupancy: np.ndarray
    totals: np.ndarray
    multipliers: np.ndarray


def constrained_optimum(
    model: TabularModel,
    limits: Mapping[str, Limit],
    *,
    objective: int = 0,
    discount: float = 1.0,
    horizon: int | None = None,
) -> ConstrainedPlan:
    """The policy of the largest expected total of component ``objective`` that meets ``limits``.

    Args:
      model: with vector rewards.
      limits: by name; none is allowed.
      objective: the component that is maximised.
      discount: of all totals, per step.
      horizon: time limit in steps, by default the model's. Without either, the policy is stationary, and every policy
        has to come to an end by itself, or ``discount`` has to be below 1.

    Raises:
      InfeasibleError: no policy meets all limits; the message has, for each, the best total that a policy can have, and
        the violation that remains where they are met together as well as possible.
      ValueError: a scalar reward; a component that does not exist; an unknown sense; a limit that is not finite; totals
        without a bound.
    """
    model = validated(model)
    length = model.horizon if horizon is None else horizon
    _require(model, limits, objective, discount, length)
    problem = _Problem(model, discount, length)
    signs = np.array([-1.0 if each.sense == "at_least" else 1.0 for each in limits.values()])
    rows = [problem.total(each.component) for each in limits.values()]
    bounds = np.array([each.limit for each in limits.values()], np.float64)
    equal = np.array([each.sense == "equal" for each in limits.values()], bool)
    found = problem.solve(-problem.total(objective), rows, bounds, signs, equal)
    if found.status == 2:
        raise InfeasibleError(_explain(problem, limits, rows, bounds, signs, equal))
    if found.status != 0:
        raise ValueError(f"the linear program has no solution: {found.message}")
    occupancy = np.maximum(found.x, 0.0).reshape(problem.shape)
    mass = occupancy.sum(-1, keepdims=True)
    uniform = np.full_like(occupancy, 1 / model.num_actions)
    policy = np.where(mass > 1e-12, occupancy / np.maximum(mass, 1e-300), uniform)
    totals = np.array([problem.total(component) @ found.x for component in range(model.reward_dimension)])
    multipliers = np.zeros(len(limits))
    multipliers[~equal] = -found.ineqlin.marginals
    multipliers[equal] = -found.eqlin.marginals[problem.flow.shape[0] :]
    return ConstrainedPlan(policy, occupancy, totals, multipliers)


def totals_of(
    model: TabularModel, policy: np.ndarray, *, discount: float = 1.0, horizon: int | None = None
) -> np.ndarray:
    """The expected total ``[m]`` of every component of the reward under ``policy [H or 1, S, A]``, exactly.

    Raises:
      ValueError: a scalar reward; a policy of another shape; totals without a bound.
    """
    model = validated(model)
    length = model.horizon if horizon is None else horizon
    _require(model, {}, 0, discount, length)
    shape = (length or 1, model.num_states, model.num_actions)
    probabilities = np.asarray(policy, np.float64)
    if probabilities.shape not in (shape, (1, *shape[1:])):
        raise ValueError(f"policy has shape {probabilities.shape}, expected {shape} or {(1, *shape[1:])}")
    stages = np.broadcast_to(probabilities, shape)
    reward, moves = _tables(model, discount)
    if length is None:
        between = np.einsum("sa,sat->st", stages[0], moves)
        occupancy = np.linalg.solve(np.eye(model.num_states) - between.T, model.initial)[None, :, None] * stages
        return np.einsum("tsa,sam->m", occupancy, reward)
    mass, totals = model.initial, np.zeros(model.reward_dimension)
    for time, stage in enumerate(stages):
        flow = mass[:, None] * stage
        totals = totals + discount**time * np.einsum("sa,sam->m", flow, reward)
        mass = np.einsum("sa,sat->t", flow, moves) / discount
    return totals


def _tables(model: TabularModel, discount: float) -> tuple[np.ndarray, np.ndarray]:
    """Expected rewards ``[S, A, m]``, and ``discount`` times the probability of going on in a state, ``[S, A, S]``."""
    reward = np.einsum("sao,saom->sam", model.probability, model.reward)
    states, actions, _ = model.probability.shape
    moves = np.zeros((states, actions, states))
    where = np.indices(model.probability.shape)
    np.add.at(moves, (where[0], where[1], model.next_state), model.probability * ~model.terminated)
    return reward, discount * moves


class _Problem:
    """The flow equations of a model, and linear programs over its occupancies."""

    def __init__(self, model: TabularModel, discount: float, length: int | None):
        reward, moves = _tables(model, discount)
        steps, states, actions = length or 1, model.num_states, model.num_actions
        self.shape = (steps, states, actions)
        # An occupancy holds the discount of its time already: rewards are the same at every time.
        self.reward = np.broadcast_to(reward, (steps, *reward.shape))
        leaving = sparse.kron(sparse.eye_array(states), np.ones((1, actions)), format="csr")
        arriving = sparse.csr_array(moves.reshape(states * actions, states).T)
        if length is None:
            self.flow = sparse.csr_array(leaving - arriving)
        else:
            following = sparse.eye_array(steps, k=-1)
            self.flow = sparse.csr_array(
                sparse.kron(sparse.eye_array(steps), leaving) - sparse.kron(following, arriving)
            )
        self.sources = np.zeros(steps * states)
        self.sources[:states] = model.initial

    def total(self, component: int) -> np.ndarray:
        """The coefficients of the total of a component, one per occupancy."""
        return self.reward[..., component].reshape(-1)

    def solve(self, loss, rows, bounds, signs, equal, slack: bool = False):
        """Minimises ``loss @ x`` under the limits; with ``slack``, the sum of all violations instead."""
        size = loss.size
        table = np.stack(rows) if rows else np.zeros((0, size))
        wide = len(rows) * 2 if slack else 0

        def widened(matrix, indices):
            if not slack:
                return matrix
            own = np.zeros((matrix.shape[0], wide))
            for row, index in enumerate(indices):
                own[row, 2 * index], own[row, 2 * index + 1] = -1.0, 1.0
            return np.concatenate([matrix, own], axis=1)

        inequalities, equations = np.flatnonzero(~equal), np.flatnonzero(equal)
        below = widened(signs[inequalities, None] * table[inequalities], inequalities)
        same = widened(table[equations], equations)
        flow = self.flow if not slack else sparse.hstack([self.flow, sparse.csr_array((self.flow.shape[0], wide))])
        return linprog(
            np.concatenate([np.zeros(size), np.ones(wide)]) if slack else loss,
            A_ub=below if len(below) else None,
            b_ub=(signs * bounds)[inequalities] if len(below) else None,
            A_eq=sparse.vstack([flow, sparse.csr_array(same)], format="csr"),
            b_eq=np.concatenate([self.sources, bounds[equations]]),
            method="highs",
            options={"primal_feasibility_tolerance": _TOLERANCE, "dual_feasibility_tolerance": _TOLERANCE},
        )


def _require(model, limits: Mapping[str, Limit], objective: int, discount: float, length: int | None) -> None:
    dimension = model.reward_dimension
    if dimension == 0:
        raise ValueError("rewards are numbers: expected vectors, the objective and what is limited")
    if not 0 < discount <= 1:
        raise ValueError(f"discount={discount}: expected a number above 0 and at most 1")
    if length is not None and length < 1:
        raise ValueError(f"horizon={length}: expected at least 1")
    for name, component in {"objective": objective, **{name: each.component for name, each in limits.items()}}.items():
        if not 0 <= component < dimension:
            raise ValueError(f"{name}: component {component}: expected one from 0 to {dimension - 1}")
    for name, each in limits.items():
        require_known("sense", each.sense, SENSES, f"of the limit {name!r}")
        if not np.isfinite(each.limit):
            raise ValueError(f"limit {name!r} is {each.limit}: expected a finite number")
    if length is None and discount == 1 and not _ends(model):
        raise ValueError(
            "the model has no time limit, and with some policy an episode never ends: expected horizon=H, or a "
            "discount below 1"
        )


def _ends(model: TabularModel) -> bool:
    """Whether an episode ends with probability 1 under every policy."""
    _, moves = _tables(model, 1.0)
    # The largest probability of still going on, over all policies, has to be able to fall below 1 from every state.
    going = np.ones(model.num_states)
    for _ in range(model.num_states):
        going = (moves @ going).max(-1)
    return bool((going < 1 - 1e-12).all())


def _explain(problem: _Problem, limits: Mapping[str, Limit], rows, bounds, signs, equal) -> str:
    none = np.zeros(0, bool), np.zeros(0)
    parts = []
    for (name, each), row in zip(limits.items(), rows, strict=True):
        ends = [float(row @ problem.solve(sign * row, [], none[1], none[1], none[0]).x) for sign in (1.0, -1.0)]
        word = each.sense.replace("_", " ")
        parts.append(f"{name!r} is to be {word} {each.limit:g} and can be from {ends[0]:.6g} to {ends[1]:.6g}")
    least = problem.solve(rows[0], rows, bounds, signs, equal, slack=True)
    return (
        f"no policy meets all limits: {'; '.join(parts)}; met together, they miss by {least.fun:.6g} in total at least"
    )
