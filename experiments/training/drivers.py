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

import jax
import numpy as np
from ml_collections import ConfigDict

from envs.snapshots import Snapshot
from experiments.assembly.build import (
    EVALUATION_SEED,
    EnvironmentSource,
)
from experiments.assembly.members import Member
from experiments.errors import UserError
from experiments.training import processes
from experiments.training.host_driver import HostDriver, HostPrograms
from experiments.training.learn import RunState
from experiments.training.scan_driver import ScanDriver


class Driver(Protocol):
    """What the outer loop needs; metrics are numpy arrays ``[members]`` by name.

    Attributes:
      members: what it trains.
      new_episodes: why the last ``resume`` began new episodes; ``None`` if it goes on where the run was.
      compiles_ahead: whether ``compile`` can do so: shapes may be known only in the first chunk.
    """

    members: Sequence[Member]
    new_episodes: str | None
    compiles_ahead: bool

    def template(self) -> RunState:
        """The shapes of a run state, for a restore; nothing is computed."""

    def start(self) -> RunState: ...

    def compile(self, state: RunState, iterations: int) -> None:
        """Compiles ``chunk`` of so many ``iterations`` and ``evaluate`` ahead of their first call; does nothing unless
        ``compiles_ahead``."""

    def chunk(
        self, state: RunState, first_iteration: int, iterations: int
    ) -> tuple[RunState, dict[str, np.ndarray]]: ...

    def evaluate(self, state: RunState, stream: int = EVALUATION_SEED) -> dict[str, np.ndarray]:
        """The metrics of ``config.evaluators``; what they draw is each member's own, from ``evaluation_key(member's
        seed, stream)``."""

    def snapshot(self) -> Snapshot | None:
        """The state beside the run state: of host environments and of an annotation service."""

    def resume(self, state: RunState, snapshot: Snapshot | None, iteration: int) -> RunState:
        """Continues after a restore; a pickle in ``snapshot`` is loaded."""

    def close(self) -> None: ...


def drivers(
    config: ConfigDict,
    source: EnvironmentSource,
    programs: Sequence[Sequence[Member]],
    folder: Path | None = None,
    sweep: bool = False,
) -> list[Callable[[], Any]]:
    """Functions that make the drivers of a run, which train one after the other.

    Args:
      config, source: what is trained, and on what.
      programs: the members that are trained side by side on a pure environment, a driver for each program. On host
        environments each member has a driver of its own.
      folder: of the run, for what a host driver keeps besides checkpoints.
      sweep: as in ``ScanDriver``.
    """
    if source.pure is None:
        if jax.process_count() > 1:
            raise UserError(
                f"environment.kind={config.environment.kind}: host environments are stepped in one process, expected "
                f"{processes.PROCESSES}=1 or a pure environment"
            )
        compiled: dict[tuple, HostPrograms] = {}

        def host_driver(member):
            values = tuple(sorted(member.values.items()))
            if values not in compiled:
                compiled[values] = HostPrograms(config, source, member.values)
            return HostDriver(config, source, member, folder, compiled[values])

        return [functools.partial(host_driver, member) for program in programs for member in program]
    return [functools.partial(ScanDriver, config, source, program, sweep) for program in programs]
