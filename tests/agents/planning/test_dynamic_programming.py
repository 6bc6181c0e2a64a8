"""Value iteration, policy iteration and evaluation against enumeration, linear systems and each other."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.planning.dynamic_programming import kept_or_best, policy_evaluation, policy_iteration, value_iteration
from envs.native.tabular import TabularModel, from_gymnasium, one_state, validated

SHAPE = (3, 2, 2)


@st.composite
def models(draw):
    """Three states, two actions, two outcomes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return validated(
        TabularModel(
            rng.dirichlet(np.ones(2), SHAPE[:2]),
            rng.integers(0, 3, SHAPE),
            rng.integers(-3, 4, SHAPE).astype(float),
            rng.random(SHAPE) < 0.2,
            np.ones(3) / 3,
            3,
        )
    )


def exact(model, policy, discount):
    """Values of the stationary ``policy [S, A]``, by solving the linear system."""
    continues = model.probability * ~model.terminated
    reward = np.einsum("sa,sao,sao->s", policy, model.probability, model.reward)
    matrix = np.zeros((3, 3))
    for s, a, o in np.ndindex(SHAPE):
        matrix[s, model.next_state[s, a, o]] += policy[s, a] * continues[s, a, o]
    return np.linalg.solve(np.eye(3) - discount * matrix, reward)


def finite(model, policies, discount):
    """Values of ``policies [H, S, A]`` by a plain loop."""
    values = np.zeros(3)
    for policy in policies[::-1]:
        following = np.zeros(3)
        for s, a, o in np.ndindex(SHAPE):
            later = 0.0 if model.terminated[s, a, o] else values[model.next_state[s, a, o]]
            following[s] += policy[s, a] * model.probability[s, a, o] * (model.reward[s, a, o] + discount * later)
        values = following
    return values


@settings(max_examples=15)
@given(model=models())
def test_planners_equal_the_best_of_all_policies(model):
    deterministic = [np.eye(2)[list(actions)] for actions in itertools.product(range(2), repeat=3)]
    with jax.enable_x64(True):
        best = np.max([exact(model, policy, 0.8) for policy in deterministic], axis=0)
        for plan in (
            value_iteration(model, discount=0.8, iterations=60),
            policy_iteration(model, discount=0.8, iterations=60),
        ):
            assert plan.policy.shape == (1, 3)
            # Ties within 1e-6 may be broken in favour of the worse one.
            assert np.abs(plan.values - best).max() <= plan.bound + 1e-5
            np.testing.assert_allclose(exact(model, np.eye(2)[plan.policy[0]], 0.8), best, atol=1e-4)
        best = np.max([finite(model, policies, 0.9) for policies in itertools.product(deterministic, repeat=3)], axis=0)
        for plan in (value_iteration(model, discount=0.9), policy_iteration(model, discount=0.9)):
            np.testing.assert_allclose(plan.values, best, atol=1e-5)
            np.testing.assert_allclose(finite(model, np.eye(2)[plan.policy], 0.9), best, atol=1e-5)
            assert plan.policy.shape == (3, 3) and plan.bound == 0


@settings(max_examples=15)
@given(model=models(), count=st.sampled_from([1, 5, 30]))
def test_evaluation_and_its_bound(model, count):
    policy = np.array([[0.2, 0.8], [1.0, 0.0], [0.5, 0.5]])
    with jax.enable_x64(True):
        result = policy_evaluation(model, policy, discount=0.7, iterations=count)
        assert np.abs(result.values - exact(model, policy, 0.7)).max() <= result.bound
        assert result.bound <= 0.7**count / 0.3 * 3 + 1e-9
        plan = value_iteration(model, discount=0.7, iterations=count)
        assert np.abs(plan.values - value_iteration(model, discount=0.7, iterations=200).values).max() <= plan.bound
        stages = np.stack([policy, policy[::-1], policy])
        result = policy_evaluation(model, stages, discount=0.7)
        np.testing.assert_allclose(result.values, finite(model, stages, 0.7), atol=1e-12)
        np.testing.assert_allclose(result.values, (policy * result.action_values).sum(-1), atol=1e-12)


def test_known_environments():
    cliff = value_iteration(from_gymnasium("CliffWalking-v1"), horizon=20)
    assert cliff.values[36] == -13
    taxi = from_gymnasium("Taxi-v4")
    assert float(value_iteration(taxi).values @ taxi.initial) == pytest.approx(7.93, abs=1e-4)
    coin = one_state([[(1, 1.0)], [(4, 0.5), (-1, 0.5)]], horizon=1)
    for plan in (value_iteration(coin), policy_iteration(coin)):
        assert plan.values.tolist() == [1.5] and plan.policy.tolist() == [[1]]
        np.testing.assert_allclose(plan.action_values, [[1.0, 1.5]])


def test_the_lowest_action_is_taken_where_values_tie():
    plan = value_iteration(one_state([[(0, 1.0)], [(1, 1.0)], [(0, 0.5), (2, 0.5)]], horizon=2))
    assert plan.policy.tolist() == [[1], [1]]


def test_an_action_that_ties_with_the_best_is_kept():
    values, actions = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [3.0, 1.0, 0.0]]), np.array([1, 0, 2])
    assert kept_or_best(values, actions).tolist() == [1, 1, 0]
    assert kept_or_best(values.T, actions, axis=0).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ({}, "the model has no time limit"),
        ({"horizon": 3, "iterations": 3, "discount": 0.9}, "horizon=3 and iterations=3"),
        ({"iterations": 3}, "discount=1 with iterations=3"),
        ({"iterations": 0, "discount": 0.9}, "iterations=0"),
        ({"horizon": 0}, "horizon=0"),
        ({"horizon": 2, "discount": 1.5}, "discount=1.5"),
        ({"horizon": 2, "discount": 0.0}, "discount=0.0: expected a number above 0 and at most 1"),
    ],
)
def test_bad_problems_are_refused(problem, message):
    with pytest.raises(ValueError, match=message):
        value_iteration(one_state([[(1, 1.0)]]), **problem)


@pytest.mark.parametrize("plan", [value_iteration, policy_iteration, lambda model: policy_evaluation(model, [[1.0]])])
@pytest.mark.parametrize(
    ("probability", "message"),
    [
        ([[[0.5, 0.4]]], r"state 0, action 0: the probabilities sum to 0\.9, expected 1"),
        ([[[1.5, -0.5]]], r"probability\[0, 0, 1\]=-0\.5: expected at least 0"),
    ],
)
def test_bad_probabilities_are_refused(plan, probability, message):
    model = one_state([[(1, 0.5), (2, 0.5)]], horizon=2)
    with pytest.raises(ValueError, match=message):
        plan(model._replace(probability=np.array(probability)))


def test_bad_models_and_policies_are_refused():
    with pytest.raises(ValueError, match=r"vectors of 2: expected numbers; scalarised"):
        value_iteration(one_state([[((1, 2), 1.0)]], 2))
    model = one_state([[(1, 1.0)], [(2, 1.0)]], 2)
    with pytest.raises(ValueError, match=r"expected \(1, 2\) or \(2, 1, 2\)"):
        policy_evaluation(model, [[1.0]])
    with pytest.raises(ValueError, match="sum to one"):
        policy_evaluation(model, [[0.5, 0.4]])
    with pytest.raises(ValueError, match=r"expected \(1, 2\)$"):
        policy_evaluation(model, np.ones((3, 1, 2)) / 2, discount=0.5, iterations=3)
    with pytest.raises(RuntimeError, match="actions still change after 1 rounds"):
        policy_iteration(model, rounds=1)
