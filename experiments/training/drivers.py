"""The two drivers: what the outer loop drives, a chunk at a time.

A *program* trains its members side by side: a member is a seed and, in a sweep, values of traced hyper-parameters.
The scan driver compiles rollout and learn into one scan over a chunk and vmaps it over the members. The host driver
steps host environments from Python, one member at a time, around the same jitted ``act`` and ``learn``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from experiments.assembly.build import (
    EVALUATION_SEED,
    EnvironmentSource,
)
from experiments.assembly.members import Member
from experiments.training.host_driver import HostDriver, HostPrograms
from experiments.training.learn import RunState
from experiments.training.scan_driver import ScanDriver


class Driver(Protocol):
    """What the outer loop needs; metrics are numpy arrays ``[members]`` by name.

    Attributes:
      members: what it trains.
      resumed_exactly: whether the last ``resume`` goes on where the run was, and not with new episodes.
    """

    members: Sequence[Member]
    resumed_exactly: bool

    def template(self) -> RunState:
        """The shapes of a run state, for a restore; nothing is computed."""

    def start(self) -> RunState: ...

    def chunk(
        self, state: RunState, first_iteration: int, iterations: int
    ) -> tuple[RunState, dict[str, np.ndarray]]: ...

    def evaluate(self, state: RunState, seed: int = EVALUATION_SEED) -> dict[str, np.ndarray]:
        """Means over whole episodes, whose start states and actions are drawn from ``seed``."""

    def snapshot(self) -> bytes | None:
        """The host's state, ``None`` where there is nothing beside the run state (or it cannot be saved)."""

    def resume(self, state: RunState, snapshot: bytes | None, iteration: int) -> RunState:
        """Continues after a restore."""

    def close(self) -> None: ...


def drivers(
    config: ConfigDict,
    source: EnvironmentSource,
    members: Sequence[Member],
    members_per_program: int | None = None,
    folder: Path | None = None,
    sweep: bool = False,
) -> list[Callable[[], Any]]:
    """Makers of the drivers that train ``members``, one after the other: on a pure environment programs of at most
    ``members_per_program`` (all if ``None``), ``sweep`` as there; on host environments one each, with what it keeps
    besides checkpoints in ``folder``."""
    if source.pure is None:
        programs: dict[tuple, HostPrograms] = {}

        def host_driver(member):
            values = tuple(sorted(member.values.items()))
            if values not in programs:
                programs[values] = HostPrograms(config, source.spec, member.values)
            return HostDriver(config, source, member, folder, programs[values])

        return [functools.partial(host_driver, member) for member in members]
    size = members_per_program or len(members)
    parts = [members[start : start + size] for start in range(0, len(members), size)]
    return [functools.partial(ScanDriver, config, source, part, sweep) for part in parts]
