"""Losses against hand-computed numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.losses import clipped_surrogate, value_loss


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
