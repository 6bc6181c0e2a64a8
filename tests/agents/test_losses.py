"""Losses against hand-computed numbers and loops over pairs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.losses import clipped_surrogate, outcome_cross_entropy, pairwise_preference, value_loss


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


def brute_preference(scores, positive):
    losses, wins = [], []
    for group, labels in zip(scores, positive, strict=True):
        for i in range(len(group)):
            for j in range(len(group)):
                if labels[i] and not labels[j]:
                    margin = float(group[i]) - float(group[j])
                    losses.append(math.log1p(math.exp(-margin)))
                    wins.append(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0)
    return (np.mean(losses), np.mean(wins)) if losses else (0.0, 0.5)


def test_pairwise_preference_is_the_mean_over_all_pairs_of_all_groups():
    rng = np.random.default_rng(1)
    # Rounded, so that ties occur.
    scores = np.round(rng.normal(size=(6, 4)), 0).astype(np.float32)
    positive = rng.random((6, 4)) < 0.4
    positive[0], positive[1] = True, False
    loss, accuracy = pairwise_preference(jnp.asarray(scores), jnp.asarray(positive))
    expected_loss, expected_accuracy = brute_preference(scores, positive)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(accuracy, expected_accuracy, rtol=1e-6)
    assert 0 < expected_accuracy < 1


@pytest.mark.parametrize("label", [True, False])
def test_without_a_pair_the_loss_and_its_gradient_are_zero(label):
    scores, positive = jnp.array([[1.0, -2.0]]), jnp.full((1, 2), label)
    (loss, accuracy), gradient = jax.value_and_grad(pairwise_preference, has_aux=True)(scores, positive)
    assert (loss, accuracy) == (0.0, 0.5)
    np.testing.assert_array_equal(gradient, jnp.zeros((1, 2)))


def test_pairwise_preference_is_finite_for_large_margins():
    loss, accuracy = pairwise_preference(jnp.array([[-500.0, 500.0]]), jnp.array([[True, False]]))
    assert (loss, accuracy) == (1000.0, 0.0)


def test_outcome_cross_entropy_is_its_formula():
    scores, outcome = np.linspace(-4, 4, 9), np.tile([0.0, 0.3, 1.0], 3)
    p = 1 / (1 + np.exp(-scores))
    expected = -(outcome * np.log(p) + (1 - outcome) * np.log(1 - p))
    np.testing.assert_allclose(outcome_cross_entropy(jnp.asarray(scores), jnp.asarray(outcome)), expected, rtol=1e-5)
    np.testing.assert_allclose(outcome_cross_entropy(jnp.array(-200.0), jnp.array(1.0)), 200.0)
