"""Rules for Lagrange multipliers against numbers worked out by hand and a problem whose saddle point is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.kinds import Kind
from rewards.constraints.multipliers import MULTIPLIERS, barrier, dual_ascent, fixed, pid

INEQUALITY, EQUATION = np.array([False]), np.array([True])


def values(rule, violations, equality=INEQUALITY):
    """The multiplier after each of ``violations``."""
    state, found = rule.init(equality), []
    for violation in violations:
        state = rule.update(state, jnp.array([violation]), equality)
        found.append(float(rule.value(state)[0]))
    return found


def test_dual_ascent_adds_the_violation_and_stays_in_the_box():
    rule = dual_ascent(optimiser="sgd", learning_rate=0.5, largest=2.0)
    np.testing.assert_allclose(values(rule, [1.0, 2.0, 5.0, -1.0, -9.0]), [0.5, 1.5, 2.0, 1.5, 0.0])
    np.testing.assert_allclose(values(rule, [1.0, -2.0, -9.0], EQUATION), [0.5, -0.5, -2.0])


def test_momentum():
    rule = dual_ascent(optimiser="sgd", learning_rate=1.0, momentum=0.5)
    np.testing.assert_allclose(values(rule, [1.0, 1.0, 1.0]), [1.0, 2.5, 4.25])


def test_adam_takes_steps_of_the_learning_rate_whatever_the_units():
    for unit in (1e-2, 1.0, 1e3):
        np.testing.assert_allclose(values(dual_ascent(learning_rate=0.1), [unit, unit]), [0.1, 0.2], rtol=1e-4)


def test_projections_follow_the_chain_rule():
    """SGD on sigmoid: p <- p + rate * g * s(p) (1 - s(p)), from p = 0."""
    rule = dual_ascent(optimiser="sgd", learning_rate=1.0, projection="sigmoid")
    np.testing.assert_allclose(values(rule, [2.0]), [1 / (1 + np.exp(-0.5))], rtol=1e-6)
    rule = dual_ascent(optimiser="sgd", learning_rate=1.0, projection="tanh")
    np.testing.assert_allclose(values(rule, [-0.3], EQUATION), [np.tanh(-0.3)], rtol=1e-6)
    rule = dual_ascent(optimiser="sgd", learning_rate=1.0, projection="softplus")
    np.testing.assert_allclose(values(rule, [2.0]), [np.log1p(np.exp(1.0))], rtol=1e-6)


def test_pid_by_hand():
    rule = pid(proportional=1.0, integral=0.1, derivative=10.0)
    # Integral .1, .3, 0 (kept from -.7); change 1, 1, and 0 for -12.
    np.testing.assert_allclose(values(rule, [1.0, 2.0, -10.0]), [1 + 0.1 + 10, 2 + 0.3 + 10, 0.0], rtol=1e-6)
    # An equation: nothing is cut off at 0.
    np.testing.assert_allclose(values(rule, [-1.0], EQUATION), [-1 - 0.1 - 10], rtol=1e-6)


def test_pid_compares_with_the_level_of_earlier_updates_and_smooths():
    rule = pid(proportional=0.0, integral=0.0, derivative=1.0, delay=2)
    np.testing.assert_allclose(values(rule, [1.0, 3.0, 4.0, 4.0]), [1.0, 3.0, 3.0, 1.0])
    rule = pid(proportional=1.0, integral=0.0, derivative=0.0, smoothing=0.75)
    np.testing.assert_allclose(values(rule, [4.0, 0.0]), [1.0, 0.75])


def test_the_integral_alone_is_dual_ascent():
    violations = np.random.default_rng(0).normal(size=20)
    one = pid(proportional=0.0, integral=0.3, derivative=0.0)
    other = dual_ascent(optimiser="sgd", learning_rate=0.3)
    np.testing.assert_allclose(values(one, violations), values(other, violations), rtol=1e-5, atol=1e-6)


def test_the_barrier_grows_towards_the_limit():
    rule = barrier(sharpness=10.0, margin=0.01)
    np.testing.assert_allclose(values(rule, [-1.0, -0.1, 0.5]), [0.1, 1.0, 10.0], rtol=1e-5)


def test_fixed():
    np.testing.assert_allclose(values(fixed(value=0.7), [5.0, -5.0]), [0.7, 0.7], rtol=1e-6)


def overshoot(rule, steps=400):
    """The violation above 0, summed over time, of ``x <- x + .1 (1 - lambda)`` where ``x <= 0`` is asked for.

    The agent climbs at a constant rate and the multiplier turns it back: the saddle point is ``x = 0, lambda = 1``.
    """
    state, x, total = rule.init(INEQUALITY), -1.0, 0.0
    for _ in range(steps):
        state = rule.update(state, jnp.array([x]), INEQUALITY)
        x += 0.1 * (1.0 - float(rule.value(state)[0]))
        total += max(x, 0.0)
    return total, x, float(rule.value(state)[0])


def test_the_proportional_term_damps_what_the_integral_overshoots():
    with jax.disable_jit():
        total, _, _ = overshoot(pid(proportional=0.0, integral=0.1, derivative=0.0))
        damped, x, multiplier = overshoot(pid(proportional=2.0, integral=0.1, derivative=0.0))
    assert damped < 0.1 * total
    assert x == pytest.approx(0.0, abs=1e-2)
    assert multiplier == pytest.approx(1.0, abs=1e-2)


def test_bad_arguments_name_what_was_expected():
    for make, message in (
        (lambda: dual_ascent(optimiser="adm"), "adm.*adam"),
        (lambda: dual_ascent(projection="sigmod"), "sigmod.*sigmoid"),
        (lambda: pid(delay=0), "delay=0"),
        (lambda: dual_ascent(projection="softplus").init(EQUATION), "projection='softplus' has no negative"),
        (lambda: dual_ascent(projection="tanh").init(INEQUALITY), "projection='tanh' has negative"),
        (lambda: barrier().init(EQUATION), "an equation has no inside"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("name", MULTIPLIERS)
def test_every_rule_keeps_its_shapes_and_types(name):
    """What a compiled step carries must come out as it went in."""
    entry = MULTIPLIERS[name]
    rule = (entry.factory if isinstance(entry, Kind) else entry)()
    equality = np.array([False, False, False])
    state = rule.init(equality)
    new = jax.eval_shape(lambda state: rule.update(state, jnp.zeros(3), equality), state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), new)
    assert rule.value(state).shape == (3,)
