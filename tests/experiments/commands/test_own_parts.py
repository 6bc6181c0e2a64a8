"""Parts from outside of this repository, named by import path, trained by the command ``run``."""

import json

import jax
import jax.numpy as jnp
import pytest

from experiments.assembly import registry
from experiments.assembly.build import build_environment, build_parts
from experiments.assembly.ranges import validate
from experiments.commands import evaluate, run
from experiments.errors import UserError
from experiments.rows import reading, run_folders
from tests.experiments import corridor, talking

PARTS = '''
from dataclasses import dataclass
from functools import cached_property

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from agents.estimators import Estimate, Estimator
from agents.networks.base import Network
from agents.networks.encoders import feature_size, observation_features
from envs.base import EnvironmentSpec, TimeStep
from envs.kinds import Kind as NetworkKind
from envs.ranges import POSITIVE
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


@dataclass(frozen=True)
class Cosines:
    """outputs = cos(h) W with h = frequency x V, or h_t = decay h_{t-1} + frequency x_t V where there is a decay."""

    width: int = 8
    frequency: float = 1.0
    decay: float = 0.0

    def __post_init__(self):
        if self.decay >= 1:
            raise ValueError(f"decay={self.decay}: expected below 1")

    def __call__(self, observation_space, heads):
        size = feature_size(observation_space)

        def init(key):
            keys = iter(jax.random.split(key, 1 + len(heads)))
            params = {"inputs": jax.random.normal(next(keys), (size, self.width))}
            return params | {name: head.scale * jax.random.normal(next(keys), (self.width, head.size))
                             for name, head in heads.items()}

        def initial_carry(batch):
            return jnp.zeros((batch, self.width)) if self.decay else ()

        def apply(params, observation, carry=(), episode_start=None):
            x = self.frequency * observation_features(observation_space, observation) @ params["inputs"]
            if self.decay:
                start = jnp.zeros(x.shape[:2], bool) if episode_start is None else episode_start

                def step(h, inputs):
                    x, start = inputs
                    h = self.decay * jnp.where(start[:, None], 0.0, h) + x
                    return h, h

                carry, x = jax.lax.scan(step, carry, (x, start))
            return {name: jnp.cos(x) @ params[name] for name in heads}, carry

        return Network(init, apply, initial_carry, bool(self.decay))


COSINES = NetworkKind(Cosines, ranges={"frequency": POSITIVE})


def wrong(*, fault: str):
    """Cosines with one fault."""

    def build(observation_space, heads):
        made = Cosines()(observation_space, heads)
        if fault == "nothing":
            return None
        if fault == "head":
            return Cosines()(observation_space, {"policy": heads["policy"]})
        if fault == "integers":
            return made._replace(init=lambda key: {"size": jnp.int32(3)})
        if fault == "flag":
            return made._replace(recurrent=True)
        if fault == "axis":
            return made._replace(recurrent=True, initial_carry=lambda batch: jnp.zeros(8))
        if fault == "one":
            return made._replace(apply=lambda *inputs: made.apply(*inputs)[0])

        def apply(params, observation, carry=(), episode_start=None):
            outputs, _ = made.apply(params, observation, ())
            return {name: x[0] if fault == "shape" else x for name, x in outputs.items()}, jnp.zeros(3)

        return made._replace(apply=apply)

    return build


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
        "network.kind": f"{parts}:COSINES",
        "network.width": "4",
        "network.decay": "0.5",
    }
    arguments = ["ppo_cartpole:native,smoke", *(f"--config.{key}={value}" for key, value in overrides.items())]
    assert run.main([*arguments, f"--runs={runs}"]) == 0
    return runs


def test_an_environment_a_transform_an_estimator_and_a_network_are_trained(trained):
    rows = reading.read_runs(trained, "ppo_cartpole")
    assert [row["iteration"] for row in rows] == [2, 4]
    for row in rows:
        assert row["return"] == 15.0 and row["length"] == 10.0
        # The advantage is 0.5 * 4 * 1.5 = 3 in every other of 32 * 16 steps and else 0; one degree of freedom is off.
        assert row["agent/advantage_std"] == pytest.approx(1.5 * (512 / 511) ** 0.5)
        assert row["agent/gradient_norm"] > 0
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


def test_a_value_based_agent_trains_a_network(parts, tmp_path):
    overrides = {
        "environment.kind": "tests.experiments.corridor:Corridor",
        "network.kind": f"{parts}:Cosines",
        "network.width": 4,
        "agent.dueling": "true",
        "agent.learning_starts": 32,
        "agent.updates": 1,
        "data.length": 16,
    }
    arguments = ["dqn_cartpole:smoke", *(f"--config.{key}={value}" for key, value in overrides.items())]
    assert run.main([*arguments, f"--runs={tmp_path}"]) == 0
    rows = reading.read_runs(tmp_path, "dqn_cartpole")
    assert [row["iteration"] for row in rows] == [2, 4] and rows[-1]["agent/gradient_norm"] > 0
    [folder] = (tmp_path / "dqn_cartpole").iterdir()
    # Keys of the former kind that this one does not take are gone.
    assert run_folders.read_description(folder)["config"]["network"] == {"kind": f"{parts}:Cosines", "width": 4}


def agent_of(config):
    return build_parts(config, build_environment(config).spec).agent


def test_a_network_of_somebody_else_serves_policy_and_critics_and_may_carry_a_state(parts):
    agent = agent_of(config_of(network__kind=f"{parts}:Cosines", network__decay="0.9"))
    params = jax.eval_shape(lambda key: agent.init(key).params, jax.random.key(0))
    assert set(params["policy"]) == {"inputs", "policy"} and set(params["critic"]) == {"inputs", "env"}
    assert jax.tree.map(jnp.shape, agent.initial_carry(3)) == {"policy": (3, 8), "critic": (3, 8)}


def test_the_kind_of_a_network_need_not_be_said():
    # Run folders and rows from before there were kinds have none.
    plain, said = config_of(), config_of(network__kind="sequence")
    assert said.network.to_dict() == plain.network.to_dict() | {"kind": "sequence"} != plain.network.to_dict()
    source = build_environment(plain)
    for config in (plain, said):
        params = jax.eval_shape(build_parts(config, source.spec).agent.init, jax.random.key(0)).params
        assert set(params["policy"]) == {"dense_0", "dense_1", "head_policy"}
    with pytest.raises(UserError, match="unknown network kind 'sequenze', did you mean 'sequence'"):
        config_of(network__kind="sequenze")


def test_the_implicit_process_reward_is_a_network_of_the_kind_that_the_policy_is(parts):
    config = registry.apply_overrides(corridor.process(), {"network.kind": f"{parts}:Cosines", "network.width": 3})
    _, reward, _ = build_parts(config, corridor.Corridor().spec)
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(reward.init, jax.random.key(0))["implicit_prm"].params)
    assert shapes == {"inputs": (2, 3), "policy": (3, 2)}


def test_keys_of_a_network_are_those_of_its_kind(parts):
    with pytest.raises(UserError, match=r"'network\.frequenzy', did you mean 'network\.frequency'"):
        config_of(network__kind=f"{parts}:COSINES", network__frequenzy="2")
    with pytest.raises(UserError, match=r"'network\.hidden'.*known to '.*:COSINES': network\.kind, network\.width"):
        config_of(network__kind=f"{parts}:COSINES", network__hidden="4")
    with pytest.raises(UserError, match=r"'network\.width'"):
        config_of(network__width="4")
    with pytest.raises(UserError, match=r"'network\.frequency' got 0\.0, expected above 0"):
        validate(config_of(network__kind=f"{parts}:COSINES", network__frequency="0"))
    with pytest.raises(UserError, match=r"'network': decay=2\.0: expected below 1"):
        agent_of(config_of(network__kind=f"{parts}:Cosines", network__decay="2"))


def test_what_makes_networks_of_its_own_refuses_other_kinds(parts):
    kind = f"{parts}:Cosines"
    for head, decay, message in (
        ("implicit_quantile", "0", "head='implicit_quantile' makes networks of its own, got network.kind='.*:Cosines'"),
        ("quantile", "0.5", "value_based is feed-forward, got network.kind='.*:Cosines' with a carry"),
    ):
        loaded = registry.load("dqn_cartpole:smoke")
        changes = {"network.kind": kind, "network.decay": decay, "agent.head": head}
        with pytest.raises(UserError, match=message):
            agent_of(registry.apply_overrides(loaded.config, changes))
    for reward in ("icm", "rnd", "byol_explore"):
        with pytest.raises(UserError, match=r"'rewards\.own': .* makes networks .*: expected network\.kind='sequence'"):
            agent_of(config_of(network__kind=kind, rewards__own__kind=reward))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nothing", "what is built is NoneType, expected agents.networks.base.Network"),
        ("head", r"apply returned the heads \['policy'\], expected \['env', 'policy'\]"),
        ("integers", r"parameter \['size'\] is int32\[\], expected floats"),
        ("flag", r"recurrent=True, initial_carry\(3\) is \(\): expected \(\) without a carry"),
        ("axis", r"initial_carry\(3\) is float32\[8\], expected 3 as the first size of every array"),
        ("one", r"apply returned dict, expected \(outputs by head, carry\)"),
        ("shape", r"head 'policy' is float32\[3, 2\], expected \[T, B, size\] = \[2, 3, 2\]"),
        ("carry", r"apply returned the carry float32\[3\], expected \(\) as it was given"),
    ],
)
def test_a_network_that_breaks_the_contract_is_refused(parts, fault, message):
    shared = "true" if fault == "head" else "false"
    config = config_of(network__kind=f"{parts}:wrong", network__fault=fault, agent__shared_critic=shared)
    with pytest.raises(UserError, match=f"configuration section 'network': {message}"):
        agent_of(config)


def test_a_network_factory_that_makes_something_else_is_refused(parts):
    with pytest.raises(UserError, match=r"'network': .*:nothing returned NoneType, expected a function \(observ"):
        agent_of(config_of(network__kind=f"{parts}:nothing"))
