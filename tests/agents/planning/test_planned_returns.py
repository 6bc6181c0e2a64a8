"""Planned distributions in environments with a risk to avoid, against gymnasium's tables and against simulated
episodes."""

from functools import partial

import jax
import numpy as np
import pytest

from agents.functionals import cvar, quantile, target_return
from agents.planning import dynamic_programming
from agents.planning.distributional import act, return_distribution, stock_index, value_iteration
from agents.planning.return_distributions import StockGrid, lattice
from envs.native.tabular import TabularEnvironment, from_gymnasium, gridworld, one_state
from envs.rollout import episodes
from envs.stock import StockAugmented
from envs.wrappers import TimeLimit
from tests.agents.planning.planned import lower_mean, start

pytestmark = pytest.mark.optimised


def simulated(model, plan, grid, stock, count, batches=1):
    """Returns of ``count * batches`` episodes of the plan's policy."""
    environment = StockAugmented(TimeLimit(TabularEnvironment(model), model.horizon), 1.0, stock, stock)

    def policy(carry, observation, key):
        seen = (observation[part] for part in ("steps", "observation", "stock"))
        return jax.vmap(partial(act, plan, grid))(*seen, jax.random.split(key, count)), carry, {}

    def run(key):
        trajectory = episodes(
            environment, policy, key, length=model.horizon, batch=count, group_size=1, initial_carry=()
        )
        return trajectory.rewards["env"].sum(0)

    return np.asarray(jax.jit(partial(jax.lax.map, run))(jax.random.split(jax.random.key(0), batches))).ravel()


def distance(returns, particles, weights):
    """The Kolmogorov-Smirnov distance: the largest gap between two distribution functions, atoms included."""
    order = np.argsort(particles)
    empirical = np.searchsorted(np.sort(returns), particles[order] + 1e-3) / len(returns)
    return np.abs(np.cumsum(weights[order]) - empirical).max()


def cliff(horizon):
    """A short way along a cliff and a long way around it; a step costs 1, a fall 5 more."""
    model = gridworld([".....", ".....", "S---G"], slip=0.3, horizon=horizon)
    return model._replace(reward=5 * model.reward - 1), lattice(-6 * horizon, 0), StockGrid(0, 6 * horizon)


def frozen_lake():
    """Gymnasium's FrozenLake: reward 1 for crossing it within 100 steps."""
    return from_gymnasium("FrozenLake-v1"), lattice(0, 1), StockGrid(-1, 1)


def cliff_walking(horizon):
    """Gymnasium's slippery CliffWalking on the grids of the notebook: a step costs 1, a fall 100."""
    model = from_gymnasium("CliffWalking-v1", is_slippery=True)._replace(horizon=horizon)
    return model, lattice(-horizon - 100, 0), StockGrid(0, min(horizon, 150))


@pytest.fixture(scope="module")
def cliff_plan():
    model, representation, grid = cliff(15)
    return model, grid, value_iteration(model, cvar(0.5), representation, grid)


def test_less_risk_costs_mean(cliff_plan):
    model, _, plan = cliff_plan
    levels = (1.0, 0.5, 0.2, 0.05)
    means, edges, tails = [], [], []
    for level in levels:
        value, _, particles, weights = start(cvar(level), plan, model)
        means.append(weights @ particles)
        tails.append([lower_mean(tail)(particles, weights) for tail in levels])
        edges.append(float(quantile(particles, weights, 0.05)))
        assert tails[-1][-1 + len(tails)] == pytest.approx(value, abs=1e-3)
    assert (np.diff(means) <= 1e-4).all() and means[0] > means[-1] + 0.1
    assert (np.diff(edges) >= 0).all() and edges[-1] > edges[0]
    # Each distribution is the best at its own level.
    assert (np.diag(tails) >= np.max(tails, axis=0) - 1e-4).all()


def test_simulated_episodes_follow_the_planned_distribution(cliff_plan):
    model, grid, plan = cliff_plan
    _, stock, particles, weights = start(cvar(0.2), plan, model)
    returns = simulated(model, plan, grid, stock, 20_000)
    # The bound of Dvoretzky, Kiefer, Wolfowitz and Massart, exceeded once in a million.
    assert distance(returns, particles, weights) < np.sqrt(np.log(2e6) / (2 * len(returns)))
    assert distance(returns, *return_distribution(plan, model.initial, 0.0)) > 0.05


def test_a_frozen_lake_is_crossed_as_often_as_classical_planning_says():
    model, representation, grid = frozen_lake()
    plan = value_iteration(model, cvar(0.9), representation, grid)
    value, stock, _, weights = start(cvar(0.9), plan, model)
    crossed = float(dynamic_programming.value_iteration(model).values[0])
    assert stock == -1 and weights[1] == pytest.approx(crossed, abs=1e-4)
    assert value == pytest.approx((crossed - 0.1) / 0.9, abs=1e-4)
    # The numbers of notebooks/distributional_dp.ipynb; below 1 - 0.744 every policy has a tail of 0.
    for level, tail in ((1.0, 0.744), (0.75, 0.659), (0.5, 0.488), (0.25, 0.0)):
        assert start(cvar(level), plan, model)[0] == pytest.approx(tail, abs=6e-4)


@pytest.mark.study
def test_slippery_cliff_walking_of_200_steps_has_the_numbers_of_the_notebook():
    """The numbers that notebooks/distributional_dp.ipynb states: one distribution is the best at every level."""
    model, representation, grid = cliff_walking(200)
    plan = value_iteration(model, cvar(0.5), representation, grid)
    neutral = start(cvar(1.0), plan, model)[3]
    for level, tail, edge in ((1.0, -64.702, -15), (0.5, -83.212, -60), (0.1, -116.616, -97), (0.01, -159.074, -142)):
        value, stock, particles, weights = start(cvar(level), plan, model)
        assert value == pytest.approx(tail, abs=2e-3) and quantile(particles, weights, level) == edge
        assert float(plan.left_support[int(model.initial.argmax()), stock_index(plan, stock)]) == 0
        np.testing.assert_allclose(weights, neutral, atol=1e-6)


def test_slippery_cliff_walking_of_100_steps_has_the_numbers_of_the_notebook():
    """One distribution is not the best at every level where the worst cases are the time limit itself."""
    model, representation, grid = cliff_walking(100)
    plan = value_iteration(model, cvar(0.5), representation, grid)
    neutral = start(cvar(1.0), plan, model)[3]
    for level, mean, tail, of_mean in ((0.1, -63.017, -99.787, -99.817), (0.05, -100.0, -100.0, -100.0)):
        value, _, particles, weights = start(cvar(level), plan, model)
        assert (value, weights @ particles) == pytest.approx((tail, mean), abs=2e-3)
        assert lower_mean(level)(particles, neutral) == pytest.approx(of_mean, abs=2e-3)


STUDIED = {
    "a row of falls": (partial(cliff, 20), 0.25),
    "FrozenLake": (frozen_lake, 0.9),
    "CliffWalking": (partial(cliff_walking, 100), 0.1),
}


@pytest.mark.study
@pytest.mark.parametrize(("make", "level"), STUDIED.values(), ids=STUDIED)
def test_a_million_episodes_follow_the_planned_distribution(make, level):
    model, representation, grid = make()
    plan = value_iteration(model, cvar(level), representation, grid)
    _, stock, particles, weights = start(cvar(level), plan, model)
    returns = simulated(model, plan, grid, stock, 20_000, 50)
    assert distance(returns, particles, weights) < 0.005


def test_stocks_between_grid_points_are_rounded_at_random():
    """Rewards of 1/2 on a grid of whole stocks: the plan's distribution is the distribution of the policy that
    rounds."""
    model = one_state([[(0.5, 0.5), (0.0, 0.5)], [(2.0, 0.25), (0.0, 0.75)]], horizon=6)
    grid = StockGrid(-12, 12)
    plan = value_iteration(model, target_return(3), lattice(0, 12, 0.5), grid)
    particles, weights = return_distribution(plan, 0, -3)
    returns = simulated(model, plan, grid, -3.0, 20_000)
    assert distance(returns, particles, weights) < np.sqrt(np.log(2e6) / (2 * len(returns)))
