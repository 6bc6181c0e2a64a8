"""The closed loop of selection: expectations against quadrature and samples, the contraction, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.native.selection import COSTS, Selection

KEY = jax.random.key(0)


def test_expectations_are_those_of_scores():
    environment = Selection(thresholds=5, first_scores=(5.0, 3.0), second_scores=(2.0, 4.0), break_even=0.4)
    random = np.random.default_rng(0)
    for group, (a, b) in enumerate(((5.0, 3.0), (2.0, 4.0))):
        scores = random.beta(a, b, 400_000)
        for action, theta in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
            accepted = scores >= theta
            np.testing.assert_allclose(environment.accepted[group, action], accepted.mean(), atol=4e-3)
            np.testing.assert_allclose(environment.gain[group, action], ((scores - 0.4) * accepted).mean(), atol=2e-3)


def test_a_period_by_hand():
    # Uniform scores in the first group: half are accepted, and 0.375 - 0.5 / 2 is gained. Beta(2, 1) has the density
    # 2x: 3/4 are accepted, and 7/12 - 3/8 is gained.
    environment = Selection(
        thresholds=3,
        first_scores=(1, 1),
        second_scores=(2, 1),
        start=0.25,
        feedback=0.4,
        rate=0.5,
        tolerance=0.1,
        service=0.8,
        noise=0.0,
    )
    state, observation = environment.reset(KEY)
    assert float(state) == float(observation[0]) == 0.25
    after, step = environment.step(KEY, state, jnp.int32(1))
    np.testing.assert_allclose(step.reward, 0.25 * 0.125 + 0.75 * (7 / 12 - 3 / 8), rtol=1e-6)
    np.testing.assert_allclose(step.costs["parity"], 0.25 - 0.1, rtol=1e-6)
    np.testing.assert_allclose(step.costs["service"], 0.8 - (0.25 * 0.5 + 0.75 * 0.75), rtol=1e-6)
    # The target is 0.25 + 0.4 (0.5 - 0.75) = 0.15, and half of the way is gone.
    np.testing.assert_allclose([after, step.observation[0]], 0.2, rtol=1e-6)
    assert not step.terminated and not step.truncated and float(step.info["theta"]) == 0.5
    assert environment.spec.costs == COSTS == tuple(step.costs)


def test_under_a_fixed_threshold_every_population_settles_at_the_same_mix():
    environment = Selection(rate=0.2)
    step = jax.jit(lambda state: environment.step(KEY, state, jnp.int32(20))[0])
    low, high = jnp.float32(0.1), jnp.float32(0.9)
    for _ in range(60):
        following = step(low), step(high)
        np.testing.assert_allclose(following[1] - following[0], 0.8 * (high - low), atol=1e-6)
        low, high = following
    np.testing.assert_allclose([low, high], environment.target[20], atol=1e-5)


def test_what_is_observed_is_what_is_expected_with_noise():
    environment = Selection(noise=0.2)
    _, steps = jax.vmap(lambda key: environment.step(key, jnp.float32(0.3), jnp.int32(7)))(jax.random.split(KEY, 4000))
    reward, residuals = environment.expected(jnp.float32(0.3), jnp.int32(7))
    found = np.stack([steps.reward, *steps.costs.values()])
    np.testing.assert_allclose(found.mean(1), [reward, *residuals], atol=4 * 0.2 / np.sqrt(4000))
    np.testing.assert_allclose(np.cov(found), 0.04 * np.eye(3), atol=4e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thresholds": 1}, "thresholds=1: expected at least 2"),
        ({"first_scores": (1.0, 0.0)}, "first_scores"),
        ({"second_scores": (1.0,)}, "second_scores"),
        ({"start": 1.0}, "start=1.0: expected a share"),
        ({"rate": 0.0}, "rate=0.0"),
        ({"noise": -0.1}, "noise=-0.1: expected at least 0"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Selection(**arguments)
