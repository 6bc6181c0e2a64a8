"""Distributional dynamic programming with stock: planning for functionals of the return distribution.

Every pair of state and stock ``(s, c)`` has a return distribution ``G(s, c)``. One backup is

    c' = (c + r) / discount,    G(s, c) = r + discount G(s', c'),    action = argmax_a E f(c + r + discount G(s', c'))

(Pires et al., 2025, "Optimizing Return Distributions with Distributional Dynamic Programming", JMLR 26(185)). With
``horizon`` (by default the model's) the episode has a time limit and the policy has one table per time step; with
``iterations`` it has none, the discount is below 1 and the policy is stationary.

The result is exact on a ``lattice`` of returns with discount 1 and a stock grid that holds every stock. Otherwise a
stock between two grid points is rounded up or down at random, with its interpolation weights as probabilities, and a
stock beyond the grid is moved to the edge; the resulting distributions are those of the greedy policy that sees these
stocks. ``left_stock`` and ``left_support`` report, per start, the probability that left the grid or the support.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.functionals import Functional, finite_utility, require
from agents.planning import backup
from agents.planning.dynamic_programming import resolve_length
from agents.planning.return_distributions import (
    ON_GRID,
    Representation,
    StockGrid,
    grid_axes,
    stocks_or_zero,
)
from envs.choices import require_known
from envs.native.tabular import TabularModel, validated

_TIES = ("lowest", "uniform")


class DistributionalPlan(NamedTuple):
    """A policy over states and stocks, and its return distributions.

    Attributes:
      policy: ``int32 [H, S, C]``, the action at each time step, or probabilities ``[H, S, C, A]`` where ties are
        shared; without a time limit ``H = 1``, and the policy is stationary.
      distributions: ``[S, C, K]``, the return distributions at time 0, see ``Representation``.
      values: ``[S, C]``, the functional of stock plus return at time 0; NaN where no functional was given.
      stocks: ``[C]`` or ``[C, m]``; the single stock 0 where the policy does not depend on it.
      particles: the support of the distributions, see ``Representation``.
      left_stock: ``[S, C]``, the probability that the stock leaves its grid, the last reward before a time limit
        included.
      left_support: ``[S, C]``, the expected probability that was moved to the edge of the support, over all backups.
      bound: on the error of ``values``, as utilities of the policy's returns, where nothing left grid or support:
        ``lipschitz (discount ** n (diameter + zero_error) + sum_k<n discount ** k error)``, with the representation's
        errors of the return 0 and per backup, and diameter 0 with a horizon. It does not say how much better a policy
        on a finer stock grid would be.
      wasserstein: the same without ``lipschitz``: a bound on the 1-Wasserstein distance of the distributions.
      stages: ``[H + 1, S, C, K]``, the distributions from every time step on, or ``None``.
      rounds: evaluations that policy iteration needed; 1 for the other planners.
    """

    policy: jax.Array
    distributions: jax.Array
    values: jax.Array
    stocks: np.ndarray
    particles: np.ndarray | None
    left_stock: jax.Array
    left_support: jax.Array
    bound: float
    wasserstein: float
    stages: jax.Array | None
    rounds: int


def value_iteration(
    model: TabularModel,
    functional: Functional,
    representation: Representation,
    grid: StockGrid | None = None,
    *,
    discount: float = 1.0,
    horizon: int | None = None,
    iterations: int | None = None,
    ties: str = "lowest",
    keep_stages: bool = False,
) -> DistributionalPlan:
    """Distributional value iteration: greedy backups, starting from the distribution of the return 0.

    Without a time limit, the distributions are those of following the policy of each iteration in turn, and ``policy``
    is the last of these policies; ``policy_evaluation`` computes the distributions of following it forever.

    Args:
      model: the environment.
      functional: the objective; ``agents.functionals.initial_stock`` chooses its initial stock from ``values``.
      representation: ``lattice`` or ``categorical``.
      grid: of the stock; ``None`` where the functional does not need one.
      discount, horizon, iterations: of the problem, see the module.
      ties: ``"lowest"`` takes the lowest of the tied actions, ``"uniform"`` all actions within ``1e-6 max(1, |best|)``
        of the best with equal probability.
      keep_stages: whether to return the distributions of every time step (only with a horizon).

    Raises:
      ValueError: see ``tabular.validated``, ``functionals.require``, ``functionals.finite_utility`` and
        ``planning.resolve_length``; a representation that only evaluates or that does not fit the rewards, and an
        unknown ``ties``.
    """
    model = validated(model)
    length, finite = _checked(model, functional, representation, grid, discount, horizon, iterations)
    require_known("ties", ties, _TIES)
    problem = backup.backup_problem(model, functional, representation, grid, discount)
    distributions, left, policy, stages = backup.optimal(
        problem,
        transport=representation.transport,
        length=length,
        uniform=ties == "uniform",
        keep_policies=finite,
        keep_stages=keep_stages and finite,
    )
    return _plan(
        model, functional, representation, grid, discount, length, finite, policy, distributions, left, stages, 1
    )


def policy_iteration(
    model: TabularModel,
    functional: Functional,
    representation: Representation,
    grid: StockGrid | None = None,
    *,
    discount: float = 1.0,
    horizon: int | None = None,
    iterations: int | None = None,
    rounds: int = 1000,
) -> DistributionalPlan:
    """Distributional policy iteration: evaluates a policy and improves it greedily, until no action changes.

    It starts with action 0 everywhere and replaces an action only by a better one. With a horizon, one backward pass
    evaluates and improves, and at most ``H + 1`` passes are needed. Without one, an evaluation takes ``iterations``
    backups.

    Args:
      model, functional, representation, grid, discount, horizon, iterations: as in ``value_iteration``.
      rounds: the largest number of evaluations.

    Raises:
      ValueError: as in ``value_iteration``.
      RuntimeError: actions still change after ``rounds`` evaluations.
    """
    model = validated(model)
    length, finite = _checked(model, functional, representation, grid, discount, horizon, iterations)
    problem = backup.backup_problem(model, functional, representation, grid, discount)
    num_stocks = problem.stock_index.shape[1]
    policy = jnp.zeros((length if finite else 1, model.num_states, num_stocks), jnp.int32)
    for count in range(1, rounds + 1):
        distributions, left, improved = backup.improve(
            problem, policy, transport=representation.transport, length=length, finite=finite
        )
        if bool((improved == policy).all()):
            return _plan(
                model,
                functional,
                representation,
                grid,
                discount,
                length,
                finite,
                policy,
                distributions,
                left,
                None,
                count,
            )
        policy = improved
    raise RuntimeError(
        f"actions still change after {rounds} rounds: expected more rounds, or more than {length} backups"
    )


def policy_evaluation(
    model: TabularModel,
    policy: Any,
    representation: Representation,
    grid: StockGrid | None = None,
    *,
    functional: Functional | None = None,
    discount: float = 1.0,
    horizon: int | None = None,
    iterations: int | None = None,
    keep_stages: bool = False,
) -> DistributionalPlan:
    """The return distribution of a policy, from every state and stock.

    Args:
      model: the environment.
      policy: with a grid, actions ``int [S, C]`` or probabilities ``[S, C, A]``; without, ``[S]`` or ``[S, A]``. A
        leading axis ``[H]`` gives one per time step.
      representation: ``lattice``, ``categorical`` or ``quantiles``.
      grid: of the stock; ``None`` for a policy that does not depend on it.
      functional: of the distribution of stock plus return, for ``values``; any functional will do.
      discount, horizon, iterations: of the problem, see the module.
      keep_stages: whether to return the distributions of every time step (only with a horizon).

    Raises:
      ValueError: see ``tabular.validated``, ``planning.resolve_length`` and ``functionals.finite_utility``; a
        policy of another shape, whose rows do not sum to one or with an unknown action; a representation or functional
        that does not fit the rewards; quantiles with a stock that falls between grid points.
    """
    model = validated(model)
    length, finite = resolve_length(model, discount, horizon, iterations)
    _check_dimension(model, representation, grid)
    if functional is not None and functional.dimension not in (None, model.reward_dimension):
        raise ValueError(f"{functional.name} does not fit rewards of dimension {model.reward_dimension} (0: numbers)")
    if functional is not None:
        _check_utility(model, functional, representation, grid)
    problem = backup.backup_problem(model, None, representation, grid, discount)
    stages = _stages(policy, model, problem.stock_index.shape[1], grid is not None, length, finite)
    if representation.linear:
        distributions, left, kept = backup.evaluate(
            problem, stages, transport=representation.transport, length=length, keep_stages=keep_stages and finite
        )
    else:
        if problem.stock_index.shape[2] > 1:
            raise ValueError(
                "quantiles: a stock falls between two grid points; expected categorical(...) or lattice(...)"
            )
        distributions, left, kept = backup.evaluate_particles(
            problem, stages, length=length, keep_stages=keep_stages and finite
        )
    return _plan(
        model, functional, representation, grid, discount, length, finite, stages, distributions, left, kept, 1
    )


def return_distribution(plan: DistributionalPlan, state: Any, stock: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """The return distribution from time 0 as particles ``[K]`` (or ``[K, m]``) and weights ``[K]``.

    Args:
      plan: from a planner.
      state: an index, or a distribution ``[S]`` over states, such as ``model.initial``.
      stock: one of ``plan.stocks``; may be left out where there is only one.

    Raises:
      ValueError: an unknown state, numbers that are no distribution over states, or a stock off the grid.
    """
    distributions = np.asarray(plan.distributions)[:, stock_index(plan, stock)]
    if np.ndim(state) == 0:
        if not 0 <= state < len(distributions):
            raise ValueError(f"state={state}: expected a state from 0 to {len(distributions) - 1}")
        shares = np.eye(len(distributions))[int(state)]
    else:
        shares = np.asarray(state, np.float64)
        if shares.shape != (len(distributions),):
            raise ValueError(
                f"state has shape {shares.shape}, expected an index or a distribution ({len(distributions)},)"
            )
        if not (shares >= 0).all() or not abs(shares.sum() - 1) <= 1e-5:
            raise ValueError(
                f"state sums to {shares.sum():.6g} with minimum {shares.min():.6g}: expected a distribution over states"
            )
    if plan.particles is not None:
        return plan.particles, shares @ distributions
    chosen = shares > 0
    return distributions[chosen].ravel(), np.repeat(shares[chosen], distributions.shape[-1]) / distributions.shape[-1]


def stock_index(plan: DistributionalPlan, stock: Any = None) -> int:
    """The index of ``stock`` in ``plan.stocks``; ``None`` is allowed where there is only one.

    Raises:
      ValueError: a stock off the grid, or none where there are several.
    """
    if stock is None:
        if len(plan.stocks) > 1:
            raise ValueError(f"the plan has {len(plan.stocks)} stocks: expected one of them, such as {plan.stocks[0]}")
        return 0
    gaps = np.abs(plan.stocks - np.asarray(stock, np.float64)).reshape(len(plan.stocks), -1).max(axis=1)
    index = int(gaps.argmin())
    if gaps[index] > ON_GRID * max(1.0, float(np.abs(stock).max())):
        raise ValueError(f"stock {stock} is not on the grid; the nearest is {plan.stocks[index].tolist()}")
    return index


def act(
    plan: DistributionalPlan, grid: StockGrid, time: jax.Array, state: jax.Array, stock: jax.Array, key: jax.Array
) -> jax.Array:
    """The plan's action at ``stock`` (``[]`` or ``[m]``), which is rounded to the grid at random as in the plan.

    Works under ``jit`` and ``vmap``.

    Args:
      plan: with actions or probabilities.
      grid: the one that the plan was made with.
      time: steps since the start of the episode; a stationary plan ignores it.
      state: the present state.
      stock: the present stock.
      key: for the rounding, and for the action where the plan has probabilities.
    """
    axes = grid_axes(*grid)
    rounding_key, action_key = jax.random.split(key)
    index = jnp.zeros((), jnp.int32)
    for axis, value, part in zip(axes, jnp.ravel(stock), jax.random.split(rounding_key, len(axes)), strict=True):
        position = jnp.clip((value - axis[0]) / (axis[1] - axis[0] if len(axis) > 1 else 1.0), 0, len(axis) - 1)
        nearest = jnp.round(position)
        # A stock that is off the grid by rounding errors alone is not rounded at random.
        position = jnp.where(jnp.abs(position - nearest) < 1e-4, nearest, position)
        below = jnp.floor(position)
        up = jax.random.uniform(part) < position - below
        index = index * len(axis) + (below + up).astype(jnp.int32)
    choice = plan.policy[jnp.minimum(time, plan.policy.shape[0] - 1), state, index]
    return choice if plan.policy.ndim == 3 else jax.random.categorical(action_key, jnp.log(choice)).astype(jnp.int32)


def _check_dimension(model: TabularModel, representation: Representation, grid: StockGrid | None) -> None:
    wanted = model.reward_dimension
    found = [(representation.name, representation.dimension)]
    if grid is not None:
        found.append(("the stock grid", 0 if np.ndim(grid.low) == 0 else len(np.ravel(grid.low))))
    for name, dimension in found:
        if dimension != wanted:
            kinds = [f"vectors of {size}" if size else "numbers" for size in (dimension, wanted)]
            raise ValueError(f"{name} is for {kinds[0]}, the model's rewards are {kinds[1]}")


def _check_utility(
    model: TabularModel, functional: Functional, representation: Representation, grid: StockGrid | None
) -> None:
    if functional.utility is not None and representation.particles is not None:
        finite_utility(functional, _totals(model, representation.particles, grid))


def _totals(model: TabularModel, particles: np.ndarray, grid: StockGrid | None) -> np.ndarray:
    """Every stock plus every return, ``[C, K]`` or ``[C, K, m]``."""
    return stocks_or_zero(grid, model.reward_dimension)[:, None] + particles


def _checked(
    model: TabularModel,
    functional: Functional,
    representation: Representation,
    grid: StockGrid | None,
    discount: float,
    horizon: int | None,
    iterations: int | None,
) -> tuple[int, bool]:
    length, finite = resolve_length(model, discount, horizon, iterations)
    require(
        functional,
        discount=discount,
        dimension=model.reward_dimension,
        stock=grid is not None,
        infinite=not finite,
    )
    if not representation.linear:
        raise ValueError(
            f"{representation.name} does not preserve the expected utility of a mixture, so that greedy steps would be "
            "biased: expected lattice(...) or categorical(...)"
        )
    _check_dimension(model, representation, grid)
    _check_utility(model, functional, representation, grid)
    return length, finite


def _stages(policy: Any, model: TabularModel, num_stocks: int, stocked: bool, length: int, finite: bool) -> jax.Array:
    """Actions ``[H or 1, S, C]`` or shares ``[H or 1, S, C, A]``, checked."""
    array = np.asarray(policy)
    whole = array.dtype.kind in "iu"
    base: tuple[int, ...] = (model.num_states, *((num_stocks,) if stocked else ()))
    shape = base if whole else (*base, model.num_actions)
    allowed = [shape, (1, *shape), *([(length, *shape)] if finite else [])]
    if array.shape not in allowed:
        raise ValueError(f"policy has shape {array.shape}, expected one of {', '.join(map(str, allowed))}")
    if whole and not ((array >= 0) & (array < model.num_actions)).all():
        raise ValueError(
            f"policy has actions from {array.min()} to {array.max()}, expected 0 to {model.num_actions - 1}"
        )
    if not whole and ((array < 0).any() or (abs(array.sum(-1) - 1) > 1e-5).any()):
        raise ValueError("policy: expected probabilities that sum to one over the actions")
    array = array if array.ndim > len(shape) else array[None]
    if not stocked:
        array = np.expand_dims(array, 2)
    return jnp.asarray(array, jnp.int32) if whole else jnp.asarray(array, float)


def _plan(
    model: TabularModel,
    functional: Functional | None,
    representation: Representation,
    grid: StockGrid | None,
    discount: float,
    length: int,
    finite: bool,
    policy: jax.Array,
    distributions: jax.Array,
    left: jax.Array,
    stages: jax.Array | None,
    rounds: int,
) -> DistributionalPlan:
    stocks = stocks_or_zero(grid, model.reward_dimension)
    if functional is None:
        values = jnp.full(distributions.shape[:2], jnp.nan)
    elif representation.particles is None:
        weights = jnp.full(distributions.shape[-1], 1 / distributions.shape[-1])
        values = functional.value(jnp.asarray(stocks, float)[:, None] + distributions, weights)
    else:
        values = functional.value(jnp.asarray(_totals(model, representation.particles, grid), float), distributions)
    possible = model.reward[model.probability > 0].reshape(-1, max(model.reward_dimension, 1))
    steps = length if discount == 1 else (1 - discount**length) / (1 - discount)
    spread = float((np.maximum(possible.max(0), 0) - np.minimum(possible.min(0), 0)).sum()) * steps
    tail = 0.0 if finite else discount**length * float(np.abs(possible).sum(-1).max()) / (1 - discount)
    # Holds for episodes that end earlier as well: a backup that they save would have added more than the error of their
    # return 0, which counts from an earlier step.
    wasserstein = tail + discount**length * representation.zero_error + steps * representation.error(spread)
    lipschitz = math.nan if functional is None else functional.lipschitz
    return DistributionalPlan(
        policy,
        distributions,
        values,
        stocks,
        representation.particles,
        left[..., 0],
        left[..., 1],
        0.0 if wasserstein == 0 else lipschitz * wasserstein,
        wasserstein,
        stages,
        rounds,
    )
