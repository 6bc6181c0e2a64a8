"""Parts from outside of this repository, named by import path, trained by the command ``run``."""

import json

import pytest

from experiments.assembly import registry
from experiments.assembly.build import build_environment, build_parts
from experiments.commands import evaluate, run
from experiments.errors import UserError
from experiments.rows import reading
from tests.experiments import talking

PARTS = '''
from dataclasses import dataclass
from functools import cached_property

import gymnasium
import jax.numpy as jnp
import numpy as np

from agents.estimators import Estimate, Estimator
from envs.base import EnvironmentSpec, TimeStep
from rewards.base import RewardTransform
from rewards.catalogue import Kind


@dataclass(frozen=True)
class Clock:
    """Pays ``pay`` for every step, whatever the agent does; only a time limit ends it."""

    pay: float = 1.0

    @cached_property
    def spec(self):
        return EnvironmentSpec(gymnasium.spaces.Box(0, 1, (1,), np.float32), gymnasium.spaces.Discrete(2))

    def reset(self, key):
        return jnp.int32(0), jnp.zeros(1)

    def step(self, key, state, action):
        observation, off = jnp.zeros(1), jnp.zeros((), bool)
        return state + 1, TimeStep(observation, jnp.float32(self.pay), {}, {}, off, off, observation, {})


def doubled(*, times: float = 2.0, source: str = "env", channel: str = "doubled"):
    """``channel <- times * source``; its state counts the updates."""

    def init_fn(key, **extra):
        return jnp.float32(0)

    def apply_fn(state, trajectory, **extra):
        rewards = trajectory.rewards | {channel: times * trajectory.rewards[source]}
        return trajectory._replace(rewards=rewards), {"updates": state}

    def update_fn(state, trajectory, key, **extra):
        return state + 1, {}

    return RewardTransform(init_fn, apply_fn, update_fn)


DOUBLED = Kind(doubled, reads=("source",))


def every_other(*, size: float = 1.0):
    """``A_t = size * r_t`` in every other step, else 0."""

    def estimate(rewards, context):
        even = (jnp.arange(rewards.shape[0]) % 2 == 0)[:, None]
        return Estimate(size * rewards * even * context.mask)

    return Estimator(estimate)


def nothing():
    return None
'''


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A package of somebody else's."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "somebody").mkdir()
    (folder / "somebody" / "__init__.py").write_text("")
    (folder / "somebody" / "parts.py").write_text(PARTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield "somebody.parts"


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    overrides = {
        "environment.kind": f"{parts}:Clock",
        "environment.pay": "1.5",
        "environment.time_limit": "10",
        "rewards.own.kind": f"{parts}:DOUBLED",
        "rewards.own.times": "4",
        "credit.own.estimator": f"{parts}:every_other",
        "credit.own.channel": "doubled",
        "credit.own.size": "0.5",
        "credit.env": "none",
        "agent.whiten": "none",
        "network.hidden": "4",
    }
    arguments = ["ppo_cartpole:native,smoke", *(f"--config.{key}={value}" for key, value in overrides.items())]
    assert run.main([*arguments, f"--runs={runs}"]) == 0
    return runs


def test_an_environment_a_transform_and_an_estimator_are_trained(trained):
    rows = reading.read_runs(trained, "ppo_cartpole")
    assert [row["iteration"] for row in rows] == [2, 4]
    for row in rows:
        assert row["return"] == 15.0 and row["length"] == 10.0
        # The advantage is 0.5 * 4 * 1.5 = 3 in every other of 32 * 16 steps and else 0; one degree of freedom is off.
        assert row["agent/advantage_std"] == pytest.approx(1.5 * (512 / 511) ** 0.5)
    # Means over two iterations, after one and two, three and four updates.
    assert [row["reward/own/updates"] for row in rows] == [1.5, 3.5]


def test_a_run_folder_imports_nothing_that_is_not_trusted(trained, capsys, monkeypatch):
    [folder] = (trained / "ppo_cartpole").iterdir()
    assert evaluate.main([str(folder)]) == 2
    message = capsys.readouterr().err
    assert "would import and call every_other of somebody.parts" in message and "SAGAX_TRUST=somebody" in message
    monkeypatch.setenv("SAGAX_TRUST", "somebody")
    assert evaluate.main([str(folder), "--episodes=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["return"]["iqm"] == 15.0


def config_of(**overrides):
    loaded = registry.load("ppo_cartpole:native,smoke")
    return registry.apply_overrides(loaded.config, {key.replace("__", "."): one for key, one in overrides.items()})


def test_what_a_part_reads_must_be_there(parts):
    config = config_of(rewards__own__kind=f"{parts}:DOUBLED", rewards__own__source="evn", credit__own__estimator="gae")
    with pytest.raises(UserError, match=r"unknown reward channel 'evn' in rewards\.own, did you mean 'env'"):
        build_parts(config, build_environment(config).spec)


def test_what_a_part_reads_must_be_written_before_it(parts):
    config = config_of(
        rewards__first__kind=f"{parts}:DOUBLED",
        rewards__first__source="late",
        rewards__second__kind=f"{parts}:doubled",
        rewards__second__channel="late",
    )
    with pytest.raises(
        UserError, match=r"rewards\.first reads the channel 'late', which rewards\.second writes after it"
    ):
        build_parts(config, build_environment(config).spec)


def test_what_a_part_writes_must_be_read(parts):
    config = config_of(rewards__own__kind=f"{parts}:doubled")
    with pytest.raises(UserError, match=r"rewards\.own: nothing reads its channel 'doubled'"):
        build_parts(config, build_environment(config).spec)


def test_a_part_that_makes_something_else_is_refused(parts):
    config = config_of(rewards__own__kind=f"{parts}:nothing")
    with pytest.raises(UserError, match=r"'rewards\.own': .*:nothing returned NoneType, expected a RewardTransform"):
        build_parts(config, build_environment(config).spec)
    config = config_of(credit__own__estimator=f"{parts}:nothing")
    with pytest.raises(UserError, match=r"'credit\.own': .*:nothing returned NoneType, expected an Estimator"):
        build_parts(config, build_environment(config).spec)
    with pytest.raises(UserError, match="'environment': nothing returned NoneType, expected an Environment"):
        build_environment(config_of(environment__kind=f"{parts}:nothing", environment__time_limit="5"))


def test_a_host_environment_is_one_that_takes_num_envs():
    source = build_environment(config_of(environment__kind="tests.experiments.talking:TalkingHost"))
    host = source.host(3)
    assert source.pure is None and isinstance(host, talking.TalkingHost) and host.num_envs == 3
