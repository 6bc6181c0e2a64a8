"""The host of pure environments, compared with the environment stepped by the documented keys."""

from dataclasses import dataclass
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.base import EnvironmentSpec, NonFiniteEnvironmentError, TimeStep, VectorHost
from envs.hosts.jax import JaxHost
from envs.wrappers import TimeLimit


class DriftState(NamedTuple):
    position: jax.Array
    key: jax.Array


@dataclass(frozen=True)
class Drift:
    """Starts and steps at random and keeps a key in its state. Action 1 ends the episode, action 2 makes NaN."""

    width: int = 1

    @property
    def spec(self):
        return EnvironmentSpec(
            gymnasium.spaces.Box(-np.inf, np.inf, (self.width,), np.float32),
            gymnasium.spaces.Discrete(3),
            costs=("drift",),
            info=("success",),
        )

    def reset(self, key):
        position = jax.random.normal(key, (self.width,))
        return DriftState(position, jax.random.fold_in(key, 1)), position

    def step(self, key, state, action):
        drift = jax.random.normal(key, (self.width,)) + jax.random.normal(state.key)
        position = jnp.where(action == 2, jnp.nan, state.position + drift)
        ended = action == 1
        return DriftState(position, state.key), TimeStep(
            observation=position,
            reward=drift[0],
            costs={"drift": jnp.abs(drift[0])},
            objectives={},
            terminated=ended,
            truncated=jnp.zeros((), bool),
            final_observation=position,
            info={"success": ended.astype(jnp.float32)},
        )


@pytest.fixture(scope="module")
def host():
    return JaxHost(Drift(), 3)


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_is_a_vector_host(host):
    assert isinstance(host, VectorHost)
    assert host.num_envs == 3 and host.spec.costs == ("drift",)
    host.close()


def test_keys_are_those_of_the_docstring_and_only_ended_environments_are_reset(host):
    environment = Drift()
    actions = np.array([[0, 0, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
    observation = host.reset(40)
    steps = [host.step(action) for action in actions]
    for index in range(3):
        environment_key, episode, t = jax.random.key(40 + index), 0, 0
        episode_key = jax.random.fold_in(environment_key, 0)
        state, expected = environment.reset(jax.random.fold_in(episode_key, 0))
        np.testing.assert_array_equal(observation[index], expected)
        for action, step in zip(actions[:, index], steps, strict=True):
            state, expected = environment.step(jax.random.fold_in(episode_key, t + 1), state, action)
            t += 1
            np.testing.assert_allclose(step.final_observation[index], expected.observation, rtol=1e-6)
            np.testing.assert_allclose(step.reward[index], expected.reward, rtol=1e-6)
            assert step.terminated[index] == (action == 1) == bool(step.info["success"][index])
            following = expected.observation
            if action == 1:
                episode, t = episode + 1, 0
                episode_key = jax.random.fold_in(environment_key, episode)
                state, following = environment.reset(jax.random.fold_in(episode_key, 0))
            np.testing.assert_allclose(step.observation[index], following, rtol=1e-6)


def test_returns_numpy(host):
    assert isinstance(host.reset(0), np.ndarray)
    step = host.step(np.zeros(3, int))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(step))


def test_truncation_is_not_termination_and_keeps_the_final_observation():
    host = JaxHost(TimeLimit(Drift(), 2), 2)
    host.reset(0)
    first = host.step(np.array([0, 1]))
    second = host.step(np.array([0, 0]))
    np.testing.assert_array_equal(first.terminated, [False, True])
    np.testing.assert_array_equal(second.terminated, [False, False])
    np.testing.assert_array_equal(second.truncated, [True, False])
    assert second.final_observation[0] != second.observation[0]
    np.testing.assert_allclose(second.final_observation[0], first.observation[0] + second.reward[0], rtol=1e-6)
    np.testing.assert_array_equal(second.final_observation[1], second.observation[1])


def test_a_sequence_seeds_each_environment_and_environments_do_not_depend_on_each_other(host):
    by_integer = host.reset(5)
    np.testing.assert_array_equal(host.reset([7, 6, 5]), by_integer[::-1])
    host.reset(5)
    together = host.step(np.array([0, 1, 0]))
    alone = JaxHost(Drift(), 1)
    alone.reset(7)
    np.testing.assert_array_equal(alone.step(np.array([0])).observation[0], together.observation[2])


def test_continuing_from_a_snapshot_equals_never_having_stopped(host):
    generator = np.random.default_rng(0)
    actions = generator.integers(2, size=(20, 3))
    host.reset(1)
    for action in actions[:10]:
        last = host.step(action)
    snapshot = host.snapshot()
    other = JaxHost(Drift(), 3)
    assert_same(other.restore(snapshot), last.observation)
    for action in actions[10:]:
        assert_same(other.step(action), host.step(action))


def test_the_second_step_compiles_nothing(host):
    host.reset(2)
    host.step(np.zeros(3, int))
    before = host._step._cache_size()
    host.step(np.ones(3, int))
    host.restore(host.snapshot())
    host.step(np.zeros(3, int))
    assert host._step._cache_size() == before


def test_bad_arguments_name_what_was_expected(host):
    with pytest.raises(TypeError, match="expected an Environment"):
        JaxHost("CartPole-v1", 2)
    with pytest.raises(ValueError, match="num_envs=0: expected at least 1"):
        JaxHost(Drift(), 0)
    fresh = JaxHost(Drift(), 2)
    with pytest.raises(RuntimeError, match="call reset first"):
        fresh.step(np.zeros(2, int))
    with pytest.raises(RuntimeError, match="call reset first"):
        fresh.snapshot()
    host.reset(0)
    for other in (fresh, JaxHost(Drift(width=2), 3)):
        with pytest.raises(ValueError, match="the snapshot is not of"):
            other.restore(host.snapshot())


def test_nan_names_environment_step_and_part(host):
    host.reset(0)
    host.step(np.array([0, 0, 0]))
    with pytest.raises(
        NonFiniteEnvironmentError, match=r"Drift\(width=1\): environment 1, step 2: observation\[0\] is nan"
    ):
        host.step(np.array([0, 2, 0]))
