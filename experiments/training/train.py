"""The outer loop of a run, plain Python: chunk, rows, evaluate, checkpoint, stop signal."""

from __future__ import annotations

import functools
import itertools
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from agents.channels import ChannelError
from agents.optimisers import has_schedule
from envs.base import ObservationRangeError
from experiments.assembly import registry
from experiments.assembly.build import EnvironmentSource, build_annotation, build_environment
from experiments.assembly.members import Member
from experiments.disk import write_json_atomic
from experiments.errors import RefusedAtStartError, UserError, reason, say
from experiments.rows import reading, run_folders
from experiments.rows.environment_report import note_session, require_same_settings
from experiments.training import learn
from experiments.training.checkpoint import Checkpoints, Restored
from experiments.training.drivers import Driver, drivers
from experiments.training.learn import REJECTED_LIMIT
from experiments.training.loggers.sink import logger_sinks
from experiments.training.loggers.tensorboard import TensorBoard
from experiments.training.processes import UnwrittenRows, writes
from experiments.training.progress import COMPILING, FIRST_CHUNK, TRAINING, Done, Reporter
from experiments.training.row_writer import RowWriter, kept_from_writers
from experiments.training.stopping import StopRequest
from experiments.training.videos import Films

# What may differ between a run and its continuation: where it ends, how many seeds it has, and what its annotator may
# spend.
PROLONGABLE = ("iterations", "seeds", "annotator.max_requests", "annotator.max_cost")
CHECKPOINT_FOLDER = "checkpoints"
# What is said where a pickle is not loaded.
WITHHELD = (
    "the saved environments are a pickle, which runs code as it is loaded, and this user has not signed it on this "
    "machine (--unpickle-environments loads it all the same)"
)


class Outcome(NamedTuple):
    """How a run ended: ``finished`` or stopped by ``signal``; its rows; whether it continued an earlier one."""

    finished: bool
    signal: int | None
    rows: list[dict[str, Any]]
    resumed_from: int | None


def prolongable(config: ConfigDict) -> tuple[str, ...]:
    """The keys that may differ on resuming; a learning rate with a schedule depends on the number of iterations."""
    scheduled = has_schedule(config.agent)
    return tuple(key for key in PROLONGABLE if not (scheduled and key == "iterations"))


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
      UserError: if the folder holds a run of another configuration, of members that are not among ``members``, or with
        other settings of JAX, or cannot be written, or with ``fresh`` if a process is writing it. The folder is then as
        it was.
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
        require_same_settings(folder / run_folders.ENVIRONMENT_FILE)
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
    """Empties a run folder; killed on the way, it leaves nothing that looks like a run.

    Where the folder is a link, what it leads to is emptied, and the link stays.
    """
    real = folder.resolve()
    # Beside it, so that it is on the same disk; hidden folders are not read as runs.
    doomed = real.with_name(f".{real.name}.removed")
    try:
        if doomed.exists():
            shutil.rmtree(doomed)
        real.rename(doomed)
        real.mkdir()
    except OSError as error:
        raise UserError(f"cannot remove {folder}: {reason(error)}") from error
    try:
        shutil.rmtree(doomed)
    except OSError as error:
        say(f"cannot remove all of {doomed}: {reason(error)}")


def require_annotator(config: ConfigDict, source: EnvironmentSource, folder: Path, *, fresh: bool = False) -> None:
    """Checks, before a run folder is made, what the annotator of the run needs of this machine; asks nobody.

    A run that is there may have ended, and then needs no annotator, unless it is to start over (``fresh``).

    Raises:
      UserError: if something is missing, such as the address of a language model.
    """
    annotation = None if folder.exists() and not fresh else build_annotation(config, source)
    if annotation is not None:
        annotation.require()


def train(
    config: ConfigDict,
    experiment: str,
    programs: Sequence[Sequence[Member]],
    folder: Path,
    reporter: Reporter,
    stop: StopRequest,
    source: EnvironmentSource | None = None,
    sweep: bool = False,
    unpickle: bool = False,
    loggers: Sequence[str] = (),
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
      unpickle: load saved environments that are a pickle, which runs code, whoever wrote it; otherwise only those that
        this user pickled on this machine.
      loggers: of the catalogue of loggers, which take the rows as well.

    Raises:
      UserError: for a configuration that cannot be built, a disk that cannot be written, and, unless ``sweep``, for an
        environment that returns NaN or updates that stay non-finite; the last good checkpoint is named.
    """
    source = build_environment(config) if source is None else source
    makers = drivers(config, source, programs, folder, sweep)
    resumed_from, done, noted, compiled = None, Done(0, 0), False, False
    constants = {"experiment": experiment}
    path = folder / run_folders.METRICS_FILE
    written: RowWriter | UnwrittenRows = UnwrittenRows(path)
    if writes():
        events = TensorBoard(folder / run_folders.TENSORBOARD_FOLDER, by_variant=sweep)
        chosen = logger_sinks(loggers, folder, experiment, config, itertools.chain(*programs))
        written = RowWriter(path, constants, [events, *chosen])
    films = Films(config, source, folder, by_variant=sweep)
    with written as writer:
        for index, make in enumerate(makers):
            driver: Driver = make()
            run = None
            try:
                checkpoints = folder / CHECKPOINT_FOLDER / program_name(index)
                run = _Run(config, driver, checkpoints, writer, sweep, unpickle, films)
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
    if run.new_episodes is not None:
        say(f"{run.new_episodes}: they begin new episodes at iteration {run.iteration}")
    facts = {} if run.new_episodes is None else {"resumed_exactly": False}
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
                f"its {key} {str(found.meta.get(key))[:200]}, expected {expected}"
            )
    steps, rows = found.meta.get("env_steps"), found.meta.get("rows", [])
    if not isinstance(steps, list) or [type(count) for count in steps] != [int] * len(driver.members):
        raise UserError(
            f"the checkpoint {found.iteration} in {checkpoints.folder} has no count of steps per member: its env_steps "
            f"are {str(steps)[:40]}"
        )
    reading.require_rows(rows, f"the checkpoint {found.iteration} in {checkpoints.folder}")
    return found


class _Run:
    """One driver's way through its iterations."""

    def __init__(
        self,
        config: ConfigDict,
        driver: Driver,
        folder: Path,
        writer: RowWriter | UnwrittenRows,
        sweep: bool,
        unpickle: bool,
        films: Films,
    ):
        self._films = films
        self._config, self._driver, self._writer, self._sweep = config, driver, writer, sweep
        had_folder = folder.is_dir()
        self._checkpoints = Checkpoints(folder)
        self._identities = [(member.variant, member.seed) for member in driver.members]
        self._env_steps = [0] * len(driver.members)
        self._stopped = np.zeros(len(driver.members), bool)
        self._state: Any = None
        self.iteration, self.prepared = 0, False
        self.new_episodes: str | None = None
        if self._checkpoints.latest() is not None:
            self._resume(unpickle)
        elif self._finished_without_checkpoint(had_folder):
            self.iteration = config.iterations
            say(f"{folder}: the checkpoints of this finished run are gone; its rows are there")
        else:
            self._state = self._guarded(driver.start)
            writer.rewind(0, self._identities)
        writer.settle(self._identities)

    def _resume(self, unpickle: bool) -> None:
        driver = self._driver
        found = restore(self._checkpoints, self._config, driver)
        self.iteration, self._env_steps = found.iteration, list(found.meta["env_steps"])
        self._state = found.state
        # Only a sweep saves members that have stopped.
        if self._sweep:
            self._stopped = np.asarray(found.state.rejected).reshape(-1) >= REJECTED_LIMIT
        # A run that has ended needs no environments: nothing of theirs is loaded.
        if not self.ended:
            host = found.host
            withheld = host is not None and host.pickled is not None and not (unpickle or found.ours)
            if host is not None and withheld:
                host = host._replace(pickled=None)
            self._state = self._guarded(lambda: driver.resume(found.state, host, found.iteration))
            self.new_episodes = WITHHELD if withheld and driver.new_episodes else driver.new_episodes
        self._writer.rewind(self.iteration, self._identities)
        self._write_lost_rows(found.meta.get("rows", []))

    def _write_lost_rows(self, rows: Sequence[reading.Row]) -> None:
        """Writes the last rows again, which the checkpoint holds, too, where the file has lost them."""
        there = [row for row in self._writer.rows() if row["iteration"] == self.iteration]
        saved = {(row.get("variant", ""), row["seed"]): row for row in rows}
        for identity in set(self._identities) - {(row.get("variant", ""), row["seed"]) for row in there}:
            found = saved.get(identity)
            became = "and is in no checkpoint" if found is None else "and is written again from the checkpoint"
            say(f"{self._writer.path}: the row of seed {identity[1]}, iteration {self.iteration} was lost, {became}")
            if found is not None:
                self._writer.append(found)

    def _finished_without_checkpoint(self, had_folder: bool) -> bool:
        """Whether the rows are those of a run that ended, whose checkpoints were removed since.

        Raises:
          UserError: if they are those of one that did not end: without a checkpoint it cannot go on, and its rows would
            be lost.
        """
        last = dict.fromkeys(self._identities, 0)
        for row in self._writer.rows():
            identity = row.get("variant", ""), row["seed"]
            if identity in last:
                last[identity] = max(last[identity], row["iteration"])
        reached = max(last.values())
        # Killed before its first checkpoint, a run has the rows of one evaluation at most, and makes them anew.
        if not reached or (had_folder and reached <= self._config.evaluate_every):
            return False
        if min(last.values()) >= self._config.iterations:
            return True
        raise UserError(
            f"{self._writer.path} has rows up to iteration {reached}, and {self._checkpoints.folder} has no checkpoint "
            "to go on from: give --fresh to start over without these rows, or --runs for another place"
        )

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
        # How long a session took is nothing that a run resumes.
        lasting = [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]
        meta = {"env_steps": self._env_steps, "rows": lasting} | checkpoint_identity(config, driver.members)
        self._checkpoints.save(self.iteration, self._state, meta, score, driver.snapshot())
        self._writer.settle(self._identities)
        self._films.take(self._state, driver.members, self.iteration)
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
            say(f"stopped: {member.variant}, seed {member.seed}: {what}{where}{cause(index)}")
        self._stopped = self._stopped | failed

    def close(self) -> None:
        """Ends the checkpoints' threads."""
        self._checkpoints.close()

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """``work()``; a value that no environment may return, or a reward channel of a wrong shape, becomes a message
        that names the last good checkpoint."""
        try:
            return work()
        except (FloatingPointError, ObservationRangeError) as error:
            raise UserError(f"{error}; {self._last_good()}") from error
        except ChannelError as error:
            # What an annotator has answered meanwhile was paid for, and stays.
            kind = UserError if "annotator" in self._config else RefusedAtStartError
            raise kind(f"{error}; {self._last_good()}") from error

    def _last_good(self) -> str:
        latest = self._checkpoints.latest()
        where = "there is no checkpoint yet" if latest is None else f"{self._checkpoints.folder}, iteration {latest}"
        return f"the last good checkpoint: {where}"


def _training_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Chunk sums as means over the training episodes under ``train/``, and what evaluators watched; learning metrics by
    their own names."""
    sums = {name.removeprefix(learn.SUM_PREFIX): v for name, v in metrics.items() if name.startswith(learn.SUM_PREFIX)}
    episodes = float(sums.pop("episodes"))
    row: dict[str, Any] = {"train/episodes": int(episodes), "train/rejected_updates": int(sums.pop("rejected"))}
    for name in ("env_steps", "non_finite_environments"):
        sums.pop(name)
    # A chunk in which no episode ended has no mean return.
    row |= {f"train/{name}": float(value) / episodes if episodes else None for name, value in sums.items()}
    others = (learn.SUM_PREFIX, learn.NON_FINITE, learn.MAX_PREFIX + "rejected")
    for name, value in metrics.items():
        if not name.startswith(others):
            largest = name.startswith(learn.MAX_PREFIX)
            row["train/max_" + name.removeprefix(learn.MAX_PREFIX) if largest else name] = value
    return row


def devices() -> str:
    """The devices in words."""
    found = jax.devices()
    return f"{len(found)} x {found[0].device_kind}" if len(found) > 1 else found[0].device_kind
