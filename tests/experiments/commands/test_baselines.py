"""Another library's agent on a sagax experiment: its settings, the rows that are kept, and bad input."""

import json
import os
import sys

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from envs.host_rollout import episodes_host
from envs.hosts.gymnasium import GymnasiumHost
from experiments.assembly import registry
from experiments.benchmarks import baselines as library_agents
from experiments.benchmarks.baseline_learning import evaluate
from experiments.benchmarks.baselines import evaluation_seeds
from experiments.commands import baselines as baselines
from experiments.errors import UserError
from experiments.rows import collecting, reading, run_folders, summary

# Replaces a baseline: it returns its settings and appends the seed to a file, or fails for seed 9.
STAND_IN = """#!{python}
import json, sys
flag, script, job = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
assert flag == "-P" and script.endswith("baseline_learning.py")
if job["seed"] == 9:
    sys.exit("nine is too many")
with open({calls!r}, "a") as file:
    file.write(json.dumps(job) + "\\n")
print(json.dumps({{"torch": "2"}}))
for steps in range(job["evaluate_every"], job["steps"] + 1, job["evaluate_every"]):
    print(json.dumps({{"env_steps": steps, "return": float(steps + job["seed"]), "length": 3.0}}))
"""


@pytest.fixture
def stand_in(tmp_path):
    """``(arguments...) -> status`` of the command with a stand-in for the baseline, and the jobs it was given."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(STAND_IN.format(python=sys.executable, calls=str(calls)))
    python.chmod(0o755)

    def run(*arguments):
        return baselines.main([*arguments, f"--baseline-python={python}", f"--runs={tmp_path / 'runs'}"])

    run.jobs = lambda: [json.loads(line) for line in calls.read_text().splitlines()]
    run.runs = tmp_path / "runs"
    return run


def test_a_baseline_gets_the_experiments_steps_and_its_own_settings(stand_in):
    assert stand_in("dqn_cartpole:sb3_qrdqn") == 0
    [job] = stand_in.jobs()
    config = registry.load("dqn_cartpole").config
    assert job["environment_id"] == "CartPole-v1" and job["seed"] == 0 and job["baseline"] == "sb3_qrdqn"
    assert job["steps"] == 49_152 == config.iterations * config.data.length * config.data.batch
    assert job["evaluate_every"] == 2048
    assert job["episodes"] == len(job["evaluation_seeds"]) == config.evaluators.episodes.count and job["length"] == 500
    assert job["settings"]["n_quantiles"] == 10 and job["settings"]["net_arch"] == [256, 256]
    rows = reading.read_runs(stand_in.runs, "dqn_cartpole")
    assert [row["env_steps"] for row in rows] == list(range(2048, 49_153, 2048))
    assert {row["variant"] for row in rows} == {"sb3_qrdqn"}
    environment = json.loads((stand_in.runs / "dqn_cartpole" / "sb3_qrdqn" / "environment.json").read_text())
    assert environment["versions"] == {"torch": "2"}


def test_other_settings_of_a_baseline_are_filed_apart(stand_in):
    assert stand_in("dqn_cartpole:sb3_dqn,tuned") == 0
    [job] = stand_in.jobs()
    documented = registry.module_of("dqn_cartpole").BASELINES["sb3_dqn"]
    assert job["baseline"] == "sb3_dqn"
    assert job["settings"] == registry.to_json_dict(documented | {"n_steps": 10})
    assert {row["variant"] for row in reading.read_runs(stand_in.runs, "dqn_cartpole")} == {"sb3_dqn,tuned"}


def test_a_baseline_on_a_variant_and_on_sampled_actions(stand_in):
    pytest.importorskip("mujoco")
    assert stand_in("ppo_mujoco:sbx_ppo,hopper") == 0
    [job] = stand_in.jobs()
    assert (job["environment_id"], job["baseline"], job["greedy"]) == ("Hopper-v5", "sbx_ppo", False)
    assert job["settings"]["normalise"] is True and job["length"] == 1000
    assert {row["variant"] for row in reading.read_runs(stand_in.runs, "ppo_mujoco")} == {"sbx_ppo,hopper"}


def test_a_tuned_baseline_has_the_steps_of_the_tuned_variant(stand_in):
    pytest.importorskip("mujoco")
    assert stand_in("ppo_mujoco:sb3_ppo,hopper,tuned") == 0
    [job] = stand_in.jobs()
    config = registry.load("ppo_mujoco:hopper,tuned").config
    assert (job["environment_id"], job["steps"]) == ("Hopper-v5", config.iterations * 512)
    assert job["settings"]["n_steps"] == 512 == config.data.length * config.data.batch
    assert job["settings"]["net_arch"] == [256, 256]


def test_the_same_command_runs_the_seeds_that_are_missing(stand_in, tmp_path):
    assert stand_in("dqn_cartpole:sb3_dqn", "--seeds=3", "--limit=2", "--jobs=2") == 0
    assert sorted(job["seed"] for job in stand_in.jobs()) == [0, 1]
    assert stand_in("dqn_cartpole:sb3_dqn", "--seeds=3") == 0
    assert [job["seed"] for job in stand_in.jobs()][2:] == [2]
    out = tmp_path / "rows.jsonl"
    assert collecting.collect([stand_in.runs / "dqn_cartpole" / "sb3_dqn"], out) == 3 * 24
    [answer] = summary.summarise(reading.read_rows(out), "return", threshold=4096.0)
    assert answer["seeds"] == 3 and answer["final"]["iqm"] == 49_152 + 1
    # Linear from 2048 + seed to 4096 + seed: the threshold is passed as many steps earlier as the seed says.
    assert answer["steps_to_threshold"]["iqm"] == 4096 - 1


def test_the_grid_is_filed_point_by_point(stand_in):
    assert stand_in("dqn_cartpole:sb3_dqn", "--sweep", "--first-seed=100") == 0
    grid = registry.module_of("dqn_cartpole").get_baseline_sweep()
    points = {(job["settings"]["learning_rate"], job["settings"]["n_steps"]) for job in stand_in.jobs()}
    assert points == {(rate, steps) for rate in grid["learning_rate"] for steps in grid["n_steps"]}
    assert {job["seed"] for job in stand_in.jobs()} == {100}
    variants = reading.variants_of(reading.read_runs(stand_in.runs, "dqn_cartpole"))
    assert "sb3_dqn+sweep+learning_rate=0.001+n_steps=10" in variants and len(variants) == len(points)


def refused(capsys, status):
    assert status == 2
    [message] = capsys.readouterr().err.splitlines()
    return message


def test_mistakes(stand_in, capsys, tmp_path, monkeypatch):
    assert "unknown baseline 'sb3_dqm' of 'dqn_cartpole', did you mean 'sb3_dqn'" in refused(
        capsys, stand_in("dqn_cartpole:sb3_dqm")
    )
    assert "unknown baseline 'sb3_dqn' of 'ppo_pendulum'" in refused(capsys, stand_in("ppo_pendulum:sb3_dqn"))
    assert "--limit=0: expected at least 1" in refused(capsys, stand_in("dqn_cartpole:sb3_dqn", "--limit=0"))
    assert "--first-seed=-1: expected at least 0" in refused(
        capsys, stand_in("dqn_cartpole:sb3_dqn", "--first-seed=-1")
    )
    failed = refused(capsys, stand_in("dqn_cartpole:sb3_dqn", "--first-seed=9"))
    assert "the baseline 'sb3_dqn' failed: nine is too many" in failed
    nowhere = tmp_path / "nowhere"
    message = refused(
        capsys, baselines.main(["dqn_cartpole:sb3_dqn", f"--baseline-python={nowhere}", f"--runs={tmp_path}"])
    )
    assert f"cannot start {nowhere}: {os.strerror(2)}; expected a Python interpreter" in message
    # Rows of other settings are never continued.
    assert stand_in("dqn_cartpole:sb3_dqn") == 0
    capsys.readouterr()
    changed = registry.module_of("dqn_cartpole").BASELINES["sb3_dqn"] | {"gamma": 0.5}
    monkeypatch.setitem(registry.module_of("dqn_cartpole").BASELINES, "sb3_dqn", changed)
    assert "settings.gamma: 0.99 against 0.5" in refused(capsys, stand_in("dqn_cartpole:sb3_dqn", "--seeds=2"))


@pytest.mark.parametrize(
    "answer",
    ["", "hello", "[1]", '{"torch": "2"}', '{}\n{"env_steps": 3}', '{}\n{"env_steps": "x", "return": 1}', "{}\n[]"],
)
def test_an_interpreter_that_answers_something_else_is_one_line(answer, tmp_path, capsys):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
    python.chmod(0o755)
    arguments = ["dqn_cartpole:sb3_dqn", f"--baseline-python={python}", f"--runs={tmp_path / 'runs'}"]
    message = refused(capsys, baselines.main(arguments))
    said = answer.splitlines()[0] if answer else ""
    assert f"{python} answered {said!r}: expected the interpreter that has 'sb3_dqn' installed" in message
    assert not list(tmp_path.rglob(run_folders.METRICS_FILE))


def test_an_experiment_without_a_grid_for_baselines(stand_in, capsys, monkeypatch):
    monkeypatch.delattr(registry.module_of("dqn_cartpole"), "get_baseline_sweep")
    message = refused(capsys, stand_in("dqn_cartpole:sb3_dqn", "--sweep"))
    assert "--sweep: experiment 'dqn_cartpole' has no get_baseline_sweep()" in message


def test_an_environment_that_is_not_gymnasiums_has_no_baseline():
    with pytest.raises(UserError, match=r"environment.kind='sokoban'"):
        library_agents.environment_id(registry.load("oprl_sokoban").config)
    assert library_agents.environment_id(registry.load("qrdqn_lunarlander").config) == "LunarLander-v3"


class Balancer:
    """Pushes the cart towards the side to which the pole falls; the methods are those of stable-baselines3.

    Args:
      scale: what observations are divided by before it sees them; 0 for no normalisation.
      deterministic: what it expects to be asked for.
    """

    def __init__(self, scale=0.0, deterministic=True):
        self.scale, self.deterministic = scale, deterministic

    def predict(self, observation, deterministic):
        assert deterministic == self.deterministic
        return (observation[:, 2] > 0).astype(np.int64), None

    def get_vec_normalize_env(self):
        return self if self.scale else None

    def normalize_obs(self, observation):
        return observation / self.scale


def test_a_baseline_is_evaluated_as_sagax_evaluates_its_agents():
    episodes, length = 6, 40
    seeds = evaluation_seeds(0, episodes)
    environments = [lambda: gymnasium.make("CartPole-v1")] * episodes
    vector = SyncVectorEnv(environments, autoreset_mode=AutoresetMode.SAME_STEP)
    theirs = evaluate(Balancer(), vector, seeds, length)

    def policy(params, carry, observation, key, t):
        return Balancer().predict(observation, True)[0], carry, {}

    host = GymnasiumHost("CartPole-v1", episodes)
    trajectory = episodes_host(
        host, policy, (), jax.random.key(0), seeds=seeds, group_size=1, length=length, initial_carry=()
    )
    # Some episodes fall before the limit and some do not, and each counts once.
    ends = trajectory.mask.sum(axis=0)
    assert ends.min() < length <= ends.max()
    assert theirs == {"return": trajectory.rewards["env"].sum() / episodes, "length": ends.mean()}
    # Upside down, the policy falls at once: it saw what the normaliser made of the observations.
    inverted = evaluate(Balancer(-1.0, deterministic=False), vector, seeds, length, greedy=False)
    assert inverted["return"] < theirs["return"] - 10
