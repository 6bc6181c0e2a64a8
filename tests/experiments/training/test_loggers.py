"""Loggers: each row once, whatever was killed or failed in between; the real packages write to the disk."""

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.api import train as train_from_python
from experiments.assembly import registry
from experiments.commands import run, sweep
from experiments.disk import read_json
from experiments.errors import UserError
from experiments.rows import reading, run_folders
from experiments.training import sweeps
from experiments.training.loggers.base import Logger, LoggerRun
from experiments.training.loggers.catalogue import LOGGERS
from experiments.training.loggers.sink import logger_sinks
from experiments.training.row_writer import RowWriter
from tests.experiments import corridor

CONFIG = corridor.with_critic()
OFFLINE = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path_factory):
    """Nobody is logged in, and nothing is written outside of the test's folders."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", os.fspath(home))
    monkeypatch.chdir(home)
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    yield
    # It reads its variables once in a process.
    if sys.modules.get("wandb"):
        sys.modules["wandb"].teardown()


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A store of MLflow without runs: making its tables takes seconds."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def stores(empty_store, tmp_path, monkeypatch):
    """``stores(name)`` makes an empty store of MLflow the present one, and gives its address."""

    def make(name="mlflow"):
        shutil.copy(empty_store, tmp_path / f"{name}.db")
        uri = f"sqlite:///{tmp_path / name}.db"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        return uri

    return make


def row(iteration, seed=0, variant="", **metrics):
    return {"variant": variant, "seed": seed, "env_steps": 10 * iteration, "iteration": iteration} | metrics


class Spy:
    """A logger that remembers what it was given; ``tells`` as MLflow does, or does not, as Weights & Biases offline."""

    def __init__(self, tells=False):
        self.rows, self.seeds, self.closed, self.tells = [], [], [], tells
        self.before = lambda row: None

    def logger(self):
        return Logger(lambda: None, self.begin)

    def begin(self, seed):
        self.seeds.append(seed)
        own = [one["iteration"] for key, one in self.rows if key == seed.key]

        def log(row):
            self.before(row)
            self.rows.append((seed.key, row))

        return LoggerRun(log, lambda: self.closed.append(seed.key), max(own, default=0) if self.tells else None)

    def iterations(self, seed=0):
        return [row["iteration"] for _, row in self.rows if row["seed"] == seed]


def writer_of(folder, spy, *seeds):
    members = corridor.members(*seeds)
    sinks = logger_sinks(["spy"], folder, "corridor", CONFIG, members, {"spy": spy.logger()})
    return RowWriter(folder / run_folders.METRICS_FILE, {"experiment": "corridor"}, sinks)


def test_a_row_is_logged_once_a_checkpoint_covers_it(tmp_path):
    spy = Spy()
    with writer_of(tmp_path, spy, 0, 1) as writer:
        for iteration in (2, 4):
            for seed in (0, 1):
                writer.append(row(iteration, seed, success=0.5))
            assert spy.iterations() == list(range(2, iteration, 2))
            writer.settle([("", 0), ("", 1)])
        writer.append(row(6))
    assert spy.iterations(0) == spy.iterations(1) == [2, 4]
    # A run of the logger for each seed, which share the group.
    assert [(seed.group, seed.seed, seed.config["iterations"]) for seed in spy.seeds] == [
        ("corridor", 0, 4), ("corridor", 1, 4),
    ]  # fmt: skip
    assert len({seed.key for seed in spy.seeds}) == 2 and spy.closed == [seed.key for seed in spy.seeds]
    # Continued: what was rewound was not logged, and what was logged is not logged again.
    with writer_of(tmp_path, spy, 0, 1) as writer:
        assert writer.rewind(4) == 1
        writer.settle([("", 0), ("", 1)])
        assert len(spy.seeds) == 2
        writer.append(row(6, success=1.0))
        writer.settle([("", 0)])
    assert spy.iterations(0) == [2, 4, 6] and spy.rows[-1][1]["success"] == 1
    assert spy.seeds[2].key == spy.seeds[0].key


def test_a_run_that_is_trained_again_from_an_older_checkpoint_logs_no_row_twice(tmp_path):
    spy = Spy()
    with writer_of(tmp_path, spy) as writer:
        for iteration in (2, 4):
            writer.append(row(iteration))
            writer.settle([("", 0)])
    with writer_of(tmp_path, spy) as writer:
        writer.rewind(2)
        writer.settle([("", 0)])
        for iteration in (4, 6):
            writer.append(row(iteration))
            writer.settle([("", 0)])
    assert spy.iterations() == [2, 4, 6]


class Killed(BaseException):
    """What no handler of errors catches, as a kill."""


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("arrived", [True, False])
def test_killed_while_a_row_is_handed_over(tells, arrived, tmp_path):
    spy = Spy(tells)

    def kill(row):
        if row["iteration"] == 4:
            spy.rows += [(spy.seeds[0].key, row)] if arrived else []
            raise Killed

    spy.before = kill
    writer = writer_of(tmp_path, spy)
    writer.append(row(2))
    writer.settle([("", 0)])
    writer.append(row(4))
    with pytest.raises(Killed):
        writer.settle([("", 0)])
    writer._file.close()
    [entry] = read_json(tmp_path / run_folders.LOGGERS_FILE)["runs"]
    assert (entry["handed"], entry["logged"]) == (4, 2)
    spy.before = lambda row: None
    with writer_of(tmp_path, spy) as writer:
        writer.append(row(6))
        writer.settle([("", 0)])
    # Never twice; never lost where the logger says what it has.
    assert spy.iterations() == ([2, 4, 6] if tells or arrived else [2, 6])


def test_a_logger_that_fails_is_dropped_with_one_line_and_catches_up(tmp_path, capsys):
    spy = Spy(tells=True)

    def fail(row):
        if row["iteration"] == 4:
            raise ConnectionError("the server\nis away")

    spy.before = fail
    with writer_of(tmp_path, spy) as writer:
        for iteration in (2, 4, 6, 8):
            writer.append(row(iteration))
            writer.settle([("", 0)])
    assert spy.iterations() == [2] and spy.closed == []
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        "the logger spy takes no more rows: the server is away; the run goes on, and its rows are on the disk"
    )
    assert [one["iteration"] for one in reading.read_rows(tmp_path / run_folders.METRICS_FILE)] == [2, 4, 6, 8]
    spy.before = lambda row: None
    with writer_of(tmp_path, spy) as writer:
        writer.settle([("", 0)])
    assert spy.iterations() == [2, 4, 6, 8] and capsys.readouterr().err == ""


def test_a_logger_that_cannot_begin_does_not_end_the_run(tmp_path, capsys):
    failing = Logger(lambda: None, lambda seed: 1 / 0)
    sinks = logger_sinks(["failing"], tmp_path, "corridor", CONFIG, corridor.members(), {"failing": failing})
    with RowWriter(tmp_path / "metrics.jsonl", sinks=sinks) as writer:
        for iteration in (2, 4):
            writer.append(row(iteration))
            writer.settle([("", 0)])
    assert capsys.readouterr().err.count("the logger failing takes no more rows: division by zero") == 1


@pytest.mark.parametrize(
    "content",
    ["[]", '{"runs": 3}', '{"runs": [{"logger": "mlflow"}]}', "{", None],
)
def test_a_record_of_something_else_is_refused(content, tmp_path):
    entry = {"logger": "spy", "variant": "", "seed": 0, "key": "a' OR 1=1", "handed": 0, "logged": 0}
    (tmp_path / run_folders.LOGGERS_FILE).write_text(json.dumps({"runs": [entry]}) if content is None else content)
    with pytest.raises(UserError, match=r"loggers\.json"):
        writer_of(tmp_path, Spy())


def test_traced_values_are_in_the_configuration_of_a_point(tmp_path):
    spy = Spy()
    member = corridor.members()[0]._replace(variant="a+sweep", values={"agent.learning_rate": 0.5})
    [sink] = logger_sinks(["spy"], tmp_path, "corridor", CONFIG, [member], {"spy": spy.logger()})
    sink.append(row(2, variant="a+sweep"))
    sink.settle([("a+sweep", 0)])
    assert spy.seeds[0].config["agent"]["learning_rate"] == 0.5 and spy.seeds[0].group == "corridor:a+sweep"


# The real packages, on the disk.


def wandb_records(path):
    """The records of a ``.wandb`` file, which has the format of LevelDB's logs."""
    from wandb.proto import wandb_internal_pb2

    data, position, part = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            part = b""
            yield record


def wandb_runs(folder):
    """Of every run in a folder of Weights & Biases: what it is, and the rows of all its files in order."""
    found = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        records = list(wandb_records(path))
        about = next(record.run for record in records if record.HasField("run"))
        config = {update.key: json.loads(update.value_json) for update in about.config.update}
        rows = [
            {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
            for record in records
            if record.HasField("history")
        ]
        entry = found.setdefault(about.run_id, {"group": about.run_group, "config": config, "rows": []})
        entry |= {"name": about.display_name, "tags": list(about.tags), "project": about.project}
        entry["rows"] += rows
    return sorted(found.values(), key=lambda entry: entry["config"]["seed"])


def mlflow_runs(uri):
    """Of every run in a store of MLflow: its tags, its parameters and the history of some metrics."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])

    def history(run, name):
        return [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]

    return sorted(
        (
            {
                "tags": run.data.tags,
                "params": run.data.params,
                "return": history(run, "return"),
                "iteration": history(run, "iteration"),
                "status": run.info.status,
            }
            for run in runs
        ),
        key=lambda entry: entry["tags"]["seed"],
    )


@pytest.fixture
def corridor_command(monkeypatch, tmp_path, capsys):
    """``corridor_command(main, *arguments)`` runs a command on the corridor; returns status and messages."""
    corridor.register(monkeypatch)
    config = corridor.with_critic()
    loaded = corridor.loaded(config)._replace(module=SimpleNamespace(get_sweep=dict))
    monkeypatch.setattr(registry, "load", lambda name: loaded)
    for module in (run, sweeps):
        monkeypatch.setattr(module, "enable_compilation_cache", lambda: None)

    def command(main, *arguments):
        capsys.readouterr()
        return main(["corridor", f"--runs={tmp_path / 'runs'}", *arguments]), capsys.readouterr().err

    return command


def test_a_run_in_both_loggers_and_its_continuation(corridor_command, compiled_once, stores, tmp_path, monkeypatch):
    uri = stores()
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    arguments = ["--seeds=2", "--logger=wandb", "--logger=mlflow"]
    assert corridor_command(run.main, *arguments)[0] == 0
    # A finished run is only reported: no logger is asked.
    assert corridor_command(run.main, *arguments)[0] == 0
    # Prolonged, first without them.
    assert corridor_command(run.main, "--seeds=2", "--config.iterations=6")[0] == 0
    assert corridor_command(run.main, *arguments, "--config.iterations=8")[0] == 0
    folder = tmp_path / "runs" / "corridor" / "default"
    rows = reading.read_rows(folder / run_folders.METRICS_FILE)
    assert not list(Path.cwd().iterdir()) or {path.name for path in Path.cwd().iterdir()} <= {".config", ".cache"}
    logged = wandb_runs(folder)
    assert len(logged) == 2 and len(list(folder.glob("wandb/offline-run-*"))) == 4
    for seed, found in enumerate(logged):
        own = [row for row in rows if row["seed"] == seed]
        assert [row["iteration"] for row in own] == [2, 4, 6, 8]
        assert found["group"] == "corridor" and found["name"] == f"corridor seed {seed}"
        assert found["tags"] == ["corridor", f"seed={seed}"] and found["project"] == "sagax"
        assert found["config"]["agent"]["learning_rate"] == 0.02 and found["config"]["experiment"] == "corridor"
        assert [row["_step"] for row in found["rows"]] == [row["env_steps"] for row in own]
        assert [row["return"] for row in found["rows"]] == [row["return"] for row in own]
        assert [row["iteration"] for row in found["rows"]] == [2, 4, 6, 8]
    for seed, found in enumerate(mlflow_runs(uri)):
        own = [row for row in rows if row["seed"] == seed]
        assert found["return"] == [(row["env_steps"], row["return"]) for row in own]
        assert found["tags"].items() >= {"experiment": "corridor", "seed": str(seed), "group": "corridor"}.items()
        assert found["params"]["agent.learning_rate"] == "0.02" and found["status"] == "FINISHED"


def test_points_of_a_sweep_are_runs_of_their_own(corridor_command, stores):
    uri = stores()
    arguments = ["--sweep.agent.learning_rate=0.01,0.03", "--seeds=1", "--logger=mlflow"]
    assert corridor_command(sweep.main, *arguments)[0] == 0
    found = mlflow_runs(uri)
    assert {each["tags"]["variant"]: each["params"]["agent.learning_rate"] for each in found} == {
        f"+sweep+agent.learning_rate={rate}": rate for rate in ("0.01", "0.03")
    }
    assert all([value for _, value in each["iteration"]] == [2, 4] for each in found)


def test_a_store_that_was_removed_is_filled_again(stores, tmp_path):
    uris = [stores("first")]
    members = corridor.members()

    def writer():
        sinks = logger_sinks(["mlflow"], tmp_path, "corridor", CONFIG, members)
        return RowWriter(tmp_path / "metrics.jsonl", {"experiment": "corridor"}, sinks)

    with writer() as first:
        # A name that MLflow does not take, a metric without a value, and one that is a truth value.
        first.append(row(2, **{"return": 0.5, "edge/a=b": 1.0, "loss": None, "train/stopped": 1}))
        first.settle([("", 0)])
    uris.append(stores("second"))
    with writer() as second:
        second.append(row(4, **{"return": 1.0}))
        second.settle([("", 0)])
    for uri, expected in zip(uris, [[(20, 0.5)], [(20, 0.5), (40, 1.0)]], strict=True):
        [found] = mlflow_runs(uri)
        assert found["return"] == expected


# Killed with the packages at work: a process settles a row every few hundredths of a second until it is killed.
WORKER = """
import sys, time
from pathlib import Path
from tests.experiments import corridor
from experiments.training.loggers.sink import logger_sinks
from experiments.training.row_writer import RowWriter

folder, last = Path(sys.argv[1]), int(sys.argv[2])
sinks = logger_sinks(["wandb", "mlflow"], folder, "corridor", corridor.with_critic(), corridor.members())
with RowWriter(folder / "metrics.jsonl", {"experiment": "corridor"}, sinks) as writer:
    writer.settle([("", 0)])
    for iteration in range(len(writer.rows()) + 1, last + 1):
        writer.append({"variant": "", "seed": 0, "env_steps": 10 * iteration, "iteration": iteration, "return": 0.5})
        writer.settle([("", 0)])
        time.sleep(0.02)
"""


@pytest.mark.study
def test_a_kill_logs_no_row_twice(stores, tmp_path):
    uri = stores()
    environment = os.environ | OFFLINE | {"PYTHONPATH": os.fspath(Path(run.__file__).parents[2])}
    metrics = tmp_path / "metrics.jsonl"

    def start(last):
        return subprocess.Popen([sys.executable, "-c", WORKER, os.fspath(tmp_path), str(last)], env=environment)

    worker = start(10**6)
    deadline = time.monotonic() + 240
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 8:
        assert worker.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    reached = len(reading.read_rows(metrics))
    assert start(reached + 2).wait(timeout=240) == 0
    [found] = mlflow_runs(uri)
    assert [value for _, value in found["iteration"]] == list(range(1, reached + 3))
    [found] = wandb_runs(tmp_path)
    iterations = [row["iteration"] for row in found["rows"]]
    assert iterations == sorted(set(iterations)) and iterations[-2:] == [reached + 1, reached + 2]
    # What was on its way when the process was killed may be missing.
    assert {1, 2} <= set(iterations)


# What is refused, before anything is made.


def refused(corridor_command, tmp_path, *arguments, main=run.main):
    status, said = corridor_command(main, *arguments)
    assert status == 2 and said.count("\n") == 1, said
    assert not (tmp_path / "runs").exists()
    return said


def closed_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_logger_whose_package_is_missing(corridor_command, tmp_path, monkeypatch):
    for name, module in {"wandb": "wandb", "mlflow": "mlflow.tracking"}.items():
        monkeypatch.setitem(sys.modules, module, None)
        said = refused(corridor_command, tmp_path, f"--logger={name}")
        assert f"--logger={name} needs the extra: pip install -e '.[{name}]'" in said


def test_a_logger_that_is_unknown(corridor_command, tmp_path):
    said = refused(corridor_command, tmp_path, "--logger=wandbb")
    assert "unknown value 'wandbb' of --logger, did you mean 'wandb'" in said
    with pytest.raises(UserError, match="unknown logger 'mlflo', did you mean 'mlflow'"):
        train_from_python(corridor.loaded(corridor.with_critic()), tmp_path / "run", loggers=["mlflo"])


@pytest.mark.parametrize("main", [run.main, sweep.main])
def test_weights_and_biases_without_a_login(main, corridor_command, tmp_path, monkeypatch):
    swept = ["--sweep.agent.learning_rate=0.01,0.03"] if main is sweep.main else []
    said = refused(corridor_command, tmp_path, *swept, "--logger=wandb", main=main)
    assert re.search("wandb is not logged in: expected WANDB_API_KEY or `wandb login`, or WANDB_MODE=offline", said)


def test_weights_and_biases_with_a_wrong_key(corridor_command, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert "--logger=wandb: " in refused(corridor_command, tmp_path, "--logger=wandb")


def test_a_server_of_mlflow_that_does_not_answer(corridor_command, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port()}")
    said = refused(corridor_command, tmp_path, "--logger=mlflow")
    assert "--logger=mlflow cannot use http://127.0.0.1:" in said and "expected MLFLOW_TRACKING_URI" in said


def test_a_store_of_mlflow_that_is_none(corridor_command, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    assert "--logger=mlflow cannot use file:" in refused(corridor_command, tmp_path, "--logger=mlflow")


@pytest.mark.study
def test_a_server_of_weights_and_biases_that_does_not_answer(corridor_command, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    assert "--logger=wandb: " in refused(corridor_command, tmp_path, "--logger=wandb")


def test_the_catalogue_is_in_the_order_of_its_names():
    assert list(LOGGERS) == sorted(LOGGERS)
