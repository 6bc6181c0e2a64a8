"""A run that was stopped or prolonged ends as an uninterrupted run does, bit for bit."""

from __future__ import annotations

import pytest

from envs.hosts.jax import JaxHost
from experiments.assembly import registry
from experiments.assembly.build import build_environment
from experiments.configs._common import entry
from experiments.disk import read_json
from experiments.errors import UserError
from experiments.rows import environment_report, reading, run_folders
from experiments.training import train
from experiments.training.host_driver import HostDriver
from experiments.training.progress import Silent
from experiments.training.row_writer import RowWriter
from experiments.training.stopping import StopRequested
from tests.experiments import corridor


@pytest.fixture(autouse=True)
def source(monkeypatch):
    corridor.register(monkeypatch)


def trained(config, members, folder):
    programs = train.prepare_folder(folder, config, members)
    return train.train(config, "corridor", programs, folder, Silent(), StopRequested())


def recurrent():
    config = registry.load("ppo_cartpole:native,recurrent,smoke").config.copy_and_resolve_references().unlock()
    config.network.update({"hidden": (4,), "recurrent_size": 4})
    config.agent.update({"schedule": "constant", "epochs": 1, "minibatches": 1})
    config.data.update({"length": 4, "batch": 4})
    config.evaluators.episodes.update({"count": 2, "cut": 8})
    return config


def on_the_host():
    config = registry.load("ppo_cartpole:smoke").config.copy_and_resolve_references().unlock()
    config.network.hidden = (4,)
    config.agent.update({"schedule": "constant", "epochs": 1, "minibatches": 1})
    config.data.update({"length": 12, "batch": 4})
    config.evaluators.episodes.update({"count": 2, "cut": 8})
    return config


def replay_on_the_host():
    config = registry.load("dqn_cartpole:host,smoke").config.copy_and_resolve_references().unlock()
    config.network.hidden = (4,)
    config.agent.update({"learning_starts": 48, "batch_size": 8, "capacity": 160})
    config.data.update({"length": 12})
    config.evaluators.episodes.update({"count": 2, "cut": 8})
    return config


def frozen_lake():
    """Observations of 64 bits, which devices do not support."""
    config = on_the_host()
    config.environment.environment_id = "FrozenLake-v1"
    return config


def a_jax_host():
    config = corridor.with_critic()
    config.environment.kind = "corridor_host"
    config.network.recurrent_size = 4
    return config


def normalised():
    config = corridor.with_critic()
    config.network.normalise_observations = True
    config.agent.popart = True
    config.rewards.scaled = {"kind": "normalise"}
    config.rewards.scaled_by_return = {"kind": "normalise_by_return", "discount": 0.9}
    return config


def a_suite():
    """The state of a suite's environment, with an episode that is cut before the run is stopped and one after."""
    config = corridor.with_critic()
    config.environment = {"kind": "gymnax", "environment_id": "CartPole-v1", "time_limit": 6}
    return config


def curious(*names, **environment):
    """Curiosity rewards in addition to the reward, each with a value head that continues across episodes."""
    config = corridor.with_critic()
    if environment:
        config.environment = environment
    for name in names:
        config.credit[name] = entry("gae", name, 0.5, discount=0.9, gae_lambda=0.9, episodic=False)
        config.rewards[name] = CURIOSITIES[name] | {"channel": name}
    return config


def on_a_line():
    """Exact counts need a discrete observation. BYOL-Explore is BYOL-Hindsight without noise, with the same state."""
    return curious("cells", "sides", "inverse", kind="noisy_line", length=3, time_limit=6)


def constrained():
    """A controller of three terms that looks back two updates: its integral, its averages and the running totals."""
    config = corridor.with_critic()
    config.environment = {"kind": "random_model", "states": 3, "actions": 2, "successors": 2, "time_limit": 6}
    config.credit.cost = entry("gae", "cost/1", discount=0.9, gae_lambda=0.9)
    config.rewards.lagrangian = {
        "kind": "lagrangian",
        "constraints": {"cost": {"channel": "cost/1", "limit": 1.0}},
        "multiplier": {"kind": "pid", "smoothing": 0.5, "delay": 2},
        "smoothing": 0.5,
    }
    return config


def montezuma():
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    config = registry.load("curiosity_montezuma:rnd,smoke").config.copy_and_resolve_references().unlock()
    config.network.update({"channels": (2, 2), "strides": (4, 2), "hidden": (4,)})
    config.rewards.curiosity.update({"embedding_size": 4, "minibatches": 1, "updates": 1})
    config.agent.update({"schedule": "constant", "epochs": 1, "minibatches": 1})
    config.environment.time_limit = 10
    config.data.update({"length": 6, "batch": 2})
    config.evaluators.episodes.update({"count": 1, "cut": 4})
    return config


def smoke(name):
    name, _, variant = name.partition(":")
    tokens = ",".join(filter(None, (variant, "smoke")))
    return registry.load(f"{name}:{tokens}").config.copy_and_resolve_references().unlock()


SIZES = {"embedding_size": 4, "memory_size": 4, "hidden_size": 4, "latent_size": 2, "noise_size": 2, "horizon": 2}
CURIOSITIES = {
    "visits": {"kind": "count_bonus", "identify": "hash", "bits": 6, "episodic": True},
    "distillation": {"kind": "rnd", "embedding_size": 4},
    "latent": {"kind": "byol_hindsight", **SIZES},
    "cells": {"kind": "count_bonus", "identify": "exact"},
    "sides": {"kind": "count_bonus", "identify": "projection", "bits": 3},
    "inverse": {"kind": "icm", "embedding_size": 4},
    "blind": {"kind": "byol_explore", **SIZES},
}
RUNS = {
    "without a critic, two seeds": (corridor.without_critic, (0, 1)),
    "critic, normalised observations, values and rewards": (normalised, (0,)),
    "recurrent": (recurrent, (0,)),
    "policy form, frozen, scored before": (
        lambda: corridor.process(form="policy", reference="frozen", score="before"),
        (0,),
    ),
    "residual form, replay": (lambda: corridor.process(form="residual", replay=3, groups_per_update=1), (0,)),
    "centred form, replay, scored before": (
        lambda: corridor.process(form="centred", replay=3, updates=2, score="before"),
        (0,),
    ),
    "counts, distillation and hindsight, two seeds": (lambda: curious("visits", "distillation", "latent"), (0, 1)),
    "counts of the run, exact and projected, the inverse model": (on_a_line, (0,)),
    "prioritised replay, two seeds": (corridor.with_replay, (0, 1)),
    "replay on the host": (replay_on_the_host, (0,)),
    "Q(lambda) on unrolls, two seeds": (corridor.with_unrolls, (0, 1)),
    "host with a snapshot": (on_the_host, (0,)),
    "host with a snapshot, integer observations": (frozen_lake, (0,)),
    "pure environment as a host, recurrent": (a_jax_host, (0,)),
    "a suite's environment, two seeds": (a_suite, (0, 1)),
    "a constraint, two seeds": (constrained, (0, 1)),
    "Montezuma's Revenge": (montezuma, (0,)),
    "counts of a tabular agent, two seeds": (lambda: smoke("stepmix_tabular"), (0, 1)),
    "a bandit in a population that goes on": (lambda: smoke("ofs_threshold:primal_dual"), (0,)),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_prolonged_run_equals_the_uninterrupted_one(name, tmp_path, compiled_once):
    make, seeds = RUNS[name]
    members = corridor.members(*seeds)
    long = make()
    short = long.copy_and_resolve_references()
    short.iterations = 2
    whole = trained(long, members, tmp_path / "whole")
    first = trained(short, members, tmp_path / "parts")
    assert {row["iteration"] for row in first.rows} == {2} and first.resumed_from is None
    second = trained(long, members, tmp_path / "parts")
    assert (whole.finished, second.finished, second.resumed_from) == (True, True, 2)
    rows = corridor.rows_of(tmp_path / "parts")
    assert rows == corridor.rows_of(tmp_path / "whole")
    assert [row["iteration"] for row in rows] == [2] * len(seeds) + [4] * len(seeds)
    [make_driver] = compiled_once(long, build_environment(long), [members])
    driver = make_driver()
    template = driver.template()
    expected = corridor.checkpoint_of(tmp_path / "whole", template)
    found = corridor.checkpoint_of(tmp_path / "parts", template)
    assert (found.iteration, expected.iteration) == (4, 4)
    corridor.assert_same_arrays(found.state, expected.state)
    assert found.meta == expected.meta
    if isinstance(driver, HostDriver):
        # The environments continue in the same way, too.
        assert found.host is not None
        observation = [driver.resume(each.state, each.host, 4).rollout.observation for each in (found, expected)]
        corridor.assert_same_arrays(*observation)
    # The comparison is not trivial: the run changed the parameters.
    with pytest.raises(AssertionError):
        corridor.assert_same_arrays(driver.start().agent.params, expected.state.agent.params)


def test_rows_are_of_the_session_that_made_them(tmp_path, compiled_once, monkeypatch):
    config, members, folder = corridor.without_critic(), corridor.members(0, 1), tmp_path / "run"
    for iterations, commit in ((2, "a"), (2, "idle"), (4, "b")):
        monkeypatch.setattr(environment_report, "environment_report", lambda commit=commit: {"commit": commit})
        config.iterations = iterations
        trained(config, members, folder)
    assert read_json(folder / run_folders.ENVIRONMENT_FILE) == {
        "commit": "a",
        "continued": [{"first_row": 2, "commit": "b"}],
    }


@pytest.mark.parametrize("saved", [True, False])
def test_environments_that_cannot_be_saved_say_so_once(saved, tmp_path, compiled_once, monkeypatch, capsys):
    if not saved:
        monkeypatch.setattr(JaxHost, "snapshot", lambda self: None)
    config, members, folder = corridor.with_critic(), corridor.members(0, 1), tmp_path / "run"
    config.environment.kind = "corridor_host"
    config.iterations = 2
    trained(config, members, folder)
    assert "cannot be saved" not in capsys.readouterr().err
    config.iterations = 4
    trained(config, members, folder)
    lines = [line for line in capsys.readouterr().err.splitlines() if "cannot be saved" in line]
    assert lines == ([] if saved else ["these environments cannot be saved: they begin new episodes at iteration 2"])
    [session] = read_json(folder / run_folders.ENVIRONMENT_FILE)["continued"]
    assert session["first_row"] == 2 and session.get("resumed_exactly", True) == saved


def test_a_run_that_ended_between_two_evaluations_returns_to_their_rhythm(tmp_path, compiled_once):
    config = corridor.without_critic()
    for iterations in (1, 5):
        config.iterations = iterations
        trained(config, corridor.members(), tmp_path / "run")
    assert [row["iteration"] for row in corridor.rows_of(tmp_path / "run")] == [1, 2, 4, 5]


@pytest.mark.parametrize(
    ("make", "iterations"),
    [(corridor.without_critic, 2), (a_jax_host, 4)],
    ids=["scan driver, unfinished", "host driver, finished"],
)
def test_seeds_are_added_to_a_run_as_further_programs(make, iterations, tmp_path, compiled_once):
    config = make()
    config.iterations = iterations
    trained(config, corridor.members(1, 2), tmp_path / "run")
    before = corridor.rows_of(tmp_path / "run")
    config.iterations = 4
    outcome = trained(config, corridor.members(0, 1, 2, 3), tmp_path / "run")
    assert outcome.finished and outcome.resumed_from == iterations
    after = corridor.rows_of(tmp_path / "run")
    # Old seeds first, with the rows that they had; those of the new seeds are theirs in a run of their own.
    assert after[: len(before)] == before
    assert sorted({row["seed"] for row in after}) == [0, 1, 2, 3] and len(after) == 4 * 2
    trained(config, corridor.members(0, 3), tmp_path / "alone")
    assert [row for row in after if row["seed"] in (0, 3)] == corridor.rows_of(tmp_path / "alone")
    sizes = read_json(tmp_path / "run" / run_folders.CONFIG_FILE)["programs"]
    checkpoints = sorted(path.name for path in (tmp_path / "run" / train.CHECKPOINT_FOLDER).iterdir())
    assert sizes == [2, 2] and len(checkpoints) == (2 if make is corridor.without_critic else 4)
    # The same command again has nothing to do.
    assert trained(config, corridor.members(0, 1, 2, 3), tmp_path / "run").finished
    assert corridor.rows_of(tmp_path / "run") == after


def test_members_are_cut_into_programs_once(tmp_path):
    config, folder = corridor.without_critic(), tmp_path / "run"

    def seeds(members, **options):
        programs = train.prepare_folder(folder, config, corridor.members(*members), **options)
        return [[member.seed for member in program] for program in programs]

    assert seeds([0, 1, 2], members_per_program=2) == [[0, 1], [2]]
    assert seeds([0, 1, 2]) == [[0, 1], [2]]
    assert seeds([0, 1, 2, 3, 4, 5], members_per_program=1) == [[0, 1], [2], [3], [4], [5]]
    assert seeds([7], fresh=True) == [[7]]


@pytest.mark.parametrize(("key", "value"), [("schedule", "linear"), ("warmup", 0.5)])
def test_a_run_with_a_schedule_cannot_be_prolonged(tmp_path, key, value):
    config = corridor.without_critic()
    config.agent[key] = value
    train.prepare_folder(tmp_path / "run", config, corridor.members())
    config.iterations = 8
    with pytest.raises(UserError, match=r"iterations: 4 against 8.*--fresh"):
        train.prepare_folder(tmp_path / "run", config, corridor.members())


def test_other_seeds_and_other_settings_are_refused(tmp_path):
    config = corridor.without_critic()
    train.prepare_folder(tmp_path / "run", config, corridor.members(0, 1))
    with pytest.raises(UserError, match=r"other seeds or values: 2 seeds \[0, 1\]"):
        train.prepare_folder(tmp_path / "run", config, corridor.members(0))
    config.agent.clip = 0.1
    with pytest.raises(UserError, match=r"agent.clip: 0.2 against 0.1"):
        train.prepare_folder(tmp_path / "run", config, corridor.members(0, 1))


def test_a_run_that_is_being_written_is_not_removed(tmp_path):
    config, members, folder = corridor.without_critic(), corridor.members(), tmp_path / "run"
    train.prepare_folder(folder, config, members)
    with RowWriter(folder / run_folders.METRICS_FILE) as writer:
        writer.append({"seed": 0, "env_steps": 1, "iteration": 1})
        with pytest.raises(UserError, match=r"metrics.jsonl is being written by another run"):
            train.prepare_folder(folder, config, members, fresh=True)
    assert len(reading.read_rows(folder / run_folders.METRICS_FILE)) == 1
    train.prepare_folder(folder, config, members, fresh=True)
    assert not (folder / run_folders.METRICS_FILE).exists() and (folder / run_folders.CONFIG_FILE).exists()
