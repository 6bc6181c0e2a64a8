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
from typing import Any, NamedTuple

import numpy as np

from agents.limits import SENSES, sign_of
from envs.choices import require_known
from envs.native.tabular import TabularModel, validated

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
    program = _Program(model, limits, discount, length)
    found = program.solve(-program.total(objective))
    if found.status == 2:
        raise InfeasibleError(_explain(program, limits))
    if found.status != 0:
        raise ValueError(f"the linear program has no solution: {found.message}")
    occupancy = np.maximum(found.x, 0.0).reshape(program.shape)
    mass = occupancy.sum(-1, keepdims=True)
    uniform = np.full_like(occupancy, 1 / model.num_actions)
    policy = np.where(mass > 1e-12, occupancy / np.maximum(mass, 1e-300), uniform)
    totals = np.array([program.total(component) @ found.x for component in range(model.reward_dimension)])
    multipliers = np.zeros(len(limits))
    multipliers[~program.equal] = -found.ineqlin.marginals
    multipliers[program.equal] = -found.eqlin.marginals[program.flow.shape[0] :]
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
    reward, moves = expected_tables(model)
    if length is None:
        between = discount * np.einsum("sa,sat->st", stages[0], moves)
        occupancy = np.linalg.solve(np.eye(model.num_states) - between.T, model.initial)[None, :, None] * stages
        return np.einsum("tsa,sam->m", occupancy, reward)
    mass, totals = model.initial, np.zeros(model.reward_dimension)
    for time, stage in enumerate(stages):
        flow = mass[:, None] * stage
        totals = totals + discount**time * np.einsum("sa,sam->m", flow, reward)
        mass = np.einsum("sa,sat->t", flow, moves)
    return totals


def expected_tables(model: TabularModel) -> tuple[np.ndarray, np.ndarray]:
    """Expected rewards ``[S, A]``, or ``[S, A, m]``, and the probabilities of going on in a state, ``[S, A, S]``."""
    chance = model.probability if model.reward_dimension == 0 else model.probability[..., None]
    moves = np.zeros((model.num_states, model.num_actions, model.num_states))
    state, action, _ = np.indices(model.probability.shape)
    np.add.at(moves, (state, action, model.next_state), model.probability * ~model.terminated)
    return (chance * model.reward).sum(2), moves


class _Program:
    """Linear programs over the occupancies of a model: its flow equations, and its limits as rows of coefficients.

    Attributes:
      shape: of the occupancies, ``[H or 1, S, A]``.
      flow, sources: the flow equations, ``flow x = sources``.
      rows, bounds, signs, equal: of the limits: ``[K, size]`` and ``[K]`` each.
    """

    def __init__(self, model: TabularModel, limits: Mapping[str, Limit], discount: float, length: int | None):
        # Imported here: commands that solve no program need not wait for it.
        from scipy import sparse

        reward, moves = expected_tables(model)
        steps, states, actions = length or 1, model.num_states, model.num_actions
        self.shape = (steps, states, actions)
        # An occupancy holds the discount of its time already: rewards are the same at every time.
        self._reward = np.broadcast_to(reward, (steps, *reward.shape))
        leaving = sparse.kron(sparse.eye_array(states), np.ones((1, actions)))
        arriving = sparse.csr_array(discount * moves.reshape(states * actions, states).T)
        # Without a time limit all times are one, and what arrives leaves again at once.
        now, before = (sparse.eye_array(steps), sparse.eye_array(steps, k=-1 if length else 0))
        self.flow = sparse.csr_array(sparse.kron(now, leaving) - sparse.kron(before, arriving))
        self.sources = np.zeros(steps * states)
        self.sources[:states] = model.initial
        rows = [self.total(each.component) for each in limits.values()]
        self.rows = np.array(rows).reshape(len(limits), self.flow.shape[1])
        self.bounds = np.array([each.limit for each in limits.values()], np.float64)
        self.signs = np.array([sign_of(each.sense) for each in limits.values()])
        self.equal = np.array([each.sense == "equal" for each in limits.values()], bool)

    def total(self, component: int) -> np.ndarray:
        """The coefficients ``[size]`` of the total of a component, one per occupancy."""
        return self._reward[..., component].reshape(-1)

    def solve(self, loss: np.ndarray, *, limited: bool = True, missing: bool = False) -> Any:
        """Minimises ``loss @ x`` under the limits, or under none unless ``limited``. With ``missing``, a limit may be
        missed, by further unknowns of which each adds itself to the loss."""
        from scipy import sparse
        from scipy.optimize import linprog

        count = len(self.bounds) if limited else 0
        equal, signs = self.equal[:count], self.signs[:count, None]
        rows, flow = self.rows[:count], self.flow
        if missing:
            # Too high by the first half of the new unknowns, too low by the second.
            rows = np.concatenate([rows, -np.eye(count), np.eye(count)], axis=1)
            flow = sparse.hstack([flow, sparse.csr_array((flow.shape[0], 2 * count))])
            loss = np.concatenate([loss, np.ones(2 * count)])
        below = (signs * rows)[~equal]
        return linprog(
            loss,
            A_ub=below if len(below) else None,
            b_ub=(self.signs * self.bounds)[:count][~equal] if len(below) else None,
            A_eq=sparse.vstack([flow, sparse.csr_array(rows[equal].reshape(-1, loss.size))], format="csr"),
            b_eq=np.concatenate([self.sources, self.bounds[:count][equal]]),
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
    _, moves = expected_tables(model)
    # The largest probability of still going on, over all policies, has to be able to fall below 1 from every state.
    going = np.ones(model.num_states)
    for _ in range(model.num_states):
        going = (moves @ going).max(-1)
    return bool((going < 1 - 1e-12).all())


def _explain(program: _Program, limits: Mapping[str, Limit]) -> str:
    parts = []
    for (name, each), row in zip(limits.items(), program.rows, strict=True):
        low, high = (sign * program.solve(sign * row, limited=False).fun for sign in (1.0, -1.0))
        word = each.sense.replace("_", " ")
        parts.append(f"{name!r} is to be {word} {each.limit:g} and can be from {low:.6g} to {high:.6g}")
    least = program.solve(np.zeros(program.rows.shape[1]), missing=True).fun
    return f"no policy meets all limits: {'; '.join(parts)}; met together, they miss by {least:.6g} in total at least"
