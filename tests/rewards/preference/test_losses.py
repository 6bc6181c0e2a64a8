"""Preference losses against hand-computed numbers and loops over pairs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewards.preference.losses import outcome_cross_entropy, pairwise_preference


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
