"""Distributional planning against numbers by hand, all history-dependent policies and a linear program."""

import itertools
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import wasserstein_distance

from agents.functionals import (
    cvar,
    cvar_of,
    direct_cvar,
    expectation,
    expected_utility,
    exponential_utility,
    homeostasis,
    optimistic_cvar,
    quantile,
    soft_constraints,
    target_return,
)
from agents.planning import dynamic_programming
from agents.planning.distributional import (
    act,
    policy_evaluation,
    policy_iteration,
    return_distribution,
    stock_index,
    value_iteration,
)
from agents.planning.return_distributions import StockGrid, categorical, lattice, quantiles
from envs.native.tabular import TabularModel, gridworld, one_state, validated
from tests.agents.planning.planned import lower_mean, start

# Action 0 is safe, 1 has the best mean, 2 the largest possible reward.
TOY = [[(1, 1.0)], [(4, 0.5), (-1, 0.5)], [(10, 0.2), (-1, 0.8)]]
LEVELS = (0.1, 0.25, 0.5, 0.8, 1.0)
SHAPE = (2, 2, 2)


def toy(horizon):
    """The model, a lattice that holds every return and a grid that holds every stock that is reached."""
    return one_state(TOY, horizon), lattice(-horizon, 10 * horizon), StockGrid(-11 * horizon, 11 * horizon)


def history_distributions(model, steps, discount=1.0, state=0):
    """The distribution ``{return: probability}`` of every deterministic history-dependent policy."""
    zero = (0.0,) * max(model.reward_dimension, 1)
    if steps == 0:
        return [{zero: 1.0}]
    distributions = []
    for action in range(model.num_actions):
        row = [index for index in range(model.probability.shape[2]) if model.probability[state, action, index] > 0]
        later = [
            [{zero: 1.0}]
            if model.terminated[state, action, index]
            else history_distributions(model, steps - 1, discount, model.next_state[state, action, index])
            for index in row
        ]
        for choice in itertools.product(*later):
            distribution: dict = {}
            for index, part in zip(row, choice, strict=True):
                reward = np.atleast_1d(model.reward[state, action, index])
                for particle, mass in part.items():
                    total = tuple((reward + discount * np.array(particle)).tolist())
                    distribution[total] = distribution.get(total, 0.0) + mass * model.probability[state, action, index]
            distributions.append(distribution)
    return distributions


def markov_distribution(model, policy, steps, discount=1.0, state=0):
    """The return distribution of a policy ``[S, A]``."""
    if steps == 0:
        return {0.0: 1.0}
    distribution: dict = {}
    for action, index in np.ndindex(model.probability.shape[1:]):
        mass = policy[state, action] * model.probability[state, action, index]
        ends, following = model.terminated[state, action, index], model.next_state[state, action, index]
        part = {0.0: 1.0} if ends else markov_distribution(model, policy, steps - 1, discount, following)
        for particle, share in part.items():
            total = float(model.reward[state, action, index] + discount * particle)
            distribution[total] = distribution.get(total, 0.0) + mass * share
    return distribution


def best(distributions, score):
    """The largest ``score(particles, weights)`` over distributions of numbers."""
    return max(
        float(score(np.array([x[0] for x in distribution]), np.array(list(distribution.values()))))
        for distribution in distributions
    )


@st.composite
def small_models(draw):
    """Two states, two actions, two outcomes; rewards -1, 0 and 2, each of which occurs."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    reward = rng.choice([-1.0, 0.0, 2.0], SHAPE)
    reward[0, 0, 0], reward[0, 0, 1], reward[0, 1, 0] = -1.0, 0.0, 2.0
    return validated(
        TabularModel(
            rng.dirichlet(np.ones(2), SHAPE[:2]),
            rng.integers(0, 2, SHAPE),
            reward,
            rng.random(SHAPE) < 0.2,
            np.array([1.0, 0.0]),
            3,
        )
    )


# A toy problem with every number by hand.


@pytest.mark.parametrize(
    ("precise", "horizon", "values", "stocks", "mean"),
    [
        (True, 2, (2, 2, 2, 2.1875, 3), (-2, -2, -2, -5, -8), 2.75),
        (True, 3, (3, 3, 3, 3.34375, 4.5), (-3, -3, -3, -6, -12), 3.875),
        (True, 5, (5, 5, 5, 5.921875, 7.5), (-5, -5, -5, -11, -20), 7.0625),
        (False, 5, (5, 5, 5, 5.921875, 7.5), (-5, -5, -5, -11, -20), 7.0625),
    ],
)
def test_cvar_of_the_toy(precise, horizon, values, stocks, mean):
    with jax.enable_x64(precise):
        model, representation, grid = toy(horizon)
        near = partial(pytest.approx, abs=1e-9 if precise else 1e-5)
        plan = value_iteration(model, cvar(0.5), representation, grid)
        for level, value, stock in zip(LEVELS, values, stocks, strict=True):
            functional = cvar(level)
            # The utility is the same for every level; only the search for the stock differs.
            found, chosen, particles, weights = start(functional, plan, model)
            assert found == near(value) and chosen == stock
            assert cvar_of(particles, weights, level) == near(value)
            if level < 1:
                assert quantile(particles, weights, level) == -stock
            if level == 0.8:
                assert weights @ particles == near(mean)
            at = 0, stock_index(plan, stock)
            assert plan.left_stock[at] == 0 and plan.left_support[at] == 0
        assert weights @ particles == near(1.5 * horizon)
        assert plan.bound == plan.wasserstein == 0


def test_target_returns_of_the_toy():
    model, representation, _ = toy(3)
    errors, means = [], []
    for target in (-3, 0, 3, 6, 9, 12, 20):
        functional = target_return(target)
        plan = value_iteration(model, functional, representation, StockGrid(-33, 33))
        value, stock, particles, weights = start(functional, plan, model)
        assert stock == -target and weights @ np.abs(particles - target) == pytest.approx(-value, abs=1e-5)
        errors.append(-value)
        means.append(weights @ particles)
    np.testing.assert_allclose(errors, [6, 3, 0, 2.125, 4.625, 7.5, 15.5], atol=1e-5)
    np.testing.assert_allclose(means, [3, 3, 3, 3.875, 4.375, 4.5, 4.5], atol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_no_history_dependent_policy_does_better(level):
    model, representation, grid = toy(2)
    value, *_ = start(cvar(level), value_iteration(model, cvar(level), representation, grid), model)
    assert value == pytest.approx(best(history_distributions(model, 2), lower_mean(level)), abs=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_optimistic_cvar_is_the_optimum_over_mixed_policies(level):
    """``max sum_x x q(x)`` with ``q <= P_mix / level`` and ``sum q = 1``, over mixtures of all policies."""
    model, representation, grid = toy(2)
    distributions = history_distributions(model, 2)
    support = sorted({x[0] for distribution in distributions for x in distribution})
    masses = np.array([[distribution.get((x,), 0.0) for distribution in distributions] for x in support])
    size, count = masses.shape
    program = linprog(
        c=np.concatenate([-np.array(support), np.zeros(count)]),
        A_ub=np.hstack([np.eye(size), -masses / level]),
        b_ub=np.zeros(size),
        A_eq=np.array([[1.0] * size + [0.0] * count, [0.0] * size + [1.0] * count]),
        b_eq=[1, 1],
    )
    functional = optimistic_cvar(level)
    value, *_ = start(functional, value_iteration(model, functional, representation, grid), model)
    # The saddle point may lie between two stocks, as it does at 1/2.
    assert -1e-4 <= value + program.fun <= grid.step * (1 - level) + 1e-4
    if level != 0.5:
        assert value == pytest.approx(-program.fun, abs=1e-4)
    else:
        assert -program.fun == pytest.approx(7.375) and value == pytest.approx(7.48)


# Random models.


@settings(max_examples=8)
@given(model=small_models(), level=st.sampled_from([0.2, 0.5, 0.7]), target=st.sampled_from([-1, 1, 4]))
def test_value_iteration_policy_iteration_and_enumeration_agree(model, level, target):
    representation, grid = lattice(-3, 6), StockGrid(-12, 12)
    distributions = history_distributions(model, 3)
    scores = {
        cvar(level): lower_mean(level),
        target_return(target): lambda x, w: -(w @ np.abs(x - target)),
        exponential_utility(0.5): lambda x, w: w @ (1 - np.exp(-0.5 * x)) / 0.5,
    }
    with jax.enable_x64(True):
        for functional, score in scores.items():
            plan = value_iteration(model, functional, representation, grid)
            again = policy_iteration(model, functional, representation, grid)
            found, _, particles, weights = start(functional, plan, model)
            # Ties within 1e-6 may be broken in favour of the worse one, at each of three steps.
            assert found == pytest.approx(best(distributions, score), abs=1e-4)
            assert score(particles, weights) == pytest.approx(found, abs=1e-9)
            np.testing.assert_allclose(again.values, plan.values, atol=1e-4)
            evaluated = policy_evaluation(model, plan.policy, representation, grid, functional=functional)
            np.testing.assert_allclose(evaluated.distributions, plan.distributions, atol=1e-12)
            np.testing.assert_allclose(evaluated.values, plan.values, atol=1e-12)


@settings(max_examples=8)
@given(model=small_models(), level=st.sampled_from([0.2, 0.5, 0.7]))
def test_discounted_stocks(model, level):
    """With discount 1/2 and three steps every return is a multiple of 1/4 and every stock stays on the grid."""
    representation, grid = categorical(-2, 4, 25), StockGrid(-14, 14, 0.25)
    with jax.enable_x64(True):
        plan = value_iteration(model, cvar(level), representation, grid, discount=0.5)
        found, stock, particles, weights = start(cvar(level), plan, model)
        distributions = history_distributions(model, 3, 0.5)
        assert found == pytest.approx(best(distributions, lower_mean(level)), abs=1e-4)
        assert cvar_of(particles, weights, level) == pytest.approx(found, abs=1e-9)
        assert plan.left_support[0, stock_index(plan, stock)] == 0


@settings(max_examples=8)
@given(model=small_models())
def test_expectation_is_classical_dynamic_programming(model):
    policy = np.array([[0.3, 0.7], [0.5, 0.5]])
    wide = categorical(-10, 20, 61)
    with jax.enable_x64(True):
        plan = value_iteration(model, expectation(), lattice(-3, 6))
        classical = dynamic_programming.value_iteration(model)
        np.testing.assert_allclose(plan.values[:, 0], classical.values, atol=1e-12)
        np.testing.assert_array_equal(plan.policy[..., 0], classical.policy)
        for problem in ({"discount": 0.9}, {"discount": 0.9, "iterations": 40}):
            plan = value_iteration(model, expectation(), wide, **problem)
            np.testing.assert_allclose(
                plan.values[:, 0], dynamic_programming.value_iteration(model, **problem).values, atol=1e-6
            )
            # The projection preserves the mean where nothing leaves the support.
            result = policy_evaluation(model, policy, wide, **problem)
            assert float(result.left_support.max()) == 0
            expected = dynamic_programming.policy_evaluation(model, policy, **problem).values
            np.testing.assert_allclose(result.distributions[:, 0] @ result.particles, expected, atol=1e-12)


@settings(max_examples=6)
@given(model=small_models())
def test_projected_distributions_stay_within_the_stated_distance(model):
    policy = np.array([[0.3, 0.7], [0.5, 0.5]])
    for horizon in (1, 3):
        distribution = markov_distribution(model, policy, horizon, 0.9)
        # With 60 atoms, 0 is not among them.
        for representation in (categorical(-10, 20, 61), categorical(-10, 20, 60), quantiles(16)):
            result = policy_evaluation(model, policy, representation, discount=0.9, horizon=horizon)
            particles, weights = return_distribution(result, 0)
            distance = wasserstein_distance(list(distribution), particles, list(distribution.values()), weights)
            assert distance <= result.wasserstein
            # A step from an atom to an atom is exact.
            assert distance > 0 or horizon == 1
    exact = policy_evaluation(model, policy, lattice(-3, 6))
    distribution = markov_distribution(model, policy, 3)
    particles, weights = return_distribution(exact, 0)
    assert wasserstein_distance(list(distribution), particles, list(distribution.values()), weights) < 1e-6


@pytest.mark.parametrize(
    ("reward", "discount", "support", "distance"),
    [
        # 0 is split into -1 and 1, and 1/2 more into (-1, 1) and (1, 3) by 3/4 and 1/4.
        (0.5, 1.0, (-3, 3, 4), 3 / 8 * 1.5 + 1 / 2 * 0.5 + 1 / 8 * 2.5),
        # 0 lies in the middle of a step of 20 / 51, and 0.2 off it: almost two halves of a step.
        (0.2, 1.0, (-10, 10, 52), 0.198),
        (0.0, 0.5, (-1, 1, 2), 1.0),
    ],
)
def test_the_stated_distance_includes_the_error_of_the_return_0(reward, discount, support, distance):
    model, representation = one_state([[(reward, 1.0)]], horizon=1), categorical(*support)
    half_step = (support[1] - support[0]) / (support[2] - 1) / 2
    result = policy_evaluation(model, [0], representation, discount=discount)
    particles, weights = return_distribution(result, 0)
    found = wasserstein_distance([reward], particles, [1.0], weights)
    assert found == pytest.approx(distance, abs=1e-4) and float(result.left_support.max()) == 0
    assert found <= result.wasserstein == pytest.approx(half_step * (1 + discount))


# Vectors.

PAIRS = [[((1.0, 0.0), 1.0)], [((0.0, 1.0), 0.5), ((0.0, -1.0), 0.5)], [((2.0, 1.0), 0.25), ((0.0, 0.0), 0.75)]]


@pytest.mark.parametrize(
    ("functional", "utility"),
    [
        (homeostasis((2, 1)), lambda x: -np.hypot(x[:, 0], x[:, 1])),
        (homeostasis((1, -1), 1), lambda x: -np.abs(x).sum(1)),
        (soft_constraints([3.0], [1.0]), lambda x: x[:, 0] + 3 * np.minimum(x[:, 1], 0)),
    ],
)
def test_vector_stocks(functional, utility):
    model = one_state(PAIRS, horizon=3)
    representation = lattice((0, -3), (6, 3), (1, 1))
    plan = value_iteration(model, functional, representation, StockGrid((-2, -5), (6, 5), (1, 1)))
    value, stock, particles, weights = start(functional, plan, model)

    def score(distribution):
        totals = np.array(list(distribution)) + np.array(functional.start.stock)
        return utility(totals) @ np.array(list(distribution.values()))

    assert value == pytest.approx(
        max(score(distribution) for distribution in history_distributions(model, 3)), abs=1e-5
    )
    assert functional.value(stock + particles, weights) == pytest.approx(value, abs=1e-5)
    assert float(plan.left_stock[0, stock_index(plan, stock)]) == 0


def test_vector_distributions_on_atoms_are_the_lattice_distributions():
    model, policy = one_state(PAIRS, horizon=3), np.full((1, 3), 1 / 3)
    exact = policy_evaluation(model, policy, lattice((0, -3), (6, 3)))
    projected = policy_evaluation(model, policy, categorical((0, -3), (6, 3), (7, 7)))
    np.testing.assert_allclose(projected.distributions, exact.distributions, atol=1e-6)
    mean = np.mean([np.sum([np.multiply(*part) for part in distribution], axis=0) for distribution in PAIRS], axis=0)
    np.testing.assert_allclose(exact.distributions[0, 0] @ exact.particles, 3 * mean, atol=1e-5)


# The infinite horizon.


def test_without_time_limit_the_bound_holds_and_policy_iteration_agrees():
    model = gridworld(["S+", "G-"], slip=0.2)
    arguments = cvar(0.4), categorical(-8, 8, 81), StockGrid(-10, 10, 0.5)
    plan = value_iteration(model, *arguments, discount=0.8, iterations=40)
    again = policy_iteration(model, *arguments, discount=0.8, iterations=40)
    assert plan.policy.shape == again.policy.shape == (1, 3 + 1, 41)
    assert plan.bound == pytest.approx(0.8**40 / 0.2 + (1 - 0.8**40) / 0.2 * 0.1)
    np.testing.assert_allclose(again.values, plan.values, atol=1e-4)
    longer = policy_evaluation(model, plan.policy, *arguments[1:], functional=arguments[0], discount=0.8, iterations=80)
    assert np.abs(longer.values - plan.values).max() <= plan.bound


# Options, counts and refusals.


def test_ties_go_to_the_lowest_action_or_are_shared():
    model = one_state([[(1, 1.0)], [(2, 1.0)], [(-9, 1.0)]], horizon=1)
    arguments = model, cvar(0.5), lattice(-9, 2), StockGrid(-5, 5)
    lowest, shared = value_iteration(*arguments), value_iteration(*arguments, ties="uniform")
    # From stock 5 the first two actions end above 0, where the utility is flat.
    assert dict(zip(*return_distribution(lowest, 0, 5), strict=True))[1] == 1
    distribution = dict(zip(*return_distribution(shared, 0, 5), strict=True))
    assert distribution[1] == distribution[2] == 0.5
    np.testing.assert_allclose(shared.policy[0, 0, -1], [0.5, 0.5, 0])
    again = policy_evaluation(model, shared.policy, *arguments[2:])
    np.testing.assert_allclose(again.distributions, shared.distributions, atol=1e-7)
    acting = jax.jit(jax.vmap(partial(act, shared, arguments[3], 0, 0, 5.0)))
    actions = acting(jax.random.split(jax.random.key(0), 200))
    assert set(actions.tolist()) == {0, 1}


def test_probability_that_leaves_the_grids_is_counted():
    model = one_state([[(4, 0.5), (-1, 0.5)]], horizon=2)
    plan = value_iteration(model, cvar(0.5), lattice(-2, 4), StockGrid(-4, 4))
    # From 0: 4 is still on the grid, 8 is not; -1 + 4 and -2 are.
    assert plan.left_stock[0, stock_index(plan, 0)] == 0.25
    assert plan.left_stock[0, stock_index(plan, 1)] == 0.5
    # Of the returns -2, 3, 3 and 8 the last is moved to 4.
    np.testing.assert_allclose(plan.left_support[0], 0.25)
    assert dict(zip(*return_distribution(plan, 0, 0), strict=True))[4] == 0.25
    ended = model._replace(terminated=np.ones_like(model.terminated))
    plan = value_iteration(ended, cvar(0.5), lattice(-2, 4), StockGrid(-4, 4))
    assert not plan.left_stock.any() and not plan.left_support.any()


def test_distributions_of_every_time_step():
    model, representation, grid = toy(2)
    plan = value_iteration(model, cvar(0.8), representation, grid, keep_stages=True)
    assert plan.stages.shape == (3, 1, 45, 23)
    np.testing.assert_array_equal(plan.stages[0], plan.distributions)
    assert (plan.stages[2] @ plan.particles == 0).all()
    again = policy_evaluation(model, plan.policy, representation, grid, keep_stages=True)
    np.testing.assert_allclose(again.stages, plan.stages, atol=1e-6)
    assert np.isnan(again.values).all()


def test_evaluation_with_any_functional():
    model, representation, _ = toy(2)
    for kind in (representation, quantiles(400)):
        result = policy_evaluation(model, np.array([1]), kind, functional=direct_cvar(0.25))
        assert result.values[0, 0] == pytest.approx(-2, abs=1e-5)
        particles, weights = return_distribution(result, [1.0])
        assert weights.sum() == pytest.approx(1) and weights @ particles == pytest.approx(3, abs=0.05)


def test_a_utility_that_overflows_is_refused():
    """One action loses 1 per step, the other nothing: after 60 losses this utility overflows in 32 bits."""
    model, functional = one_state([[(-1, 1.0)], [(0, 1.0)]], horizon=30), exponential_utility(5.0)
    message = r"exponential_utility\(5\.0\) is -inf where stock plus return is -60\.0, in 32 bits: .*enable_x64"
    for plan in (value_iteration, policy_iteration):
        with pytest.raises(ValueError, match=message):
            plan(model, functional, lattice(-60, 0))
    # Only the total after one more reward is too large: 17 losses are 85, and 18 are 90.
    with pytest.raises(ValueError, match=r"return is -18\.0"):
        value_iteration(model, functional, lattice(-17, 0))
    with pytest.raises(ValueError, match=r"return is -60\.0"):
        policy_evaluation(model, [0], lattice(-60, 0), functional=functional)
    with jax.enable_x64(True):
        plan = value_iteration(model, functional, lattice(-60, 0))
        assert (plan.policy == 1).all() and plan.values[0, 0] == 0
        with pytest.raises(ValueError, match=r"in 64 bits: .* ranges$"):
            value_iteration(model, functional, lattice(-160, 0))


PLAIN = {"functional": cvar(0.5), "representation": lattice(-2, 20), "grid": StockGrid(-20, 20)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"functional": direct_cvar(0.5)}, "not indifferent to mixtures"),
        ({"functional": exponential_utility(1.0), "discount": 0.9}, r"not indifferent to discount=0\.9"),
        (
            {
                "functional": expected_utility(lambda x: -(x**2), name="square", homogeneous=True),
                "representation": categorical(-4, 40),
                "discount": 0.8,
                "iterations": 20,
            },
            "square has no Lipschitz constant",
        ),
        ({"grid": None}, "depends on the stock"),
        ({"representation": quantiles(5)}, "quantiles does not preserve the expected utility"),
        (
            {"representation": lattice(-2, 20, 2)},
            r"reward -1\.0 is off the lattice of step 2; the nearest on it is 0\.0",
        ),
        ({"discount": 0.9}, r"discount=0\.9 leaves the lattice"),
        ({"representation": lattice((0, 0), (1, 1))}, "lattice is for vectors of 2, the model's rewards are numbers"),
        ({"grid": StockGrid((0, 0), (1, 1))}, "the stock grid is for vectors of 2"),
        ({"grid": StockGrid(0, 1, 0.3)}, "expected a step that divides the range"),
        ({"grid": StockGrid(1, 0)}, "expected low at most high"),
        ({"ties": "random"}, "unknown ties 'random', did you mean .*known: lowest, uniform"),
    ],
)
def test_refusals_of_planning(change, message):
    with pytest.raises(ValueError, match=message):
        value_iteration(one_state(TOY, 2), **(PLAIN | change))


@pytest.mark.parametrize(
    ("probability", "message"),
    [
        ([0.5, 0.4], r"state 0, action 0: the probabilities sum to 0\.9, expected 1"),
        ([1.5, -0.5], r"probability\[0, 0, 1\]=-0\.5: expected at least 0"),
    ],
)
def test_planners_refuse_models_with_bad_probabilities(probability, message):
    model = one_state([[(1, 0.5), (2, 0.5)]], horizon=2)._replace(probability=np.array([[probability]]))
    arguments = lattice(0, 4), StockGrid(-4, 4)
    for plan in (
        partial(value_iteration, model, cvar(0.5)),
        partial(policy_iteration, model, cvar(0.5)),
        partial(policy_evaluation, model, np.zeros((1, 9), int)),
    ):
        with pytest.raises(ValueError, match=message):
            plan(*arguments)


def test_refusals_of_evaluation_and_look_ups():
    model, representation, grid = toy(2)
    with pytest.raises(
        ValueError, match=r"policy has shape \(1, 2\), expected one of \(1, 3\), \(1, 1, 3\), \(2, 1, 3\)"
    ):
        policy_evaluation(model, [[0.5, 0.5]], representation)
    with pytest.raises(ValueError, match="actions from 3 to 3, expected 0 to 2"):
        policy_evaluation(model, [3], representation)
    with pytest.raises(ValueError, match="sum to one"):
        policy_evaluation(model, [[0.5, 0.4, 0.0]], representation)
    with pytest.raises(ValueError, match=r"homeostasis.* does not fit"):
        policy_evaluation(model, [0], representation, functional=homeostasis((0, 0)))
    with pytest.raises(ValueError, match="a stock falls between two grid points"):
        policy_evaluation(model, np.zeros((1, 2), int), quantiles(5), StockGrid(0, 2, 2))
    plan = value_iteration(model, cvar(0.5), representation, grid)
    with pytest.raises(ValueError, match=r"stock 0\.4 is not on the grid; the nearest is 0\.0"):
        return_distribution(plan, 0, 0.4)
    with pytest.raises(ValueError, match="the plan has 45 stocks"):
        return_distribution(plan, 0)
    for shares, message in (([2.0], "sums to 2 with minimum 2"), ([np.nan], "sums to nan"), ([1, 0], "has shape")):
        with pytest.raises(ValueError, match=f"state {message}"):
            return_distribution(plan, shares, 0)
    with pytest.raises(ValueError, match="state=1: expected a state from 0 to 0"):
        return_distribution(plan, 1, 0)
