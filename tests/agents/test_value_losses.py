"""Losses of value learning against numbers by hand and written-out formulae."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.value_losses import (
    categorical_cross_entropy,
    categorical_projection,
    huber_loss,
    midpoints,
    quantile_huber_loss,
)

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
ATOMS = jnp.array([-1.0, 0.0, 1.0, 2.0])
project = jit(categorical_projection)


def test_huber_by_hand():
    error = jnp.array([0.0, 0.5, -0.5, 1.0, -3.0])
    np.testing.assert_allclose(huber_loss(error, 1.0), [0, 0.125, 0.125, 0.5, 2.5])
    np.testing.assert_allclose(huber_loss(error, 2.0), [0, 0.125, 0.125, 0.5, 4.0])
    slopes = jax.vmap(jax.grad(huber_loss), in_axes=(0, None))(error, 1.0)
    np.testing.assert_allclose(slopes, [0, 0.5, -0.5, 1, -1])


@pytest.mark.parametrize(
    ("reward", "discount", "distribution", "expected"),
    [
        # Exactly on atoms.
        (0.0, 1.0, [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
        (1.0, 1.0, [0.1, 0.2, 0.3, 0.4], [0.0, 0.1, 0.2, 0.7]),
        # -0.25, 0.25, 0.75 and 1.25.
        (0.25, 0.5, [1.0, 0.0, 0.0, 0.0], [0.25, 0.75, 0.0, 0.0]),
        (0.25, 0.5, [0.0, 0.5, 0.0, 0.5], [0.0, 0.375, 0.5, 0.125]),
        # With a discount of 0 only the reward is left, between atoms and at one.
        (0.5, 0.0, [0.1, 0.2, 0.3, 0.4], [0.0, 0.5, 0.5, 0.0]),
        (1.0, 0.0, [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 1.0, 0.0]),
        # Beyond the range everything goes to the edge.
        (9.0, 1.0, [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.0, 1.0]),
        (-9.0, 0.5, [0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_the_projection_by_hand(reward, discount, distribution, expected):
    found = project(ATOMS, jnp.array([reward]), jnp.array([discount]), jnp.array([distribution]))
    np.testing.assert_allclose(found, [expected], atol=1e-6)


@given(st.floats(-0.5, 0.5), st.floats(0, 0.5), st.lists(st.floats(0.01, 1), min_size=4, max_size=4))
def test_the_projection_keeps_the_total_and_inside_the_range_the_mean(reward, discount, distribution):
    distribution = np.array(distribution, np.float32) / np.sum(distribution)
    found = np.asarray(project(ATOMS, jnp.array([reward]), jnp.array([discount]), jnp.array([distribution])))[0]
    assert found.sum() == pytest.approx(1, abs=1e-5) and (found >= 0).all()
    assert found @ np.asarray(ATOMS) == pytest.approx(reward + discount * distribution @ np.asarray(ATOMS), abs=1e-5)


def test_the_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    target = jnp.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    expected = [np.log(4), -0.5 * np.log(0.1) - 0.5 * np.log(0.8)]
    np.testing.assert_allclose(categorical_cross_entropy(logits, target), expected, rtol=1e-6)


def test_midpoints():
    np.testing.assert_allclose(midpoints(4), [0.125, 0.375, 0.625, 0.875])


def test_quantile_loss_by_hand():
    # Fractions 1/4 and 3/4 at 0 and 2, targets 1 and -0.5: errors (1, -0.5) and (-1, -2.5).
    quantiles, targets = jnp.array([0.0, 2.0]), jnp.array([1.0, -0.5])
    plain = (0.25 * 1 + 0.75 * 0.5) / 2 + (0.25 * 1 + 0.25 * 2.5) / 2
    huber = (0.25 * 0.5 + 0.75 * 0.125) / 2 + (0.25 * 0.5 + 0.25 * 2.0) / 2
    # kappa = 2: L / kappa is u^2 / 4 up to 2, then |u| - 1.
    wide = (0.25 * 0.25 + 0.75 * 0.0625) / 2 + (0.25 * 0.25 + 0.25 * 1.5) / 2
    loss = jit(quantile_huber_loss)
    for kappa, expected in ((0.0, plain), (1.0, huber), (2.0, wide)):
        np.testing.assert_allclose(loss(quantiles, midpoints(2), targets, kappa=kappa), expected, rtol=1e-6)


@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_the_loss_with_sampled_fractions_is_the_formula(kappa):
    quantiles, fractions, targets = np.asarray(jax.random.uniform(jax.random.key(1), (3, 6, 5))) * [[[3]], [[1]], [[3]]]
    expected = np.zeros(6)
    for b in range(6):
        for q, tau in zip(quantiles[b], fractions[b], strict=True):
            for target in targets[b]:
                u = target - q
                core = abs(u) if kappa == 0 else (0.5 * u * u if abs(u) <= kappa else abs(u) - 0.5) / kappa
                expected[b] += abs(tau - (u < 0)) * core / 5
    found = jit(quantile_huber_loss)(
        *(jnp.asarray(x, jnp.float32) for x in (quantiles, fractions, targets)), kappa=kappa
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_the_gradient_is_finite_where_the_error_is_zero(kappa):
    gradient = jit(jax.grad(lambda q: quantile_huber_loss(q, midpoints(2), jnp.zeros(2), kappa=kappa)))(jnp.zeros(2))
    assert np.isfinite(gradient).all()


def test_the_minimum_of_the_plain_loss_is_the_quantiles():
    sample = jax.random.exponential(jax.random.key(2), (1000,))
    slope = jit(jax.grad(lambda q: quantile_huber_loss(q, midpoints(4), sample, kappa=0.0)))
    quantiles = jnp.quantile(sample, midpoints(4))
    np.testing.assert_allclose(slope(quantiles), 0, atol=2e-3)
    assert (np.abs(slope(quantiles + 0.1)) > 0.01).all()


@pytest.mark.optional
def test_the_losses_agree_with_rlax():
    rlax = pytest.importorskip("rlax")
    quantiles, targets = jax.random.normal(jax.random.key(3), (2, 7))
    for kappa in (0.0, 1.0):
        theirs = rlax.quantile_regression_loss(quantiles, midpoints(7), targets, huber_param=kappa)
        # Theirs is the mean over targets of the Huber loss, not divided by kappa: equal at 0 and 1.
        np.testing.assert_allclose(
            quantile_huber_loss(quantiles, midpoints(7), targets, kappa=kappa), theirs, rtol=1e-5
        )
    distribution = jax.nn.softmax(targets[:4])
    theirs = rlax.categorical_l2_project(0.3 + 0.7 * ATOMS, distribution, ATOMS)
    ours = categorical_projection(ATOMS, jnp.array(0.3), jnp.array(0.7), distribution)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
