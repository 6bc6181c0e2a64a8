"""The launchers, which start the jobs of a sweep: processes of this machine, SLURM by submitit, or a Ray cluster."""

from __future__ import annotations

import functools
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.errors import SIGNAL_EXIT, UserError, in_one_line, say
from experiments.training.stopping import stop_on_signals

LAUNCHER_PREFIX = "--launcher."
POLL_SECONDS = 0.2
# The time limit of a job, unless --launcher.timeout_min sets another; submitit's default is five minutes.
MINUTES = 24 * 60
# JAX takes this share of a GPU's memory at once, or as a process needs it where told so.
GPU_SHARE = 0.75
PREALLOCATE, FRACTION = "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION"


class Launch(NamedTuple):
    """The jobs that a launcher starts: ``command`` with ``--job=0`` to ``--job=total - 1``.

    Attributes:
      command: the words of the sweep's own command.
      total: the number of jobs.
      jobs: how many run at a time, where the launcher decides that.
      folder: for the launcher's own files.
      options: the launcher's own settings, ``--launcher.KEY=VALUE``.
      environment: variables of the processes that ``local`` starts; this process's where ``None``.
    """

    command: list[str]
    total: int
    jobs: int
    folder: Path
    options: dict[str, Any]
    environment: Mapping[str, str] | None = None

    def words(self, index: int) -> list[str]:
        return [*self.command, f"--job={index}"]


def leave_devices_to_jobs(jobs: int) -> dict[str, str]:
    """Keeps the process that plans a sweep from what its jobs need; called before anything asks for a device.

    Beside several jobs at a time it plans on the CPU. Where there is one at a time, which may be this process itself,
    it takes memory of a GPU as it needs it, and not most of it at once.

    Returns:
      The environment for the jobs.
    """
    environment = dict(os.environ)
    if jobs > 1:
        jax.config.update("jax_platforms", "cpu")
    else:
        os.environ.setdefault(PREALLOCATE, "false")
    return environment


def local_devices(environment: Mapping[str, str]) -> tuple[str, int]:
    """The platform (``cpu``, ``gpu``, ``tpu``) and the number of this machine's devices, as a process with
    ``environment`` sees them: asked in one of its own, which leaves the devices free when it ends.

    Raises:
      UserError: if it cannot tell.
    """
    code = "import jax; found = jax.local_devices(); print(found[0].platform, len(found))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    words = done.stdout.split()
    if done.returncode or len(words) < 2:
        said = done.stderr.strip().splitlines()
        raise UserError(f"cannot tell this machine's devices: {said[-1] if said else f'status {done.returncode}'}")
    return words[-2], int(words[-1])


def slot_variables(slot: int, jobs: int, platform: str, devices: int, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that give the job in ``slot``, one of ``jobs`` at a time, devices of its own.

    The devices are dealt out to the slots; on TPUs each slot has one chip. More jobs than devices share them, and the
    memory of a GPU.

    Args:
      slot: from 0 to ``jobs - 1``.
      jobs: at a time.
      platform, devices: from ``local_devices``.
      environment: of the jobs; a choice of devices in it is kept to.
    """
    if jobs == 1 or platform not in ("gpu", "tpu"):
        return {}
    name = "CUDA_VISIBLE_DEVICES" if platform == "gpu" else "TPU_VISIBLE_CHIPS"
    known = [word.strip() for word in environment.get(name, "").split(",") if word.strip()]
    known = known or [str(index) for index in range(devices)]
    if platform == "tpu":
        bounds = {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1"}
        return {name: known[slot % len(known)]} | bounds
    own = known[slot::jobs] or [known[slot % len(known)]]
    sharing = math.ceil(jobs / len(known))
    share = {FRACTION: f"{GPU_SHARE / sharing:.3f}"} if sharing > 1 else {}
    return {name: ",".join(own)} | share


def _local(launch: Launch) -> list[int]:
    """Processes of this machine, each with devices of its own; a signal is passed on, so that each saves before it
    ends."""
    waiting, statuses = list(range(launch.total)), [SIGNAL_EXIT] * launch.total
    environment = dict(os.environ if launch.environment is None else launch.environment)
    jobs = min(launch.jobs, launch.total)
    found = local_devices(environment) if jobs > 1 else ("cpu", 1)
    variables = [slot_variables(slot, jobs, *found, environment) for slot in range(jobs)]
    running: dict[int, subprocess.Popen] = {}
    slots: dict[int, int] = {}
    with stop_on_signals() as stop:
        while running or (waiting and not stop):
            while waiting and len(running) < jobs and not stop:
                index = waiting.pop(0)
                slots[index] = min(set(range(jobs)) - {slots[other] for other in running})
                # In a process group of its own, so that an interrupt at the terminal reaches it once, from here.
                running[index] = subprocess.Popen(
                    launch.words(index), start_new_session=True, env=environment | variables[slots[index]]
                )
            # Read once, so that a job that is waited for without a time limit has been asked to stop.
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
        raise UserError(f"--launcher settings {launch.options}: {in_one_line(error)}") from error
    submitted = executor.map_array(subprocess.call, [launch.words(index) for index in range(launch.total)])
    errors = (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError)
    return [_status_of(job.result, errors, f"job {job.job_id}") for job in submitted]


def _status_of(result: Callable[[], int], errors: tuple[type[Exception], ...], name: str) -> int:
    """``result()``; a job that the cluster lost, such as one beyond its time, has failed, and a line says so."""
    try:
        return result()
    except errors as error:
        say(f"{name} has no result: {in_one_line(error)}")
        return 1


def _ray(launch: Launch) -> list[int]:
    """Tasks of a Ray cluster, which places as many as it holds; of this machine where there is none."""
    try:
        import ray
    except ImportError as error:
        raise UserError("--launcher=ray needs the extra: pip install -e '.[sweep]'") from error
    call = ray.remote(subprocess.call)
    try:
        call = call.options(**launch.options) if launch.options else call
    except (TypeError, ValueError) as error:
        raise UserError(f"--launcher settings {launch.options}: {in_one_line(error)}") from error
    ours = not ray.is_initialized()
    get: Any = ray.get
    try:
        ray.init(ignore_reinit_error=True)
    except (ConnectionError, RuntimeError) as error:
        raise UserError(f"--launcher=ray: {in_one_line(error)}: expected a cluster that answers") from error
    try:
        tasks = [call.remote(launch.words(index)) for index in range(launch.total)]
        return [
            _status_of(functools.partial(get, task), (ray.exceptions.RayError,), f"task {index + 1}")
            for index, task in enumerate(tasks)
        ]
    finally:
        if ours:
            ray.shutdown()


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
        options[key] = int(text) if re.fullmatch("[0-9]{1,18}", text) else text
    return options, rest
