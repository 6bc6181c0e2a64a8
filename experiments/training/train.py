"""The outer loop of a run, plain Python: chunk, rows, evaluate, checkpoint, stop signal."""

from __future__ import annotations

import functools
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from agents.channels import ChannelError
from envs.base import ObservationRangeError
from experiments.assembly import registry
from experiments.assembly.build import EnvironmentSource, build_environment
from experiments.assembly.members import Member
from experiments.disk import write_json_atomic
from experiments.errors import UserError, reason
from experiments.rows import reading, run_folders
from experiments.rows.environment_report import note_session
from experiments.training import learn
from experiments.training.checkpoint import Checkpoints, Restored
from experiments.training.drivers import Driver, drivers
from experiments.training.learn import REJECTED_LIMIT
from experiments.training.processes import SharedStop, UnwrittenRows, writes
from experiments.training.progress import COMPILING, FIRST_CHUNK, TRAINING, Done, Reporter
from experiments.training.row_writer import RowWriter, kept_from_writers
from experiments.training.stopping import StopRequested

# What may differ between a run and its continuation: where it ends, how many seeds it has, and what its annotator may
# spend.
PROLONGABLE = ("iterations", "seeds", "annotator.max_requests", "annotator.max_cost")
CHECKPOINT_FOLDER = "checkpoints"


class Outcome(NamedTuple):
    """How a run ended: ``finished`` or stopped by ``signal``; its rows; whether it continued an earlier one."""

    finished: bool
    signal: int | None
    rows: list[dict[str, Any]]
    resumed_from: int | None


def prolongable(config: ConfigDict) -> tuple[str, ...]:
    """The keys that may differ on resuming; an annealed learning rate depends on the number of iterations."""
    annealed = config.agent.get("anneal", False)
    return tuple(key for key in PROLONGABLE if not (annealed and key == "iterations"))


def prepare_folder(
    folder: Path,
    config: ConfigDict,
    members: Sequence[Member],
    *,
    fresh: bool = False,
    members_per_program: int | None = None,
) -> list[list[Member]]:
    """Makes the run folder, or checks that what is there is the same run.

    A run may be continued with more members than it has, such as further seeds: they become further programs, so that
    the checkpoints of its programs keep their members. A program that has been started is never cut up differently.

    Args:
      folder: of the run.
      config, members: what is to be trained.
      fresh: delete what is there and start over.
      members_per_program: how many members a new program has at most; all if ``None``.

    Returns:
      The members of each program, in the order of their checkpoints.

    Raises:
      UserError: if the folder holds a run of another configuration or of members that are not among ``members``, or
        cannot be written, or with ``fresh`` if a process is writing it.
    """
    path = folder / run_folders.CONFIG_FILE
    described: dict[str, Any] = {"config": registry.to_json_dict(config)}
    if fresh and folder.exists():
        with kept_from_writers(folder / run_folders.METRICS_FILE):
            _remove(folder)
    programs: list[list[Member]] = []
    found = run_folders.read_description(folder) if path.exists() else None
    if found is not None:
        differences = registry.difference(found["config"], described["config"], prolongable(config))
        hint = "; give --fresh to start over, or --runs for another place"
        if differences:
            shown = "; ".join(str(one) for one in differences[:3])
            raise UserError(f"{folder} holds a run of another configuration ({shown}){hint}")
        programs = [
            [Member(one["seed"], one["variant"], one["values"]) for one in program]
            for program in run_folders.programs_of(found)
        ]
        if {_identity(member) for program in programs for member in program} - set(map(_identity, members)):
            seeds = sorted({member["seed"] for member in found["members"]})
            raise UserError(f"{folder} holds a run of other seeds or values: {len(seeds)} seeds {seeds}{hint}")
    kept = {_identity(member) for program in programs for member in program}
    new = [member for member in members if _identity(member) not in kept]
    size = members_per_program or max(len(new), 1)
    programs += [new[start : start + size] for start in range(0, len(new), size)]
    described["members"] = [
        {"seed": member.seed, "variant": member.variant, "values": dict(member.values)}
        for program in programs
        for member in program
    ]
    described["programs"] = [len(program) for program in programs]
    if found != described:
        write_json_atomic(path, described)
    return programs


def _identity(member: Member) -> tuple[Any, ...]:
    return member.variant, member.seed, tuple(sorted(member.values.items()))


def _remove(folder: Path) -> None:
    """Removes a run folder; killed on the way, it leaves nothing that looks like a run."""
    # Two levels up: the folders beside this one are read as runs.
    doomed = folder.parent.with_name(f".{folder.parent.name}.{folder.name}.removed")
    try:
        if doomed.exists():
            shutil.rmtree(doomed)
        folder.rename(doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        raise UserError(f"cannot remove {folder}: {reason(error)}") from error


def train(
    config: ConfigDict,
    experiment: str,
    programs: Sequence[Sequence[Member]],
    folder: Path,
    reporter: Reporter,
    stop: StopRequested | SharedStop,
    source: EnvironmentSource | None = None,
    sweep: bool = False,
) -> Outcome:
    """Trains ``programs`` in ``folder``, each from its last checkpoint where there is one.

    Args:
      config, experiment: what to train.
      programs: the members that are trained side by side, from ``prepare_folder``; on host environments one member
        after the other in any case.
      folder: from ``prepare_folder``.
      reporter: of the progress.
      stop: when to stop early, after the chunk in hand.
      source: of the environments; made from ``config`` if ``None``.
      sweep: a member that diverges (``REJECTED_LIMIT`` updates in a row that are not finite, an evaluation or a pure
        environment that is not) stops alone: a line on the standard error stream says so, it learns nothing more, and
        its rows have ``train/stopped`` from then on. A program whose members have all stopped has ended.

    Raises:
      UserError: for a configuration that cannot be built, a disk that cannot be written, and, unless ``sweep``, for an
        environment that returns NaN or updates that stay non-finite; the last good checkpoint is named.
    """
    source = build_environment(config) if source is None else source
    makers = drivers(config, source, programs, folder, sweep)
    resumed_from, done, noted, compiled = None, Done(0, 0), False, False
    constants = {"experiment": experiment}
    tensorboard = folder / run_folders.TENSORBOARD_FOLDER
    path = folder / run_folders.METRICS_FILE
    written = RowWriter(path, constants, tensorboard, by_variant=sweep) if writes() else UnwrittenRows(path)
    with written as writer:
        for index, make in enumerate(makers):
            driver: Driver = make()
            run = None
            try:
                checkpoints = folder / CHECKPOINT_FOLDER / program_name(index)
                run = _Run(config, driver, checkpoints, writer, sweep)
                if run.iteration:
                    resumed_from = run.iteration
                reporter.resume(done + run.done)
                if not (run.ended or noted or stop):
                    noted = True
                    if writes():
                        _note_session(folder, run)
                while not run.ended and not stop:
                    if not run.prepared:
                        run.prepare(reporter, first=not compiled)
                        compiled = True
                        continue
                    row = run.step()
                    reporter.update(done + run.done, row)
                if not run.ended:
                    return Outcome(False, stop.signal, reading.read_rows(writer.path), resumed_from)
                # A sweep's program may have ended early, with all its members stopped.
                done += Done(config.iterations * len(driver.members), run.done.env_steps)
            finally:
                if run is not None:
                    run.close()
                driver.close()
    return Outcome(True, None, reading.read_rows(folder / run_folders.METRICS_FILE), resumed_from)


def _note_session(folder: Path, run: _Run) -> None:
    """Says whose the rows are that ``run`` is about to make, and where it is not the run that it continues."""
    if not run.resumed_exactly:
        print(
            f"these environments cannot be saved: they begin new episodes at iteration {run.iteration}", file=sys.stderr
        )
    facts = {} if run.resumed_exactly else {"resumed_exactly": False}
    rows = reading.read_rows(folder / run_folders.METRICS_FILE)
    note_session(folder / run_folders.ENVIRONMENT_FILE, len(rows), facts)


def program_name(index: int) -> str:
    """The folder of the checkpoints of program ``index``: all members on a pure environment, one on host
    environments."""
    return f"program_{index}"


def checkpoint_identity(config: ConfigDict, members: Sequence[Member]) -> dict[str, Any]:
    """What a checkpoint says of its origin; what it must say to be continued or evaluated."""
    return {
        "fingerprint": registry.fingerprint(config, prolongable(config)),
        "members": [[member.variant, member.seed] for member in members],
    }


def restore(checkpoints: Checkpoints, config: ConfigDict, driver: Driver, iteration: int | None = None) -> Restored:
    """The checkpoint of ``iteration``, or the latest, of what ``driver`` trains.

    Raises:
      UserError: if there is none, it cannot be read, or is of another configuration or of other members.
    """
    found = checkpoints.restore(driver.template(), iteration)
    for key, expected in checkpoint_identity(config, driver.members).items():
        if found.meta.get(key) != expected:
            raise UserError(
                f"the checkpoint {found.iteration} in {checkpoints.folder} is of another configuration: "
                f"its {key} {found.meta.get(key)}, expected {expected}"
            )
    return found


class _Run:
    """One driver's way through its iterations."""

    def __init__(
        self, config: ConfigDict, driver: Driver, folder: Path, writer: RowWriter | UnwrittenRows, sweep: bool
    ):
        self._config, self._driver, self._writer, self._sweep = config, driver, writer, sweep
        self._checkpoints = Checkpoints(folder)
        self._identities = [(member.variant, member.seed) for member in driver.members]
        self._env_steps = [0] * len(driver.members)
        self.iteration, self.resumed_exactly, self.prepared = 0, True, False
        if self._checkpoints.latest() is None:
            self._state = self._guarded(driver.start)
        else:
            found = restore(self._checkpoints, config, driver)
            self._state = self._guarded(lambda: driver.resume(found.state, found.host, found.iteration))
            self.iteration, self._env_steps = found.iteration, list(found.meta["env_steps"])
            self.resumed_exactly = driver.resumed_exactly
        # Only a sweep saves members that have stopped.
        self._stopped = np.zeros(len(driver.members), bool)
        if self.iteration and sweep:
            self._stopped = np.asarray(self._state.rejected).reshape(-1) >= REJECTED_LIMIT
        writer.rewind(self.iteration, self._identities)

    @property
    def done(self) -> Done:
        """What has been trained, over all members."""
        return Done(self.iteration * len(self._driver.members), sum(self._env_steps))

    def prepare(self, reporter: Reporter, first: bool) -> None:
        """Compiles the next step ahead of it, so that its speed can be told. Where the driver cannot do that, the
        ``first`` one of a run compiles in its first chunk, and the others find what it has compiled."""
        self.prepared = True
        if self._driver.compiles_ahead:
            reporter.phase(COMPILING)
            self._guarded(lambda: self._driver.compile(self._state, self._next_size()))
            reporter.phase(TRAINING)
        elif first:
            reporter.phase(FIRST_CHUNK)

    def _next_size(self) -> int:
        """The iterations of the next chunk; a prolonged run is evaluated where a longer one would have been."""
        size = self._config.evaluate_every - self.iteration % self._config.evaluate_every
        return min(size, self._config.iterations - self.iteration)

    @property
    def ended(self) -> bool:
        """Whether every iteration is done, or no member is left that learns."""
        return self.iteration >= self._config.iterations or bool(np.all(self._stopped))

    def step(self) -> dict[str, Any]:
        """One chunk with its rows, evaluation and checkpoint; returns the mean row for the display."""
        config, driver = self._config, self._driver
        size = self._next_size()
        started = time.monotonic()
        state, metrics = self._guarded(lambda: driver.chunk(self._state, self.iteration, size))
        done = f"iterations {self.iteration} to {self.iteration + size - 1}"
        # Of a run, the driver has refused it.
        self._stop(metrics["sum/non_finite_environments"] > 0, "the environment returned NaN or infinity", f", {done}")
        self._stop(
            metrics["max/rejected"] >= REJECTED_LIMIT,
            f"{REJECTED_LIMIT} updates in a row were not finite",
            f", {done}: ",
            functools.partial(learn.cause_of_rejection, metrics),
        )
        seconds = time.monotonic() - started
        evaluated = self._guarded(lambda: driver.evaluate(state))
        for name, values in evaluated.items():
            after = f"the evaluation after iteration {self.iteration + size}"
            self._stop(~np.isfinite(values), f"{after} has a {name!r} that is not finite", ": expected finite rewards")
        if np.any(self._stopped):
            stopped = jnp.asarray(self._stopped).reshape(state.rejected.shape)
            state = state._replace(rejected=jnp.where(stopped, jnp.int32(REJECTED_LIMIT), state.rejected))
        self._state, self.iteration = state, self.iteration + size
        rows = []
        steps = metrics["sum/env_steps"]
        self._env_steps = [total + int(new) for total, new in zip(self._env_steps, steps, strict=True)]
        for index, member in enumerate(driver.members):
            row = {"variant": member.variant, "seed": member.seed, "env_steps": self._env_steps[index]}
            row |= {"iteration": self.iteration}
            row |= {name: values[index] for name, values in evaluated.items()}
            row |= _training_metrics({name: values[index] for name, values in metrics.items()})
            row["time/steps_per_second"] = float(np.sum(steps)) / seconds
            row |= {"train/stopped": 1} if self._stopped[index] else {}
            rows.append(self._writer.append(row))
        self._writer.flush()
        going = evaluated[config.evaluation.metric][~self._stopped]
        score = float(np.mean(going)) if len(going) else float(np.finfo(np.float32).min)
        meta = {"env_steps": self._env_steps} | checkpoint_identity(config, driver.members)
        self._checkpoints.save(self.iteration, self._state, meta, score, driver.snapshot())
        numbers = [name for name, value in rows[0].items() if isinstance(value, float)]
        shown = {name: float(np.mean([row[name] for row in rows if row[name] is not None])) for name in numbers}
        return shown | {"iteration": self.iteration}

    def _stop(self, failed: np.ndarray, what: str, where: str, cause: Callable[[int], str] = lambda _: "") -> None:
        """Raises if a member of a run ``failed [members]``, with the ``cause`` of the first; of a sweep, says and
        remembers it."""
        failed = failed & ~self._stopped
        found = np.flatnonzero(failed).tolist()
        members = self._driver.members
        if found and not self._sweep:
            seeds = [members[index].seed for index in found]
            raise UserError(f"{what}, seeds {seeds}{where}{cause(found[0])}; {self._last_good()}")
        for index in found:
            member = members[index]
            print(f"stopped: {member.variant}, seed {member.seed}: {what}{where}{cause(index)}", file=sys.stderr)
        self._stopped = self._stopped | failed

    def close(self) -> None:
        """Ends the checkpoints' threads."""
        self._checkpoints.close()

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """``work()``; a value that no environment may return, or a reward channel of a wrong shape, becomes a message
        that names the last good checkpoint."""
        try:
            return work()
        except (FloatingPointError, ObservationRangeError, ChannelError) as error:
            raise UserError(f"{error}; {self._last_good()}") from error

    def _last_good(self) -> str:
        latest = self._checkpoints.latest()
        where = "there is no checkpoint yet" if latest is None else f"{self._checkpoints.folder}, iteration {latest}"
        return f"the last good checkpoint: {where}"


def _training_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Chunk sums as means over the training episodes under ``train/``; learning metrics by their own names."""
    sums = {name.removeprefix(learn.SUM_PREFIX): v for name, v in metrics.items() if name.startswith(learn.SUM_PREFIX)}
    episodes = float(sums.pop("episodes"))
    row: dict[str, Any] = {"train/episodes": int(episodes), "train/rejected_updates": int(sums.pop("rejected"))}
    for name in ("env_steps", "non_finite_environments"):
        sums.pop(name)
    # A chunk in which no episode ended has no mean return.
    row |= {f"train/{name}": float(value) / episodes if episodes else None for name, value in sums.items()}
    return row | {name: value for name, value in metrics.items() if not name.startswith((learn.SUM_PREFIX, "max/"))}


def devices() -> str:
    """The devices in words."""
    found = jax.devices()
    return f"{len(found)} x {found[0].device_kind}" if len(found) > 1 else found[0].device_kind
