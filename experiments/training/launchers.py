"""What starts the jobs of a sweep: processes of this machine, SLURM by submitit, or a Ray cluster."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.errors import SIGNAL_EXIT, UserError
from experiments.training.stopping import stop_on_signals

LAUNCHER_PREFIX = "--launcher."
POLL_SECONDS = 0.2
# Of a job, unless --launcher.timeout_min says otherwise; submitit's own default is five.
MINUTES = 24 * 60


class Launch(NamedTuple):
    """What a launcher starts: ``command`` with ``--job=0`` to ``--job=total - 1``.

    Attributes:
      command: the words of the sweep's own command.
      total: how many jobs.
      jobs: at a time, where the launcher decides.
      folder: for the launcher's own files.
      options: ``--launcher.KEY=VALUE``, the launcher's own settings.
    """

    command: list[str]
    total: int
    jobs: int
    folder: Path
    options: dict[str, Any]

    def words(self, index: int) -> list[str]:
        return [*self.command, f"--job={index}"]


def _local(launch: Launch) -> list[int]:
    """Processes of this machine; a signal is passed on, so that each saves before it ends."""
    waiting, statuses = list(range(launch.total)), [SIGNAL_EXIT] * launch.total
    running: dict[int, subprocess.Popen] = {}
    with stop_on_signals() as stop:
        while running or (waiting and not stop):
            while waiting and len(running) < launch.jobs and not stop:
                index = waiting.pop(0)
                # In a group of its own: an interrupt at the terminal reaches it once, from here.
                running[index] = subprocess.Popen(launch.words(index), start_new_session=True)
            # Read once: who is waited for without end has been asked to stop.
            stopping = bool(stop)
            for process in running.values() if stopping else ():
                process.send_signal(signal.SIGTERM)
            for index, process in list(running.items()):
                try:
                    statuses[index] = process.wait(timeout=None if stopping else POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
                del running[index]
        for index in waiting:
            statuses[index] = SIGNAL_EXIT + (stop.signal or 0)
    return statuses


def _submitit(launch: Launch) -> list[int]:
    """Jobs of a SLURM array; of this machine where there is no SLURM."""
    try:
        import submitit
    except ImportError as error:
        raise UserError("--launcher=submitit needs the extra: pip install -e '.[sweep]'") from error
    executor = submitit.AutoExecutor(folder=launch.folder / ".submitit")
    settings = {"timeout_min": MINUTES, "slurm_array_parallelism": launch.jobs} | launch.options
    try:
        executor.update_parameters(**settings)
    except (NameError, ValueError) as error:
        raise UserError(f"--launcher settings {launch.options}: {str(error).splitlines()[0]}") from error
    submitted = executor.map_array(subprocess.call, [launch.words(index) for index in range(launch.total)])
    return [job.result() for job in submitted]


def _ray(launch: Launch) -> list[int]:
    """Tasks of a Ray cluster, which places as many as it holds; of this machine where there is none."""
    try:
        import ray
    except ImportError as error:
        raise UserError("--launcher=ray needs the extra: pip install -e '.[sweep]'") from error
    ray.init(ignore_reinit_error=True)
    call = ray.remote(subprocess.call)
    call = call.options(**launch.options) if launch.options else call
    return ray.get([call.remote(launch.words(index)) for index in range(launch.total)])


LAUNCHERS: dict[str, Callable[[Launch], list[int]]] = {"local": _local, "submitit": _submitit, "ray": _ray}


def launcher_options(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The ``--launcher.KEY=VALUE`` arguments, integers as such, and the others.

    Raises:
      UserError: if one has no value.
    """
    options: dict[str, Any] = {}
    rest = []
    for argument in arguments:
        if not argument.startswith(LAUNCHER_PREFIX):
            rest.append(argument)
            continue
        key, equals, text = argument.removeprefix(LAUNCHER_PREFIX).partition("=")
        if not equals or not text:
            raise UserError(f"argument {argument!r} has no value: expected {LAUNCHER_PREFIX}{key or 'KEY'}=VALUE")
        options[key] = int(text) if text.isdigit() else text
    return options, rest
