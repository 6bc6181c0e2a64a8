"""Losses against hand-computed numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.losses import (
    LossData,
    PolicyLoss,
    clipped_surrogate,
    explained_variance,
    policy_gradient_loss,
    step_weights,
    value_loss,
)
from agents.statistics import whiten


@pytest.mark.parametrize(
    ("ratio", "advantage", "low", "high", "dual", "loss"),
    [
        (1.0, 2.0, 0.2, 0.2, None, -2.0),
        (1.5, 2.0, 0.2, 0.2, None, -2.4),  # capped from above
        (1.5, 2.0, 0.2, 0.4, None, -2.8),  # another cap above
        (0.5, 2.0, 0.2, 0.2, None, -1.0),  # no cap below for a good action
        (0.5, -2.0, 0.2, 0.2, None, 1.6),  # capped from below
        (0.5, -2.0, 0.3, 0.2, None, 1.4),
        (1.5, -2.0, 0.2, 0.2, None, 3.0),  # no cap above for a bad action
        (5.0, -2.0, 0.2, 0.2, 3.0, 6.0),  # the dual clip: at most c |A|
        (2.0, -2.0, 0.2, 0.2, 3.0, 4.0),
        (5.0, 2.0, 0.2, 0.2, 3.0, -2.4),  # the dual clip leaves good actions alone
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, low, high, dual, loss):
    result = clipped_surrogate(jnp.log(jnp.array([ratio])), jnp.array([advantage]), low, high, dual)
    np.testing.assert_allclose(result, [loss], rtol=1e-5)


def test_clipped_surrogate_has_the_policy_gradient_at_ratio_one_and_none_outside():
    gradient = jax.grad(lambda x, a: jnp.sum(clipped_surrogate(x, a, 0.2, 0.2)))
    advantage = jnp.array([2.0, -3.0])
    np.testing.assert_allclose(gradient(jnp.zeros(2), advantage), -advantage)
    np.testing.assert_array_equal(gradient(jnp.log(jnp.array([1.5, 0.5])), advantage), [0, 0])


def test_clipped_surrogate_refuses_unequal_shapes():
    with pytest.raises(AssertionError):
        clipped_surrogate(jnp.zeros((2, 3)), jnp.zeros((2, 1)), 0.2, 0.2)


def test_value_loss_by_hand():
    values, targets, old = jnp.array([3.0, 3.0, 0.0]), jnp.array([1.0, 5.0, 1.0]), jnp.array([1.0, 1.0, 0.0])
    np.testing.assert_allclose(value_loss(values, targets), [2.0, 2.0, 0.5])
    # Clipped values are 1.5, 1.5 and 0: squares 0.25, 12.25 and 1 against 4, 4 and 1.
    np.testing.assert_allclose(value_loss(values, targets, old, 0.5), [2.0, 6.125, 0.5])


MASK = jnp.array([[1.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("reduction", "weights"),
    [
        ("steps", [[1 / 3, 1 / 3], [1 / 3, 0]]),
        ("episodes", [[1 / 4, 1 / 2], [1 / 4, 0]]),
        ("constant", [[1 / 4, 1 / 4], [1 / 4, 0]]),
    ],
)
def test_step_weights_by_hand(reduction, weights):
    np.testing.assert_allclose(step_weights(MASK, reduction), weights)
    assert not step_weights(jnp.zeros((2, 2)), reduction).any()


# Ratios 1.5, 1 and 0.5 of the valid steps; numbers in the padding that must not matter.
NEW_LOG_PROB = jnp.log(jnp.array([[0.75, 0.5], [0.25, 1.0]])) + jnp.array([[0, 0], [0, 100.0]])
ENTROPY, VALUES = jnp.array([[1.0, 2.0], [3.0, 50.0]]), {"a": jnp.array([[1.0, 2.0], [3.0, 9.0]])}
DATA = LossData(
    log_prob=jnp.log(jnp.full((2, 2), 0.5)),
    mask=MASK,
    advantage=jnp.array([[2.0, -1.0], [-2.0, 99.0]]),
    weight=MASK / 3,
    target={"a": jnp.array([[0.0, 2.0], [5.0, 0.0]])},
    value={"a": jnp.array([[1.0, 2.0], [2.5, 0.0]])},
)
CLIPPED = PolicyLoss("clip", 0.2, 0.4, entropy_weight=0.1, value_weight=0.5)


def test_policy_gradient_loss_by_hand():
    loss, metrics = policy_gradient_loss(NEW_LOG_PROB, ENTROPY, VALUES, DATA, CLIPPED)
    # Surrogates -1.4 * 2, 1 and 0.8 * 2; value losses 1/2, 0 and 2.
    policy_loss, entropy, value = (-2.8 + 1 + 1.6) / 3, 2.0, 2.5 / 3
    expected = {
        "loss": policy_loss - 0.1 * entropy + 0.5 * value,
        "policy_loss": policy_loss,
        "entropy": entropy,
        # The mean of rho - 1 - log rho.
        "approximate_kl": (np.log(2) - np.log(1.5)) / 3,
        "clip_fraction": 2 / 3,
        "value_loss/a": value,
    }
    assert set(metrics) == set(expected) and loss == metrics["loss"]
    for name, number in expected.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-5, err_msg=name)


def test_policy_gradient_loss_with_the_plain_surrogate_and_without_a_critic():
    loss, metrics = policy_gradient_loss(NEW_LOG_PROB, ENTROPY, {}, DATA, PolicyLoss("plain"))
    expected = -(2 * np.log(0.75) - np.log(0.5) - 2 * np.log(0.25)) / 3
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert not any(name.startswith("value_loss") for name in metrics)


def test_policy_gradient_loss_clips_values_and_whitens_within_the_minibatch():
    _, metrics = policy_gradient_loss(NEW_LOG_PROB, ENTROPY, VALUES, DATA, CLIPPED._replace(value_clip=0.25))
    # Only the third value moved by more than 1/4 from its old one: 2.75 misses the target 5 by more than 3 does.
    np.testing.assert_allclose(metrics["value_loss/a"], (0.5 + 0 + 2.25**2 / 2) / 3, rtol=1e-5)
    white = DATA._replace(advantage=whiten(DATA.advantage, MASK))
    expected, _ = policy_gradient_loss(NEW_LOG_PROB, ENTROPY, VALUES, white, CLIPPED)
    found, _ = policy_gradient_loss(NEW_LOG_PROB, ENTROPY, VALUES, DATA, CLIPPED._replace(whiten=True))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_explained_variance_by_hand():
    targets, mask = jnp.array([[1.0, 3.0], [5.0, 100.0]]), MASK
    assert explained_variance(targets, targets, mask) == 1
    np.testing.assert_allclose(explained_variance(targets, jnp.full((2, 2), 7.0), mask), 0, atol=1e-6)
    # Residuals 0, 2 and 0 with variance 4/3 against targets with variance 4.
    values = jnp.array([[1.0, 1.0], [5.0, 0.0]])
    np.testing.assert_allclose(explained_variance(targets, values, mask), 2 / 3, rtol=1e-5)
