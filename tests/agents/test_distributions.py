"""Action distributions against numpy, quadrature and enumeration."""

import itertools
import math

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from agents.distributions import (
    LOG_STD_MAX,
    LOG_STD_MIN,
    categorical,
    distribution_for,
    gaussian,
    multi_categorical,
    tanh_gaussian,
)
from envs.base import UnsupportedSpaceError

KEY = jax.random.key(0)
LOGITS = jnp.log(jnp.array([0.5, 0.25, 0.25]))


def test_categorical_by_hand():
    d = categorical(3)
    assert (d.num_parameters, d.num_free) == (3, 0)
    # A shift of the logits is the same distribution.
    for logits in (LOGITS, LOGITS + 7.0):
        np.testing.assert_allclose(d.log_prob(logits, jnp.array(1)), math.log(0.25), rtol=1e-6)
        np.testing.assert_allclose(d.entropy(logits), 1.5 * math.log(2), rtol=1e-6)
        assert d.mode(logits) == 0
    assert d.mode(LOGITS).dtype == jnp.int32


def test_categorical_samples_follow_the_probabilities():
    samples = categorical(3).sample(KEY, jnp.broadcast_to(LOGITS, (40_000, 3)))
    assert samples.shape == (40_000,) and samples.dtype == jnp.int32
    share = np.bincount(samples, minlength=3) / 40_000
    # Four standard errors of a relative frequency.
    np.testing.assert_allclose(share, [0.5, 0.25, 0.25], atol=4 * math.sqrt(0.25 / 40_000))


def test_a_masked_action_has_probability_zero_and_gives_no_nan():
    d = categorical(3)
    logits = jnp.array([0.0, 1.0, -jnp.inf])
    p = np.exp([0.0, 1.0]) / np.exp([0.0, 1.0]).sum()
    np.testing.assert_allclose(d.entropy(logits), -(p * np.log(p)).sum(), rtol=1e-6)
    np.testing.assert_allclose(d.log_prob(logits, 1), np.log(p[1]), rtol=1e-6)
    assert d.log_prob(logits, 2) == -jnp.inf
    # d log p(1) / d logits = onehot(1) - p; d H / d logit_i = -p_i (log p_i + H).
    np.testing.assert_allclose(jax.grad(d.log_prob)(logits, 1), [-p[0], 1 - p[1], 0], rtol=1e-5)
    expected = -p * (np.log(p) - (p * np.log(p)).sum())
    np.testing.assert_allclose(jax.grad(d.entropy)(logits), [*expected, 0], rtol=1e-5)
    assert (d.sample(KEY, jnp.broadcast_to(logits, (1000, 3))) < 2).all()


def test_multi_categorical_is_the_product_of_its_parts():
    d = multi_categorical((2, 3))
    parameters = jax.random.normal(KEY, (5,))
    p, q = (np.asarray(jax.nn.softmax(part)) for part in (parameters[:2], parameters[2:]))
    actions = np.array(list(itertools.product(range(2), range(3))))
    log_prob = d.log_prob(jnp.broadcast_to(parameters, (6, 5)), jnp.asarray(actions))
    np.testing.assert_allclose(np.exp(log_prob), np.outer(p, q).reshape(-1), rtol=1e-5)
    np.testing.assert_allclose(d.entropy(parameters), -(np.exp(log_prob) * log_prob).sum(), rtol=1e-5)
    np.testing.assert_array_equal(d.mode(parameters), [p.argmax(), q.argmax()])
    samples = np.asarray(d.sample(KEY, jnp.broadcast_to(parameters, (20_000, 5))))
    counts = np.bincount(samples @ np.array([3, 1]), minlength=6) / 20_000
    np.testing.assert_allclose(counts, np.outer(p, q).reshape(-1), atol=4 * math.sqrt(0.25 / 20_000))


def test_gaussian_by_hand():
    d = gaussian(2)
    assert (d.num_parameters, d.num_free) == (4, 2)
    assert gaussian(2, state_dependent_std=True).num_free == 0
    parameters = jnp.array([1.0, -1.0, 0.0, math.log(2.0)])
    # N(1, 1) at 2 and N(-1, 4) at -1.
    expected = -0.5 - 0.5 * math.log(2 * math.pi) - math.log(2) - 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(d.log_prob(parameters, jnp.array([2.0, -1.0])), expected, rtol=1e-6)
    np.testing.assert_allclose(d.entropy(parameters), math.log(2 * math.pi * math.e) + math.log(2), rtol=1e-6)
    np.testing.assert_array_equal(d.mode(parameters), [1.0, -1.0])
    samples = np.asarray(d.sample(KEY, jnp.broadcast_to(parameters, (40_000, 4))))
    np.testing.assert_allclose(samples.mean(0), [1, -1], atol=4 * 2 / 200)
    np.testing.assert_allclose(samples.std(0), [1, 2], rtol=4 / math.sqrt(2 * 40_000))


@pytest.mark.parametrize(("given", "used"), [(-50.0, LOG_STD_MIN), (50.0, LOG_STD_MAX)])
def test_the_log_standard_deviation_is_clipped(given, used):
    entropy = gaussian(1).entropy(jnp.array([0.0, given]))
    np.testing.assert_allclose(entropy, used + 0.5 * math.log(2 * math.pi * math.e), rtol=1e-6)


MEAN_AND_LOG_STD = [(0.0, -2.0), (0.5, 0.0), (-1.0, 0.5), (3.0, 1.0), (0.5, 2.0)]


@pytest.mark.parametrize(("mean", "log_std"), MEAN_AND_LOG_STD)
def test_tanh_gaussian_density_and_entropy_by_quadrature(mean, log_std):
    d = tanh_gaussian(np.array([-1.0]), np.array([3.0]))
    parameters = jnp.array([mean, log_std])
    # Integrated over x with a = low + (high - low) (tanh(x) + 1) / 2, where the float32 density can follow.
    x = np.linspace(-6.5, 6.5, 40_001)
    actions = jnp.asarray(1 + 2 * np.tanh(x), jnp.float32)[:, None]
    log_density = np.asarray(d.log_prob(jnp.broadcast_to(parameters, (x.size, 2)), actions), np.float64)
    jacobian = 2 * (1 - np.tanh(x) ** 2)
    std = math.exp(log_std)

    def normal_cdf(value):
        return 0.5 * (1 + math.erf((value - mean) / (std * math.sqrt(2))))

    inside = normal_cdf(6.5) - normal_cdf(-6.5)
    np.testing.assert_allclose(np.trapezoid(np.exp(log_density) * jacobian, x), inside, rtol=2e-3)
    # -E log p(a) = H(N) + E log |da/dx|, the expectation over the whole line in float64.
    z = np.linspace(-9, 9, 200_001)
    weight = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    y = mean + std * z
    log_derivative = math.log(2) + 2 * (math.log(2) - y - np.logaddexp(0, -2 * y))
    entropy = log_std + 0.5 * math.log(2 * math.pi * math.e) + np.trapezoid(weight * log_derivative, z)
    np.testing.assert_allclose(d.entropy(parameters), entropy, atol=2e-4)


def test_tanh_gaussian_samples_stay_inside_and_agree_with_the_entropy():
    d = tanh_gaussian(np.array([-1.0, 0.0]), np.array([3.0, 1.0]))
    parameters = jnp.array([0.5, -0.5, -1.0, 0.0])
    samples = d.sample(KEY, jnp.broadcast_to(parameters, (40_000, 4)))
    assert samples.shape == (40_000, 2)
    assert ((samples > jnp.array([-1.0, 0.0])) & (samples < jnp.array([3.0, 1.0]))).all()
    log_prob = np.asarray(d.log_prob(jnp.broadcast_to(parameters, (40_000, 4)), samples))
    np.testing.assert_allclose(-log_prob.mean(), d.entropy(parameters), atol=4 * log_prob.std() / 200)
    np.testing.assert_allclose(d.mode(parameters), [1 + 2 * np.tanh(0.5), 0.5 + 0.5 * np.tanh(-0.5)], rtol=1e-6)


def test_tanh_gaussian_is_finite_at_the_bounds():
    d = tanh_gaussian(np.array([-1.0]), np.array([1.0]))
    value, gradient = jax.value_and_grad(d.log_prob)(jnp.array([0.0, 0.0]), jnp.array([1.0]))
    assert np.isfinite(value) and np.isfinite(gradient).all()


JOINTS = {
    "dict": spaces.Dict(
        z=spaces.Discrete(3), a=spaces.Box(-1, 1, (2,), np.float32), m=spaces.MultiDiscrete(np.array([2, 2]))
    ),
    "tuple": spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32))),
}


@pytest.mark.parametrize("space", JOINTS.values(), ids=JOINTS)
def test_a_joint_is_the_product_of_its_parts(space):
    d = distribution_for(space)
    parts = dict(sorted(space.spaces.items())) if isinstance(space, spaces.Dict) else dict(enumerate(space.spaces))
    # Parameters lie one part after the other; a Box has a mean and a log standard deviation per number.
    own = {
        name: gaussian(2, state_dependent_std=True) if isinstance(part, spaces.Box) else distribution_for(part)
        for name, part in parts.items()
    }
    assert d.num_parameters == sum(part.num_parameters for part in own.values())
    assert d.num_free == 0
    parameters = jax.random.normal(KEY, (4, d.num_parameters))
    action = d.sample(jax.random.key(1), parameters)
    assert jax.tree.structure(action) == jax.tree.structure(
        dict.fromkeys(parts, 0) if isinstance(space, spaces.Dict) else (0,) * len(parts)
    )
    mode = d.mode(parameters)
    log_prob, entropy, offset = np.zeros(4), np.zeros(4), 0
    for name, part in own.items():
        piece = parameters[:, offset : offset + part.num_parameters]
        log_prob += part.log_prob(piece, action[name])
        entropy += part.entropy(piece)
        np.testing.assert_array_equal(mode[name], part.mode(piece))
        assert action[name].shape == (4, *parts[name].shape)
        offset += part.num_parameters
    np.testing.assert_allclose(d.log_prob(parameters, action), log_prob, rtol=1e-5)
    np.testing.assert_allclose(d.entropy(parameters), entropy, rtol=1e-5)


def test_parts_of_a_joint_draw_from_different_keys():
    d = distribution_for(spaces.Tuple((spaces.Discrete(64), spaces.Discrete(64))))
    first, second = d.sample(KEY, jnp.zeros((100, 128)))
    assert (first != second).mean() > 0.9


@pytest.mark.parametrize(
    ("space", "number"),
    [
        (spaces.Discrete(4), 4),
        (spaces.MultiDiscrete(np.array([2, 3])), 5),
        (spaces.Box(-1, 1, (3,), np.float32), 6),
    ],
)
def test_the_distribution_of_a_space(space, number):
    assert distribution_for(space).num_parameters == number


UNSUPPORTED = {
    "nested": spaces.Dict(a=spaces.Dict(b=spaces.Discrete(2))),
    "nested tuple": spaces.Tuple((spaces.Discrete(2), spaces.Tuple((spaces.Discrete(2),)))),
    "empty": spaces.Dict(),
    "two-dimensional": spaces.Box(-1, 1, (2, 2), np.float32),
    "integers": spaces.Box(0, 5, (2,), np.int32),
    "multi-dimensional choices": spaces.MultiDiscrete(np.array([[2, 2], [2, 2]])),
    "binary": spaces.MultiBinary(3),
    "text": spaces.Text(5),
    "a bad part": spaces.Tuple((spaces.Discrete(2), spaces.Box(-1, 1, (2, 2), np.float32))),
}


@pytest.mark.parametrize("space", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_other_spaces_are_refused_by_name(space: gymnasium.Space):
    with pytest.raises(UnsupportedSpaceError, match=r"(?s)no action distribution for .*: expected Discrete"):
        distribution_for(space)


@pytest.mark.parametrize("continuous", ["gaussian", "tanh_gaussian"])
def test_a_component_without_room_is_constant(continuous):
    locked = spaces.Box(np.array([-1, 0.5, -2], np.float32), np.array([1, 0.5, 2], np.float32))
    free = spaces.Box(locked.low[[0, 2]], locked.high[[0, 2]])
    whole, inner = (distribution_for(space, continuous=continuous) for space in (locked, free))
    assert (whole.num_parameters, whole.num_free) == (inner.num_parameters, inner.num_free)
    parameters = jnp.array([[0.3, -0.2, 0.1, -0.4], [0.0, 0.5, -1.0, 0.2]])
    action = whole.sample(KEY, parameters)
    np.testing.assert_array_equal(action[:, 1], 0.5)
    np.testing.assert_array_equal(action[:, [0, 2]], inner.sample(KEY, parameters))
    np.testing.assert_array_equal(whole.mode(parameters)[:, 1], 0.5)
    np.testing.assert_array_equal(whole.log_prob(parameters, action), inner.log_prob(parameters, action[:, [0, 2]]))
    np.testing.assert_array_equal(whole.entropy(parameters), inner.entropy(parameters))
    gradient = jax.grad(lambda x: jnp.sum(whole.log_prob(x, action) + whole.entropy(x)))(parameters)
    assert jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize(
    ("continuous", "free"), [("gaussian", 2), ("state_dependent_gaussian", 0), ("tanh_gaussian", 0)]
)
def test_a_gaussian_starts_with_the_deviation_that_it_is_given(continuous, free):
    space = spaces.Box(-1, 1, (2,), np.float32)
    plain, made = (distribution_for(space, continuous=continuous, initial_std=std) for std in (1.0, 0.25))
    assert (made.num_parameters, made.num_free) == (4, free)
    start, moved = jnp.array([0.5, -0.5, 0.0, 0.0]), jnp.array([0.5, -0.5, np.log(0.25), np.log(0.25)])
    action = plain.sample(KEY, moved)
    np.testing.assert_allclose(made.sample(KEY, start), action, rtol=1e-6)
    np.testing.assert_allclose(made.mode(start), plain.mode(moved), rtol=1e-6)
    np.testing.assert_allclose(made.log_prob(start, action), plain.log_prob(moved, action), rtol=1e-5)
    np.testing.assert_allclose(made.entropy(start), plain.entropy(moved), rtol=1e-5)
    # Other actions have no deviation to start with.
    assert distribution_for(spaces.Discrete(3), initial_std=0.25).num_parameters == 3
    traced = jax.jit(lambda std: distribution_for(space, continuous=continuous, initial_std=std).entropy(start))
    np.testing.assert_allclose(traced(0.25), made.entropy(start), rtol=1e-6)


def test_a_part_of_a_joint_may_have_a_constant_component():
    box = spaces.Box(np.array([0, -1], np.float32), np.array([0, 1], np.float32))
    joint = distribution_for(spaces.Dict(arm=box, grip=spaces.Discrete(3)))
    assert (joint.num_parameters, joint.num_free) == (2 + 3, 0)
    action = joint.sample(KEY, jnp.zeros((4, 5)))
    np.testing.assert_array_equal(action["arm"][:, 0], 0)
    assert jnp.all(jnp.isfinite(joint.log_prob(jnp.zeros((4, 5)), action)))


def test_a_box_of_constants_leaves_nothing_to_choose():
    with pytest.raises(UnsupportedSpaceError, match="low equals high in every component"):
        distribution_for(spaces.Box(np.ones(2, np.float32), np.ones(2, np.float32)))


@pytest.mark.parametrize(
    ("space", "nearest"),
    [
        (spaces.MultiBinary(3), r"MultiDiscrete\(\[2\] \* 3\)"),
        (spaces.Box(0, 9, (2,), np.int32), "MultiDiscrete with one choice per value"),
        (spaces.Box(-1, 1, (2, 3), np.float32), "a flat Box of 6 components"),
        (spaces.MultiDiscrete(np.full((2, 2), 3)), "a flat MultiDiscrete of 4 choices"),
        (spaces.Dict(a=spaces.Dict(b=spaces.Discrete(2))), "one Dict or Tuple, without Dicts"),
    ],
    ids=str,
)
def test_a_refusal_names_the_nearest_space(space, nearest):
    with pytest.raises(UnsupportedSpaceError, match=f"the nearest: {nearest}"):
        distribution_for(space)


def test_an_unknown_continuous_distribution_is_refused():
    with pytest.raises(ValueError, match=r"unknown continuous 'beta', did you mean .*known: gaussian, state_\w+"):
        distribution_for(spaces.Discrete(2), continuous="beta")


def test_tanh_gaussian_needs_bounds():
    with pytest.raises(ValueError, match="needs a bounded Box"):
        distribution_for(spaces.Box(-np.inf, np.inf, (1,), np.float32), continuous="tanh_gaussian")
    assert distribution_for(spaces.Box(-1, 1, (1,), np.float32), continuous="tanh_gaussian").num_parameters == 2
