"""A run that was stopped, killed or prolonged ends as the uninterrupted one does, bit for bit."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from envs.jax_host import JaxHost
from experiments import environment_report, registry, results, run, train
from experiments.build import build_world
from experiments.configs._common import entry
from experiments.disk import read_json
from experiments.drivers import HostDriver, HostPrograms, ScanDriver
from experiments.errors import UserError
from experiments.row_writer import RowWriter
from experiments.train import PROLONGABLE, StopRequested
from tests.experiments import corridor

KILLS = 20
KILLED_ITERATIONS = 80


@pytest.fixture(autouse=True)
def world(monkeypatch):
    corridor.register(monkeypatch)


class Quiet:
    """A reporter that shows nothing."""

    def resume(self, done):
        pass

    def update(self, done, row):
        pass


@pytest.fixture
def compiled_once(monkeypatch):
    """One set of compiled programs for all runs of one configuration; what holds state is made anew for each."""
    made = {}

    def shared(config, world, members, members_per_program=None, folder=None, sweep=False):
        assert not sweep
        identity = registry.fingerprint(config, PROLONGABLE), tuple(member.seed for member in members)
        if identity not in made and world.environment is None:
            made[identity] = HostPrograms(config, world.spec, {})
        elif identity not in made:
            made[identity] = ScanDriver(config, world, members)
        if world.environment is None:
            return [partial(HostDriver, config, world, member, folder, made[identity]) for member in members]
        # It holds no state but its compiled programs.
        return [lambda: made[identity]]

    monkeypatch.setattr(train, "drivers", shared)
    return shared


def trained(config, members, folder):
    train.prepare_folder(folder, config, members)
    return train.train(config, "corridor", members, folder, Quiet(), StopRequested())


def recurrent():
    config = registry.load("ppo_cartpole:native,recurrent,smoke").config.copy_and_resolve_references().unlock()
    config.network.update({"hidden": (4,), "recurrent_size": 4})
    config.agent.update({"anneal": False, "epochs": 1, "minibatches": 1})
    config.data.update({"length": 4, "batch": 4})
    config.evaluation.update({"episodes": 2, "length": 8})
    return config


def on_the_host():
    config = registry.load("ppo_cartpole:smoke").config.copy_and_resolve_references().unlock()
    config.network.hidden = (4,)
    config.agent.update({"anneal": False, "epochs": 1, "minibatches": 1})
    config.data.update({"length": 12, "batch": 4})
    config.evaluation.update({"episodes": 2, "length": 8})
    return config


def replay_on_the_host():
    config = registry.load("dqn_cartpole:host,smoke").config.copy_and_resolve_references().unlock()
    config.network.hidden = (4,)
    config.agent.update({"learning_starts": 48, "batch_size": 8, "capacity": 160})
    config.data.update({"length": 12})
    config.evaluation.update({"episodes": 2, "length": 8})
    return config


def frozen_lake():
    """Observations of 64 bits, which a device does not have."""
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
    config.rewards.scaled = {"kind": "normalise"}
    return config


def curious():
    """Curiosities of every kind of state beside the reward, each with a value head that does not end with episodes."""
    config = corridor.with_critic()
    for name, section in CURIOSITIES.items():
        config.credit[name] = entry("gae", name, 0.5, discount=0.9, trace=0.9, episodic=False)
        config.rewards[name] = section | {"channel": name}
    return config


SIZES = {"embedding_size": 4, "memory_size": 4, "hidden_size": 4, "latent_size": 2, "noise_size": 2, "horizon": 2}
CURIOSITIES = {
    "visits": {"kind": "count_bonus", "identify": "hash", "bits": 6, "episodic": True},
    "distillation": {"kind": "rnd", "embedding_size": 4},
    "latent": {"kind": "byol_hindsight", **SIZES},
}
RUNS = {
    "without a critic, two seeds": (corridor.without_critic, (0, 1)),
    "critic, normalised reward": (normalised, (0,)),
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
    "counts, distillation and hindsight, two seeds": (curious, (0, 1)),
    "prioritised replay, two seeds": (corridor.with_replay, (0, 1)),
    "replay on the host": (replay_on_the_host, (0,)),
    "host with a snapshot": (on_the_host, (0,)),
    "host with a snapshot, integer observations": (frozen_lake, (0,)),
    "pure world as a host, recurrent": (a_jax_host, (0,)),
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
    [make_driver] = compiled_once(long, build_world(long), members)
    driver = make_driver()
    template = driver.template()
    expected = corridor.checkpoint_of(tmp_path / "whole", template)
    found = corridor.checkpoint_of(tmp_path / "parts", template)
    assert (found.iteration, expected.iteration) == (4, 4)
    corridor.assert_same_arrays(found.state, expected.state)
    assert found.meta == expected.meta
    if isinstance(driver, HostDriver):
        # The worlds themselves go on alike too.
        assert found.host is not None
        observation = [driver.resume(each.state, each.host, 4).rollout.observation for each in (found, expected)]
        corridor.assert_same_arrays(*observation)
    # Not trivially: the run changed the parameters.
    with pytest.raises(AssertionError):
        corridor.assert_same_arrays(driver.start().agent.params, expected.state.agent.params)


def test_rows_are_of_the_session_that_made_them(tmp_path, compiled_once, monkeypatch):
    config, members, folder = corridor.without_critic(), corridor.members(0, 1), tmp_path / "run"
    for iterations, commit in ((2, "a"), (2, "idle"), (4, "b")):
        monkeypatch.setattr(environment_report, "environment_report", lambda commit=commit: {"commit": commit})
        config.iterations = iterations
        trained(config, members, folder)
    assert read_json(folder / results.ENVIRONMENT_FILE) == {
        "commit": "a",
        "continued": [{"first_row": 2, "commit": "b"}],
    }


@pytest.mark.parametrize("saved", [True, False])
def test_worlds_that_cannot_be_saved_say_so_once(saved, tmp_path, compiled_once, monkeypatch, capsys):
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
    assert lines == ([] if saved else ["these worlds cannot be saved: they begin new episodes at iteration 2"])
    [session] = read_json(folder / results.ENVIRONMENT_FILE)["continued"]
    assert session["first_row"] == 2 and session.get("resumed_exactly", True) == saved


def test_a_run_that_ended_between_two_evaluations_returns_to_their_rhythm(tmp_path, compiled_once):
    config = corridor.without_critic()
    for iterations in (1, 5):
        config.iterations = iterations
        trained(config, corridor.members(), tmp_path / "run")
    assert [row["iteration"] for row in corridor.rows_of(tmp_path / "run")] == [1, 2, 4, 5]


def test_an_annealed_run_cannot_be_prolonged(tmp_path):
    config = corridor.without_critic()
    config.agent.anneal = True
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
    with RowWriter(folder / results.METRICS_FILE) as writer:
        writer.append({"seed": 0, "env_steps": 1, "iteration": 1})
        with pytest.raises(UserError, match=r"metrics.jsonl is being written by another run"):
            train.prepare_folder(folder, config, members, fresh=True)
    assert len(results.read_rows(folder / results.METRICS_FILE)) == 1
    train.prepare_folder(folder, config, members, fresh=True)
    assert not (folder / results.METRICS_FILE).exists() and (folder / results.CONFIG_FILE).exists()


# Killed runs. A process that has imported everything, and has not started JAX's backend, is forked for each attempt:
# an attempt is a whole run of the command without the seconds of its imports.


def killed_config():
    config = corridor.with_critic()
    config.iterations, config.evaluate_every = KILLED_ITERATIONS, 1
    config.data.update({"length": 2, "batch": 2})
    config.evaluation.update({"episodes": 2, "length": 2})
    return config


def attempt(runs: str) -> int:
    """The command, in a forked child."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    run.enable_compilation_cache = lambda: None
    registry.load = lambda name: corridor.loaded(killed_config())
    patch = pytest.MonkeyPatch()
    corridor.register(patch)
    return run.main(["corridor", f"--runs={runs}", "--json"])


def wait_for_moment(process: int, folder: Path, moment: str, delay: float) -> int | None:
    """Waits for the moment in the life of ``process``; returns its status if it ended before."""
    rows = folder / "metrics.jsonl"
    before = rows.stat().st_mtime_ns if rows.exists() else 0

    def reached():
        if moment == "saving":
            return any(folder.glob("checkpoints/*/*tmp*"))
        if moment == "start" or not rows.exists():
            return moment == "start"
        return rows.stat().st_size > 0 and rows.stat().st_mtime_ns != before

    deadline = None
    while deadline is None or time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if deadline is None and reached():
            deadline = time.monotonic() + delay
        time.sleep(0.001 if deadline is None else max(0.0, min(0.002, deadline - time.monotonic())))
    return None


def serve() -> None:
    """Answers ``{"runs", "moment", "delay", "signal"}`` with ``{"status", "saving"}``, a line each."""
    for request in map(json.loads, sys.stdin):
        runs = request["runs"]
        folder = Path(runs) / "corridor" / "default"
        process = os.fork()
        if process == 0:
            status = 1
            with contextlib.suppress(SystemExit):
                log = os.open(f"{runs}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                for descriptor in (1, 2):
                    os.dup2(log, descriptor)
                status = attempt(runs)
            os._exit(status)
        status = None
        if request["moment"] is not None:
            status = wait_for_moment(process, folder, request["moment"], request["delay"])
            if status is None:
                os.kill(process, request["signal"])
        if status is None:
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        print(json.dumps({"status": status, "saving": any(folder.glob("checkpoints/*/*tmp*"))}), flush=True)


class Server:
    def __init__(self):
        # JAX's own cache would be written by the attempts alone: this process compiles nothing.
        root = Path(__file__).resolve().parents[2]
        environment = os.environ | {"PYTHONPATH": os.fspath(root)}
        command = [sys.executable, "-c", "from tests.experiments import test_resume; test_resume.serve()"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=root
        )

    def attempt(self, runs, moment=None, delay=0.0, number=signal.SIGKILL):
        request = {"runs": os.fspath(runs), "moment": moment, "delay": delay, "signal": int(number)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="module")
def server():
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="module")
def uninterrupted(server, tmp_path_factory):
    """The run folder of the run that nobody disturbed; its programs are in the compilation cache from here on."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    answer = server.attempt(runs)
    assert answer["status"] == 0, Path(f"{runs}.log").read_text()
    return runs / "corridor" / "default"


def assert_same_runs(folder, expected):
    rows = corridor.rows_of(folder)
    assert rows == corridor.rows_of(expected)
    assert [row["iteration"] for row in rows] == list(range(1, KILLED_ITERATIONS + 1))
    patch = pytest.MonkeyPatch()
    config = killed_config()
    with patch.context() as context:
        corridor.register(context)
        template = ScanDriver(config, build_world(config), corridor.members()).template()
    one, other = (corridor.checkpoint_of(each, template) for each in (folder, expected))
    assert one.iteration == other.iteration == KILLED_ITERATIONS
    corridor.assert_same_arrays(one.state, other.state)


def test_twenty_kills_change_nothing(server, uninterrupted, tmp_path):
    generator = random.Random(7)
    runs = tmp_path / "runs"
    folder = runs / "corridor" / "default"
    moments = ["start"] * 5 + ["row"] * 8 + ["saving"] * 7
    generator.shuffle(moments)
    # Starting takes a second, a chunk with its checkpoint a few hundredths, writing a checkpoint one.
    longest = {"start": 1.0, "row": 0.08, "saving": 0.02}
    answers, reached = [], []
    for moment in moments:
        answers.append(server.attempt(runs, moment, generator.uniform(0, longest[moment])))
        assert answers[-1]["status"] == -signal.SIGKILL, Path(f"{runs}.log").read_text()
        metrics = folder / "metrics.jsonl"
        # Whole lines only; a torn last one is dropped at the next start.
        reached.append(metrics.read_bytes().count(b"\n") if metrics.exists() else 0)
    assert len(answers) == KILLS
    # Nothing but the chunk in hand is lost: rows are taken back for the one checkpoint at most that was not saved.
    assert all(after >= before - 1 for before, after in itertools.pairwise(reached)), reached
    assert 0 < reached[-1] < KILLED_ITERATIONS
    # Some of them struck while a checkpoint was being written.
    assert any(answer["saving"] for answer in answers)
    assert server.attempt(runs)["status"] == 0, Path(f"{runs}.log").read_text()
    assert_same_runs(folder, uninterrupted)


def test_sigterm_saves_and_the_same_command_continues(server, uninterrupted, tmp_path):
    runs = tmp_path / "runs"
    folder = runs / "corridor" / "default"
    answer = server.attempt(runs, "row", 0.05, signal.SIGTERM)
    assert answer == {"status": 128 + signal.SIGTERM, "saving": False}
    log = Path(f"{runs}.log")
    assert "stopped by signal 15; the same command continues" in log.read_text()
    stopped = len(corridor.rows_of(folder))
    assert 0 < stopped < KILLED_ITERATIONS
    # Saved: the newest checkpoint is that of the newest row.
    assert (folder / "checkpoints" / "program_0" / str(stopped)).is_dir()
    assert server.attempt(runs)["status"] == 0, log.read_text()
    assert f'"resumed_from": {stopped}' in log.read_text()
    assert_same_runs(folder, uninterrupted)
