"""Any number of devices: sharded members and environments, resuming on other devices, several processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import ROOT
from experiments.assembly.build import build_environment
from experiments.errors import UserError
from experiments.training import processes
from experiments.training.drivers import drivers
from experiments.training.processes import COORDINATOR, PROCESS, PROCESSES, described_process
from experiments.training.scan_driver import ScanDriver
from experiments.training.stopping import StopRequested
from tests.experiments import corridor

FOUR = "--xla_force_host_platform_device_count=4"


def start(what: str, folder: Path, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.experiments.training.device_worker", what, os.fspath(folder)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=pipe, stderr=pipe, text=True)


def require_success(*started: subprocess.Popen) -> list[str]:
    """Waits for all processes; returns what each printed."""
    printed = []
    for process in started:
        out, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]
        printed.append(out)
    return printed


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """The folder with the results of one process with four devices."""
    folder = tmp_path_factory.mktemp("four")
    require_success(start("four", folder, XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} {FOUR}"))
    return folder


def rows(folder: Path) -> list[dict]:
    return corridor.rows_of(folder / "corridor" / "default")


def assert_same_rows(found: list[dict], expected: list[dict]) -> None:
    """Asserts that counts are equal exactly and computed numbers to rounding."""
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            if isinstance(value, float):
                np.testing.assert_allclose(one[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
            else:
                assert one[name] == value, name


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_run_of_four_devices_goes_on_with_any_number_of_them(four, devices):
    expected = rows(four / "one")
    assert [(row["iteration"], row["seed"]) for row in expected] == [(n, seed) for n in (2, 4) for seed in range(3)]
    assert_same_rows(rows(four / f"four_then_{devices}"), expected)


def test_the_environments_of_one_seed_are_shared_by_all_devices(four):
    found = json.loads((four / "found.json").read_text())["environments"]
    assert found["shared"] and found["largest_difference"] < 1e-5


def test_each_device_holds_its_own_members(four):
    assert json.loads((four / "found.json").read_text())["shards"] == [1, 1, 1, 1]


def test_a_host_driver_stays_on_its_device(four):
    assert json.loads((four / "found.json").read_text())["host"] == [3]


def test_the_mesh_has_room_for_all_members_and_leaves_no_device_out(four):
    """``[members, data, shards between programs]``."""
    expected = {
        "1 on 1": [1, 1, 1],
        "8 on 1": [1, 1, 1],
        "1 on 2": [1, 2, 1],
        "3 on 2": [2, 1, 1],
        "8 on 2": [2, 1, 2],
        "1 on 4": [1, 4, 1],
        "2 on 4": [2, 2, 2],
        "3 on 4": [4, 1, 1],
        "4 on 4": [4, 1, 4],
        "6 on 4": [4, 1, 2],
    }
    found = json.loads((four / "found.json").read_text())["meshes"]
    assert {name: found[name] for name in expected} == expected


def test_two_processes_train_what_one_trains(four, tmp_path, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    variables = {COORDINATOR: address, PROCESSES: "2"}
    parts = [start("part", tmp_path, **variables, **{PROCESS: str(index)}) for index in range(2)]
    printed = require_success(*parts)
    assert_same_rows(rows(tmp_path / "parts"), rows(four / "whole"))
    # One of them writes and reports.
    assert "interquartile mean" in printed[0] and "interquartile mean" not in printed[1]
    # Both processes wrote one checkpoint together, and one process reads it.
    corridor.register(monkeypatch)
    config = corridor.without_critic()
    template = ScanDriver(config, build_environment(config), corridor.members(0, 1)).template()
    found, expected = (
        corridor.checkpoint_of(folder / "corridor" / "default", template)
        for folder in (tmp_path / "parts", four / "whole")
    )
    assert found.iteration == expected.iteration == 4
    # The metadata holds the rows, too, which are the same to rounding.
    assert_same_rows(found.meta.pop("rows"), expected.meta.pop("rows"))
    assert found.meta == expected.meta
    for one, other in zip(corridor.arrays(found.state), corridor.arrays(expected.state), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def other_process(monkeypatch, index: int, told: int) -> list[int]:
    """Makes this process number ``index`` of two. The other one sends ``told``; returns what this one sends."""
    said = []

    def largest(number):
        said.append(number)
        return max(number, told)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(processes, "largest", largest)
    return said


def test_a_signal_to_one_process_stops_all(monkeypatch):
    stop = processes.SharedStop(StopRequested())
    assert not stop and stop.signal is None
    other_process(monkeypatch, 1, signal.SIGTERM)
    assert stop and stop.signal == signal.SIGTERM


def test_the_others_wait_for_what_the_first_process_writes(monkeypatch):
    said = other_process(monkeypatch, 0, 0)
    assert processes.writer_first(lambda: "written") == "written" and said == [0]
    with pytest.raises(ZeroDivisionError):
        processes.writer_first(lambda: 1 // 0)
    assert said == [0, 1]
    said = other_process(monkeypatch, 1, 0)
    assert processes.writer_first(lambda: "found") == "found" and said == [0]
    other_process(monkeypatch, 1, 1)
    with pytest.raises(UserError, match="process 0 has refused"):
        processes.writer_first(lambda: pytest.fail("nothing is there"))


def test_host_environments_have_one_process(monkeypatch):
    corridor.register(monkeypatch)
    other_process(monkeypatch, 0, 0)
    config = corridor.with_critic()
    config.environment.kind = "corridor_host"
    with pytest.raises(UserError, match="kind=corridor_host: host environments are stepped in one process"):
        drivers(config, build_environment(config), [corridor.members(0)])


GIVEN = {COORDINATOR: "localhost:1234", PROCESSES: "2", PROCESS: "1"}


def test_a_process_knows_its_place_from_the_environment_alone():
    assert described_process({}) is None
    assert described_process({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}) is None
    assert described_process(GIVEN) == ("localhost:1234", 2, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({COORDINATOR: ""}, f"{COORDINATOR} is not set: expected all of"),
        ({COORDINATOR: "localhost"}, f"{COORDINATOR}=localhost: expected HOST:PORT"),
        ({PROCESSES: "two"}, f"{PROCESSES}=two: expected a whole number"),
        ({PROCESS: "2"}, f"{PROCESS}=2: expected from 0 to 1"),
    ],
)
def test_an_invalid_place_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        described_process(GIVEN | changes)


def test_one_device_is_the_default_here():
    """The other tests of the suite are about one device."""
    assert jax.device_count() == 1
