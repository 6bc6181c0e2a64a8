"""Sweeps: cuts a grid into jobs, trains one job, and ranks the points."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from agents.channels import ChannelError
from experiments.assembly import registry
from experiments.assembly.build import EnvironmentSource, build_environment, builds_environment
from experiments.assembly.checks import checked_environment, require_observations
from experiments.assembly.evaluators import evaluation_metrics
from experiments.assembly.members import Member, members_of, variant_name
from experiments.errors import SIGNAL_EXIT, UserError, unknown
from experiments.rows import reading, run_folders, statistics
from experiments.training.compilation_cache import enable_compilation_cache
from experiments.training.progress import Done, Reporter, progress
from experiments.training.requirements import memory, require_memory, requirements
from experiments.training.scan_driver import ScanDriver
from experiments.training.stopping import StopRequested, stop_on_signals
from experiments.training.taking_back import taken_back_if_refused
from experiments.training.train import PROLONGABLE, prepare_folder, require_annotator, train

PREFIX = "--sweep."
TRACED_SECTIONS = ("agent.", "credit.", "rewards.")
RANKS = ("final", "auc")


class Job(NamedTuple):
    """One process of a sweep: a configuration, the members trained side by side, and their run folder."""

    config: ConfigDict
    members: list[Member]
    folder: Path


class Plan(NamedTuple):
    """A sweep: the experiment, its jobs, and for each point's variant the command that runs the point alone."""

    name: str
    jobs: list[Job]
    commands: dict[str, str]


def grid_of(arguments: Sequence[str], default: Mapping[str, Sequence[Any]]) -> tuple[dict[str, list[Any]], list[str]]:
    """The grid of the ``--sweep.KEY=V1,V2`` arguments, or ``default`` without any; and the other arguments.

    Semicolons separate values that have commas themselves: ``--sweep.network.hidden=64,64;128``.

    Raises:
      UserError: if an argument has no value or a key is given twice.
    """
    grid: dict[str, list[Any]] = {}
    rest = []
    for argument in arguments:
        if not argument.startswith(PREFIX):
            rest.append(argument)
            continue
        key, equals, text = argument.removeprefix(PREFIX).partition("=")
        if not equals or not text:
            raise UserError(f"argument {argument!r} has no value: expected {PREFIX}{key or 'KEY'}=V1,V2")
        if key in grid:
            raise UserError(f"key {key!r} is swept twice")
        grid[key] = text.split(";" if ";" in text else ",")
    return grid or {key: list(values) for key, values in default.items()}, rest


def is_traceable(config: ConfigDict, source: EnvironmentSource, key: str, values: Sequence[Any] = ()) -> bool:
    """Whether ``key`` may be a traced number with these ``values``: floats on which no factory and no learning step
    branches.

    Raises:
      UserError: if a reward transform writes an array of another shape, which the learning step refuses.
    """
    # All members of a program share one environment.
    if source.pure is None or not key.startswith(TRACED_SECTIONS) or builds_environment(config, key):
        return False
    # An optional number that is none in some point is not a number in that point's program.
    if not all(isinstance(value, float) for value in (registry.keys(config)[key], *values)):
        return False
    try:
        ScanDriver(config, source, [Member(0, "", {key: registry.keys(config)[key]})]).trace()
    except jax.errors.ConcretizationTypeError:
        return False
    except ChannelError as error:
        raise UserError(str(error)) from error
    return True


def plan(
    loaded: registry.Loaded,
    base: ConfigDict,
    overrides: Mapping[str, str],
    grid: Mapping[str, Sequence[Any]],
    seeds: int | None,
    first_seed: int,
    runs: str,
) -> Plan:
    """Cuts a grid into jobs, in each of which the keys that cannot be traced are constant.

    Raises:
      UserError: for an unknown key, a value of another type, or a point that cannot be built.
    """
    if not grid:
        raise UserError(f"experiment {loaded.name!r} sweeps nothing: give {PREFIX}KEY=V1,V2")
    if not grid.keys() <= registry.keys(base).keys():
        # Keys that the configuration does not spell out, or that a swept kind brings, are there from the first point.
        base = registry.apply_overrides(base, {key: values[0] for key, values in grid.items()})
    # Every value is read as the configuration's type, so that a wrong one is refused before anything starts.
    typed = {
        key: list(dict.fromkeys(registry.keys(registry.apply_overrides(base, {key: value}))[key] for value in values))
        for key, values in grid.items()
    }
    source = checked_environment(base)
    traced = [key for key in typed if is_traceable(base, source, key, typed[key])]
    static = [key for key in typed if key not in traced]
    jobs, commands = [], {}
    named = [key for key in overrides if key not in PROLONGABLE]
    for constants in itertools.product(*(typed[key] for key in static)):
        config = registry.apply_overrides(base, dict(zip(static, constants, strict=True)))
        checked_environment(config)
        members = []
        for numbers in itertools.product(*(typed[key] for key in traced)):
            values = dict(zip(traced, numbers, strict=True))
            point = registry.apply_overrides(config, values)
            # No check sees a traced number later on: a point is refused here, as its single run would be.
            if values:
                checked_environment(point)
            variant = variant_name(f"{loaded.variant}+{run_folders.SWEEP_MARK}", [*named, *typed], point)
            chosen = dict(overrides) | {key: registry.keys(point)[key] for key in typed}
            commands[variant] = run_command(loaded, chosen, seeds, first_seed)
            members += [member._replace(values=values) for member in members_of(config, variant, seeds, first_seed)]
        keys = "+".join([loaded.variant or run_folders.DEFAULT_VARIANT, run_folders.SWEEP_MARK, *sorted(traced)])
        name = variant_name(keys, [*named, *static], config)
        jobs.append(Job(config, members, run_folders.run_folder(runs, loaded.name, name)))
    return Plan(loaded.name, jobs, commands)


def require_job(job: Job, members_per_program: int | None) -> None:
    """Checks that the environment of a job returns what it says and that its programs fit into memory, as is done for
    a run.

    Raises:
      UserError: if they do not.
    """
    source = build_environment(job.config)
    require_observations(job.config, source)
    require_memory(requirements(job.config, source, len(job.members), members_per_program), memory())


def run_job(
    made: Plan,
    index: int,
    members_per_program: int | None,
    fresh: bool,
    unpickle: bool = False,
    loggers: Sequence[str] = (),
    title: str | None = None,
    watch: Callable[[int, Mapping[str, Any]], bool] | None = None,
) -> int:
    """Trains one job in this process; returns its exit status.

    Args:
      made, index: the job.
      members_per_program, fresh: as in ``prepare_folder``.
      unpickle, loggers: as in ``train``.
      title: of the progress; says which job it is if ``None``.
      watch: ``(iterations, metrics)``, told after each evaluation what the members have done together and their mean
        metrics; where it is true, the job ends there, with a checkpoint.
    """
    job = made.jobs[index]
    source = build_environment(job.config)
    require_annotator(job.config, source, job.folder, fresh=fresh)
    enable_compilation_cache()
    title = title or f"{made.name} sweep, job {index + 1} of {len(made.jobs)}, {len(job.members)} members"
    total = job.config.iterations * len(job.members)
    with (
        taken_back_if_refused(job.folder, fresh=fresh),
        stop_on_signals() as stop,
        progress(total, title, metric=job.config.evaluation.metric) as reporter,
    ):
        watched = _Watched(reporter, stop, watch)
        programs = prepare_folder(
            job.folder, job.config, job.members, fresh=fresh, members_per_program=members_per_program
        )
        outcome = train(
            job.config,
            made.name,
            programs,
            job.folder,
            watched,
            watched,
            source,
            sweep=True,
            unpickle=unpickle,
            loggers=loggers,
        )
    return 0 if outcome.finished else SIGNAL_EXIT + (outcome.signal or 0)


class _Watched:
    """A reporter that passes on what happens, and a request to stop: that of a signal, or of ``watch``."""

    def __init__(self, reporter: Reporter, stop: StopRequested, watch: Callable[[int, Mapping[str, Any]], bool] | None):
        self._reporter, self._stop, self._watch = reporter, stop, watch
        self._ended = False

    def resume(self, done: Done) -> None:
        self._reporter.resume(done)

    def phase(self, name: str) -> None:
        self._reporter.phase(name)

    def update(self, done: Done, metrics: Mapping[str, Any] | None = None) -> None:
        self._reporter.update(done, metrics)
        if self._watch is not None and metrics is not None:
            self._ended = self._watch(done.iterations, metrics)

    @property
    def signal(self) -> int | None:
        return self._stop.signal

    def __bool__(self) -> bool:
        return self._ended or bool(self._stop)


def require_metric(metric: str, config: ConfigDict) -> None:
    """Checks before any job that rows of ``config`` will have ``metric``, as far as that is known without learning.

    Raises:
      UserError: with the nearest metric that they will have.
    """
    if metric.startswith(reading.LEARNING_METRICS):
        return
    source = build_environment(config)
    training = ["return", "length", "episodes", "rejected_updates", *source.spec.info]
    known = [*evaluation_metrics(config, source), *(f"train/{name}" for name in training)]
    if metric not in known:
        raise unknown("metric", metric, known)


def ranking(rows: Sequence[reading.Row], metric: str, rank: str, pruned: Container[str] = ()) -> list[dict[str, Any]]:
    """The points, best first: ``variant``, ``seeds``, and ``iqm``, ``low``, ``high`` of the metric by ``rank``.

    Points in which seeds have ``stopped`` (their number) are ranked behind all others: run alone, they would fail. So
    are the variants that a search has ``pruned``, which have not been trained to the end.

    Raises:
      UserError: if no row has the metric.
    """
    known = reading.metrics_of(rows)
    if metric not in known:
        raise unknown("metric", metric, known)
    points = []
    for variant in reading.variants_of(rows):
        own = [row for row in rows if row["variant"] == variant]
        curves = statistics.seed_curves(own, metric)
        if rank == "final":
            scores = list(statistics.final_values(own, metric))
        else:
            scores = [float(statistics.area_under_curve(steps, values)) for steps, values in curves.values()]
        stopped = len({row["seed"] for row in own if row.get("train/stopped")})
        # A point may have stopped before its first value.
        interval = statistics.stratified_bootstrap(scores) if scores else (math.nan,) * 3
        ends = {
            name: None if math.isnan(end) else end for name, end in zip(("iqm", "low", "high"), interval, strict=True)
        }
        point = {"variant": variant, "seeds": len({row["seed"] for row in own}), "stopped": stopped}
        points.append(point | ({"pruned": True} if variant in pruned else {}) | ends)
    return sorted(
        points,
        key=lambda point: (point["stopped"] > 0, "pruned" in point, point["iqm"] is None, -(point["iqm"] or 0.0)),
    )


def run_command(loaded: registry.Loaded, overrides: Mapping[str, Any], seeds: int | None, first_seed: int) -> str:
    """The ``sagax run`` command of one point, ready for a shell."""
    words = ["sagax", "run", f"{loaded.name}:{loaded.variant}" if loaded.variant else loaded.name]
    words += [f"{registry.PREFIX}{key}={value}" for key, value in overrides.items()]
    words += [] if seeds is None else [f"--seeds={seeds}"]
    words += [f"--first-seed={first_seed}"] if first_seed else []
    return shlex.join(words)
