"""A pure environment that does not return what its spec says is refused before it is compiled into a run."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from envs.base import EnvironmentSpec, TimeStep
from envs.catalogue import ENVIRONMENTS
from experiments.assembly import registry
from experiments.assembly.build import build_environment
from experiments.assembly.checks import require_observations
from experiments.commands import run
from experiments.errors import UserError
from tests.experiments import corridor


@dataclass(frozen=True)
class Told:
    """Returns the observation ``first`` and then ``later``, whatever its space says."""

    space: spaces.Space
    first: object
    later: object
    changes: dict = field(default_factory=dict)

    @property
    def spec(self):
        return EnvironmentSpec(self.space, spaces.Discrete(2), max_episode_steps=4, costs=("energy",))

    def reset(self, key):
        return jnp.int32(0), self.first

    def step(self, key, state, action):
        zero, no = jnp.float32(0), jnp.bool_(False)
        made = TimeStep(self.later, zero, {"energy": zero}, {}, no, state >= 3, self.later, {})
        return state + 1, made._replace(**self.changes)


CHOICE = spaces.Discrete(3, start=-1)
PARTS = spaces.Dict({"a": CHOICE, "b": spaces.Box(-1, 1, (2,), np.float32)})
PAIR, BITS = spaces.MultiDiscrete([2, 5]), spaces.MultiBinary(3)


def integers(*values):
    return jnp.asarray(values, jnp.int32)


def parts(choice, size=2):
    return {"a": jnp.int32(choice), "b": jnp.full(size, 9.0)}


@pytest.mark.parametrize(
    ("space", "first", "later", "words"),
    [
        (CHOICE, jnp.int32(2), jnp.int32(0), r"step 0: observation is 2, expected -1 to 1, the values of Discrete"),
        (CHOICE, jnp.int32(0), jnp.int32(-2), r"step 1: observation is -2, expected -1 to 1"),
        (PARTS, parts(0), parts(7), r"step 1: observation\['a'\] is 7, expected -1 to 1"),
        (PAIR, integers(1, 4), integers(0, 5), r"step 1: observation\[1\] is 5, expected 0 to 4"),
        (BITS, integers(0, 1, 0), integers(0, 2, 0), r"step 1: observation\[1\] is 2, expected 0 to 1"),
        (PARTS, parts(0), parts(0, 3), r"observation of step has the shape .*'b': \(3,\)\}, expected .*'b': \(2,\)\}"),
        (PARTS, {"a": jnp.int32(0)}, parts(0), r"observation of reset has the shape \{'a': \(\)\}, expected"),
    ],
)
def test_an_observation_outside_of_its_space_is_refused(space, first, later, words, monkeypatch):
    monkeypatch.setitem(ENVIRONMENTS, "told", lambda: Told(space, first, later))
    config = corridor.base()
    config.environment = {"kind": "told"}
    with pytest.raises(UserError, match=rf"environment\.kind='told':.* {words}"):
        require_observations(config, build_environment(config))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward": jnp.zeros(1)}, r"reward of step has the shape \(1,\), expected one number"),
        ({"truncated": jnp.zeros((2, 1), bool)}, r"truncated of step has the shape \(2, 1\)"),
        ({"costs": {"energy": jnp.zeros(3)}}, r"energy of step has the shape \(3,\)"),
        ({"costs": {}}, r"step returns the costs \[\], expected those of the spec, \['energy'\]"),
        ({"objectives": {"x": jnp.float32(0)}}, r"step returns the objectives \['x'\]"),
        ({"final_observation": integers(1)}, r"the final_observation has the shape \(1,\), expected \(\)"),
    ],
)
def test_a_step_of_another_shape_is_refused(changes, words, monkeypatch):
    monkeypatch.setitem(ENVIRONMENTS, "told", lambda: Told(CHOICE, jnp.int32(0), jnp.int32(1), changes))
    config = corridor.base()
    config.environment = {"kind": "told"}
    with pytest.raises(UserError, match=words):
        require_observations(config, build_environment(config))


def test_a_run_is_refused_before_anything_is_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(ENVIRONMENTS, "told", lambda: Told(CHOICE, jnp.int32(0), jnp.int32(5)))
    config = corridor.without_critic()
    config.environment = {"kind": "told"}
    monkeypatch.setattr(registry, "load", lambda name: corridor.loaded(config))
    assert run.main(["corridor", f"--runs={tmp_path}"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: environment.kind='told': environment 0, step 1: observation is 5, expected -1 to 1")
    assert list(tmp_path.iterdir()) == []


OURS = (
    *("curiosity_maze:rnd,smoke", "eta_cliffwalking:smoke", "eta_gridworld:smoke", "iqn_breakout:smoke"),
    *("oprl_sokoban:smoke", "ppo_cartpole:native,smoke", "ppo_pendulum:native,smoke"),
)


@pytest.mark.parametrize("name", OURS)
def test_our_own_environments_return_what_they_say(name):
    config = registry.load(name).config
    source = build_environment(config)
    assert source.pure is not None
    require_observations(config, source)
