"""Objective functionals against numbers by hand, their dual forms and the conditions they declare."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import functionals
from agents.functionals import (
    cvar,
    cvar_of,
    direct_cvar,
    expectation,
    expected_utility,
    exponential_utility,
    homeostasis,
    initial_stock,
    mean_cvar,
    optimistic_cvar,
    quantile,
    require,
    searched_stock,
    soft_constraints,
    statistic,
    target_return,
)

PARTICLES, WEIGHTS = np.array([10.0, -1.0, 4.0, 0.0]), np.array([0.25, 0.5, 0.25, 0.0])
STOCKS = np.arange(-15.0, 6.0)
SCALAR = (expectation(), cvar(0.3), optimistic_cvar(0.3), mean_cvar(0.2, 0.4), target_return(2.0))
VECTOR = (homeostasis((1.0, 2.0)), homeostasis((0.0, 0.0), math.inf), soft_constraints([3.0], [1.0]))


def upper_tail_mean(particles, weights, level):
    return -cvar_of(-particles, weights, level)


@pytest.mark.parametrize(
    ("level", "lower", "upper", "edge"),
    [(0.25, -1, 10, -1), (0.5, -1, 7, -1), (0.625, 0, 5.4, 4), (0.75, 2 / 3, 13 / 3, 4), (1.0, 3, 3, 10)],
)
def test_quantile_and_tail_means_by_hand(level, lower, upper, edge):
    assert cvar_of(PARTICLES, WEIGHTS, level) == pytest.approx(lower, abs=1e-6)
    assert upper_tail_mean(PARTICLES, WEIGHTS, level) == pytest.approx(upper, abs=1e-6)
    assert quantile(PARTICLES, WEIGHTS, level) == edge


def test_distributions_are_taken_over_the_last_axis():
    particles = np.stack([PARTICLES, PARTICLES + 1])
    np.testing.assert_allclose(cvar_of(particles, WEIGHTS, 0.75), [2 / 3, 5 / 3], rtol=1e-6)
    np.testing.assert_allclose(quantile(PARTICLES, np.stack([WEIGHTS] * 3), 0.75), [4, 4, 4])


@pytest.mark.parametrize("level", [0.1, 0.25, 0.5, 0.6, 0.75, 1.0])
def test_the_best_initial_stock_is_minus_the_quantile_and_gives_the_statistic(level):
    totals = STOCKS[:, None] + PARTICLES
    with jax.enable_x64(True):
        lower, mean = float(cvar_of(PARTICLES, WEIGHTS, level)), 3.0
        for functional, expected in (
            (cvar(level), lower),
            (optimistic_cvar(level), float(upper_tail_mean(PARTICLES, WEIGHTS, level))),
            (mean_cvar(level, 0.3), 0.3 * mean + 0.7 * lower),
        ):
            value, index = initial_stock(functional, STOCKS, functional.value(totals, WEIGHTS))
            assert value == pytest.approx(expected, abs=1e-12)
            if functional.name.startswith("cvar"):
                assert STOCKS[index] == -float(quantile(PARTICLES, WEIGHTS, level))


def test_utilities_by_hand():
    assert expectation().value(PARTICLES, WEIGHTS) == pytest.approx(3.0)
    assert target_return(4.0).value(-4.0 + PARTICLES, WEIGHTS) == pytest.approx(-(0.25 * 6 + 0.5 * 5))
    assert target_return(4.0).start.stock == -4.0
    totals, weights = np.array([[3.0, -4.0], [0.0, 1.0]]), np.array([0.5, 0.5])
    assert homeostasis((1.0, 2.0)).value(totals, weights) == pytest.approx(-3.0)
    assert homeostasis((1.0, 2.0), 1).value(totals, weights) == pytest.approx(-4.0)
    assert homeostasis((1.0, 2.0), math.inf).value(totals, weights) == pytest.approx(-2.5)
    assert homeostasis((1.0, 2.0)).start.stock == (-1.0, -2.0)
    assert soft_constraints([3.0], [1.0]).value(totals, weights) == pytest.approx(0.5 * (3 - 12))
    assert soft_constraints([3.0], [1.0]).start.stock == (0.0, -1.0)
    assert exponential_utility(0.5).value([2.0], [1.0]) == pytest.approx((1 - math.exp(-1)) / 0.5)
    assert exponential_utility(1e-4).value(PARTICLES, WEIGHTS) == pytest.approx(3.0, abs=0.01)


@settings(max_examples=25)
@given(x=st.lists(st.floats(-50, 50), min_size=4, max_size=4), factor=st.floats(0.05, 1.0))
def test_lipschitz_and_homogeneity_hold_as_declared(x, factor):
    with jax.enable_x64(True):
        for functional in SCALAR + VECTOR:
            size = max(functional.dimension, 1)
            first, second = (
                np.array(part) if functional.dimension else part[0] for part in (x[:size], x[2 : 2 + size])
            )
            here, there = float(functional.utility(jnp.asarray(first))), float(functional.utility(jnp.asarray(second)))
            assert abs(here - there) <= functional.lipschitz * np.abs(first - np.asarray(second)).sum() + 1e-9
            scaled = float(functional.utility(jnp.asarray(factor * np.asarray(first))))
            assert functional.homogeneous and scaled == pytest.approx(factor * here, abs=1e-9)


def test_direct_cvar_is_not_indifferent_to_mixtures():
    """Alone, the risky distribution is better; mixed with a certain -10, only its worst half counts, and it is
    worse."""
    functional, support = direct_cvar(0.75), np.array([-10.0, -1.0, 1.0, 10.0])
    risky, safe, bad = np.array([[0, 0.5, 0, 0.5], [0, 0, 1, 0], [1, 0, 0, 0]])
    assert functional.value(support, risky) > functional.value(support, safe)
    assert functional.value(support, (risky + bad) / 2) < functional.value(support, (safe + bad) / 2)
    assert not functional.mixtures and functional.utility is None


@pytest.mark.parametrize(
    ("functional", "problem", "message"),
    [
        (direct_cvar(0.5), {}, "not indifferent to mixtures"),
        (exponential_utility(1.0), {"discount": 0.9}, r"not indifferent to discount=0\.9"),
        (expected_utility(jnp.tanh, name="tanh"), {"discount": 0.5}, "tanh is not indifferent to discount"),
        (cvar(0.5), {"dimension": 2}, "for rewards that are numbers, but these are vectors of 2"),
        (homeostasis((0.0, 1.0)), {}, "for rewards that are vectors of 2, but these are numbers"),
        (cvar(0.5), {"stock": False}, "depends on the stock"),
        (
            expected_utility(lambda x: -(x**2), name="square", homogeneous=True),
            {"discount": 0.8, "infinite": True},
            r"square has no Lipschitz constant \(lipschitz=inf\)",
        ),
    ],
)
def test_functionals_that_greedy_steps_do_not_optimise_are_refused(functional, problem, message):
    with pytest.raises(ValueError, match=message):
        require(functional, **({"discount": 1.0, "dimension": 0, "stock": True, "infinite": False} | problem))


def test_functionals_that_greedy_steps_optimise_are_allowed():
    square = expected_utility(lambda x: -(x**2), homogeneous=True)
    for infinite in (False, True):
        require(expectation(), discount=0.9, dimension=0, stock=False, infinite=infinite)
        for functional in SCALAR + VECTOR:
            require(functional, discount=0.9, dimension=functional.dimension, stock=True, infinite=infinite)
    require(square, discount=0.9, dimension=0, stock=True, infinite=False)
    require(exponential_utility(-1.0), discount=1.0, dimension=0, stock=False, infinite=False)
    first = expected_utility(lambda x: x[..., 0], dimension=None)
    require(first, discount=1.0, dimension=3, stock=True, infinite=False)


@pytest.mark.parametrize("level", [0.1, 0.25, 0.6, 1.0])
def test_the_statistic_of_a_distribution_is_its_value_at_its_own_best_stock(level):
    particles = jnp.asarray(np.random.default_rng(0).normal(size=(3, 20)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(20), size=3), jnp.float32)
    found = [statistic(each, particles, weights) for each in (cvar(level), optimistic_cvar(level))]
    expected = cvar_of(particles, weights, level), upper_tail_mean(particles, weights, level)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    missed = -jnp.sum(weights * jnp.abs(particles - 1), axis=-1)
    np.testing.assert_allclose(statistic(target_return(1.0), particles, weights), missed, rtol=1e-5)


def test_initial_stock_rules():
    # -c + U = 0 for every stock: all tie, the largest is taken.
    assert initial_stock(mean_cvar(1.0, 1.0), STOCKS, STOCKS) == (0.0, len(STOCKS) - 1)
    value, index = initial_stock(target_return(4.0), STOCKS, np.arange(21.0))
    assert STOCKS[index] == -4 and value == index
    grid = np.array([[-1.0, -2.0], [-1.0, 0.0]])
    assert initial_stock(homeostasis((1.0, 0.0)), grid, [7.0, 8.0]) == (8.0, 1)
    # The same rule inside jit; -c + U is 1 where U = c + 1, and the largest of those four stocks is the last.
    for functional, sign in ((mean_cvar(1.0, 1.0), 1), (optimistic_cvar(1.0), -1)):
        utilities = STOCKS + sign * (np.arange(21) % 5 == 0)
        value, place = jax.jit(partial(searched_stock, functional, STOCKS))(utilities)
        assert (float(value), int(place)) == initial_stock(functional, STOCKS, utilities) == (sign, 20)
    with pytest.raises(
        ValueError, match=r"starts from the stock -4\.5, which is not on the grid; the nearest .* -5\.0"
    ):
        initial_stock(target_return(4.5), STOCKS, STOCKS)
    with pytest.raises(ValueError, match="searches for its initial stock"):
        initial_stock(cvar(0.5), grid, [0.0, 0.0])


@pytest.mark.parametrize("make", [cvar, optimistic_cvar, direct_cvar, lambda level: mean_cvar(level, 0.5)])
@pytest.mark.parametrize("level", [0.0, 1.1, math.nan])
def test_a_level_outside_0_and_1_is_refused(make, level):
    with pytest.raises(ValueError, match="expected a probability above 0 and at most 1"):
        make(level)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mean_cvar(0.5, 1.5), "mean_weight=1.5"),
        (lambda: homeostasis(()), "set_points is empty"),
        (lambda: homeostasis((1.0,), 0.5), "order=0.5"),
        (lambda: soft_constraints([1.0], []), "1 weights and 0 thresholds"),
        (lambda: soft_constraints([-1.0], [0.0]), "at least 0"),
        (lambda: exponential_utility(0), "rate=0"),
        (lambda: exponential_utility(math.nan), "rate=nan: expected finite numbers"),
        (lambda: target_return(-math.inf), "target=-inf: expected finite numbers"),
        (lambda: homeostasis((1.0, math.nan)), "set_points=nan: expected finite numbers"),
        (lambda: homeostasis((1.0,), math.nan), "order=nan"),
        (lambda: soft_constraints([math.nan], [0.0]), "weights=nan: expected finite numbers"),
        (lambda: soft_constraints([1.0], [math.nan]), "thresholds=nan: expected finite numbers"),
        (lambda: functionals.quantile(PARTICLES, WEIGHTS, 0), "level=0"),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
