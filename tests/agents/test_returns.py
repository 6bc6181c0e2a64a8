"""Returns and advantages against plain Python loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from agents.returns import generalised_advantage, return_to_go


def loop_return(rewards, ends, discount, bootstrap):
    result = np.zeros_like(rewards)
    for b in range(rewards.shape[1]):
        later = bootstrap[b]
        for t in reversed(range(rewards.shape[0])):
            later = rewards[t, b] + discount * (0.0 if ends[t, b] else later)
            result[t, b] = later
    return result


def loop_advantage(rewards, values, next_values, terminated, ends, discount, gae_lambda):
    result = np.zeros_like(rewards)
    for b in range(rewards.shape[1]):
        later = 0.0
        for t in reversed(range(rewards.shape[0])):
            behind = 0.0 if terminated[t, b] else next_values[t, b]
            delta = rewards[t, b] + discount * behind - values[t, b]
            later = delta + (0.0 if ends[t, b] else discount * gae_lambda * later)
            result[t, b] = later
    return result


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    shape = (17, 5)
    terminated, truncated = rng.random(shape) < 0.15, rng.random(shape) < 0.15
    rewards, values, next_values = (rng.normal(size=shape).astype(np.float32) for _ in range(3))
    return rewards, values, next_values, terminated, terminated | truncated


def test_return_to_go_by_hand():
    rewards = jnp.array([[1.0], [2.0], [4.0], [8.0]])
    ends = jnp.array([[False], [True], [False], [False]])
    np.testing.assert_array_equal(return_to_go(rewards, ends, 0.5), [[2.0], [2.0], [8.0], [8.0]])


def test_return_to_go_equals_the_loop(data):
    rewards, _, _, _, ends = data
    expected = loop_return(rewards, ends, 0.9, np.zeros(5))
    np.testing.assert_allclose(return_to_go(rewards, ends, 0.9), expected, rtol=1e-5, atol=1e-6)


def test_generalised_advantage_by_hand():
    # Column 0 terminates after its second step, column 1 is truncated there.
    rewards = jnp.array([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    values = jnp.array([[0.5, 0.5], [1.0, 1.0], [1.5, 1.5]])
    next_values = jnp.array([[1.0, 1.0], [8.0, 8.0], [2.0, 2.0]])
    terminated = jnp.array([[False, False], [True, False], [False, False]])
    ends = jnp.array([[False, False], [True, True], [False, False]])
    advantage = generalised_advantage(rewards, values, next_values, terminated, ends, 0.5, 0.5)
    # delta_2 = 4 + .5*2 - 1.5 = 3.5; delta_1 = 2 - 1 = 1 or 2 + .5*8 - 1 = 5; delta_0 = 1 + .5*1 - .5 = 1;
    # A_1 = delta_1, and A_0 = 1 + .25 * A_1.
    np.testing.assert_array_equal(advantage, [[1.25, 2.25], [1.0, 5.0], [3.5, 3.5]])


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_generalised_advantage_equals_the_loop(data, gae_lambda):
    rewards, values, next_values, terminated, ends = data
    advantage = generalised_advantage(rewards, values, next_values, terminated, ends, 0.9, gae_lambda)
    expected = loop_advantage(rewards, values, next_values, terminated, ends, 0.9, gae_lambda)
    np.testing.assert_allclose(advantage, expected, rtol=1e-5, atol=1e-5)


def test_gae_lambda_1_is_return_minus_value(data):
    rewards, values, _, _, ends = data
    # With every end a termination and next values that agree with the values, lambda = 1 telescopes.
    next_values = np.concatenate([values[1:], values[:1]])
    advantage = generalised_advantage(rewards, values, next_values, ends, ends, 0.9, 1.0)
    expected = loop_return(rewards, ends, 0.9, values[0]) - values
    np.testing.assert_allclose(advantage, expected, rtol=1e-4, atol=1e-5)
