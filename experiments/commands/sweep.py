"""``sagax sweep NAME[:variant] [--sweep.KEY=V1,V2 ...]``: trains a grid of points and ranks them.

The grid is the product of the values in the experiment's ``get_sweep()``, or in the ``--sweep`` arguments. Numbers that
can be traced are vmapped together with the seeds in one program: floats of the sections agent, credit and rewards from
which no pure environment is built. Every combination of the other keys is a job, a process of its own. A point's rows
are filed under the variant ``VARIANT+sweep+KEY=VALUE+...``, apart from those of a run with the same overrides. The same
command continues a sweep, also with more seeds or values.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.assembly import registry
from experiments.commands.command_parser import CommandParser
from experiments.commands.options import add_logger_option, add_runs_option
from experiments.errors import SIGNAL_EXIT, UserError, command
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
        "point, --launcher.KEY=VALUE is a setting of the launcher.",
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
    given = registry.parse_overrides(rest, [*more, *options_of.shown_options()], loaded.config)
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
    made = plan(loaded, base, overrides, grid, arguments.seeds, arguments.first_seed, arguments.runs)
    if arguments.metric is not None:
        require_metric(arguments.metric, base)
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
        if not 0 <= arguments.job < len(made.jobs):
            raise UserError(f"--job={arguments.job}: expected 0 to {len(made.jobs) - 1}")
        return train_job(arguments.job)
    if len(made.jobs) == 1 and arguments.launcher == "local" and arguments.jobs == 1:
        statuses = [train_job(0)]
    else:
        command_line = [sys.executable, "-m", "experiments", "sweep", *argv]
        folder = Path(arguments.runs) / loaded.name
        launch = Launch(command_line, len(made.jobs), arguments.jobs, folder, options, environment)
        statuses = LAUNCHERS[arguments.launcher](launch)
    failed = [index for index, status in enumerate(statuses) if status]
    rows = [
        row
        for job in made.jobs
        if (job.folder / run_folders.METRICS_FILE).is_file()
        for row in reading.read_rows(job.folder / run_folders.METRICS_FILE)
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
        table.add_row(Text(point["variant"]), *numbers, "none" if point["iqm"] is None else f"{point['iqm']:.4g}", ends)
    Console().print(table)
    print(f"best: {best or 'none, every point stopped'}")
