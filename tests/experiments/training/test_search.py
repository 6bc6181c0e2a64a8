"""Searches: what is drawn, what is counted after kills and by several processes, what is pruned and refused."""

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.assembly import registry
from experiments.commands import sweep
from experiments.errors import UserError
from experiments.rows import reading, run_folders
from experiments.training import search as searches
from experiments.training import search_journal, sweeps
from experiments.training.row_writer import RowWriter
from experiments.training.search import Range, Settings, points_of, run_trials, search
from tests.experiments import corridor

RANDOM = Settings("random", 6, 3, False, "return", "final")
RATE = "agent.learning_rate"


def made_of(runs, settings=RANDOM, grid=None):
    """A search over the corridor, whose environment is registered."""
    loaded = corridor.loaded(corridor.with_critic())
    grid = grid or {RATE: ["1e-3:1e-1:log"]}
    return search(loaded, loaded.config, {}, grid, settings, 1, 0, os.fspath(runs))


def score(rate):
    """The best learning rate is 0.01."""
    return -abs(math.log10(rate) + 2)


class Trainer:
    """In place of ``run_job``: two evaluations, of which the second has the ``score`` of the learning rate."""

    def __init__(self, before=lambda trained: None):
        self.trained, self._before = [], before

    def __call__(self, plan, index, *, fresh, title, watch, **settings):
        [job] = plan.jobs
        [member] = job.members
        self.trained.append(member.variant)
        self._before(self)
        with RowWriter(job.folder / run_folders.METRICS_FILE, {"experiment": plan.name}) as writer:
            there = len(writer.rows())
            for iteration in range(there + 1, 3):
                value = score(member.values[RATE]) - (2 - iteration)
                row = {"variant": member.variant, "seed": 0, "env_steps": iteration, "iteration": iteration}
                writer.append(row | {"return": value})
                if watch(iteration, {"return": value}):
                    return 128
        return 0


@pytest.fixture
def registered(monkeypatch):
    corridor.register(monkeypatch)
    # Which keys can be traced is compiled for, and tested elsewhere.
    monkeypatch.setattr(searches, "is_traceable", lambda config, source, key, values: key == RATE)


def trials_of(made):
    return searches.open_study(made).get_trials()


def rates(made):
    return [trial.params[RATE] for trial in trials_of(made)]


def test_a_random_search_depends_on_its_seed_alone(registered, monkeypatch, tmp_path):
    monkeypatch.setattr(searches, "run_job", Trainer())
    made = [made_of(tmp_path / name, RANDOM._replace(seed=seed)) for name, seed in (("a", 3), ("b", 3), ("c", 4))]
    for each in made:
        assert run_trials(each) == 0
    first, again, other = map(rates, made)
    assert first == again and len(set(first)) == 6 and not set(first) & set(other)
    assert all(1e-3 <= rate <= 1e-1 for rate in first)
    # What is told is the score of the point, whose value is the drawn one to four digits.
    for trial in trials_of(made[0]):
        assert trial.value == pytest.approx(score(float(f"{trial.params[RATE]:.4g}")), abs=1e-12)
    # The same command trains nothing, and more trials go on from there.
    trainer = Trainer()
    monkeypatch.setattr(searches, "run_job", trainer)
    assert run_trials(made[0]) == 0 and trainer.trained == []
    longer = made_of(tmp_path / "a", RANDOM._replace(trials=8))
    assert run_trials(longer) == 0 and len(trainer.trained) == 2 and rates(longer)[:6] == first


def test_tpe_draws_by_what_it_was_told(registered, monkeypatch, tmp_path):
    monkeypatch.setattr(searches, "run_job", Trainer())
    tpe = RANDOM._replace(kind="tpe")
    made = [made_of(tmp_path / name, tpe._replace(trials=trials)) for name, trials in (("a", 24), ("b", 12))]
    for each in made:
        assert run_trials(each) == 0
    assert rates(made[0])[:12] == rates(made[1])
    # The first ten are random; what follows is nearer to the best.
    distances = [abs(math.log10(rate) + 2) for rate in rates(made[0])]
    assert sum(distances[14:]) / 10 < sum(distances[:10]) / 10 / 2


class Killed(BaseException):
    """What no handler of errors catches, as a kill."""


def test_a_killed_trial_is_picked_up_and_counted_once(registered, monkeypatch, tmp_path):
    whole = made_of(tmp_path / "whole")
    monkeypatch.setattr(searches, "run_job", Trainer())
    run_trials(whole)

    def kill(trainer):
        if len(trainer.trained) == 3:
            raise Killed

    trainer = Trainer(kill)
    monkeypatch.setattr(searches, "run_job", trainer)
    made = made_of(tmp_path / "killed")
    with pytest.raises(Killed):
        run_trials(made)
    # Another one was killed while it was drawn, and the journal's last line is torn.
    study = searches.open_study(made)
    study.sampler = searches._sampler(RANDOM, 3)
    study.ask()
    journal = made.folder / searches.JOURNAL
    with open(journal, "ab") as file:
        file.write(b'{"op_code":4,"worker')
    monkeypatch.setattr(searches, "run_job", trainer)
    assert run_trials(made) == 0
    states = [trial.state.name for trial in trials_of(made)]
    assert states == ["COMPLETE"] * 3 + ["FAIL"] + ["COMPLETE"] * 3
    assert [trial.params[RATE] for trial in trials_of(made) if trial.params] == rates(whole)
    assert trainer.trained[2] == trainer.trained[3] and len(set(trainer.trained)) == 6


def test_a_trial_that_cannot_be_trained_has_failed(registered, monkeypatch, tmp_path):
    def refuse(trainer):
        raise UserError("no environment")

    monkeypatch.setattr(searches, "run_job", Trainer(refuse))
    made = made_of(tmp_path)
    with pytest.raises(UserError, match="no environment"):
        run_trials(made)
    assert [trial.state.name for trial in trials_of(made)] == ["FAIL"]


def test_a_trial_below_the_median_is_pruned_and_keeps_its_rows(registered, monkeypatch, tmp_path):
    """Optuna's rule: once five are complete, a trial ends whose value is below the median of the complete ones."""
    trainer = Trainer()
    monkeypatch.setattr(searches, "run_job", trainer)
    made = made_of(tmp_path, RANDOM._replace(trials=10, prune=True))
    assert run_trials(made) == 0
    firsts = [score(float(f"{rate:.4g}")) - 1 for rate in rates(made)]
    expected, complete = [], []
    for value in firsts:
        ordered = sorted(complete)
        middle = len(ordered) // 2
        median = 0.5 * (ordered[middle] + ordered[~middle]) if ordered else 0.0
        pruned = sum(not word for word in expected) >= 5 and value < median
        expected.append(pruned)
        complete += [value] if not pruned else []
    states = [trial.state.name == "PRUNED" for trial in trials_of(made)]
    assert states == expected and 0 < sum(states) < 5
    plan, pruned = points_of(made)
    assert len(plan.jobs) == 10 and len(pruned) == sum(states)
    rows = [row for job in plan.jobs for row in reading.read_rows(job.folder / run_folders.METRICS_FILE)]
    assert len(rows) == 2 * 10 - sum(states)
    points = sweeps.ranking(rows, "return", "final", pruned)
    assert [point.get("pruned", False) for point in points] == [False] * (10 - sum(states)) + [True] * sum(states)


def test_choices_and_integers(registered, monkeypatch, tmp_path):
    def train(plan, index, **settings):
        [member] = plan.jobs[0].members
        with RowWriter(plan.jobs[0].folder / run_folders.METRICS_FILE) as writer:
            if not writer.rows():
                row = {"variant": member.variant, "seed": 0, "env_steps": 1, "iteration": 1}
                writer.append(row | {"return": float(plan.jobs[0].config.agent.epochs)})
        return 0

    monkeypatch.setattr(searches, "run_job", train)
    grid = {"agent.epochs": ["1:3"], "network.hidden": ["4,4", "8"]}
    made = made_of(tmp_path, RANDOM._replace(trials=12), grid)
    assert made.space == {"agent.epochs": Range(1, 3, False), "network.hidden": [(4, 4), (8,)]}
    assert run_trials(made) == 0
    plan, _ = points_of(made)
    # Twelve trials of six points: one that was drawn again is not trained again.
    assert len(trials_of(made)) == 12 and 2 < len(plan.jobs) <= 6
    assert {job.config.agent.epochs for job in plan.jobs} == {1, 2, 3}
    assert {job.config.network.hidden for job in plan.jobs} == {(4, 4), (8,)}
    assert len({job.folder for job in plan.jobs}) == len(plan.jobs)


WORKER = """
import sys, time
import pytest
from tests.experiments import corridor
from tests.experiments.training import test_search
from experiments.training import search as searches

patch = pytest.MonkeyPatch()
corridor.register(patch)
searches.is_traceable = lambda config, source, key, values: key == test_search.RATE

def slowly(trainer):
    print(trainer.trained[-1], flush=True)
    time.sleep(float(sys.argv[2]))

searches.run_job = test_search.Trainer(slowly)
sys.exit(searches.run_trials(test_search.made_of(sys.argv[1])))
"""


@pytest.mark.study
def test_processes_share_the_trials_and_one_is_killed(registered, monkeypatch, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.fspath(Path(sweep.__file__).parents[2])}

    def start(seconds):
        command = [sys.executable, "-c", WORKER, os.fspath(tmp_path), str(seconds)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    doomed, other = start(600), start(0.1)
    first = doomed.stdout.readline().strip()
    assert first
    trained = other.communicate(timeout=240)[0].split()
    assert other.returncode == 0
    # It has left the one that the first process still trains.
    assert len(trained) == 5 and first not in trained
    doomed.send_signal(signal.SIGKILL)
    doomed.communicate()
    trainer = Trainer()
    monkeypatch.setattr(searches, "run_job", trainer)
    made = made_of(tmp_path)
    assert run_trials(made) == 0 and trainer.trained == [first]
    assert [trial.state.name for trial in trials_of(made)] == ["COMPLETE"] * 6
    # The same points as one process draws.
    alone = made_of(tmp_path / "alone")
    run_trials(alone)
    assert rates(alone) == rates(made)


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """``command(*arguments)`` sweeps the corridor; returns the status, the answer and the messages."""
    corridor.register(monkeypatch)
    loaded = corridor.loaded(corridor.with_critic())._replace(module=SimpleNamespace(get_sweep=dict))
    monkeypatch.setattr(registry, "load", lambda name: loaded)
    monkeypatch.setattr(sweeps, "enable_compilation_cache", lambda: None)
    monkeypatch.setattr(searches, "is_traceable", lambda config, source, key, values: key == RATE)

    def call(*arguments):
        capsys.readouterr()
        status = sweep.main(["corridor", f"--runs={tmp_path / 'runs'}", "--json", "--seeds=2", *arguments])
        return status, *capsys.readouterr()

    return call


def test_a_point_of_a_search_is_filed_apart_from_the_grids_and_can_be_named(registered, tmp_path):
    """Points of a grid share a folder; the same variant in another one would be refused: its rows are there twice."""
    job, command = searches.job_of(made_of(tmp_path), {RATE: 0.01})
    [variant] = {member.variant for member in job.members}
    assert variant == f"+search+{RATE}=0.01" and run_folders.is_sweep_point(variant)
    assert registry.load(f"ppo_cartpole:{variant}").config.agent.learning_rate == 0.01
    assert command.startswith(f"sagax run corridor --config.{RATE}=0.01")


def test_the_command_trains_ranks_and_continues(command, tmp_path):
    arguments = [f"--sweep.{RATE}=1e-3:1e-1:log", "--search=random"]
    status, out, _ = command(*arguments, "--trials=2")
    assert status == 0
    answer = json.loads(out)
    assert len(answer["points"]) == 2 and all(point["seeds"] == 2 for point in answer["points"])
    assert answer["points"][0]["iqm"] >= answer["points"][1]["iqm"]
    best = answer["points"][0]["variant"]
    assert best.startswith(f"+search+{RATE}=") and answer["best"] == (
        f"sagax run corridor --config.{best.removeprefix('+search+')} --seeds=2"
    )
    rows = reading.read_runs(tmp_path / "runs", "corridor")
    assert sorted({row["variant"] for row in rows}) == sorted(point["variant"] for point in answer["points"])
    assert [row["iteration"] for row in rows] == [2, 2, 4, 4] * 2
    # The same command is answered from what is there; one trial more is one folder more.
    assert json.loads(command(*arguments, "--trials=2")[1]) == answer
    more = json.loads(command(*arguments, "--trials=3")[1])
    assert len(more["points"]) == 3 and set(answer["folders"]) < set(more["folders"])
    assert reading.read_runs(tmp_path / "runs", "corridor")[0].keys() == rows[0].keys()
    # Begun anew, it draws the same points.
    again = json.loads(command(*arguments, "--trials=2", "--fresh")[1])
    assert [point["variant"] for point in again["points"]] == [point["variant"] for point in answer["points"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"--sweep.{RATE}=1e-3:1e-1"], "is a range: expected --search=random or --search=tpe, or values"),
        ([f"--sweep.{RATE}=1,2", "--trials=3"], "--trials needs --search=random or --search=tpe"),
        ([f"--sweep.{RATE}=1,2", "--prune"], "--prune needs --search"),
        ([f"--sweep.{RATE}=1,2", "--search-seed=3"], "--search-seed needs --search"),
        ([f"--sweep.{RATE}=1e-3:1e-1", "--search=tpe"], "--search=tpe without --trials: expected --trials=N"),
        ([f"--sweep.{RATE}=1e-3:1e-1", "--search=tpe", "--trials=0"], "--trials=0: expected --trials=N, at least 1"),
        ([f"--sweep.{RATE}=1e-3:1e-1", "--search=tep", "--trials=2"], "unknown value 'tep' of --search, did you mean"),
        ([f"--sweep.{RATE}=1e-1:1e-3", "--search=tpe", "--trials=2"], "expected the lower number first"),
        ([f"--sweep.{RATE}=0:1e-3:log", "--search=tpe", "--trials=2"], "in the logarithm, expected positive numbers"),
        ([f"--sweep.{RATE}=-1:1", "--search=tpe", "--trials=2"], "'agent.learning_rate' got -1.0, expected at least 0"),
        (["--sweep.agent.epochs=0.5:3", "--search=tpe", "--trials=2"], "'agent.epochs' got '0.5', expected"),
        (
            ["--sweep.network.hidden=4:8", "--search=tpe", "--trials=2"],
            "'network.hidden' is no number, expected values",
        ),
        (["--sweep.agent.epoch=1:3", "--search=tpe", "--trials=2"], "unknown configuration key 'agent.epoch'"),
        (["--search=tpe", "--trials=2"], "sweeps nothing: give --sweep.KEY=LOW:HIGH"),
        ([f"--sweep.{RATE}=1e-3:1", "--search=tpe", "--trials=2", "--search-seed=-1"], "--search-seed=-1: expected at"),
        ([f"--sweep.{RATE}=1e-3:1", "--search=tpe", "--trials=2", "--metric=retrun"], "unknown metric 'retrun'"),
        ([f"--sweep.{RATE}=1e-3:1", "--search=tpe", "--trials=2", "--job=1"], "--job=1: expected 0 to 0"),
    ],
)
def test_a_mistake_is_refused_before_any_work(arguments, message, command, tmp_path):
    status, _, said = command(*arguments)
    assert status == 2 and message in said and said.count("\n") == 1, said
    assert not (tmp_path / "runs").exists()


def test_optuna_is_missing(command, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    status, _, said = command(f"--sweep.{RATE}=1e-3:1e-1", "--search=tpe", "--trials=2")
    assert status == 2 and "--search needs the extra: pip install -e '.[optuna]'" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("content", [b"\x00\x01", b"[1]\n", b'{"op_code": 99}\n', b'{"a": 1}\n{"b"', b"runs of mine\n"])
def test_a_journal_of_something_else_is_refused_and_stays(content, registered, tmp_path):
    made = made_of(tmp_path)
    made.folder.mkdir(parents=True)
    (made.folder / searches.JOURNAL).write_bytes(content)
    with pytest.raises(UserError, match=r"journal\.jsonl is no journal of this search .*remove the folder"):
        run_trials(made)
    assert (made.folder / searches.JOURNAL).read_bytes()[:8] == content[:8]


def test_a_journal_of_another_study_is_refused(registered, tmp_path):
    import optuna

    made = made_of(tmp_path)
    made.folder.mkdir(parents=True)
    backend = optuna.storages.journal.JournalFileBackend(os.fspath(made.folder / searches.JOURNAL))
    optuna.create_study(storage=optuna.storages.JournalStorage(backend), study_name="mine")
    with pytest.raises(UserError, match=r"it holds the studies \['mine'\]"):
        run_trials(made)


def test_a_journal_that_stays_locked_is_one_message(registered, monkeypatch, tmp_path):
    monkeypatch.setattr(search_journal, "PATIENCE_SECONDS", 0.2)
    made = made_of(tmp_path)
    searches.open_study(made)
    with open(made.folder / f"{searches.JOURNAL}.lock", "ab") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        started = time.monotonic()
        with pytest.raises(UserError, match=r"journal\.jsonl\.lock is held by another process for more than 0\.2"):
            run_trials(made)
        assert time.monotonic() - started < 5


def test_a_search_that_is_being_trained_is_not_removed(registered, tmp_path):
    made = made_of(tmp_path)
    searches.open_study(made)
    with search_journal.lock(made.folder / "trial_0.lock"):
        with pytest.raises(UserError, match=r"trial_0\.lock is held by another process"):
            searches.remove_search(made)
    searches.remove_search(made)
    assert not made.folder.exists()
