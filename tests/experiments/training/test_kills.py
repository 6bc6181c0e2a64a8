"""A run that was killed at any moment, or stopped by a signal, ends as an uninterrupted run does, bit for bit."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.annotation.chat_endpoint import MODEL, URL
from experiments.assembly import registry
from experiments.assembly.build import build_environment
from experiments.commands import run
from experiments.training.host_driver import HostDriver, annotation_state
from experiments.training.scan_driver import ScanDriver
from tests.experiments import corridor, talking
from tests.experiments.annotation.test_http import QUICK, fine, hangs
from tests.experiments.annotation.test_http import Server as Endpoint
from tests.experiments.training.test_resume import curious

# Killed runs. A process that has imported everything, and has not started JAX's backend, is forked for each attempt:
# an attempt is a whole run of the command without the seconds of its imports.


def often(config, iterations):
    config.iterations, config.evaluate_every = iterations, 1
    config.data.update({"length": 2, "batch": 2})
    config.evaluators.episodes.update({"count": 2, "cut": 2})
    return config


def talkative():
    """Asks one question at a time and waits until it is answered."""
    settings = QUICK | {"kind": "http", "batch": 1, "timeout": 60.0}
    return often(talking.config_of("retrieval", **settings), 30)


CONFIGS = {
    "plain": lambda: often(corridor.with_critic(), 32),
    "long": lambda: often(corridor.with_critic(), 80),
    "curious": lambda: often(curious("blind"), 12),
    "talkative": talkative,
}


def attempt(runs: str, name: str) -> int:
    """The command, in a forked child."""
    import jax

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    run.enable_compilation_cache = lambda: None
    registry.load = lambda _: corridor.loaded(CONFIGS[name]())
    patch = pytest.MonkeyPatch()
    corridor.register(patch)
    talking.register(patch)
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
        if moment in ("third row", "waiting"):
            # So late that a checkpoint has something to go on from; ``waiting`` with labels and an open question.
            found = list(map(json.loads, rows.read_text().rpartition("\n")[0].splitlines()))
            if moment == "waiting":
                found = [row for row in found if row["annotator/labels"] > 1 and row["annotator/queue"] > 0]
            return len(found) > 2
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
    """Answers ``{"runs", "name", "environment", "moment", "delay", "signal"}`` with ``{"status", "saving"}``, a line
    each."""
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
                os.environ.update(request["environment"])
                status = attempt(runs, request["name"])
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
        root = Path(__file__).resolve().parents[3]
        environment = os.environ | {"PYTHONPATH": os.fspath(root)}
        command = [sys.executable, "-c", "from tests.experiments.training import test_kills; test_kills.serve()"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=root
        )

    def attempt(self, runs, moment=None, delay=0.0, number=signal.SIGKILL, *, name="plain", environment=None):
        request = {"runs": os.fspath(runs), "name": name, "environment": environment or {}}
        request |= {"moment": moment, "delay": delay, "signal": int(number)}
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
    """``uninterrupted(name)`` is the run folder of an uninterrupted run, which also fills the compilation cache."""

    @functools.cache
    def folder_of(name):
        runs = tmp_path_factory.mktemp(name) / "runs"
        answer = server.attempt(runs, name=name)
        assert answer["status"] == 0, Path(f"{runs}.log").read_text()
        return runs / "corridor" / "default"

    return folder_of


def assert_same_runs(folder, expected, name="plain"):
    config = CONFIGS[name]()
    rows = corridor.rows_of(folder)
    assert rows == corridor.rows_of(expected)
    assert [row["iteration"] for row in rows] == list(range(1, config.iterations + 1))
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        corridor.register(context)
        template = ScanDriver(config, build_environment(config), corridor.members()).template()
    one, other = (corridor.checkpoint_of(each, template) for each in (folder, expected))
    assert one.iteration == other.iteration == config.iterations
    corridor.assert_same_arrays(one.state, other.state)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("plain", {"start": 1, "row": 1, "saving": 1}),
        pytest.param("long", {"start": 5, "row": 7, "saving": 7}, marks=pytest.mark.study),
    ],
    ids=["four", "twenty"],
)
def test_kills_change_nothing(name, counts, server, uninterrupted, tmp_path):
    whole = uninterrupted(name)
    generator = random.Random(7)
    runs = tmp_path / "runs"
    folder = runs / "corridor" / "default"
    moments = [moment for moment, count in counts.items() for _ in range(count)]
    generator.shuffle(moments)
    # The first gets beyond a checkpoint: on a busy machine none of the others might.
    moments.insert(0, "third row")
    # Starting takes a second, a chunk with its checkpoint a few hundredths, writing a checkpoint one.
    longest = {"start": 1.0, "row": 0.08, "third row": 0.08, "saving": 0.02}
    answers, reached = [], []
    for moment in moments:
        answers.append(server.attempt(runs, moment, generator.uniform(0, longest[moment]), name=name))
        assert answers[-1]["status"] == -signal.SIGKILL, Path(f"{runs}.log").read_text()
        metrics = folder / "metrics.jsonl"
        # Whole lines only; a torn last one is dropped at the next start.
        reached.append(metrics.read_bytes().count(b"\n") if metrics.exists() else 0)
    assert len(answers) == 1 + sum(counts.values())
    # At most the current chunk is lost: rows are removed for at most one checkpoint that was not saved.
    assert all(after >= before - 1 for before, after in itertools.pairwise(reached)), reached
    assert 0 < reached[-1] < CONFIGS[name]().iterations
    if counts["saving"] > 1:
        # Some of them struck while a checkpoint was being written.
        assert any(answer["saving"] for answer in answers)
    assert server.attempt(runs, name=name)["status"] == 0, Path(f"{runs}.log").read_text()
    assert_same_runs(folder, whole, name)


@pytest.mark.study
def test_a_kill_changes_nothing_of_a_curiosity(server, uninterrupted, tmp_path):
    whole, runs = uninterrupted("curious"), tmp_path / "runs"
    folder = runs / "corridor" / "default"
    assert server.attempt(runs, "third row", 0.01, name="curious")["status"] == -signal.SIGKILL
    assert server.attempt(runs, name="curious")["status"] == 0, Path(f"{runs}.log").read_text()
    assert re.search(r'"resumed_from": [1-9]', Path(f"{runs}.log").read_text())
    assert_same_runs(folder, whole, "curious")


def texts_of(endpoint):
    """The questions that an endpoint received, except the one at the start."""
    return [json.loads(line.partition(": ")[2]) for lines in endpoint.asked[1:] for line in lines]


def test_a_kill_loses_no_question_and_no_answer(server, tmp_path):
    runs = tmp_path / "runs"
    folder = runs / "corridor" / "default"

    def attempt(endpoint, *moment):
        environment = {URL: f"http://127.0.0.1:{endpoint.port}/v1", MODEL: "reader-1", "no_proxy": "127.0.0.1"}
        return server.attempt(runs, *moment, name="talkative", environment=environment)["status"]

    # Two answers, and none to the third question.
    first = Endpoint(fine, fine, fine, hangs)
    assert attempt(first, "waiting") == -signal.SIGKILL, Path(f"{runs}.log").read_text()
    first.close()
    *answered, open_question = texts_of(first)
    assert len(answered) == 2
    with pytest.MonkeyPatch.context() as patch:
        talking.register(patch)
        config = talkative()
        template = HostDriver(config, build_environment(config), corridor.members()[0]).template()
    known = annotation_state(corridor.checkpoint_of(folder, template).host)
    queued = {question[0] for question in known["pending"]} - set(answered)
    assert open_question in queued
    second = Endpoint(fine)
    assert attempt(second) == 0, Path(f"{runs}.log").read_text()
    second.close()
    asked = texts_of(second)
    # Nothing is asked twice, not even by the other process, and pending questions are asked.
    assert queued <= set(asked) and not set(asked) & set(answered) and len(set(asked)) == len(asked)
    rows = corridor.rows_of(folder)
    assert [row["iteration"] for row in rows] == list(range(1, config.iterations + 1))
    assert rows[-1]["reward/language/labels"] == rows[-1]["annotator/labels"] >= len(answered) + len(queued)


def test_sigterm_saves_and_the_same_command_continues(server, uninterrupted, tmp_path):
    whole, runs = uninterrupted("plain"), tmp_path / "runs"
    folder = runs / "corridor" / "default"
    answer = server.attempt(runs, "row", 0.05, signal.SIGTERM)
    assert answer == {"status": 128 + signal.SIGTERM, "saving": False}
    log = Path(f"{runs}.log")
    assert "stopped by signal 15; the same command continues" in log.read_text()
    stopped = len(corridor.rows_of(folder))
    assert 0 < stopped < CONFIGS["plain"]().iterations
    # Saved: the newest checkpoint is that of the newest row.
    assert (folder / "checkpoints" / "program_0" / str(stopped)).is_dir()
    assert server.attempt(runs)["status"] == 0, log.read_text()
    assert f'"resumed_from": {stopped}' in log.read_text()
    assert_same_runs(folder, whole)
