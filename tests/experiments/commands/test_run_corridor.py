"""The command ``run`` on a tiny environment: programs of one member, and a terminal that goes away."""

import os
import pty
import select
import sys
import threading

import pytest

from experiments.assembly import registry
from experiments.commands import run
from experiments.disk import read_json
from experiments.rows import run_folders
from experiments.training import train
from tests.experiments import corridor


@pytest.fixture
def command(monkeypatch, compiled_once):
    """``command(runs, *arguments)`` trains the corridor; returns its status and its run folder."""
    corridor.register(monkeypatch)
    config = corridor.without_critic()
    monkeypatch.setattr(registry, "load", lambda name: corridor.loaded(config))
    monkeypatch.setattr(run, "enable_compilation_cache", lambda: None)

    def start(runs, *arguments):
        return run.main(["corridor", f"--runs={runs}", *arguments]), runs / "corridor" / "default"

    return start


def test_members_in_programs_of_their_own_equal_single_runs(command, tmp_path):
    status, folder = command(tmp_path / "both", "--seeds=2", "--members-per-program=1")
    assert status == 0
    assert read_json(folder / run_folders.CONFIG_FILE)["programs"] == [1, 1]
    assert {path.name for path in (folder / train.CHECKPOINT_FOLDER).iterdir()} == {"program_0", "program_1"}
    rows = corridor.rows_of(folder)
    assert [(row["seed"], row["iteration"]) for row in rows] == [(0, 2), (0, 4), (1, 2), (1, 4)]
    status, alone = command(tmp_path / "alone", "--first-seed=1")
    assert status == 0 and corridor.rows_of(alone) == [row for row in rows if row["seed"] == 1]
    # The same command again, cut up or not, has nothing to do.
    assert command(tmp_path / "both", "--seeds=2")[0] == 0
    assert corridor.rows_of(folder) == rows and read_json(folder / run_folders.CONFIG_FILE)["programs"] == [1, 1]


class Terminal:
    """A pseudo-terminal that somebody watches until ``leave`` is called; from then on, writing to it fails."""

    def __init__(self):
        self._master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w")
        self.seen, self._left = b"", threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        while not self._left.is_set():
            if select.select([self._master], [], [], 0.01)[0]:
                self.seen += os.read(self._master, 4096)

    def leave(self):
        if not self._left.is_set():
            self._left.set()
            self._reader.join()
            os.close(self._master)


def test_a_run_goes_on_without_its_terminal(command, tmp_path, monkeypatch):
    terminal = Terminal()
    step = train._Run.step

    def leaves(running):
        row = step(running)
        terminal.leave()
        return row

    monkeypatch.setattr(train._Run, "step", leaves)
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, terminal.stream)
    try:
        status, folder = command(tmp_path)
    finally:
        terminal.leave()
        monkeypatch.undo()
    # What was to be shown at the end was lost, and only that.
    assert status == 2 and b"corridor: 1 seed on" in terminal.seen
    assert [row["iteration"] for row in corridor.rows_of(folder)] == [2, 4]
    assert (folder / train.CHECKPOINT_FOLDER / train.program_name(0) / "4").is_dir()
    # The command has pointed its descriptor at nothing, so that the interpreter has nothing to complain of at its end.
    terminal.stream.close()
