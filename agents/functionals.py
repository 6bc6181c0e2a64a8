"""Objective functionals of the return distribution, used by planners and agents alike.

Planners and agents optimise expected utilities of stock plus return, ``E f(C_0 + G)``, with a rule for the initial
stock ``C_0``. The stock is updated along the episode, ``C_t+1 = (C_t + r_t) / discount``, so that at every step
``discount ** t (C_t + G_t) = C_0 + G_0``, the stock plus return of the whole episode. Greedy steps can therefore
optimise functionals that cannot be expressed by a reward (Pires et al., 2025, "Optimizing Return Distributions with
Distributional Dynamic Programming", JMLR 26(185)).

Greedy steps solve the problem under three conditions:

* ``mixtures``: which of two distributions is better does not change when both are mixed with a third one;
* ``homogeneous``: nor does it change when both are scaled by a discount below 1; ``f(g x) = g ** a f(x) + constant`` is
  sufficient;
* ``lipschitz``: for problems without a time limit, close distributions have close values, so that backups converge.

``require`` refuses functionals that violate them. A distribution is a set of weighted particles: ``particles [...,
K]``, or ``[..., K, m]`` where stock and return are vectors, and ``weights [..., K]`` that sum to one over ``K``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FIXED, LARGEST, SMALLEST = "fixed", "largest", "smallest"


class Start(NamedTuple):
    """The rule for the initial stock; ``U(c) = E f(c + G)``.

    Attributes:
      kind: ``"fixed"``: always ``stock``; ``"largest"``: the stock ``c`` with the largest ``-c + scale U(c)``;
        ``"smallest"``: the stock with the smallest.
      stock: where fixed, a number or a tuple of ``m``.
      scale: where searched.
    """

    kind: str = FIXED
    stock: float | tuple[float, ...] = 0.0
    scale: float = 1.0


class Functional(NamedTuple):
    """An objective functional of the distribution of stock plus return.

    Attributes:
      name: used in messages.
      value: ``(particles, weights) -> [...]``, the functional of a distribution; ``E f`` for an expected utility.
      utility: ``f``, elementwise ``[...] -> [...]``, or ``[..., m] -> [...]``; ``None`` if it is no expected utility.
      lipschitz: Lipschitz constant of ``f`` in the sum norm, ``inf`` if there is none.
      mixtures: whether it is indifferent to mixtures.
      homogeneous: whether it is indifferent to a discount below 1.
      needs_stock: whether the greedy action depends on the stock.
      dimension: of the rewards: 0 for numbers, ``m`` for vectors of ``m`` components, ``None`` for any.
      start: the rule for the initial stock.
    """

    name: str
    value: Callable[[Any, Any], jax.Array]
    utility: Callable[[Any], jax.Array] | None
    lipschitz: float
    mixtures: bool
    homogeneous: bool
    needs_stock: bool
    dimension: int | None
    start: Start


def expected_utility(
    utility: Callable[[Any], jax.Array],
    *,
    name: str = "expected_utility",
    lipschitz: float = math.inf,
    homogeneous: bool = False,
    needs_stock: bool = True,
    dimension: int | None = 0,
    start: Start | None = None,
) -> Functional:
    """``E f(C_0 + G)``. Every expected utility is indifferent to mixtures; the caller declares the other conditions.

    Args:
      utility: ``f``, in JAX.
      name, lipschitz, homogeneous, needs_stock, dimension, start: see ``Functional``; ``start`` is stock 0 by default.
    """

    def value(particles, weights):
        return jnp.sum(jnp.asarray(weights) * utility(jnp.asarray(particles)), axis=-1)

    return Functional(
        name, value, utility, lipschitz, True, homogeneous, needs_stock, dimension, Start() if start is None else start
    )


def expectation() -> Functional:
    """``E G``, the risk-neutral objective: ``f(x) = x``, stock 0."""
    return expected_utility(lambda x: x, name="expectation", lipschitz=1.0, homogeneous=True, needs_stock=False)


def cvar(level: float) -> Functional:
    """Conditional value at risk, the mean of the worst share ``level`` of the returns.

    ``max_c -c + E min(c + G, 0) / level``, so that ``f(x) = min(x, 0)``; the maximum is at
    ``c = -quantile_level(G)`` (Rockafellar and Uryasev, 2000). The largest maximiser is taken.

    Raises:
      ValueError: ``level`` outside (0, 1].
    """
    _check_level(level)
    return expected_utility(
        lambda x: jnp.minimum(x, 0.0),
        name=f"cvar({level})",
        lipschitz=1.0,
        homogeneous=True,
        start=Start(LARGEST, scale=1 / level),
    )


def optimistic_cvar(level: float) -> Functional:
    """The mean of the best share ``level`` of the returns: ``min_c -c + E max(c + G, 0) / level``, a saddle point.

    The functional is concave in the distribution, so that ``min_c max_policy`` is its optimum over mixtures of
    policies, of which one is drawn before the episode (minimax theorem). The greedy policy from the minimising stock
    alone may achieve less. The minimum may lie between the stocks of a grid even where all returns are on it: on a grid
    the value is an upper bound, above the optimum by at most ``step (1 - level)``.

    Raises:
      ValueError: ``level`` outside (0, 1].
    """
    _check_level(level)
    return expected_utility(
        lambda x: jnp.maximum(x, 0.0),
        name=f"optimistic_cvar({level})",
        lipschitz=1.0,
        homogeneous=True,
        start=Start(SMALLEST, scale=1 / level),
    )


def mean_cvar(level: float, mean_weight: float) -> Functional:
    """``mean_weight E G + (1 - mean_weight) CVaR_level(G)``.

    ``max_c -c + E f(c + G)`` with ``f(x) = ((1 - w) / level + w) min(x, 0) + w max(x, 0)`` and ``w = mean_weight``.

    Raises:
      ValueError: ``level`` outside (0, 1] or ``mean_weight`` outside [0, 1].
    """
    _check_level(level)
    if not 0 <= mean_weight <= 1:
        raise ValueError(f"mean_weight={mean_weight}: expected a number from 0 to 1")
    below = (1 - mean_weight) / level + mean_weight
    return expected_utility(
        lambda x: below * jnp.minimum(x, 0.0) + mean_weight * jnp.maximum(x, 0.0),
        name=f"mean_cvar({level}, {mean_weight})",
        lipschitz=max(below, mean_weight),
        homogeneous=True,
        start=Start(LARGEST),
    )


def target_return(target: float) -> Functional:
    """``-E |G - target|``: ``f(x) = -|x|`` from the stock ``-target``.

    Raises:
      ValueError: a target that is not finite.
    """
    _check_finite("target", target)
    return expected_utility(
        lambda x: -jnp.abs(x),
        name=f"target_return({target})",
        lipschitz=1.0,
        homogeneous=True,
        start=Start(FIXED, -float(target)),
    )


def homeostasis(set_points: Sequence[float], order: float = 2.0) -> Functional:
    """``-E ||G - set_points||_order`` for vectors: ``f(x) = -||x||_order`` from the stock ``-set_points``.

    Raises:
      ValueError: no set point, one that is not finite, or ``order`` below 1.
    """
    if not len(set_points):
        raise ValueError("set_points is empty: expected one per component of the reward")
    _check_finite("set_points", *set_points)
    if not order >= 1:
        raise ValueError(f"order={order}: expected the order of a norm, at least 1")

    def utility(x):
        if order == math.inf:
            return -jnp.max(jnp.abs(x), axis=-1)
        return -(jnp.sum(jnp.abs(x) ** order, axis=-1) ** (1 / order))

    return expected_utility(
        utility,
        name=f"homeostasis({tuple(set_points)}, {order})",
        lipschitz=1.0,
        homogeneous=True,
        dimension=len(set_points),
        start=Start(FIXED, tuple(-float(point) for point in set_points)),
    )


def soft_constraints(weights: Sequence[float], thresholds: Sequence[float]) -> Functional:
    """Component 0 of the return, less penalties where other components fall short of their thresholds.

    ``E [G_0 + sum_i weights_i min(G_i - thresholds_i, 0)]``, per episode: ``f(x) = x_0 + sum_i weights_i min(x_i, 0)``
    from the stock ``(0, -thresholds)``.

    Raises:
      ValueError: no constraint, unequal lengths, a negative weight or a number that is not finite.
    """
    if not len(weights) or len(weights) != len(thresholds):
        raise ValueError(
            f"{len(weights)} weights and {len(thresholds)} thresholds: expected one of each per constraint"
        )
    _check_finite("weights", *weights)
    _check_finite("thresholds", *thresholds)
    if min(weights) < 0:
        raise ValueError(f"weights={tuple(weights)}: expected numbers of at least 0")
    slopes = tuple(float(weight) for weight in weights)

    def utility(x):
        return x[..., 0] + jnp.sum(jnp.asarray(slopes) * jnp.minimum(x[..., 1:], 0.0), axis=-1)

    return expected_utility(
        utility,
        name=f"soft_constraints({slopes}, {tuple(thresholds)})",
        lipschitz=max(1.0, *slopes),
        homogeneous=True,
        dimension=1 + len(slopes),
        start=Start(FIXED, (0.0, *(-float(threshold) for threshold in thresholds))),
    )


def exponential_utility(rate: float) -> Functional:
    """``E (1 - exp(-rate G)) / rate``, risk-averse for ``rate > 0`` and risk-seeking for ``rate < 0``; discount 1
    only.

    The stock factors out of the exponential, so that the greedy action does not depend on it.

    Raises:
      ValueError: ``rate`` is not finite, or 0 (use ``expectation``).
    """
    _check_finite("rate", rate)
    if rate == 0:
        raise ValueError("rate=0: expected a number other than 0, or expectation(), which is the limit at 0")
    return expected_utility(
        lambda x: -jnp.expm1(-rate * x) / rate, name=f"exponential_utility({rate})", needs_stock=False
    )


def direct_cvar(level: float) -> Functional:
    """Conditional value at risk computed from the return distribution itself, without stock; for evaluation only.

    It is not indifferent to mixtures, so that greedy steps with it need not optimise it.

    Raises:
      ValueError: ``level`` outside (0, 1].
    """
    _check_level(level)

    def value(particles, weights):
        return cvar_of(particles, weights, level)

    return Functional(f"direct_cvar({level})", value, None, 1 / level, False, True, False, 0, Start())


def require(functional: Functional, *, discount: float, dimension: int, stock: bool, infinite: bool) -> None:
    """Refuses a functional that greedy steps do not optimise in the given problem.

    Args:
      functional: the objective.
      discount: of the problem.
      dimension: of its rewards, 0 for numbers.
      stock: whether the planner or agent tracks the stock.
      infinite: whether episodes have no time limit (with a discount below 1).

    Raises:
      ValueError: the condition that fails, and what would satisfy it.
    """
    if not functional.mixtures or functional.utility is None:
        raise ValueError(
            f"{functional.name} is not indifferent to mixtures, so that greedy steps do not optimise it: expected an "
            "expected utility of stock plus return, such as cvar(level)"
        )
    if discount < 1 and not functional.homogeneous:
        raise ValueError(
            f"{functional.name} is not indifferent to discount={discount}: expected discount 1, or a utility with "
            "f(g x) = g ** a f(x) + constant"
        )
    if infinite and not functional.lipschitz < math.inf:
        raise ValueError(
            f"{functional.name} has no Lipschitz constant (lipschitz={functional.lipschitz}), so that backups without "
            "a time limit need not converge: expected a finite constant, or a time limit"
        )
    if functional.dimension is not None and functional.dimension != dimension:
        kinds = [f"vectors of {size}" if size else "numbers" for size in (functional.dimension, dimension)]
        raise ValueError(f"{functional.name} is for rewards that are {kinds[0]}, but these are {kinds[1]}")
    if functional.needs_stock and not stock:
        raise ValueError(f"{functional.name} depends on the stock: expected a stock grid, got none")


def finite_utility(functional: Functional, totals: Any) -> jax.Array:
    """The utility ``f`` of all stocks plus returns ``totals``, ``[...]`` or ``[..., m]``, that a planner distinguishes.

    Raises:
      ValueError: ``f`` is not finite somewhere: multiplied by a probability of 0 it would be NaN, and NaN action values
        cannot be compared.
    """
    if functional.utility is None:
        raise ValueError(f"{functional.name} is not an expected utility: expected one with a utility f")
    found = functional.utility(jnp.asarray(totals, float))
    finite = np.isfinite(np.asarray(found))
    if not finite.all():
        place = np.unravel_index(int(np.argmin(finite)), finite.shape)
        bits = 8 * found.dtype.itemsize
        total, more = np.asarray(totals)[place].tolist(), ", or jax.enable_x64" if bits < 64 else ""
        raise ValueError(
            f"{functional.name} is {float(found[place])} where stock plus return is {total}, in {bits} bits: expected "
            "a finite utility of every stock plus return on the grids; try a smaller rate or smaller "
            f"ranges{more}"
        )
    return found


def initial_stock(functional: Functional, stocks: Any, utilities: Any) -> tuple[float, int]:
    """The initial stock chosen by the functional's rule, and the functional's value there.

    Args:
      functional: the objective.
      stocks: ``[C]`` or ``[C, m]``, the candidates; concrete, not traced.
      utilities: ``[C]``, ``E f(c + G)`` at each candidate.

    Returns:
      The value (the utility, for a fixed stock; see ``searched_stock`` otherwise) and the index of the stock.

    Raises:
      ValueError: a fixed stock that is not among ``stocks``, or a search over vectors.
    """
    points, start = np.asarray(stocks, np.float64), functional.start
    if start.kind == FIXED:
        wanted = np.broadcast_to(np.asarray(start.stock, np.float64), points.shape[1:])
        gaps = np.abs(points - wanted).reshape(len(points), -1).max(axis=1)
        index = int(gaps.argmin())
        if gaps[index] > 1e-6 * max(1.0, float(np.abs(wanted).max())):
            raise ValueError(
                f"{functional.name} starts from the stock {start.stock}, which is not on the grid; the nearest stock "
                f"is {points[index].tolist()}"
            )
        return float(np.asarray(utilities)[index]), index
    if points.ndim != 1:
        raise ValueError(f"{functional.name} searches for its initial stock: expected stocks [C], got {points.shape}")
    value, place = searched_stock(functional, points, utilities)
    return float(value), int(place)


def searched_stock(functional: Functional, stocks: Any, utilities: Any) -> tuple[jax.Array, jax.Array]:
    """The best ``-c + scale U(c)``, and the index of its stock; may be traced.

    Stocks tie within ``tolerance max(1, |best|)``, with a tolerance of 1e-9 in 64 bits and 1e-5 otherwise. The largest
    of the tied stocks is taken.

    Args:
      functional: with the rule ``"largest"`` or ``"smallest"``.
      stocks: ``[C]``.
      utilities: ``[C]``, ``U(c) = E f(c + G)``.
    """
    points, start = jnp.asarray(stocks, float), functional.start
    objective = -points + start.scale * jnp.asarray(utilities, float)
    better = objective if start.kind == LARGEST else -objective
    best = jnp.max(better)
    tolerance = 1e-9 if objective.dtype == jnp.float64 else 1e-5
    ties = better >= best - tolerance * jnp.maximum(1.0, jnp.abs(best))
    index = jnp.argmax(jnp.where(ties, points, -jnp.inf))
    return objective[index], index


def statistic(functional: Functional, particles: jax.Array, weights: jax.Array) -> jax.Array:
    """The objective of return distributions ``[..., K]`` at the initial stock that its rule chooses; ``[...]``.

    ``E f(stock + G)`` for a fixed stock. Where the stock is searched, it is the extremum of ``-c + scale E f(c + G)``
    over all ``c``. ``f`` is linear on either side of 0, so that this function of ``c`` is linear between two particles
    and its extremum is at ``c = -particles_i`` for one of them.
    """
    start = functional.start
    if start.kind == FIXED:
        return functional.value(jnp.asarray(start.stock) + particles, weights)
    totals = particles[..., None, :] - particles[..., :, None]
    objective = particles + start.scale * functional.value(totals, weights[..., None, :])
    return jnp.max(objective, axis=-1) if start.kind == LARGEST else jnp.min(objective, axis=-1)


def quantile(particles: Any, weights: Any, level: float) -> jax.Array:
    """``inf {x : P(X <= x) >= level}`` of distributions ``[..., K]``; ``[...]``.

    Raises:
      ValueError: ``level`` outside (0, 1].
    """
    _check_level(level)
    return _quantile(*_as_floats(particles, weights), level)


def cvar_of(particles: Any, weights: Any, level: float) -> jax.Array:
    """The mean of the lowest share ``level`` of distributions ``[..., K]``; ``[...]``.

    A particle at the edge of that share counts with the part of its weight that lies inside.

    Raises:
      ValueError: ``level`` outside (0, 1].
    """
    _check_level(level)
    return _lower_tail_mean(*_as_floats(particles, weights), level)


@jax.jit
def _quantile(particles: jax.Array, weights: jax.Array, level: jax.Array) -> jax.Array:
    ordered, cumulative, _ = _ordered(particles, weights)
    reached = cumulative >= level - 8 * jnp.finfo(cumulative.dtype).eps
    # Where rounding leaves the total weight below the level, take the largest particle.
    index = jnp.where(reached.any(-1), reached.argmax(-1), ordered.shape[-1] - 1)
    return jnp.take_along_axis(ordered, index[..., None], axis=-1)[..., 0]


@jax.jit
def _lower_tail_mean(particles: jax.Array, weights: jax.Array, level: jax.Array) -> jax.Array:
    ordered, cumulative, mass = _ordered(particles, weights)
    share = jnp.clip(level - (cumulative - mass), 0.0, mass)
    return jnp.sum(share * ordered, axis=-1) / level


def _as_floats(particles: Any, weights: Any) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(particles, float), jnp.asarray(weights, float)


def _ordered(particles: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    values, masses = jnp.broadcast_arrays(particles, weights)
    order = jnp.argsort(values, axis=-1)
    ordered, mass = (jnp.take_along_axis(array, order, axis=-1) for array in (values, masses))
    return ordered, jnp.cumsum(mass, axis=-1), mass


def _check_level(level: float) -> None:
    if not 0 < level <= 1:
        raise ValueError(f"level={level}: expected a probability above 0 and at most 1")


def _check_finite(name: str, *values: float) -> None:
    for value in values:
        if not math.isfinite(value):
            raise ValueError(f"{name}={value}: expected finite numbers")


FUNCTIONALS: dict[str, Callable[..., Functional]] = {
    "expectation": expectation,
    "cvar": cvar,
    "optimistic_cvar": optimistic_cvar,
    "mean_cvar": mean_cvar,
    "target_return": target_return,
    "homeostasis": homeostasis,
    "soft_constraints": soft_constraints,
    "exponential_utility": exponential_utility,
    "direct_cvar": direct_cvar,
}
