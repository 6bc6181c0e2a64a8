"""How planners store return distributions and stocks, and how a reward moves both.

The distribution of ``G`` becomes that of ``r + discount G``, and a stock ``c`` becomes ``(c + r) / discount``. A
distribution is stored in ``K`` numbers. A ``lattice`` is exact for discount 1; ``categorical`` distributions and
``quantiles`` are projected, with a known error. A stock between two points of its grid is rounded to one of them at
random, with its interpolation weights as probabilities, and a stock beyond the grid is moved to the edge.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import PyTree
from envs.stock import next_stock

# Tolerance within which a number counts as a grid point.
ON_GRID = 1e-6


class Representation(NamedTuple):
    """How a return distribution is stored in ``K`` numbers; pure functions.

    Attributes:
      name: used in messages.
      particles: ``[K]`` or ``[K, m]``, the support, where the numbers are probabilities; ``None`` where the numbers are
        particles of equal weight.
      dimension: of the returns: 0 for numbers, otherwise ``m``.
      zero: ``[K]``, the distribution of the return 0.
      operators: ``(rewards [U] or [U, m], discount) -> pytree [U, ...]``, the argument of ``transport`` for each
        reward.
      transport: ``(operator, distributions [..., K]) -> (distributions [..., K], outside [...])``: the distributions of
        ``r + discount G``, and the probability that was moved to the edge of the support.
      linear: whether mixing the numbers mixes the distributions.
      error: ``(spread of the returns) -> `` a bound on the 1-Wasserstein error, in the sum norm, that one backup adds
        inside the support.
      zero_error: the same error of ``zero``; 0 where 0 is on the support.
    """

    name: str
    particles: np.ndarray | None
    dimension: int
    zero: np.ndarray
    operators: Callable[[np.ndarray, float], PyTree]
    transport: Callable[[PyTree, jax.Array], tuple[jax.Array, jax.Array]]
    linear: bool
    error: Callable[[float], float]
    zero_error: float


class StockGrid(NamedTuple):
    """The stocks that a planner distinguishes: ``low, low + step, ..., high``; tuples of ``m`` make a product grid.

    Attributes:
      low, high, step: numbers, or one per component of the reward.
    """

    low: float | Sequence[float]
    high: float | Sequence[float]
    step: float | Sequence[float] = 1.0


def lattice(low: float | Sequence[float], high: float | Sequence[float], step: float | Sequence[float] = 1.0):
    """Probabilities on ``low, low + step, ..., high``: exact for discount 1 and rewards that are multiples of ``step``.

    Tuples of ``m`` make a product lattice for vectors.

    Returns:
      A ``Representation``; ``operators`` raises ``ValueError`` for a discount below 1 or a reward off the lattice.

    Raises:
      ValueError: a step that is not positive or does not divide the range, or a lattice without 0.
    """
    axes = grid_axes(low, high, step)
    dimension = 0 if np.ndim(low) == 0 else len(axes)
    steps = np.array([axis[1] - axis[0] if len(axis) > 1 else 1.0 for axis in axes])
    steps = np.where([len(axis) > 1 for axis in axes], steps, np.broadcast_to(np.asarray(step, float), steps.shape))
    for axis in axes:
        if not np.isclose(axis, 0.0, atol=ON_GRID).any():
            raise ValueError(f"the lattice from {axis[0]:g} to {axis[-1]:g} has no 0: expected the return of no step")

    def operators(rewards: np.ndarray, discount: float) -> PyTree:
        if discount != 1:
            raise ValueError(f"discount={discount} leaves the lattice: expected discount 1, or categorical(...)")
        columns = rewards.reshape(len(rewards), len(axes))
        shifts = np.rint(columns / steps)
        off = np.abs(columns / steps - shifts).max(axis=1) > ON_GRID
        if off.any():
            reward = rewards[off.argmax()].tolist()
            near = (shifts[off.argmax()] * steps + 0.0).reshape(rewards.shape[1:]).tolist()
            raise ValueError(f"reward {reward} is off the lattice of step {step}; the nearest on it is {near}")
        return tuple(
            _Shift(
                jnp.asarray(np.clip(shifts[:, index], -len(axis), len(axis)), jnp.int32),
                jnp.broadcast_to(jnp.arange(len(axis)), (len(rewards), len(axis))),
            )
            for index, axis in enumerate(axes)
        )

    zero = _product([np.isclose(axis, 0.0, atol=ON_GRID).astype(float) for axis in axes])
    return Representation(
        "lattice", _points(axes, dimension), dimension, zero, operators, _shift, True, lambda spread: 0.0, 0.0
    )


def categorical(low: float | Sequence[float], high: float | Sequence[float], atoms: int | Sequence[int] = 51):
    """Probabilities on ``atoms`` evenly spaced returns, for any discount.

    A return between two atoms is divided between them so that the mean is exact: the projection of categorical learning
    (Bellemare, Dabney and Munos, 2017), which moves a particle by at most half a step on average. The return 0 of an
    episode that has ended is divided as well where it is no atom. Tuples make a product of ``m`` axes.

    Returns:
      A ``Representation``.

    Raises:
      ValueError: fewer than two atoms, ``low`` not below ``high``, or a range without 0.
    """
    sizes = np.broadcast_to(np.asarray(atoms), np.shape(low)).ravel()
    bounds = list(zip(np.ravel(low).astype(float), np.ravel(high).astype(float), sizes, strict=True))
    for below, above, size in bounds:
        if size < 2 or not below < above:
            raise ValueError(f"low={below}, high={above}, atoms={size}: expected low below high and at least 2 atoms")
        if not below <= 0 <= above:
            raise ValueError(f"low={below}, high={above}: expected a range that holds 0, the return of no step")
    axes = [np.linspace(below, above, int(size)) for below, above, size in bounds]
    dimension = 0 if np.ndim(low) == 0 else len(axes)

    def operators(rewards: np.ndarray, discount: float) -> PyTree:
        columns = rewards.reshape(len(rewards), len(axes))
        parts = []
        for index, axis in enumerate(axes):
            images = columns[:, index, None] + discount * axis
            outside = (images < axis[0] - ON_GRID) | (images > axis[-1] + ON_GRID)
            parts.append(_Projection(jnp.asarray(_hats(axis, images), float), jnp.asarray(outside, float)))
        return tuple(parts)

    factors = [_hats(axis, np.zeros(1))[0] for axis in axes]
    half_steps = sum((axis[1] - axis[0]) / 2 for axis in axes)
    zero_error = sum(float(factor @ np.abs(axis)) for factor, axis in zip(factors, axes, strict=True))
    return Representation(
        "categorical",
        _points(axes, dimension),
        dimension,
        _product(factors),
        operators,
        _project,
        True,
        lambda spread: half_steps,
        zero_error,
    )


def quantiles(count: int):
    """``count`` particles of equal weight at the midpoint quantiles ``(2 i + 1) / (2 count)``; for evaluation only.

    The quantiles of a mixture are not the mixture of the quantiles. They preserve neither the mean nor other expected
    utilities, so that actions would be compared by biased numbers; value and policy iteration therefore refuse them.
    A projection adds at most ``spread / (2 count)`` in 1-Wasserstein distance.

    Returns:
      A ``Representation``.

    Raises:
      ValueError: ``count`` below 1.
    """
    if count < 1:
        raise ValueError(f"count={count}: expected at least 1 particle")

    def operators(rewards: np.ndarray, discount: float) -> PyTree:
        return jnp.asarray(rewards, float), jnp.full(len(rewards), discount, float)

    def error(spread: float) -> float:
        return spread / (2 * count)

    return Representation("quantiles", None, 0, np.zeros(count), operators, move_particles, False, error, 0.0)


def stock_points(grid: StockGrid) -> np.ndarray:
    """The stocks of a grid, ``[C]`` or ``[C, m]``, the last component fastest.

    Raises:
      ValueError: a step that is not positive or does not divide the range.
    """
    return _points(grid_axes(*grid), 0 if np.ndim(grid.low) == 0 else len(np.ravel(grid.low)))


# Transports: a distribution is reshaped to the axes of its support, and each axis is moved separately.


class _Shift(NamedTuple):
    """Moves one axis by ``offset []`` places; ``atoms [K_i]`` counts them."""

    offset: jax.Array
    atoms: jax.Array


class _Projection(NamedTuple):
    """Moves one axis by ``matrix [K_i, K_i]`` (from, to); ``outside [K_i]`` is 1 for atoms that leave the support."""

    matrix: jax.Array
    outside: jax.Array


def _shift(operator: tuple[_Shift, ...], distributions: jax.Array) -> tuple[jax.Array, jax.Array]:
    def move(distributions: jax.Array, part: _Shift, axis: int) -> tuple[jax.Array, jax.Array]:
        size, target = distributions.shape[axis], part.atoms + part.offset
        padded = jnp.pad(
            distributions, [(size, size) if place == axis else (0, 0) for place in range(distributions.ndim)]
        )
        moved = jax.lax.dynamic_slice_in_dim(padded, size - part.offset, size, axis)
        # Products are several times as fast as masked sums, and so are writes to the two edges compared with a masked
        # addition.
        beyond = [
            jnp.tensordot(distributions, outside.astype(distributions.dtype), (axis, 0), precision="highest")
            for outside in (target < 0, target >= size)
        ]
        ends = [(*(slice(None),) * axis, place) for place in (0, size - 1)]
        for end, mass in zip(ends, beyond, strict=True):
            moved = moved.at[end].add(mass)
        return moved, beyond[0] + beyond[1]

    return _by_axis(move, operator, [part.atoms.shape[-1] for part in operator], distributions)


def _project(operator: tuple[_Projection, ...], distributions: jax.Array) -> tuple[jax.Array, jax.Array]:
    def move(distributions: jax.Array, part: _Projection, axis: int) -> tuple[jax.Array, jax.Array]:
        last = jnp.moveaxis(distributions, axis, -1)
        moved = jnp.matmul(last, part.matrix, precision="highest")
        return jnp.moveaxis(moved, -1, axis), jnp.matmul(last, part.outside, precision="highest")

    return _by_axis(move, operator, [part.outside.shape[-1] for part in operator], distributions)


def _by_axis(
    move: Callable, operator: tuple, sizes: list[int], distributions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    lead, full = distributions.shape[:-1], distributions.reshape(*distributions.shape[:-1], *sizes)
    outside = jnp.zeros(lead, distributions.dtype)
    for index, part in enumerate(operator):
        full, beyond = move(full, part, len(lead) + index)
        outside = outside + beyond.reshape(*lead, -1).sum(-1)
    return full.reshape(distributions.shape), outside


def move_particles(operator: tuple[jax.Array, jax.Array], distributions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The transport of particles of equal weight, ``[..., K]``; nothing leaves the support."""
    reward, discount = operator
    return reward + discount * distributions, jnp.zeros(distributions.shape[:-1], distributions.dtype)


# Grids.


def grid_axes(low: Any, high: Any, step: Any) -> list[np.ndarray]:
    """The points ``low, low + step, ..., high`` of each axis.

    Raises:
      ValueError: a step that is not positive or does not divide the range.
    """
    size = np.shape(low)
    axes = []
    for below, above, gap in zip(
        *(np.broadcast_to(np.asarray(x, float), size).ravel() for x in (low, high, step)), strict=True
    ):
        if not gap > 0 or not below <= above or not math.isfinite(above - below):
            raise ValueError(f"low={below}, high={above}, step={gap}: expected low at most high and a positive step")
        places = (above - below) / gap
        if abs(places - round(places)) > ON_GRID * max(1.0, places):
            raise ValueError(f"low={below}, high={above}, step={gap}: expected a step that divides the range")
        axes.append(below + gap * np.arange(round(places) + 1))
    return axes


def _points(axes: list[np.ndarray], dimension: int) -> np.ndarray:
    return np.stack([part.ravel() for part in np.meshgrid(*axes, indexing="ij")], -1) if dimension else axes[0]


def _product(factors: list[np.ndarray]) -> np.ndarray:
    result = np.ones(1)
    for factor in factors:
        result = np.outer(result, factor).ravel()
    return result


def _hats(axis: np.ndarray, images: np.ndarray) -> np.ndarray:
    """``[..., K_i]``, the interpolation weights of ``images [...]`` on an even axis, clipped to its ends."""
    inside = np.clip(images, axis[0], axis[-1])
    return np.maximum(0.0, 1 - np.abs(inside[..., None] - axis) / (axis[1] - axis[0]))


def stocks_or_zero(grid: StockGrid | None, dimension: int) -> np.ndarray:
    """``stock_points``, or the single stock 0 without a grid: a number, or a vector of ``dimension`` components."""
    return np.zeros((1, dimension) if dimension else 1) if grid is None else stock_points(grid)


def stock_moves(grid: StockGrid | None, rewards: np.ndarray, discount: float):
    """The next stocks: grid indices and weights ``[U, C, J]``, and whether they are beyond the grid, ``[U, C]``."""
    if grid is None:
        shape = (len(rewards), 1, 1)
        return np.zeros(shape, int), np.ones(shape), np.zeros(shape[:2], bool)
    axes, stocks = grid_axes(*grid), stock_points(grid)
    columns = stocks.reshape(len(stocks), -1)
    following = next_stock(columns, rewards.reshape(len(rewards), 1, -1), discount)
    outside = np.zeros(following.shape[:2], bool)
    parts = []
    for index, axis in enumerate(axes):
        gap = axis[1] - axis[0] if len(axis) > 1 else 1.0
        position = (following[..., index] - axis[0]) / gap
        outside |= (position < -ON_GRID) | (position > len(axis) - 1 + ON_GRID)
        position = np.clip(position, 0, len(axis) - 1)
        position = np.where(np.abs(position - np.rint(position)) < ON_GRID, np.rint(position), position)
        below = np.minimum(np.floor(position).astype(int), max(len(axis) - 2, 0))
        share = position - below
        if (share == np.rint(share)).all():
            parts.append([(np.rint(position).astype(int), np.ones_like(share))])
        else:
            parts.append([(below, 1 - share), (below + 1, share)])
    indices, weights = [], []
    for corner in itertools.product(*parts):
        place, weight = np.zeros(outside.shape, int), np.ones(outside.shape)
        for axis, (position, share) in zip(axes, corner, strict=True):
            place, weight = place * len(axis) + position, weight * share
        indices.append(place)
        weights.append(weight)
    return np.stack(indices, -1), np.stack(weights, -1), outside
