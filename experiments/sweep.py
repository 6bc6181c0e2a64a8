"""``python -m experiments.sweep NAME[:variant] [--sweep.KEY=V1,V2 ...]``: a grid of runs, ranked.

The grid is the product of the experiment's ``get_sweep()``, or of the ``--sweep`` arguments. Numbers that may be traced
(floats of the sections agent, credit and rewards that a pure world is not built from) are vmapped together with the
seeds in one program; every combination of the other keys is a job of its own, a separate process. A point's rows are
filed under the variant ``VARIANT+sweep+KEY=VALUE+...``, beside those that ``experiments.run`` files for a run with
these overrides. The same command resumes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from experiments import registry, results, statistics
from experiments.build import World, build_world, builds_world
from experiments.cache import enable_compilation_cache
from experiments.command_parser import CommandParser
from experiments.drivers import Member, ScanDriver
from experiments.errors import UserError, command, unknown
from experiments.progress import progress
from experiments.run import checked_world, evaluation_metrics, members_of, variant_name
from experiments.train import PROLONGABLE, planned_steps, prepare_folder, stop_on_signals, train

PREFIX = "--sweep."
LAUNCHER_PREFIX = "--launcher."
TRACED_SECTIONS = ("agent.", "credit.", "rewards.")
RANKS = ("final", "auc")
# What a learning step says of itself, and how long it took; its names are known once it has been traced.
LEARNING_METRICS = ("agent/", "reward/", "annotator/", "time/")
# A run and a sweep's point with the same values have rows of their own.
MARK = "sweep"
SIGNAL_EXIT = 128
POLL_SECONDS = 0.2
# Of a job, unless --launcher.timeout_min says otherwise; submitit's own default is five.
MINUTES = 24 * 60


class Job(NamedTuple):
    """One process of a sweep: a configuration, the members trained side by side, and their run folder."""

    config: ConfigDict
    members: list[Member]
    folder: Path


class Plan(NamedTuple):
    """A sweep: the experiment, its jobs, and per point's variant the command that runs it alone."""

    name: str
    jobs: list[Job]
    commands: dict[str, str]


def parser() -> CommandParser:
    made = CommandParser(prog="python -m experiments.sweep", description=__doc__.split("\n")[0])
    made.add_argument("name", help="NAME or NAME:variant,variant")
    made.add_argument("--seeds", type=int, help="seeds per point (default: the config's)")
    made.add_argument("--first-seed", type=int, default=0, help="tune on other seeds than those that are reported")
    made.add_argument("--launcher", choices=sorted(LAUNCHERS), default="local")
    made.add_argument("--jobs", type=int, default=1, help="processes at a time (launchers local and submitit)")
    made.add_argument("--members-per-program", type=int, help="seeds and points in one program at most (default: all)")
    made.add_argument("--runs", default=results.RUNS_FOLDER, help="where run folders are (default: runs)")
    made.add_argument("--fresh", action="store_true", help="delete what an earlier sweep left and start over")
    made.add_argument("--metric", help="what to rank by (default: the config's evaluation.metric)")
    made.add_argument("--rank", choices=RANKS, default="final", help="final value or area under the curve")
    made.add_argument("--json", action="store_true", help="print the ranking as one JSON object")
    made.add_argument("--job", type=int, help=argparse.SUPPRESS)
    return made


def grid_of(arguments: Sequence[str], default: Mapping[str, Sequence[Any]]) -> tuple[dict[str, list[Any]], list[str]]:
    """The grid of ``--sweep.KEY=V1,V2`` arguments, or the default; and the arguments that are no such thing.

    Where values have commas themselves, semicolons separate them: ``--sweep.network.hidden=64,64;128``.

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


def is_traceable(config: ConfigDict, world: World, key: str, values: Sequence[Any] = ()) -> bool:
    """Whether ``key`` may be a traced number of ``values``: floats that no factory and no learning step branches on."""
    # One world is shared by all members of a program.
    if world.environment is None or not key.startswith(TRACED_SECTIONS) or builds_world(config, key):
        return False
    # An optional number of which a point wants none is no number in that point's program.
    if not all(isinstance(value, float) for value in (registry.keys(config)[key], *values)):
        return False
    try:
        ScanDriver(config, world, [Member(0, "", {key: registry.keys(config)[key]})]).trace()
    except jax.errors.ConcretizationTypeError:
        return False
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
    """Cuts a grid into jobs: the keys that cannot be traced are constant in a job.

    Raises:
      UserError: for an unknown key, a value of another type, or a point that cannot be built.
    """
    if not grid:
        raise UserError(f"experiment {loaded.name!r} sweeps nothing: give {PREFIX}KEY=V1,V2")
    # Every value as the configuration's type, refused before anything starts.
    typed = {
        key: list(dict.fromkeys(registry.keys(registry.apply_overrides(base, {key: value}))[key] for value in values))
        for key, values in grid.items()
    }
    world = checked_world(base)
    traced = [key for key in typed if is_traceable(base, world, key, typed[key])]
    static = [key for key in typed if key not in traced]
    jobs, commands = [], {}
    named = [key for key in overrides if key not in PROLONGABLE]
    for constants in itertools.product(*(typed[key] for key in static)):
        config = registry.apply_overrides(base, dict(zip(static, constants, strict=True)))
        checked_world(config)
        members = []
        for numbers in itertools.product(*(typed[key] for key in traced)):
            values = dict(zip(traced, numbers, strict=True))
            point = registry.apply_overrides(config, values)
            # What is traced is out of reach of every check: a point is refused here, as its single run is.
            if values:
                checked_world(point)
            variant = variant_name(f"{loaded.variant}+{MARK}", [*named, *typed], point)
            chosen = dict(overrides) | {key: registry.keys(point)[key] for key in typed}
            commands[variant] = run_command(loaded, chosen, seeds, first_seed)
            members += [member._replace(values=values) for member in members_of(config, variant, seeds, first_seed)]
        keys = "+".join([loaded.variant or results.DEFAULT_VARIANT, MARK, *sorted(traced)])
        name = variant_name(keys, [*named, *static], config)
        jobs.append(Job(config, members, results.run_folder(runs, loaded.name, name)))
    return Plan(loaded.name, jobs, commands)


def run_job(made: Plan, index: int, members_per_program: int | None, fresh: bool) -> int:
    """Trains one job in this process; returns its exit status."""
    job = made.jobs[index]
    enable_compilation_cache()
    prepare_folder(job.folder, job.config, job.members, fresh=fresh)
    title = f"{made.name} sweep, job {index + 1} of {len(made.jobs)}, {len(job.members)} members"
    total = planned_steps(job.config, len(job.members))
    with stop_on_signals() as stop, progress(total, title, metric=job.config.evaluation.metric) as reporter:
        outcome = train(
            job.config,
            made.name,
            job.members,
            job.folder,
            reporter,
            stop,
            members_per_program=members_per_program,
            sweep=True,
        )
    return 0 if outcome.finished else SIGNAL_EXIT + (outcome.signal or 0)


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


def require_metric(metric: str, config: ConfigDict) -> None:
    """Checks, before any job, that rows of ``config`` will have ``metric``, as far as that is known without learning.

    Raises:
      UserError: with the nearest metric that they will have.
    """
    if metric.startswith(LEARNING_METRICS):
        return
    spec = build_world(config).spec
    training = ["return", "length", "episodes", "rejected_updates", *spec.info]
    known = [*evaluation_metrics(config, spec), *(f"train/{name}" for name in training)]
    if metric not in known:
        raise unknown("metric", metric, known)


def ranking(rows: Sequence[results.Row], metric: str, rank: str) -> list[dict[str, Any]]:
    """The points, best first: ``variant``, ``seeds``, ``iqm``, ``low``, ``high`` of the metric's ``rank``.

    A point of which seeds stopped (``stopped``, their number) is behind all others: it fails where it is run alone.

    Raises:
      UserError: if no row has the metric.
    """
    known = results.metrics_of(rows)
    if metric not in known:
        raise unknown("metric", metric, known)
    points = []
    for variant in results.variants_of(rows):
        own = [row for row in rows if row["variant"] == variant]
        curves = statistics.seed_curves(own, metric)
        if rank == "final":
            scores = list(statistics.final_values(own, metric))
        else:
            scores = [float(statistics.area_under_curve(steps, values)) for steps, values in curves.values()]
        stopped = len({row["seed"] for row in own if row.get("train/stopped")})
        # A point may stop before it has a value.
        interval = statistics.stratified_bootstrap(scores) if scores else (math.nan,) * 3
        ends = {
            name: None if math.isnan(end) else end for name, end in zip(("iqm", "low", "high"), interval, strict=True)
        }
        points.append({"variant": variant, "seeds": len({row["seed"] for row in own}), "stopped": stopped} | ends)
    return sorted(points, key=lambda point: (point["stopped"] > 0, point["iqm"] is None, -(point["iqm"] or 0.0)))


def run_command(loaded: registry.Loaded, overrides: Mapping[str, Any], seeds: int | None, first_seed: int) -> str:
    """The ``experiments.run`` command of one point, ready for a shell."""
    words = ["python", "-m", "experiments.run", f"{loaded.name}:{loaded.variant}" if loaded.variant else loaded.name]
    words += [f"{registry.PREFIX}{key}={value}" for key, value in overrides.items()]
    words += [] if seeds is None else [f"--seeds={seeds}"]
    words += [f"--first-seed={first_seed}"] if first_seed else []
    return shlex.join(words)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs or continues one sweep.

    Raises:
      UserError: for anything the user can repair.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    options_of = parser()
    arguments, rest = options_of.parse_known_args(argv)
    loaded = registry.load(arguments.name)
    options, rest = launcher_options(rest)
    grid, rest = grid_of(rest, loaded.module.get_sweep())
    more = [f"{PREFIX}KEY=V1,V2", f"{LAUNCHER_PREFIX}KEY=VALUE"]
    overrides = registry.parse_overrides(rest, [*more, *options_of.shown_options()])
    base = registry.apply_overrides(loaded.config, overrides)
    for name in ("jobs", "members_per_program"):
        number = getattr(arguments, name)
        if number is not None and number < 1:
            raise UserError(f"--{name.replace('_', '-')}={number}: expected at least 1")
    if options and arguments.launcher == "local":
        raise UserError(f"{LAUNCHER_PREFIX}{next(iter(options))}: the launcher local has no settings")
    twice = sorted(grid.keys() & overrides.keys())
    if twice:
        raise UserError(f"key {twice[0]!r} is both swept and set: give one of {PREFIX}{twice[0]} and {registry.PREFIX}")
    made = plan(loaded, base, overrides, grid, arguments.seeds, arguments.first_seed, arguments.runs)
    if arguments.metric is not None:
        require_metric(arguments.metric, base)
    if arguments.job is not None:
        if not 0 <= arguments.job < len(made.jobs):
            raise UserError(f"--job={arguments.job}: expected 0 to {len(made.jobs) - 1}")
        return run_job(made, arguments.job, arguments.members_per_program, arguments.fresh)
    if len(made.jobs) == 1 and arguments.launcher == "local":
        statuses = [run_job(made, 0, arguments.members_per_program, arguments.fresh)]
    else:
        command_line = [sys.executable, "-m", "experiments.sweep", *argv]
        folder = Path(arguments.runs) / loaded.name
        launch = Launch(command_line, len(made.jobs), arguments.jobs, folder, options)
        statuses = LAUNCHERS[arguments.launcher](launch)
    failed = [index for index, status in enumerate(statuses) if status]
    rows = [
        row
        for job in made.jobs
        if (job.folder / results.METRICS_FILE).is_file()
        for row in results.read_rows(job.folder / results.METRICS_FILE)
    ]
    if rows:
        _report(made, ranking(rows, arguments.metric or base.evaluation.metric, arguments.rank), arguments)
    if failed:
        shown = ", ".join(f"{index + 1} ({made.jobs[index].folder})" for index in failed[:3])
        print(
            f"{len(failed)} of {len(statuses)} jobs did not finish: {shown}; the same command continues",
            file=sys.stderr,
        )
        # A process that was killed has a negative status, which no shell knows.
        return SIGNAL_EXIT - statuses[failed[0]] if statuses[failed[0]] < 0 else statuses[failed[0]]
    return 0


def _report(made: Plan, points: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    best = None if points[0]["stopped"] else made.commands[points[0]["variant"]]
    if arguments.json:
        folders = [str(job.folder) for job in made.jobs]
        print(json.dumps({"points": points, "best": best, "rank": arguments.rank, "folders": folders}))
        return
    table = Table(title=made.name, title_justify="left")
    table.add_column("point", overflow="fold")
    stopped = ["stopped"] if any(point["stopped"] for point in points) else []
    for column in ("seeds", *stopped, arguments.rank, "95 % interval"):
        table.add_column(column, no_wrap=True)
    for point in points:
        ends = "one seed" if point["low"] is None else f"{point['low']:.4g} to {point['high']:.4g}"
        numbers = [str(point[name]) for name in ("seeds", *stopped)]
        table.add_row(point["variant"], *numbers, "none" if point["iqm"] is None else f"{point['iqm']:.4g}", ends)
    Console().print(table)
    print(f"best: {best or 'none, every point stopped'}")


if __name__ == "__main__":
    sys.exit(main())
