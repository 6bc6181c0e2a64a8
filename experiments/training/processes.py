"""One run by several processes, of one or of several hosts, through ``jax.distributed``.

Every process is started with the same command, in an environment that says which it is:

    SAGAX_COORDINATOR=HOST:PORT    where process 0 listens
    SAGAX_PROCESSES=2              how many there are
    SAGAX_PROCESS=0                which of them this one is, from 0

Nothing is guessed from a scheduler's own variables. All processes compute; process 0 alone writes rows, the
descriptions in the run folder and what describes a checkpoint, and every process writes its own shards of the arrays.
The run folder is on a disk that all processes see.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.errors import UserError, in_one_line
from experiments.rows.reading import Row, parse_lines

COORDINATOR, PROCESSES, PROCESS = "SAGAX_COORDINATOR", "SAGAX_PROCESSES", "SAGAX_PROCESS"
VARIABLES = (COORDINATOR, PROCESSES, PROCESS)

Result = TypeVar("Result")


def described_process(environment: Mapping[str, str] = os.environ) -> tuple[str, int, int] | None:
    """``(coordinator, processes, process)`` of ``environment``; ``None`` where it has none of the variables.

    Raises:
      UserError: if some are missing, or are not what was expected.
    """
    missing = [name for name in VARIABLES if not environment.get(name)]
    if len(missing) == len(VARIABLES):
        return None
    if missing:
        raise UserError(f"{missing[0]} is not set: expected all of {', '.join(VARIABLES)}, or none of them")
    coordinator = environment[COORDINATOR]
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isascii() or not port.isdigit():
        raise UserError(f"{COORDINATOR}={coordinator}: expected HOST:PORT, such as 10.0.0.1:12355")
    counts = {name: environment[name] for name in (PROCESSES, PROCESS)}
    for name, text in counts.items():
        if not text.isascii() or not text.isdigit():
            raise UserError(f"{name}={text}: expected a whole number")
    processes, process = (int(text) for text in counts.values())
    if process >= processes:
        raise UserError(f"{PROCESS}={process}: expected from 0 to {processes - 1}, of {PROCESSES}={processes}")
    return coordinator, processes, process


def join_processes() -> None:
    """Joins the processes that the environment describes, if any; before anything asks for a device.

    Raises:
      UserError: as ``described_process``, or if the others cannot be reached.
    """
    found = described_process()
    if found is None or jax.distributed.is_initialized():
        return
    coordinator, processes, process = found
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except RuntimeError as error:
        raise UserError(f"{COORDINATOR}={coordinator}: {in_one_line(error)}") from error


def writes() -> bool:
    """Whether this process writes what is written once: it is process 0."""
    return jax.process_index() == 0


def largest(number: int) -> int:
    """The largest ``number`` of all processes; each of them has to ask."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def writer_first(work: Callable[[], Result]) -> Result:
    """``work()`` in process 0 and, once it is done there, in all others, which find what it wrote.

    Raises:
      UserError: if process 0 refuses, in all processes.
    """
    if jax.process_count() == 1:
        return work()
    if not writes():
        if largest(0):
            raise UserError("process 0 has refused, see its message")
        return work()
    failed = 1
    try:
        result = work()
        failed = 0
        return result
    finally:
        largest(failed)


class SharedStop:
    """A request to stop that all processes agree on: asked for in one, it stops every one after the same chunk.

    Args:
      stop: this process's own request, true or false, with its ``signal``.
    """

    def __init__(self, stop: Any):
        self._stop = stop
        self.signal: int | None = None

    def __bool__(self) -> bool:
        self.signal = largest(self._stop.signal or 0) or None
        return self.signal is not None


class UnwrittenRows:
    """In place of a ``RowWriter`` in the processes that write no rows.

    Args:
      path: of the file that process 0 writes.
    """

    def __init__(self, path: Path):
        self.path = path

    def append(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return dict(row)

    def flush(self) -> None:
        pass

    def settle(self, members: Any) -> None:
        del members

    def rows(self) -> list[Row]:
        """The rows that the file holds, which process 0 replaces as a whole."""
        return parse_lines(self.path.read_bytes()).rows if self.path.exists() else []

    def rewind(self, to_iteration: int, members: Any = None) -> int:
        del to_iteration, members
        return 0

    def __enter__(self) -> UnwrittenRows:
        return self

    def __exit__(self, *exception: object) -> None:
        pass
