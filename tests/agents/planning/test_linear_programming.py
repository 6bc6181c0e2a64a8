"""The linear program of constrained problems against brute force, dynamic programming and its own duals."""

import itertools

import numpy as np
import pytest

from agents.planning.dynamic_programming import value_iteration
from agents.planning.linear_programming import InfeasibleError, Limit, constrained_optimum, totals_of
from envs.native.random_model import random_model
from envs.native.tabular import from_dense, one_state, scalarised

DISCOUNT = 0.9


def drawn(seed, states=4, actions=3, components=3):
    rng = np.random.default_rng(seed)
    moves = rng.dirichlet(np.ones(states), (states, actions))
    return from_dense(moves, rng.random((states, actions, components)), rng.dirichlet(np.ones(states)), vector=True)


def deterministic(model):
    """Every deterministic stationary policy, ``[1, S, A]`` each."""
    for actions in itertools.product(range(model.num_actions), repeat=model.num_states):
        yield np.eye(model.num_actions)[list(actions)][None]


@pytest.mark.parametrize("seed", range(3))
def test_without_limits_it_is_dynamic_programming(seed):
    model = drawn(seed)
    plan = constrained_optimum(model, {}, discount=DISCOUNT)
    values = value_iteration(scalarised(model, [1, 0, 0]), discount=DISCOUNT, iterations=400).values
    assert plan.totals[0] == pytest.approx(float(model.initial @ np.asarray(values)), rel=1e-5)
    finite = constrained_optimum(model, {}, horizon=5)
    values = value_iteration(scalarised(model, [1, 0, 0]), horizon=5).values
    assert finite.totals[0] == pytest.approx(float(model.initial @ np.asarray(values)), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_one_limit_mixes_two_deterministic_policies(seed):
    """The totals that policies can have are the convex hull of those of deterministic policies."""
    model = drawn(seed, components=2)
    points = np.array([totals_of(model, policy, discount=DISCOUNT) for policy in deterministic(model)])
    limit = np.quantile(points[:, 1], 0.3)
    plan = constrained_optimum(model, {"cost": Limit(1, limit)}, discount=DISCOUNT)
    best = max(points[points[:, 1] <= limit][:, 0])
    for (r_in, c_in), (r_out, c_out) in itertools.product(points[points[:, 1] <= limit], points[points[:, 1] > limit]):
        share = (limit - c_in) / (c_out - c_in)
        best = max(best, r_in + share * (r_out - r_in))
    assert plan.totals[0] == pytest.approx(best, rel=1e-6)
    assert plan.totals[1] <= limit + 1e-6
    # At most one state draws its action.
    assert ((plan.policy > 1e-6).sum(-1) > 1).sum() <= 1


@pytest.mark.parametrize("horizon", [None, 6])
@pytest.mark.parametrize(("sense", "sign"), [("at_most", 1), ("at_least", -1), ("equal", 1)])
def test_the_policy_has_the_totals_and_the_multipliers_are_the_slopes(horizon, sense, sign):
    model, step = drawn(7), 1e-4
    problem = {"discount": DISCOUNT, "horizon": horizon}
    free = constrained_optimum(model, {}, **problem).totals
    first = free[1] - sign * 0.02 * free[1]

    def solve(limit):
        return constrained_optimum(model, {"one": Limit(1, limit, sense), "two": Limit(2, 100.0)}, **problem)

    plan = solve(first)
    np.testing.assert_allclose(totals_of(model, plan.policy, **problem), plan.totals, rtol=1e-7)
    slope = (solve(first + step).totals[0] - solve(first - step).totals[0]) / (2 * step)
    assert plan.multipliers[0] == pytest.approx(sign * slope, rel=1e-3)
    assert abs(plan.multipliers[0]) > 1e-3
    assert plan.multipliers[1] == 0


def test_a_bandit_by_hand():
    """Arms that pay 1 and cost 2, or pay 0 and cost 0: a limit of 0.5 allows the first arm a quarter of the time."""
    model = one_state([[((1.0, 2.0), 1.0)], [((0.0, 0.0), 1.0)]], horizon=1)
    plan = constrained_optimum(model, {"cost": Limit(1, 0.5)})
    np.testing.assert_allclose(plan.policy[0, 0], [0.25, 0.75])
    np.testing.assert_allclose(plan.totals, [0.25, 0.5])
    np.testing.assert_allclose(plan.multipliers, [0.5])


def test_what_cannot_be_met_says_by_how_much():
    model = one_state([[((1.0, 2.0), 1.0)], [((0.0, 1.0), 1.0)]], horizon=1)
    with pytest.raises(InfeasibleError, match=r"'cost' is to be at most 0.25 and can be from 1 to 2.*miss by 0.75"):
        constrained_optimum(model, {"cost": Limit(1, 0.25)})


def test_bad_arguments_name_what_was_expected():
    model = drawn(0)
    for arguments, message in (
        ({"limits": {"cost": Limit(3, 1.0)}}, r"cost: component 3: expected one from 0 to 2"),
        ({"limits": {"cost": Limit(1, np.nan)}}, r"limit 'cost' is nan"),
        ({"limits": {"cost": Limit(1, 1.0, "at_mots")}}, r"at_mots.*at_most"),
        ({"limits": {}, "discount": 1.5}, r"discount=1.5"),
        ({"limits": {}, "discount": 1.0}, r"never ends"),
        ({"limits": {}, "horizon": 0}, r"horizon=0"),
    ):
        with pytest.raises(ValueError, match=message):
            constrained_optimum(model, **({"discount": DISCOUNT} | arguments))
    with pytest.raises(ValueError, match="rewards are numbers"):
        constrained_optimum(scalarised(model, [1, 0, 0]), {}, discount=DISCOUNT)
    with pytest.raises(ValueError, match=r"policy has shape \(4, 3\), expected \(1, 4, 3\)"):
        totals_of(model, np.ones((4, 3)) / 3, discount=DISCOUNT)


def test_an_episode_that_ends_by_chance_is_a_discount():
    model = random_model(states=5, actions=2, costs=2, going_on=0.8, seed=3)
    plan = constrained_optimum(model, {"1": Limit(1, 2.0)})
    endless = model._replace(
        probability=2 * model.probability[..., : model.probability.shape[-1] // 2] / (2 * 0.8),
        **{
            name: getattr(model, name)[:, :, : model.probability.shape[-1] // 2]
            for name in ("next_state", "reward", "terminated")
        },
    )
    other = constrained_optimum(endless, {"1": Limit(1, 2.0)}, discount=0.8)
    np.testing.assert_allclose(plan.totals, other.totals, rtol=1e-8)
    np.testing.assert_allclose(plan.multipliers, other.multipliers, rtol=1e-6)
