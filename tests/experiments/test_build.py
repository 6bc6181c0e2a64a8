"""Worlds by name: the configuration of a world becomes the world, and what it refuses is a mistake of the user."""

import pytest
from ml_collections import ConfigDict

from envs.maze import SETTINGS, Maze
from envs.tabular import TabularWorld
from experiments.build import build_world
from experiments.errors import UserError


def build(**environment):
    return build_world(ConfigDict({"environment": environment}))


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_maze_by_name(setting):
    world = build(kind="maze", time_limit=500, reward="trackers", **SETTINGS[setting])
    assert world.environment.environment == Maze(reward="trackers", **SETTINGS[setting])
    assert world.spec.max_episode_steps == 500 and "coverage" in world.spec.info


def test_the_noisy_line_by_name():
    world = build(kind="noisy_line", length=4, bits=2, noise="always", probability=0.3, time_limit=50)
    assert isinstance(world.environment.environment, TabularWorld)
    assert world.spec.observation_space.n == 16 and world.spec.max_episode_steps == 50


def test_minigrid_by_name():
    pytest.importorskip("minigrid")
    world = build(kind="minigrid", task="DoorKey-8x8", messages=True)
    host = world.host(2)
    assert host.num_envs == 2 and host.spec.max_episode_steps == world.spec.max_episode_steps == 640
    host.close()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (dict(kind="mase", time_limit=9), "unknown environment kind 'mase'.*maze"),
        (dict(kind="maze", time_limit=0), "section 'environment': max_episode_steps=0"),
        (
            dict(kind="maze", time_limit=9, noise="brownien"),
            "section 'environment': unknown noise 'brownien'",
        ),
        (dict(kind="noisy_line", time_limit=9, bits=0), "section 'environment': bits=0"),
        (dict(kind="minigrid", task="DoorKey"), "section 'environment': unknown task 'DoorKey'.*DoorKey-8x8"),
    ],
)
def test_what_a_world_refuses_is_a_mistake_of_the_user(environment, message):
    with pytest.raises(UserError, match=message):
        build(**environment)
