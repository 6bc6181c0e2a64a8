"""The compiled backup of distributional dynamic programming.

    G(s, c) = sum_a policy(a | s, c) sum_o p_o (r_o + discount G(s'_o, (c + r_o) / discount))

It takes return distributions one time step back, for every stock at once. ``agents/planning/distributional.py`` checks
its arguments and documents its results.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.functionals import Functional, finite_utility
from agents.planning.dynamic_programming import kept_or_best, lowest_best, tied
from agents.planning.return_distributions import Representation, StockGrid, move_particles, stock_moves, stocks_or_zero
from envs.base import PyTree
from envs.native.tabular import TabularModel

# How many numbers are moved at a time: about as many as fit into a core's cache.
_PIECE = 2**17


class BackupProblem(NamedTuple):
    """A model as arrays. Its successors are the distinct pairs of next state and reward that occur.

    Many outcomes share a successor, so that each successor is moved once instead of once per state and action.
    Successors are listed in ``N`` pieces of ``B`` with one reward each, padded with the state ``S``, which stands for
    an episode that has ended. ``U`` is the number of distinct rewards, ``J`` the number of grid points that a stock is
    rounded to.

    Attributes:
      probability: ``[S, A, O]``.
      successor: ``[S, A, O]``, an index into the ``N B`` successors.
      states: ``[N, B]``, the next state of each successor.
      group: ``[N]``, the index of each piece's reward.
      stock_index, stock_weight: ``[U, C, J]``.
      stock_outside: ``[U, C]``.
      operators: of the representation, ``[U, ...]``, see ``Representation``.
      utility: ``[U, C, K]``, ``f(c + r + discount z)``; ``[U, 1, 1]`` zeros for an evaluation.
      zero: ``[K]``.
    """

    probability: jax.Array
    successor: jax.Array
    states: jax.Array
    group: jax.Array
    stock_index: jax.Array
    stock_weight: jax.Array
    stock_outside: jax.Array
    operators: PyTree
    utility: jax.Array
    zero: jax.Array


def backup_problem(
    model: TabularModel,
    functional: Functional | None,
    representation: Representation,
    grid: StockGrid | None,
    discount: float,
) -> BackupProblem:
    """The arrays of a problem whose arguments were checked; without a functional, for an evaluation.

    Raises:
      ValueError: see ``functionals.finite_utility``.
    """
    possible = model.probability > 0
    tail = model.reward.shape[3:]
    rewards, inverse = np.unique(model.reward[possible].reshape(-1, *tail), axis=0, return_inverse=True)
    index, weight, outside = stock_moves(grid, rewards, discount)
    utility = np.zeros((len(rewards), 1, 1))
    if functional is not None and functional.utility is not None and representation.particles is not None:
        stocks = stocks_or_zero(grid, model.reward_dimension)
        totals = stocks[:, None] + discount * representation.particles
        # One reward at a time: vectors would need m times the memory of the result.
        utility = np.stack([np.asarray(finite_utility(functional, reward + totals)) for reward in rewards])
    following = np.where(model.terminated, model.num_states, model.next_state)[possible]
    size = max(1, _PIECE // (index.shape[1] * len(representation.zero)))
    places, states, group = _pieces(inverse.ravel(), following, model.num_states, size)
    successor = np.zeros(possible.shape, np.int32)
    successor[possible] = places
    return BackupProblem(
        jnp.asarray(model.probability, float),
        jnp.asarray(successor),
        jnp.asarray(states, jnp.int32),
        jnp.asarray(group, jnp.int32),
        jnp.asarray(index, jnp.int32),
        jnp.asarray(weight, float),
        jnp.asarray(outside),
        representation.operators(rewards, discount),
        jnp.asarray(utility, float),
        jnp.asarray(representation.zero, float),
    )


def _pieces(groups: np.ndarray, following: np.ndarray, num_states: int, size: int) -> tuple[np.ndarray, ...]:
    """The place of each outcome among the successors, their states ``[N, B]``, ``B <= size``, and groups ``[N]``."""
    pairs, inverse = np.unique(np.stack([groups, following], 1), axis=0, return_inverse=True)
    counts = np.bincount(pairs[:, 0])
    size = min(size, int(counts.max()))
    pieces = -(-counts // size)
    first = (np.cumsum(pieces) - pieces) * size
    places = first[pairs[:, 0]] + np.arange(len(pairs)) - (np.cumsum(counts) - counts)[pairs[:, 0]]
    states = np.full(pieces.sum() * size, num_states)
    states[places] = pairs[:, 1]
    return places[inverse.ravel()], states.reshape(-1, size), np.repeat(np.arange(len(counts)), pieces)


def _start(problem: BackupProblem) -> tuple[jax.Array, jax.Array]:
    """The distributions ``[S, C, K]`` of the return 0, and zeros ``[S, C, 2]`` for ``left_stock`` and
    ``left_support``."""
    num_states, num_stocks = problem.probability.shape[0], problem.stock_index.shape[1]
    distributions = jnp.broadcast_to(problem.zero, (num_states, num_stocks, len(problem.zero)))
    return distributions, jnp.zeros((num_states, num_stocks, 2), distributions.dtype)


def _successors(problem: BackupProblem, distributions: jax.Array, left: jax.Array, transport: Callable):
    """The return through each successor, by the stock before the reward, in one pass over the distributions.

    Returns:
      ``E f(c + r + discount G(s', c'))``, ``[N B, C]``; the distributions of ``r + discount G(s', c')``, ``[N B, C,
      K]``; ``left_stock`` and ``left_support``, ``[N B, C, 2]``.
    """

    def per_piece(part):
        states, group = part
        index, weight, outside, operator, utility = jax.tree.map(
            lambda x: x[group],
            (
                problem.stock_index,
                problem.stock_weight,
                problem.stock_outside,
                problem.operators,
                problem.utility,
            ),
        )
        ended = (states == problem.probability.shape[0])[:, None, None]
        rows = jnp.where(ended, problem.zero, _moved(distributions, states, index, weight))
        before = jnp.where(ended, 0.0, _moved(left, states, index, weight))
        moved, beyond = transport(operator, rows)
        # After the end of an episode the stock does not matter.
        gone = jnp.where(outside & ~ended[..., 0], 1.0, before[..., 0])
        # A product with ones is several times as fast as a sum over the last axis.
        value = jnp.matmul(rows * utility, jnp.ones(rows.shape[-1], rows.dtype), precision="highest")
        return value, moved, jnp.stack([gone, before[..., 1] + beyond], axis=-1)

    found = jax.lax.map(per_piece, (problem.states, problem.group))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)


def _moved(array: jax.Array, states: jax.Array, index: jax.Array, weight: jax.Array) -> jax.Array:
    """``array [S, C, ...]`` at ``states [B]`` and the stocks that follow, by ``index`` and ``weight [C, J]``."""
    tail = (1,) * (array.ndim - 2)
    if index.shape[1] == 1:
        return array[states[:, None], index[:, 0]]
    return sum(array[states[:, None], index[:, j]] * weight[:, j].reshape(-1, *tail) for j in range(index.shape[1]))


def _action_values(problem: BackupProblem, following: jax.Array) -> jax.Array:
    """``[S, A, C]`` from the utilities ``[N B, C]`` of the successors."""

    def add(total, slot):
        probability, successor = slot
        return total + probability[..., None] * following[successor], None

    slots = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), (problem.probability, problem.successor))
    zeros = jnp.zeros((*problem.probability.shape[:2], following.shape[1]), following.dtype)
    return jax.lax.scan(add, zeros, slots)[0]


def _mix(problem: BackupProblem, blocks: jax.Array, policy: jax.Array) -> jax.Array:
    """``sum_a policy sum_o p blocks[successor_o, c]``, ``[S, C, ...]``; actions ``[S, C]`` or shares ``[S, C, A]``."""
    tail = (1,) * (blocks.ndim - 2)
    states = jnp.arange(problem.probability.shape[0])[:, None]
    stocks = jnp.arange(blocks.shape[1])

    def add(total, slot):
        share, successor = slot
        return total + share.reshape(*share.shape, *tail) * blocks[successor, stocks], None

    if policy.ndim == 2:
        slots = tuple(jnp.moveaxis(x[states, policy], -1, 0) for x in (problem.probability, problem.successor))
    else:
        shares = policy[..., None] * problem.probability[:, None]
        slots = (
            jnp.moveaxis(shares.reshape(*shares.shape[:2], -1), -1, 0),
            problem.successor.reshape(len(states), 1, -1).transpose(2, 0, 1),
        )
    zeros = jnp.zeros((len(states), *blocks.shape[1:]), blocks.dtype)
    return jax.lax.scan(add, zeros, slots)[0]


def _backup(problem: BackupProblem, distributions: jax.Array, left: jax.Array, transport: Callable, choose: Callable):
    """Distributions and ``left`` one step earlier, and the policy ``choose(action values [S, A, C])``."""
    following, blocks, gone = _successors(problem, distributions, left, transport)
    policy = choose(_action_values(problem, following))
    return _mix(problem, blocks, policy), _mix(problem, gone, policy), policy


@jax.jit(static_argnames=("transport", "length", "uniform", "keep_policies", "keep_stages"))
def optimal(
    problem: BackupProblem, *, transport: Callable, length: int, uniform: bool, keep_policies: bool, keep_stages: bool
):
    """``length`` greedy backups.

    Returns:
      Distributions ``[S, C, K]``; ``left_stock`` and ``left_support``, ``[S, C, 2]``; policies, one per step or only
      the last, ``[1, S, C]``, with an axis of actions if ties are shared (``uniform``); distributions of every step
      ``[length + 1, S, C, K]``, or ``None``.
    """

    def greedy(values):
        if not uniform:
            return lowest_best(values, axis=1)
        share = tied(values, axis=1).astype(values.dtype)
        return jnp.moveaxis(share / share.sum(1, keepdims=True), 1, -1)

    def step(carry, _):
        distributions, left, policy = _backup(problem, carry[0], carry[1], transport, greedy)
        return (distributions, left, policy), (
            policy if keep_policies else None,
            distributions if keep_stages else None,
        )

    distributions, left = _start(problem)
    values = jax.eval_shape(
        _action_values, problem, jnp.zeros((problem.states.size, distributions.shape[1]), distributions.dtype)
    )
    policy = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(greedy, values))
    (last_distributions, left, policy), (policies, stages) = jax.lax.scan(
        step, (distributions, left, policy), length=length
    )
    if keep_stages:
        stages = jnp.concatenate([stages[::-1], distributions[None]])
    return last_distributions, left, policies[::-1] if keep_policies else policy[None], stages


@jax.jit(static_argnames=("transport", "length", "finite"))
def improve(problem: BackupProblem, policy: jax.Array, *, transport: Callable, length: int, finite: bool):
    """Distributions of ``policy [H or 1, S, C]`` after ``length`` backups, and the policy that is greedy on them.

    An action that ties with the best is kept.

    Returns:
      Distributions ``[S, C, K]``; ``left_stock`` and ``left_support``, ``[S, C, 2]``; the greedy policy.
    """

    def step(carry, actions):
        following, blocks, gone = _successors(problem, carry[0], carry[1], transport)
        improved = kept_or_best(_action_values(problem, following), actions, axis=1)
        return (_mix(problem, blocks, actions), _mix(problem, gone, actions)), improved

    start = _start(problem)
    if finite:
        (distributions, left), improved = jax.lax.scan(step, start, policy, reverse=True)
        return distributions, left, improved
    distributions, left = jax.lax.fori_loop(0, length, lambda _, carry: step(carry, policy[0])[0], start)
    return distributions, left, step((distributions, left), policy[0])[1][None]


@jax.jit(static_argnames=("transport", "length", "keep_stages"))
def evaluate(problem: BackupProblem, policy: jax.Array, *, transport: Callable, length: int, keep_stages: bool):
    """Distributions of ``policy [H or 1, S, C]`` or ``[H or 1, S, C, A]`` after ``length`` backups.

    Returns:
      Distributions ``[S, C, K]``; ``left_stock`` and ``left_support``, ``[S, C, 2]``; distributions of every step
      ``[length + 1, S, C, K]``, or ``None``.
    """

    def backup(carry, actions):
        return _backup(problem, carry[0], carry[1], transport, lambda values: actions)[:2]

    return _passes(problem, policy, length, keep_stages, backup)


@jax.jit(static_argnames=("length", "keep_stages"))
def evaluate_particles(problem: BackupProblem, policy: jax.Array, *, length: int, keep_stages: bool):
    """As ``evaluate``, for particles of equal weight: the particles of all successors are sorted, and their quantiles
    taken."""
    num_states, num_actions, _ = problem.probability.shape
    count = len(problem.zero)
    levels = (2 * jnp.arange(count) + 1) / (2 * count)
    stocks = jnp.arange(problem.stock_index.shape[1])[:, None]

    def backup(carry, actions):
        _, blocks, gone = _successors(problem, carry[0], carry[1], move_particles)
        shares = actions if actions.ndim == 3 else jax.nn.one_hot(actions, num_actions, dtype=blocks.dtype)
        weight = (shares[..., None] * problem.probability[:, None]).reshape(num_states, len(stocks), -1)
        candidates = blocks[problem.successor.reshape(num_states, 1, -1), stocks]
        candidates = candidates.reshape(num_states, len(stocks), -1)
        mass = jnp.repeat(weight / count, count, axis=-1)
        order = jnp.argsort(candidates, axis=-1)
        ordered = jnp.take_along_axis(candidates, order, axis=-1)
        cumulative = jnp.cumsum(jnp.take_along_axis(mass, order, axis=-1), axis=-1)
        search = jax.vmap(jax.vmap(partial(jnp.searchsorted, v=levels - 1e-6)))
        index = jnp.minimum(search(cumulative), candidates.shape[-1] - 1)
        return jnp.take_along_axis(ordered, index, axis=-1), _mix(problem, gone, actions)

    return _passes(problem, policy, length, keep_stages, backup)


def _passes(problem: BackupProblem, policy: jax.Array, length: int, keep_stages: bool, backup: Callable):
    def step(carry, actions):
        carry = backup(carry, actions)
        return carry, carry[0] if keep_stages else None

    start = _start(problem)
    if policy.shape[0] == length:
        (distributions, left), stages = jax.lax.scan(step, start, policy, reverse=True)
    else:
        (distributions, left), stages = jax.lax.scan(
            lambda carry, _: step(carry, policy[0]), start, length=length, reverse=True
        )
    if keep_stages:
        stages = jnp.concatenate([stages, start[0][None]])
    return distributions, left, stages
