"""Rollouts of host environments: what the trajectory keeps."""

import tracemalloc

import gymnasium
import jax
import numpy as np
import pytest

from envs.base import EnvironmentSpec, TimeStep
from envs.host_rollout import episodes_host, start_host, unroll_host

IMAGE, ENVIRONMENTS, LIMIT = (64, 64, 4), 4, 50


class Pictures:
    """Environment i ends after ``10 (i + 1)`` steps; step t pays t, and every observation is a new random image."""

    num_envs = ENVIRONMENTS
    spec = EnvironmentSpec(gymnasium.spaces.Box(0, 255, IMAGE, np.uint8), gymnasium.spaces.Discrete(2))

    def reset(self, seed):
        self._clock, self._generator = 0, np.random.default_rng(seed)
        return self._image()

    def step(self, action):
        self._clock += 1
        image, none = self._image(), np.zeros(ENVIRONMENTS, bool)
        terminated = self._clock == 10 * (1 + np.arange(ENVIRONMENTS))
        return TimeStep(image, np.full(ENVIRONMENTS, self._clock, np.float32), {}, {}, terminated, none, image, {})

    def _image(self):
        return self._generator.integers(256, size=(ENVIRONMENTS, *IMAGE), dtype=np.uint8)


class Reusing(Pictures):
    """As ``Pictures``, but each call writes over the arrays that the last one returned."""

    def __init__(self):
        self._returned = {}

    def reset(self, seed):
        return self._same_array("image", super().reset(seed))

    def step(self, action):
        time_step = super().step(action)
        image = self._same_array("image", time_step.observation)
        parts = {name: self._same_array(name, getattr(time_step, name)) for name in ("reward", "terminated")}
        return time_step._replace(observation=image, final_observation=image, **parts)

    def _same_array(self, name, values):
        array = self._returned.setdefault(name, np.empty_like(values))
        array[...] = values
        return array


def policy(params, carry, observation, key, t):
    return np.full(ENVIRONMENTS, t % 2), {"memory": carry["memory"] + 1}, {}


CARRY = {"memory": np.zeros((ENVIRONMENTS, 3), np.float32)}


def roll(host=None, **arguments):
    settings = {"seeds": range(ENVIRONMENTS), "group_size": 1, "length": LIMIT, "initial_carry": CARRY}
    return episodes_host(host or Pictures(), policy, None, jax.random.key(0), **settings, **arguments)


def unroll(host):
    state, key = start_host(host, 0, CARRY), jax.random.key(0)
    trajectories = []
    for _ in range(2):
        state, trajectory = unroll_host(host, policy, None, state, key, length=8, initial_carry=CARRY)
        trajectories.append(trajectory)
    return trajectories


@pytest.mark.parametrize("collect", [roll, unroll])
def test_a_host_may_write_over_the_arrays_that_it_returned(collect):
    jax.tree.map(np.testing.assert_array_equal, collect(Reusing()), collect(Pictures()))


def test_statistics_need_no_observations():
    whole, lean = roll(), roll(observations=False)
    assert (
        whole.observation.shape == (LIMIT, ENVIRONMENTS, *IMAGE) and whole.extras["carry"]["memory"].shape[0] == LIMIT
    )
    assert lean.observation == lean.action == lean.next_observation == lean.extras["carry"] == ()
    whole.extras.pop("carry"), lean.extras.pop("carry")
    for name in ("rewards", "terminated", "truncated", "mask", "extras"):
        jax.tree.map(np.testing.assert_array_equal, getattr(lean, name), getattr(whole, name))


def test_the_padding_repeats_the_final_observation():
    trajectory = roll()
    for environment in range(ENVIRONMENTS):
        end = 10 * (environment + 1)
        assert trajectory.mask[:, environment].sum() == end and trajectory.terminated[end - 1, environment]
        final = trajectory.next_observation[end - 1, environment]
        assert all(np.array_equal(row, final) for row in trajectory.observation[end:, environment])


def test_without_observations_none_are_kept():
    roll(observations=False)
    tracemalloc.start()
    roll(observations=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # A few steps of them, not fifty.
    assert peak < LIMIT * ENVIRONMENTS * np.prod(IMAGE) / 5
