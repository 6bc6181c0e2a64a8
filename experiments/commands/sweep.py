"""``sagax sweep NAME[:variant] [--sweep.KEY=V1,V2 ...]``: trains a grid of points and ranks them.

The grid is the product of the values in the experiment's ``get_sweep()``, or in the ``--sweep`` arguments. Numbers that
can be traced are vmapped together with the seeds in one program: floats of the sections agent, credit and rewards from
which no pure environment is built. Every combination of the other keys is a job, a process of its own. A point's rows
are filed under the variant ``VARIANT+sweep+KEY=VALUE+...``, apart from those of a run with the same overrides. The same
command continues a sweep, also with more seeds or values.

``--search=random`` or ``--search=tpe`` draws ``--trials=N`` points by Optuna in place of a grid:
``--sweep.KEY=LOW:HIGH`` is a range, ``--sweep.KEY=LOW:HIGH:log`` one in the logarithm, ``V1,V2`` are choices. Trials
are points as the grid's, each in a run folder of its own, filed under ``VARIANT+search+KEY=VALUE``, and ranked alike;
``--prune`` ends those whose metric is below the median of the others, which keep their rows and are ranked last. With
``--jobs=2`` two processes share the trials, and so do further machines that run the same command on the same disk. The
same command continues a search, also with more trials: one that was being trained is picked up from its checkpoint.
``experiments/training/search.py`` says how.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.assembly import registry
from experiments.commands.command_parser import CommandParser
from experiments.commands.options import add_logger_option, add_runs_option
from experiments.errors import SIGNAL_EXIT, UserError, command, unknown_argument
from experiments.rows import reading, run_folders
from experiments.training.launchers import (
    LAUNCHER_PREFIX,
    LAUNCHERS,
    Launch,
    launcher_options,
    leave_devices_to_jobs,
)
from experiments.training.loggers.sink import require_loggers
from experiments.training.processes import COORDINATOR, described_process
from experiments.training.search import (
    SEARCHES,
    Search,
    Settings,
    is_range,
    job_of,
    open_study,
    points_of,
    remove_search,
    require_optuna,
    run_trials,
    search,
)
from experiments.training.sweeps import (
    PREFIX,
    RANKS,
    Plan,
    grid_of,
    plan,
    ranking,
    require_job,
    require_metric,
    run_job,
)


def parser() -> CommandParser:
    made = CommandParser(
        prog="sagax sweep",
        description="Train a grid over an experiment's settings and rank its points. --sweep.KEY=V1,V2 replaces the "
        "experiment's own grid (with commas in values --sweep.KEY=V1;V2), --config.KEY=VALUE changes a key in every "
        "point, --launcher.KEY=VALUE is a setting of the launcher. With --search, --sweep.KEY=LOW:HIGH is a range.",
    )
    made.add_argument("name", metavar="NAME", help="NAME or NAME:variant,variant; see sagax list")
    made.add_argument("--seeds", type=int, help="seeds per point (default: the configuration's)")
    made.add_argument("--first-seed", type=int, default=0, help="the first seed; tune on other seeds than you report")
    made.add_argument("--launcher", choices=sorted(LAUNCHERS), default="local", help="what starts the jobs")
    made.add_argument("--jobs", type=int, default=1, help="processes at a time (launchers local and submitit)")
    made.add_argument("--members-per-program", type=int, help="at most so many seeds and points side by side")
    made.add_argument(
        "--unpickle-environments", action="store_true", help="load saved environments that run code, whoever wrote them"
    )
    add_logger_option(made)
    add_runs_option(made)
    made.add_argument("--fresh", action="store_true", help="delete what an earlier sweep left and start over")
    made.add_argument("--metric", help="the metric to rank by (default: the configuration's evaluation.metric)")
    made.add_argument("--rank", choices=RANKS, default="final", help="rank by final value or area under the curve")
    made.add_argument("--search", choices=SEARCHES, help="draw points by Optuna in place of a grid")
    made.add_argument("--trials", type=int, help="how many points to draw in all; more continue a search")
    made.add_argument("--search-seed", type=int, help="of the draws (default: 0)")
    made.add_argument("--prune", action="store_true", help="end trials below the median of the others")
    made.add_argument("--json", action="store_true", help="print the ranking as one JSON object")
    made.add_argument("--job", type=int, help=argparse.SUPPRESS)
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs or continues one sweep.

    Raises:
      UserError: for anything the user can repair.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    options_of = parser()
    arguments, rest = options_of.parse_known_args(argv)
    if described_process() is not None:
        raise UserError(f"{COORDINATOR} is set: several processes share one run (sagax run), expected none of a sweep")
    environment = leave_devices_to_jobs(arguments.jobs) if arguments.job is None else None
    loaded = registry.load(arguments.name)
    options, rest = launcher_options(rest)
    grid, rest = grid_of(rest, loaded.module.get_sweep())
    more = [f"{PREFIX}KEY=V1,V2", f"{LAUNCHER_PREFIX}KEY=VALUE"]
    known = [*more, *options_of.shown_options()]
    for argument in rest:
        # Letter by letter, --search is nearer to a key that is swept.
        if argument.startswith(PREFIX.rstrip(".")):
            raise unknown_argument(argument, known, meant=more[:1])
    given = registry.parse_overrides(rest, known, loaded.config)
    loaded = registry.with_overrides(loaded, given)
    base, overrides = loaded.config, loaded.overrides
    for name in ("jobs", "members_per_program"):
        number = getattr(arguments, name)
        if number is not None and number < 1:
            raise UserError(f"--{name.replace('_', '-')}={number}: expected at least 1")
    if options and arguments.launcher == "local":
        raise UserError(f"{LAUNCHER_PREFIX}{next(iter(options))}: the launcher local has no settings")
    twice = sorted(grid.keys() & overrides.keys())
    if twice:
        raise UserError(f"key {twice[0]!r} is both swept and set: give one of {PREFIX}{twice[0]} and {registry.PREFIX}")
    _require_search_options(arguments, grid)
    if arguments.metric is not None:
        require_metric(arguments.metric, base)
    if arguments.search is not None:
        require_optuna()
        settings = Settings(
            arguments.search,
            arguments.trials,
            arguments.search_seed or 0,
            arguments.prune,
            arguments.metric or base.evaluation.metric,
            arguments.rank,
        )
        searched = search(
            loaded, base, overrides, grid, settings, arguments.seeds, arguments.first_seed, arguments.runs
        )
        return _search(searched, arguments, argv, options, environment)
    made = plan(loaded, base, overrides, grid, arguments.seeds, arguments.first_seed, arguments.runs)
    chosen = made.jobs if arguments.job is None else made.jobs[arguments.job : arguments.job + 1]
    for job in chosen:
        require_job(job, arguments.members_per_program)
    require_loggers(arguments.logger)

    def train_job(index: int) -> int:
        return run_job(
            made,
            index,
            arguments.members_per_program,
            arguments.fresh,
            unpickle=arguments.unpickle_environments,
            loggers=arguments.logger,
        )

    if arguments.job is not None:
        _require_index(arguments.job, len(made.jobs))
        return train_job(arguments.job)
    if len(made.jobs) == 1 and arguments.launcher == "local" and arguments.jobs == 1:
        statuses = [train_job(0)]
    else:
        statuses = _launch(len(made.jobs), loaded.name, arguments, argv, options, environment)
    _report(made, arguments.metric or base.evaluation.metric, arguments)
    return _status(statuses, [f"{index + 1} ({job.folder})" for index, job in enumerate(made.jobs)])


def _require_search_options(arguments: argparse.Namespace, grid: Mapping[str, Sequence[Any]]) -> None:
    """Refuses what makes sense in a search alone, or in a grid alone."""
    if arguments.search is not None:
        if arguments.trials is None or arguments.trials < 1:
            given = "without --trials" if arguments.trials is None else f"--trials={arguments.trials}"
            raise UserError(f"--search={arguments.search} {given}: expected --trials=N, at least 1")
        if arguments.search_seed is not None and arguments.search_seed < 0:
            raise UserError(f"--search-seed={arguments.search_seed}: expected at least 0")
        return
    for name in ("trials", "search_seed", "prune"):
        if getattr(arguments, name):
            raise UserError(f"--{name.replace('_', '-')} needs --search={' or --search='.join(SEARCHES)}")
    for key, values in grid.items():
        if is_range(values):
            raise UserError(
                f"{PREFIX}{key}={values[0]} is a range: expected --search={' or --search='.join(SEARCHES)}, or values, "
                f"{PREFIX}{key}=V1,V2"
            )


def _require_index(index: int, total: int) -> None:
    if not 0 <= index < total:
        raise UserError(f"--job={index}: expected 0 to {total - 1}")


def _search(
    made: Search,
    arguments: argparse.Namespace,
    argv: Sequence[str],
    options: dict[str, Any],
    environment: dict[str, str] | None,
) -> int:
    """Trains the trials of a search, as many at a time as there are jobs, and ranks them."""
    first = {key: values.low if isinstance(values, tuple) else values[0] for key, values in made.space.items()}
    require_job(job_of(made, first)[0], arguments.members_per_program)
    require_loggers(arguments.logger)

    def train_trials() -> int:
        return run_trials(
            made,
            fresh=arguments.fresh,
            members_per_program=arguments.members_per_program,
            unpickle=arguments.unpickle_environments,
            loggers=arguments.logger,
        )

    if arguments.job is not None:
        _require_index(arguments.job, arguments.jobs)
        return train_trials()
    if arguments.fresh:
        remove_search(made)
    open_study(made)
    if arguments.launcher == "local" and arguments.jobs == 1:
        statuses = [train_trials()]
    else:
        statuses = _launch(arguments.jobs, made.loaded.name, arguments, argv, options, environment)
    found, pruned = points_of(made)
    _report(found, made.settings.metric, arguments, pruned)
    return _status(statuses, [str(index + 1) for index in range(len(statuses))])


def _launch(
    total: int,
    name: str,
    arguments: argparse.Namespace,
    argv: Sequence[str],
    options: dict[str, Any],
    environment: dict[str, str] | None,
) -> list[int]:
    command_line = [sys.executable, "-m", "experiments", "sweep", *argv]
    launch = Launch(command_line, total, arguments.jobs, Path(arguments.runs) / name, options, environment)
    return LAUNCHERS[arguments.launcher](launch)


def _status(statuses: Sequence[int], names: Sequence[str]) -> int:
    """The exit status of a sweep whose jobs ended with ``statuses``; says which of them did not finish."""
    failed = [index for index, status in enumerate(statuses) if status]
    if not failed:
        return 0
    shown = ", ".join(names[index] for index in failed[:3])
    print(
        f"{len(failed)} of {len(statuses)} jobs did not finish: {shown}; the same command continues",
        file=sys.stderr,
    )
    first = statuses[failed[0]]
    # A process that was killed has a negative status, which no shell knows.
    return SIGNAL_EXIT - first if first < 0 else first


def _report(made: Plan, metric: str, arguments: argparse.Namespace, pruned: Container[str] = ()) -> None:
    rows = [
        row
        for job in made.jobs
        if (job.folder / run_folders.METRICS_FILE).is_file()
        for row in reading.read_rows(job.folder / run_folders.METRICS_FILE)
    ]
    if not rows:
        return
    points = ranking(rows, metric, arguments.rank, pruned)
    unfit = points[0]["stopped"] or "pruned" in points[0]
    best = None if unfit else made.commands[points[0]["variant"]]
    if arguments.json:
        folders = [str(job.folder) for job in made.jobs]
        print(json.dumps({"points": points, "best": best, "rank": arguments.rank, "folders": folders}))
        return
    table = Table(title=made.name, title_justify="left")
    table.add_column("point", overflow="fold")
    stopped = ["stopped"] if any(point["stopped"] for point in points) else []
    marked = ["pruned"] if any("pruned" in point for point in points) else []
    for column in ("seeds", *stopped, *marked, arguments.rank, "95 % interval"):
        table.add_column(column, no_wrap=True)
    for point in points:
        ends = "one seed" if point["low"] is None else f"{point['low']:.4g} to {point['high']:.4g}"
        numbers = [str(point[name]) for name in ("seeds", *stopped)]
        numbers += ["yes" if "pruned" in point else ""] if marked else []
        table.add_row(Text(point["variant"]), *numbers, "none" if point["iqm"] is None else f"{point['iqm']:.4g}", ends)
    Console().print(table)
    print(f"best: {best or 'none, every point stopped'}")
