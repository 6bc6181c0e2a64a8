"""Environments by name: the configuration of an environment becomes the environment, and what it refuses is a mistake
of the user."""

import chex
import jax
import pytest
from ml_collections import ConfigDict

from envs.native.maze import SETTINGS, Maze
from envs.native.tabular import TabularEnvironment
from experiments.assembly import registry
from experiments.assembly.build import build_environment, build_parts
from experiments.configs._common import choose_curiosity, entry, policy_gradient_config
from experiments.errors import UserError
from rewards.base import stateless
from rewards.catalogue import INTRINSIC_CREDIT, REWARDS, Kind


def build(**environment):
    return build_environment(ConfigDict({"environment": environment}))


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_maze_by_name(setting):
    source = build(kind="maze", time_limit=500, reward="trackers", **SETTINGS[setting])
    assert source.pure.environment == Maze(reward="trackers", **SETTINGS[setting])
    assert source.spec.max_episode_steps == 500 and "coverage" in source.spec.info


def test_wrappers_by_name_in_the_order_of_their_names():
    stack, limit = {"kind": "frame_stack", "stack_size": 4}, {"kind": "time_limit", "max_episode_steps": 7}
    source = build(kind="gymnasium", environment_id="CartPole-v1", wrappers={"b": limit, "a": stack})
    assert source.spec.observation_space.shape == (4, 4) and source.spec.max_episode_steps == 7
    own = {"kind": "gymnasium.wrappers:TimeAwareObservation", "normalize_time": True}
    source = build(kind="gymnasium", environment_id="CartPole-v1", wrappers={"own": own})
    assert source.spec.observation_space.shape == (5,)
    for section, message in (
        ({"kind": "frame_stack"}, r"'environment.wrappers.a' lacks 'stack_size'"),
        ({"kind": "frame_stack", "size": 2}, r"'environment.wrappers.a': unknown key 'size'"),
        ({"kind": "grayscale"}, r"wrapper 'a': GrayscaleObservation\(\) refuses"),
        ({"kind": "gymnasium.wrappers:NormalizeReward"}, r"expected a reward transform of kind normalise_by_return"),
    ):
        with pytest.raises(UserError, match=message):
            build(kind="gymnasium", environment_id="CartPole-v1", wrappers={"a": section})


def test_the_noisy_line_by_name():
    source = build(kind="noisy_line", length=4, bits=2, noise="always", probability=0.3, time_limit=50)
    assert isinstance(source.pure.environment, TabularEnvironment)
    assert source.spec.observation_space.n == 16 and source.spec.max_episode_steps == 50


def test_a_table_of_gymnasium_keeps_its_own_time_limit_unless_told():
    for arguments, limit in (({}, 100), ({"time_limit": None}, 100), ({"time_limit": 7}, 7)):
        source = build(kind="gymnasium_table", environment_id="FrozenLake-v1", **arguments)
        assert source.spec.max_episode_steps == limit


def test_minigrid_by_name():
    pytest.importorskip("minigrid")
    source = build(kind="minigrid", task="DoorKey-8x8", messages=True)
    host = source.host(2)
    assert host.num_envs == 2 and host.spec.max_episode_steps == source.spec.max_episode_steps == 640
    host.close()


def test_a_transform_without_a_channel_is_built(monkeypatch):
    monkeypatch.setitem(REWARDS, "nothing", Kind(lambda: stateless(lambda trajectory: trajectory)))
    loaded = registry.load("ppo_pendulum:smoke").config.copy_and_resolve_references()
    with loaded.unlocked():
        loaded.rewards.env = {"kind": "nothing"}
    parts = build_parts(loaded, build_environment(loaded).spec)
    assert parts.reward.init(jax.random.key(0)) is not None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (dict(kind="mase", time_limit=9), "unknown environment kind 'mase'.*maze"),
        (dict(kind="maze", time_limit=0), "section 'environment': time_limit=0: expected an integer, at least 1"),
        (dict(kind="maze", time_limit="long"), "section 'environment': time_limit='long': expected an integer"),
        (dict(kind="gymnasium_table", environment_id="CliffWalking-v1", time_limit=0), "time_limit=0: expected an int"),
        (
            dict(kind="maze"),
            "^configuration section 'environment' lacks 'time_limit': .* no limit of its own; expected a",
        ),
        (
            dict(kind="maze", time_limit=9, height=8),
            r"^configuration section 'environment': unknown key 'height', did you mean '\w+'\? \(known: noise, ",
        ),
        (
            dict(kind="gymnasium", time_limit=9),
            "section 'environment': unknown key 'time_limit', did you mean .*make_kw",
        ),
        (dict(kind="gymnasium"), "section 'environment' lacks 'environment_id'"),
        ({}, "unknown environment kind None, did you mean"),
        (
            dict(kind="maze", time_limit=9, noise="brownien"),
            "section 'environment': unknown noise 'brownien'",
        ),
        (
            dict(kind="gymnasium_table", environment_id="FrozenLake-v1", time_limit=0),
            "section 'environment': time_limit=0: expected an integer, at least 1",
        ),
        (dict(kind="noisy_line", time_limit=9, bits=0), "section 'environment': bits=0"),
        (dict(kind="minigrid", task="DoorKey"), "section 'environment': unknown task 'DoorKey'.*DoorKey-8x8"),
    ],
)
def test_a_refusal_of_an_environment_is_a_user_error(environment, message):
    with pytest.raises(UserError, match=message):
        build(**environment)


def in_the_maze(**rewards):
    """A configuration in which somebody added ``rewards`` and nothing else, and the environment's spec."""
    config = policy_gradient_config()
    config.environment, config.credit.env = (
        {"kind": "maze", "time_limit": 9},
        entry("gae", discount=0.99, gae_lambda=0.95),
    )
    config.rewards = rewards
    return config, build_environment(config).spec


def test_a_curiosity_is_one_line():
    config, spec = in_the_maze(curiosity={"kind": "rnd"})
    short = build_parts(config, spec).agent.init(jax.random.key(0))
    config.credit.curiosity = entry("gae", "curiosity", 1.0, discount=0.99, gae_lambda=0.95, episodic=False)
    chex.assert_trees_all_equal(short, build_parts(config, spec).agent.init(jax.random.key(0)))


def test_the_credit_of_a_curiosity_is_that_of_the_experiments_with_one():
    config = policy_gradient_config()
    choose_curiosity(config, ["rnd"], "rnd")
    assert config.credit.curiosity.to_dict() == {"channel": "curiosity", **INTRINSIC_CREDIT}


def test_a_channel_that_nothing_reads_is_refused():
    with pytest.raises(UserError, match=r"rewards\.env: nothing reads its channel 'curiosity'"):
        build_parts(*in_the_maze(env={"kind": "rnd"}))
    config = registry.load("oprl_sokoban:oprl").config
    [name] = [name for name, section in config.credit.items() if section.channel == "implicit_prm"]
    with config.unlocked():
        del config.credit[name]
    message = "nothing reads its channel 'implicit_prm': expected an entry of credit with channel='implicit_prm'"
    with pytest.raises(UserError, match=message):
        build_parts(config, build_environment(config).spec)


def test_a_value_based_agent_says_which_channels_it_adds_up():
    config = registry.load("dqn_cartpole").config
    config.rewards = {"curiosity": {"kind": "count_bonus", "identify": "hash"}}
    with pytest.raises(UserError, match=r"nothing reads its channel 'curiosity': expected .* agent.channels.curiosity"):
        build_parts(config, build_environment(config).spec)
