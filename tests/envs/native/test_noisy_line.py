"""The noisy line: its table, entropies and least errors computed by hand, and the environment made from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.native.noisy_line import LEFT, NO_OP, RIGHT, least_squared_error, next_state_entropy, noisy_line, transition
from envs.native.tabular import TabularEnvironment, from_outcomes, validated
from envs.rollout import episodes
from envs.wrappers import TimeLimit


def test_the_table_by_hand():
    model = noisy_line(3, 1, noise="on_demand", probability=0.25)
    assert (model.num_states, model.num_actions) == (6, 3)
    dense = transition(model)
    # Cell 0 with bit 1 is state 1, cell 1 with bit 0 is state 2.
    np.testing.assert_array_equal(dense[1, NO_OP], [0.75, 0.25, 0, 0, 0, 0])
    np.testing.assert_array_equal(dense[1, LEFT], [1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(dense[1, RIGHT], [0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(dense[2, NO_OP], [0, 0, 0.75, 0.25, 0, 0])
    np.testing.assert_array_equal(dense[5, RIGHT], [0, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(model.initial, [1, 0, 0, 0, 0, 0])
    assert not model.reward.any() and not model.terminated.any()


@pytest.mark.parametrize("noise", ["none", "always", "on_demand", "at_end"])
def test_where_there_is_noise(noise):
    model = noisy_line(4, 2, noise=noise, horizon=9)
    validated(model)
    assert model.horizon == 9
    entropy = next_state_entropy(model).reshape(4, 4, 3)
    two_bits = 2 * np.log(2)
    expected = np.zeros((4, 4, 3))
    if noise == "always":
        expected[:] = two_bits
    if noise == "on_demand":
        expected[..., NO_OP] = two_bits
    if noise == "at_end":
        expected[3, :, [NO_OP, RIGHT]] = two_bits
        expected[2, :, RIGHT] = two_bits
    np.testing.assert_allclose(entropy, expected, atol=1e-12)
    # One-hot states: 1 - sum p^2 with four equally likely ones.
    one_hot = least_squared_error(model, np.eye(16)).reshape(4, 4, 3)
    np.testing.assert_allclose(one_hot, expected / two_bits * 3 / 4, atol=1e-12)


def test_entropy_and_least_error_of_unfair_bits():
    model = noisy_line(2, 2, noise="always", probability=0.1)
    one_bit = -(0.1 * np.log(0.1) + 0.9 * np.log(0.9))
    np.testing.assert_allclose(next_state_entropy(model), 2 * one_bit)
    # Features that are the cell, which can be predicted, and both bits: p (1 - p) for each bit.
    states = np.arange(8)
    features = np.stack([states // 4, states // 2 % 2, states % 2], axis=-1)
    np.testing.assert_allclose(least_squared_error(model, features), 2 * 0.09)
    np.testing.assert_allclose(least_squared_error(model, features[:, :1]), 0, atol=1e-12)
    # No other prediction does better: brute force over a grid.
    target, probability = features[:, 1], transition(model)[0, 0]
    errors = [(probability * (target - guess) ** 2).sum() for guess in np.linspace(0, 1, 101)]
    assert np.argmin(errors) == 10 and min(errors) == pytest.approx(0.09)


def test_outcomes_with_the_same_next_state_are_one_event():
    """Two rewards with the same next state add nothing to the entropy of the state."""
    model = from_outcomes([[[(0.5, 0, 1.0, False), (0.5, 0, -1.0, False)]]], [1.0])
    assert model.probability.shape[-1] == 2
    assert next_state_entropy(model) == 0


def test_certain_bits_are_no_noise():
    for probability in (0.0, 1.0):
        model = noisy_line(2, 3, noise="always", probability=probability)
        assert not next_state_entropy(model).any()
        assert (transition(model).max(-1) == 1).all()
    assert transition(noisy_line(1, 3, noise="always", probability=1.0))[0, NO_OP, 7] == 1


def test_the_environment_draws_what_the_table_says():
    model = noisy_line(3, 1, noise="at_end", probability=0.3, horizon=400)
    environment = TimeLimit(TabularEnvironment(model), model.horizon)

    def to_the_right(carry, observation, key):
        return jnp.full(observation.shape[0], RIGHT, jnp.int32), carry, {}

    def collect(key):
        return episodes(environment, to_the_right, key, length=400, batch=16, group_size=1, initial_carry=())

    trajectory = jax.jit(collect, compiler_options={"xla_backend_optimization_level": 0})(jax.random.key(0))
    np.testing.assert_array_equal(trajectory.observation[:2], np.array([[0], [2]]) * np.ones((2, 16), int))
    at_end = np.asarray(trajectory.observation[2:])
    assert (at_end // 2 == 2).all()
    share, spread = (at_end % 2).mean(), (0.3 * 0.7 / at_end.size) ** 0.5
    assert abs(share - 0.3) < 5 * spread
    assert trajectory.truncated[-1].all() and not trajectory.rewards["env"].any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(length=0), ValueError, "length=0: expected 1 to 100, nearest 1"),
        (dict(length=2.0), TypeError, "length=2.0: expected an integer"),
        (dict(bits=9), ValueError, "bits=9: expected 1 to 8, nearest 8"),
        (dict(bits=True), TypeError, "bits=True"),
        (dict(noise="on demand"), ValueError, "unknown noise 'on demand', did you mean 'on_demand'"),
        (dict(probability=1.2), ValueError, "probability=1.2: expected a probability from 0 to 1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        noisy_line(**arguments)


def test_features_with_the_wrong_number_of_rows_are_refused():
    with pytest.raises(ValueError, match=r"features has shape \(5, 5\), expected \(10, d\)"):
        least_squared_error(noisy_line(5, 1), np.eye(5))
