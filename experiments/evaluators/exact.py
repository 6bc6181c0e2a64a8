"""Exact evaluation on a known model: no episodes are drawn, every outcome is followed with its probability.

The probability that a policy is in state ``s`` after rewards of ``g = sum_{k<t} discount^k r_k`` is carried forward,

    m_{t+1}(s', g + discount^t r) = sum over s, g, a of m_t(s, g) policy(a | s, g, t) P(s', r | s, a),

over all pairs that any policy can reach. Where an episode ends, its mass is the distribution of its return. What the
agent sees at a pair is the stock ``discount^-t (c_0 + g)``, which in 32 bits may differ in the last digit from the one
that an episode adds up step by step; apart from that, and from rounding, the result is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import Environment
from envs.native.tabular import TabularEnvironment, TabularModel
from envs.stock import LARGEST_STOCK, StockAugmented, StockState
from envs.wrappers import TimeLimit
from experiments.evaluators.base import Context, Evaluator, episode_length
from experiments.evaluators.stock_objectives import build_objectives, initial_stocks, objective_metrics, objective_names

# As many pairs of state and rewards so far per time step are followed: about a second and 100 MB.
MOST_PAIRS = 200_000
# Sums of rewards that agree to so many digits behind the point are one.
_DIGITS = 9


class Outcomes(NamedTuple):
    """What may follow a state, all actions together: ``next_state``, ``reward`` and ``terminated`` ``[S, M]``, and
    ``probability [S, A, M]``, 0 for padding; ``others [S, A, m - 1]``, expected, of a vector reward."""

    next_state: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    probability: np.ndarray
    others: np.ndarray


class Reachable(NamedTuple):
    """The pairs of state and rewards so far that some policy reaches, by time step.

    Attributes:
      outcomes: of the model.
      state, paid: ``[T, N]``, the state and ``sum_k discount^k r_k``; padding is state 0.
      successor: ``[T, N, M]``: by outcome the index of the pair at the next step, ``N + k`` where the episode ends with
        return k, and ``N + K`` for what is impossible.
      initial: ``[N]``, probabilities at time 0.
      returns: ``[K]``, all returns that an episode can have.
    """

    outcomes: Outcomes
    state: np.ndarray
    paid: np.ndarray
    successor: np.ndarray
    initial: np.ndarray
    returns: np.ndarray


class Exact(NamedTuple):
    """What a policy comes to: ``probability [K]`` of the ``returns``, expected undiscounted ``total`` reward and
    ``length``, and the expected undiscounted totals of the ``others [m - 1]``, a vector reward's components after the
    first."""

    probability: jax.Array
    total: jax.Array
    length: jax.Array
    others: jax.Array


def outcomes_of(model: TabularModel) -> Outcomes:
    """The distinct outcomes of every state of a model whose reward is a number (a vector's first component)."""
    reward = model.reward if model.reward_dimension == 0 else model.reward[..., 0]
    tables: list[dict[tuple[int, float, bool], np.ndarray]] = []
    for state in range(model.num_states):
        table: dict[tuple[int, float, bool], np.ndarray] = {}
        for action, outcome in np.argwhere(model.probability[state] > 0):
            where = state, action, outcome
            name = int(model.next_state[where]), float(reward[where]), bool(model.terminated[where])
            table.setdefault(name, np.zeros(model.num_actions))[action] += model.probability[where]
        tables.append(table)
    shape = (model.num_states, max(map(len, tables)))
    none = np.zeros((*model.reward.shape[:3], 0))
    found = Outcomes(
        np.zeros(shape, np.int32),
        np.zeros(shape),
        np.zeros(shape, bool),
        np.zeros((model.num_states, model.num_actions, shape[1])),
        np.einsum("sao,saom->sam", model.probability, model.reward[..., 1:] if model.reward_dimension else none),
    )
    for state, table in enumerate(tables):
        for index, ((following, paid, ended), probability) in enumerate(table.items()):
            found.next_state[state, index], found.reward[state, index] = following, paid
            found.terminated[state, index], found.probability[state, :, index] = ended, probability
    return found


def reachable(model: TabularModel, length: int, discount: float, *, returns: bool) -> Reachable:
    """Everything that can happen in ``length`` steps.

    Args:
      model: the environment.
      length: the time limit ``T``.
      discount: of the return.
      returns: whether rewards so far are told apart; without, pairs are states and there is one return, 0.

    Raises:
      ValueError: if more than ``MOST_PAIRS`` pairs are reachable at one time.
    """
    outcomes = outcomes_of(model)
    possible = outcomes.probability.max(axis=1) > 0
    state = np.flatnonzero(model.initial > 0)
    paid = np.zeros(len(state))
    initial = model.initial[state]
    levels, ended = [], []
    for time in range(length):
        gain = discount**time * outcomes.reward[state] if returns else np.zeros_like(outcomes.reward[state])
        after = np.round(paid[:, None] + gain, _DIGITS)
        ends = possible[state] & (outcomes.terminated[state] | (time == length - 1))
        goes_on = possible[state] & ~ends
        pairs = np.stack([outcomes.next_state[state][goes_on], after[goes_on]], axis=1)
        following, index = np.unique(pairs, axis=0, return_inverse=True)
        if len(following) > MOST_PAIRS:
            raise ValueError(
                f"{len(following)} pairs of state and rewards so far are reachable after {time + 1} steps, more than "
                f"{MOST_PAIRS}: expected a smaller model or a shorter time limit, or kind 'stock_objectives', which "
                "draws episodes"
            )
        successor = np.full(goes_on.shape, -1)
        successor[goes_on] = index.reshape(-1)
        levels.append((state, paid, successor, ends))
        ended.append(after[ends])
        state, paid = following[:, 0].astype(int), following[:, 1]
    totals, which = np.unique(np.concatenate(ended), return_inverse=True)
    width, most = max(len(level[0]) for level in levels), outcomes.reward.shape[1]
    states, sums = np.zeros((length, width), np.int32), np.zeros((length, width))
    successors = np.full((length, width, most), width + len(totals), np.int32)
    parts = np.split(which, np.cumsum([len(each) for each in ended])[:-1])
    for time, ((state, paid, successor, ends), part) in enumerate(zip(levels, parts, strict=True)):
        rows = slice(len(state))
        states[time, rows], sums[time, rows] = state, paid
        successor[ends] = width + part
        successors[time, rows] = np.where(successor < 0, width + len(totals), successor)
    return Reachable(outcomes, states, sums, successors, np.pad(initial, (0, width - len(initial))), totals)


def follow(problem: Reachable, policy: Any) -> Exact:
    """Carries the probabilities of all pairs forward under ``policy(time, state [N], paid [N]) -> [N, A]``; traced."""
    width, count = problem.state.shape[1], len(problem.returns)
    probability = jnp.asarray(problem.outcomes.probability, jnp.float32)
    reward = jnp.asarray(problem.outcomes.reward, jnp.float32)
    others = jnp.asarray(problem.outcomes.others, jnp.float32)

    def step(carry, inputs):
        mass, finals = carry
        time, state, paid, successor = inputs
        taken = mass[:, None] * policy(time, state, paid)
        flow = jnp.einsum("na,nam->nm", taken, probability[state])
        moved = jnp.zeros(width + count + 1).at[successor].add(flow)
        found = jnp.sum(flow * reward[state]), jnp.sum(mass), jnp.einsum("na,nam->m", taken, others[state])
        return (moved[:width], finals + moved[width:-1]), found

    start = jnp.asarray(problem.initial, jnp.float32), jnp.zeros(count)
    times = jnp.arange(problem.state.shape[0])
    levels = times, jnp.asarray(problem.state), jnp.asarray(problem.paid, jnp.float32), jnp.asarray(problem.successor)
    (_, finals), (paid, alive, rest) = jax.lax.scan(step, start, levels)
    return Exact(finals, jnp.sum(paid), jnp.sum(alive), jnp.sum(rest, axis=0))


def exact(
    context: Context,
    *,
    objectives: Mapping[str, Mapping[str, Any]] | None = None,
    candidates: int = 181,
    greedy: bool = True,
) -> Evaluator:
    """The agent's exact value on a ``TabularEnvironment`` under a time limit; nothing is drawn.

    Without ``objectives``: ``return``, the expected undiscounted reward of an episode, ``length``, and the expected
    total of every other channel of the environment, ``return/cost/NAME`` and ``return/objective/NAME``. With them, on a
    stock-augmented environment: ``objective_metrics`` of the exact return distribution from each objective's initial
    stock, which is searched over all start states with their probabilities.

    When to use it: wherever the model is known and has few enough pairs of state and rewards so far. Beside an exact
    planner, an estimate from episodes may lie on the wrong side of the optimum by its standard error.

    Args:
      context: of a pure ``TabularEnvironment`` within ``TimeLimit``, and within ``StockAugmented`` for objectives.
      objectives, candidates: as in ``stock_objectives``.
      greedy: whether the agent acts greedily.

    Raises:
      ValueError: another environment, or one whose episodes have no bound; an agent with a recurrent state, or with
        actions that are not Discrete; see ``build_objectives`` and ``reachable``.
      UserError: see ``stock_objectives.require_units_of_stock``.
    """
    inside, stock = _known(context.environment)
    agent, probabilities = context.agent, context.agent.action_probabilities
    if probabilities is None or jax.tree.leaves(agent.initial_carry(1)):
        raise ValueError("exact evaluation needs an agent without recurrent state: expected network.recurrent_size=0")
    if stock is not None and not objectives:
        raise ValueError(
            "the environment has a stock, from which an episode starts as an objective asks for: expected objectives"
        )
    wanted = build_objectives(context, objectives, candidates) if objectives else None
    spec = inside.spec
    totals = [
        *(f"return/cost/{name}" for name in spec.costs),
        *(f"return/objective/{name}" for name in spec.objectives),
    ]
    discount = 1.0 if stock is None else stock.discount
    problem = reachable(inside.model, episode_length(context.spec), discount, returns=stock is not None)

    def from_stock(params, start) -> Exact:
        def policy(time, state, paid):
            observation = jax.vmap(inside.observe)(state)
            if stock is not None:
                observation = _with_stock(stock, observation, time, start, paid)
            return probabilities(params, agent.initial_carry(len(state)), observation, greedy=greedy)

        return follow(problem, policy)

    def evaluate(state, key):
        del key
        params = state.agent.params
        if wanted is None or stock is None:
            found = from_stock(params, None)
            # The first objective is the reward itself.
            rest = jnp.concatenate([found.total[None], found.others]) if spec.objectives else found.others
            return {"return": found.total, "length": found.length} | dict(zip(totals, rest, strict=True))
        starts = np.flatnonzero(inside.model.initial > 0)
        observation = _with_stock(
            stock, jax.vmap(inside.observe)(jnp.asarray(starts)), jnp.int32(0), 0.0, jnp.zeros(len(starts))
        )
        stocks = initial_stocks(wanted, params, observation, jnp.asarray(inside.model.initial[starts], jnp.float32))
        found = jax.vmap(lambda start: from_stock(params, start))(stocks)
        returns = jnp.broadcast_to(jnp.asarray(problem.returns, jnp.float32), found.probability.shape)
        return objective_metrics(wanted, stocks, returns, found.probability)

    names = ("return", "length", *totals) if wanted is None else objective_names(wanted.functionals)
    return Evaluator(evaluate, names)


def known_model(environment: Environment | None) -> TabularModel:
    """The table inside an environment.

    Raises:
      ValueError: if there is none.
    """
    return _known(environment)[0].model


def _known(environment: Environment | None) -> tuple[TabularEnvironment, StockAugmented | None]:
    """The table inside an environment, and the stock around it.

    Raises:
      ValueError: if there is no table.
    """
    stock = environment if isinstance(environment, StockAugmented) else None
    inside = environment if stock is None else stock.environment
    while isinstance(inside, TimeLimit):
        inside = inside.environment
    if not isinstance(inside, TabularEnvironment):
        raise ValueError(
            "the environment's model is not known: expected one of the kinds gridworld, gymnasium_table, noisy_line "
            "and random_model, or kind 'episodes' for the evaluator"
        )
    return inside, stock


def _with_stock(stock: StockAugmented, observation: Any, time: jax.Array, start: Any, paid: jax.Array) -> Any:
    """Observations ``[N, ...]`` of the environment inside as the agent sees them ``time`` steps after it started with
    the stock ``start``, having been paid ``paid [N]``."""
    count = len(paid)
    grown = (start + paid) * jnp.minimum(jnp.asarray(stock.discount) ** -time.astype(jnp.float32), LARGEST_STOCK)
    state = StockState(
        (),
        jnp.clip(grown, -LARGEST_STOCK, LARGEST_STOCK),
        jnp.broadcast_to(jnp.asarray(start, jnp.float32), count),
        jnp.broadcast_to(time.astype(jnp.int32), count),
    )
    return jax.vmap(stock.observe)(observation, state)
