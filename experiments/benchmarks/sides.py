"""What the cases of the benchmark share: the command line's options, and a driver as a side."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.assembly import registry
from experiments.assembly.build import build_environment
from experiments.assembly.members import Member
from experiments.benchmarks.timing import Sample, timed
from experiments.rows.environment_report import environment_report
from experiments.training.host_driver import HostDriver
from experiments.training.scan_driver import ScanDriver

SEEDS = 10


class Options(NamedTuple):
    """The settings of a case from the command line.

    Attributes:
      repeats: rounds of measurements.
      tiny: make the samples too small to mean anything, to see whether a case runs.
      baseline: a checkout of PureJaxRL.
      baseline_python: the interpreter that has the baselines installed.
      names, seeds: configurations and numbers of seeds for the case devices; its own if empty.
      seconds: for how long a measurement of the case devices steps.
      limit: after how many seconds such a measurement is ended.
      say: called with what is about to be compiled or measured.
    """

    repeats: int
    tiny: bool
    baseline: Path | None = None
    baseline_python: Path | None = None
    names: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    seconds: float = 10.0
    limit: float = 300.0
    say: Callable[[str], None] = lambda text: None


def machine(command: Sequence[str] | None = None) -> dict[str, Any]:
    """The machine that figures were measured on; ``command`` as in ``environment_report``."""
    report = environment_report(command)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return report | {"cores": usable} | load_average()


def load_average() -> dict[str, float]:
    """How busy the machine is: taken before a case, which would count itself."""
    return {"load_average": round(os.getloadavg()[0], 2)}


def has_baselines(options: Options, case: str, rivals: str, packages: str) -> bool:
    """Whether there is an interpreter with ``packages``; without one, a line says which comparisons are left out."""
    if options.baseline_python is None:
        print(
            f"{case}: without --baseline-python=PYTHON there is no comparison with {rivals}; PYTHON is the interpreter "
            f"of an environment with: pip install {packages}",
            file=sys.stderr,
        )
    return options.baseline_python is not None


def loaded(name: str, **overrides: Any) -> ConfigDict:
    """The configuration ``name`` with overrides; a double underscore stands for the dot in a key."""
    config = registry.load(name).config
    return registry.apply_overrides(config, {key.replace("__", "."): value for key, value in overrides.items()})


class Chunks:
    """A driver as a side: every call trains the next ``iterations``. Making it trains twice, first to compile.

    Args:
      driver: trains the members.
      iterations: in one call.
      slots: environment slots in one iteration of one seed.

    Attributes:
      params: the agent's parameters before the first iteration, ``[members, ...]``.
      compile_seconds: the time of the start and the first call, less the time of the second.
    """

    def __init__(self, driver: ScanDriver | HostDriver, iterations: int, slots: int):
        self.driver, self._iterations = driver, iterations
        self._slots = slots * iterations * len(driver.members)
        started = time.perf_counter()
        self._state, self._next = driver.start(), 0
        # Copies: the driver donates its buffers, and a view would change with them.
        self.params = jax.tree.map(np.array, self._state.agent.params)
        self._piece()
        first = time.perf_counter() - started
        self.compile_seconds = first - timed(self._piece).seconds

    def _piece(self) -> int:
        self._state, _ = self.driver.chunk(self._state, self._next, self._iterations)
        jax.block_until_ready(self._state.agent)
        self._next += self._iterations
        return self._slots

    def __call__(self) -> Sample:
        return timed(self._piece)


def scan_driver(config: ConfigDict, seeds: int = 1, devices: Sequence[jax.Device] | None = None) -> ScanDriver:
    """A scan driver that trains the first ``seeds`` seeds of ``config``, whose environment is pure, on ``devices``, all
    if ``None``."""
    members = [Member(seed, "") for seed in range(seeds)]
    return ScanDriver(config, build_environment(config), members, devices=devices)


def slots_of(config: ConfigDict) -> int:
    """Environment slots in one iteration of one seed: steps, or padding after an episode's end."""
    return config.data.length * config.data.batch
