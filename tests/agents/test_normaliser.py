"""Normalised observations: against numpy, in networks, and in what learns with them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from agents.base import DataSpec
from agents.credit import Credit, Entry
from agents.estimators import gae
from agents.networks.base import Head
from agents.networks.implicit_quantile import implicit_quantile_network
from agents.networks.normaliser import MOMENTS, observation_normaliser
from agents.networks.sequence import NetworkConfig, network
from agents.policy_gradient import policy_gradient
from agents.value_based import value_based
from envs.base import EnvironmentSpec, Transition
from rewards.process.implicit_prm import implicit_prm

KEY = jax.random.key(0)
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SPACE = spaces.Dict(
    camera=spaces.Box(0, 255, (4, 4, 3), np.uint8),
    room=spaces.Discrete(3),
    speed=spaces.Box(-np.inf, np.inf, (2,), np.float32),
    ticks=spaces.Box(0, 1000, (), np.int32),
)
NORMALISED = NetworkConfig(hidden=(4,), normalise_observations=True)
VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
SPEC = EnvironmentSpec(VECTOR, spaces.Discrete(2), max_episode_steps=4)


def observations(rng, length=5, batch=4):
    return {
        "camera": rng.integers(0, 256, (length, batch, 4, 4, 3)).astype(np.uint8),
        "room": rng.integers(0, 3, (length, batch)).astype(np.int32),
        "speed": rng.normal([100.0, -3.0], [10.0, 0.01], (length, batch, 2)).astype(np.float32),
        "ticks": rng.integers(0, 1000, (length, batch)).astype(np.int32),
    }


def test_numbers_are_normalised_and_images_and_choices_pass():
    rng, normaliser = np.random.default_rng(0), observation_normaliser(SPACE, limit=1.5)
    moments, seen = normaliser.init(), {"speed": [], "ticks": []}
    for _ in range(3):
        observation, mask = observations(rng), rng.random((5, 4)) < 0.7
        moments = normaliser.merge(moments, observation, jnp.asarray(mask, jnp.float32))
        for name, values in seen.items():
            values.append(observation[name][mask])
    camera, room, *numbers = normaliser.normalise(moments, observation)
    assert camera is observation["camera"] and room is observation["room"]
    for found, (name, values) in zip(numbers, seen.items(), strict=True):
        values = np.concatenate(values)
        expected = np.clip((observation[name] - values.mean(0)) / values.std(0), -1.5, 1.5)
        assert np.any(np.abs(expected) == 1.5)
        np.testing.assert_allclose(found, expected, atol=2e-2)
    assert [leaf.dtype for leaf in normaliser.space.spaces] == [np.uint8, np.int64, np.float32, np.float32]
    assert [leaf.shape for leaf in normaliser.space.spaces] == [(4, 4, 3), (), (2,), ()]


def test_before_the_first_observation_nothing_changes_and_a_constant_is_0():
    normaliser = observation_normaliser(VECTOR, limit=10.0)
    observation = jnp.full((2, 3, 3), 7.0)
    np.testing.assert_array_equal(normaliser.normalise(normaliser.init(), observation)[0], observation)
    moments = normaliser.merge(normaliser.init(), observation, jnp.ones((2, 3)))
    np.testing.assert_array_equal(normaliser.normalise(moments, observation)[0], np.zeros((2, 3, 3)))


def test_a_network_sees_what_the_normaliser_makes_and_learns_no_moments():
    rng, heads = np.random.default_rng(1), {"policy": Head(2)}
    made = network(SPACE, heads, NORMALISED)
    params, observation = made.init(KEY), observations(rng)
    params = made.observe(params, observation, jnp.ones((5, 4)))
    normaliser = observation_normaliser(SPACE, limit=10.0)
    plain = network(normaliser.space, heads, NetworkConfig(hidden=(4,)))
    weights = {name: part for name, part in params.items() if name != MOMENTS}
    assert jax.tree.map(jnp.shape, weights) == jax.tree.map(jnp.shape, plain.init(KEY))
    expected = plain.apply(weights, normaliser.normalise(params[MOMENTS], observation))[0]["policy"]
    np.testing.assert_allclose(made.apply(params, observation)[0]["policy"], expected, rtol=1e-6)
    gradient = jax.grad(lambda params: jnp.sum(made.apply(params, observation)[0]["policy"] ** 2))(params)
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient[MOMENTS]))
    assert gradient["dense_0"]["kernel"].any()
    flags = made.learned(params)
    assert not any(jax.tree.leaves(flags[MOMENTS])) and all(jax.tree.leaves(flags["dense_0"]))


def test_an_implicit_quantile_network_normalises_too():
    made = implicit_quantile_network(VECTOR, Head(2), NORMALISED)
    observation = jax.random.normal(KEY, (1, 6, 3)) * 50 + 1000
    fractions = jnp.full((1, 6, 4), 0.5)
    params = made.init(KEY)
    params = made.observe(params, observation, jnp.ones((1, 6)))
    shifted = made.observe(made.init(KEY), observation * 2 - 7, jnp.ones((1, 6)))
    # A linear change of the observations changes nothing.
    np.testing.assert_allclose(
        made.apply(params, observation, fractions), made.apply(shifted, observation * 2 - 7, fractions), rtol=1e-3
    )


def trajectory_of(rng, length, batch, extras):
    observation = rng.normal(100.0, 5.0, (length, batch, 3)).astype(np.float32)
    mask = (rng.random((length, batch)) < 0.8).astype(np.float32)
    trajectory = Transition(
        observation=observation,
        action=rng.integers(0, 2, (length, batch)).astype(np.int32),
        rewards={"env": rng.normal(size=(length, batch)).astype(np.float32)},
        terminated=np.zeros((length, batch), bool),
        truncated=np.zeros((length, batch), bool),
        next_observation=observation,
        mask=mask,
        extras=extras,
    )
    return jax.tree.map(jnp.asarray, trajectory)


def assert_moments(moments, trajectory):
    values = np.asarray(trajectory.observation)[np.asarray(trajectory.mask) > 0]
    assert moments.count == len(values)
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.std, values.std(0), rtol=1e-3)


def test_a_policy_learns_as_it_acted_and_observes_afterwards():
    data = DataSpec("unroll", 5, 4)
    credit = Credit({"env": Entry("env", gae(0.9, 0.9))})
    agent = policy_gradient(SPEC, credit=credit, data=data, network_config=NORMALISED, epochs=1)
    state = agent.init(KEY)
    trajectory = trajectory_of(np.random.default_rng(2), 5, 4, {"episode_start": jnp.zeros((5, 4), bool)})
    carry = agent.initial_carry(20)
    flat = trajectory.observation.reshape(20, 3)
    _, _, extras = agent.act(state.params, carry, flat, KEY, action=trajectory.action.reshape(20))
    extras = jax.tree.map(lambda x: x.reshape(5, 4, *x.shape[1:]), extras)
    trajectory = trajectory._replace(extras=trajectory.extras | extras)
    after, metrics = jit(agent.update)(state, trajectory, KEY)
    # The policy of the first step is the one that acted.
    np.testing.assert_allclose(metrics["approximate_kl"], 0.0, atol=1e-6)
    for part in ("policy", "critic"):
        assert_moments(after.params[part][MOMENTS][0], trajectory)
        assert state.params[part][MOMENTS][0].count == 0


@pytest.mark.parametrize("head", ["expected", "implicit_quantile"])
def test_both_networks_of_a_value_based_agent_keep_the_same_moments(head):
    agent = value_based(
        SPEC,
        data=DataSpec("replay", 5, 4),
        network_config=NORMALISED,
        head=head,
        quantiles=2,
        capacity=20,
        batch_size=4,
        learning_starts=1,
        discount=0.9,
        target_rate=0.1,
    )
    trajectory = trajectory_of(np.random.default_rng(3), 5, 4, {})
    after, metrics = jit(agent.update)(agent.init(KEY), trajectory, KEY)
    assert metrics["gradient_norm"] > 0
    for params in (after.params["online"], after.target):
        assert_moments(params[MOMENTS][0], trajectory)


def test_a_reward_model_starts_with_the_moments_of_the_policy_and_decays_none():
    data = DataSpec("episodes", 5, 4, 2)
    transform = implicit_prm(SPEC, data=data, network_config=NORMALISED, weight_decay=0.5, learning_rate=0.1, updates=2)
    rng = np.random.default_rng(4)
    trajectory = trajectory_of(rng, 5, 4, {"log_prob": jnp.zeros((5, 4)), "distribution": jnp.zeros((5, 4, 2))})
    policy = network(VECTOR, {"policy": Head(2, scale=0.01)}, NORMALISED)
    params = policy.observe(policy.init(KEY), trajectory.observation - 50, trajectory.mask)
    state = transform.init(KEY, policy_params=params)
    frozen = implicit_prm(
        SPEC, data=data, network_config=NORMALISED, weight_decay=0.5, learning_rate=0.1, updates=2, reference="frozen"
    )
    kept, _ = jit(frozen.update)(frozen.init(KEY, policy_params=params), trajectory, KEY)
    for one, other in zip(jax.tree.leaves(kept.params[MOMENTS]), jax.tree.leaves(params[MOMENTS]), strict=True):
        np.testing.assert_array_equal(one, other)
    after, _ = jit(transform.update)(state, trajectory, KEY)
    expected = policy.observe(params, trajectory.observation, trajectory.mask)[MOMENTS]
    for one, other in zip(jax.tree.leaves(after.params[MOMENTS]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_what_cannot_be_normalised_is_refused():
    with pytest.raises(ValueError, match=r"Discrete.*no Box but images: expected False"):
        network(spaces.Discrete(3), {"policy": Head(2)}, NORMALISED)
    with pytest.raises(ValueError, match=r"no Box but images"):
        network(spaces.Box(0, 255, (8, 8, 3), np.uint8), {"policy": Head(2)}, NORMALISED)
    with pytest.raises(ValueError, match=r"observation_limit=0.0: expected above 0"):
        NetworkConfig(observation_limit=0.0)
