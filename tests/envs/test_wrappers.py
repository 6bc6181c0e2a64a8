"""The time limit: when it truncates, and what it does not change."""

import gymnasium
import jax
import jax.numpy as jnp
import pytest

from envs.base import Environment
from envs.native.probes import ConstantReward, DelayedReward, TruncationProbe
from envs.native.sokoban import Sokoban
from envs.wrappers import TimeLimit

KEY = jax.random.key(0)


def ends(environment, num_steps):
    """``(terminated, truncated)`` of each of ``num_steps`` steps."""

    def step(state, action):
        state, timestep = environment.step(KEY, state, action)
        return state, (timestep.terminated, timestep.truncated)

    state, _ = environment.reset(KEY)
    _, (terminated, truncated) = jax.lax.scan(step, state, jnp.zeros(num_steps, jnp.int32))
    return terminated.tolist(), truncated.tolist()


def test_truncates_at_the_limit_only():
    # Walking up does not solve the room of this key.
    terminated, truncated = ends(TimeLimit(Sokoban(), 5), 5)
    assert terminated == [False] * 5
    assert truncated == [False, False, False, False, True]


def test_an_end_at_the_limit_is_terminated_not_truncated():
    assert ends(TimeLimit(DelayedReward(), 2), 2) == ([False, True], [False, False])
    assert ends(TimeLimit(DelayedReward(), 1), 1) == ([False], [True])


def test_a_truncation_inside_is_kept():
    assert ends(TimeLimit(TruncationProbe(length=2), 3), 3) == ([False] * 3, [False, True, True])


def test_spec_has_the_smaller_limit_and_the_rest_unchanged():
    inside = Sokoban()
    limited = TimeLimit(TimeLimit(inside, 7), 20)
    assert TimeLimit(inside, 20).spec.max_episode_steps == 20
    assert limited.spec.max_episode_steps == 7
    assert limited.spec.observation_space == inside.spec.observation_space
    assert limited.spec.action_space == gymnasium.spaces.Discrete(4)
    assert limited.spec.info == ("success",)
    assert isinstance(limited, Environment)


def test_a_key_names_the_same_room_with_and_without_the_limit():
    _, plain = Sokoban().reset(KEY)
    state, observation = TimeLimit(Sokoban(), 5).reset(KEY)
    assert (plain == observation).all()
    assert state.steps == 0


@pytest.mark.parametrize(("limit", "error"), [(0, ValueError), (-3, ValueError), (2.5, TypeError), (True, TypeError)])
def test_bad_limit(limit, error):
    with pytest.raises(error, match=f"max_episode_steps={limit}"):
        TimeLimit(ConstantReward(), limit)


def test_not_an_environment():
    with pytest.raises(TypeError, match="expected an Environment"):
        TimeLimit("sokoban", 5)
