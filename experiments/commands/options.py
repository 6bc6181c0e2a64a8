"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.assembly import registry
from experiments.errors import UserError
from experiments.rows import reading, run_folders
from experiments.training.loggers.catalogue import LOGGERS

# ``--results`` without a file: no rows are in a folder.
COMMITTED = Path()


def add_runs_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--runs=DIR``: the folder that run folders are in."""
    help_text = f"where run folders are (default: {run_folders.RUNS_FOLDER})"
    parser.add_argument("--runs", type=Path, default=run_folders.RUNS_FOLDER, metavar="DIR", help=help_text)


def add_logger_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--logger=NAME``, which may be given several times."""
    help_text = "also log the rows there, a run per seed; may be given several times"
    parser.add_argument("--logger", action="append", choices=sorted(LOGGERS), default=[], help=help_text)


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--runs=DIR`` and ``--results[=FILE]``: where the rows are read from."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--runs", type=Path, metavar="DIR", help="read only the run folders DIR/NAME/*")
    source.add_argument(
        "--results",
        type=Path,
        nargs="?",
        const=COMMITTED,
        metavar="FILE",
        help="read only the committed rows (default: results/NAME.jsonl), or those of a run folder",
    )


def take_run_folder(options: argparse.Namespace) -> None:
    """Where ``options.name`` is a run folder, has its rows read, and puts its experiment in place of the name.

    Raises:
      UserError: if the folder has no rows, or ``--runs`` or ``--results`` say otherwise where the rows are.
    """
    folder = Path(options.name).expanduser()
    if not (folder / run_folders.METRICS_FILE).is_file():
        return
    if options.runs is not None or options.results is not None:
        raise UserError(f"{options.name} is a run folder: expected no --runs or --results beside it")
    rows = reading.read_rows(folder)
    if not rows:
        raise UserError(f"{folder} has no rows yet")
    options.name, options.results = rows[0].get("experiment", folder.name), folder


def rows_of(options: argparse.Namespace, package: str = registry.PACKAGE) -> tuple[list[reading.Row], str]:
    """The rows that ``--runs`` and ``--results`` ask for, and where they are from.

    Raises:
      UserError: if there are none, or the experiment is unknown, with the nearest names.
    """
    committed = options.results
    if committed == COMMITTED:
        committed = run_folders.committed_file(options.name)
        # The name is checked before the file that is named after it: a mistyped name is the mistake to report.
        if options.name not in registry.names(package) or not committed.is_file():
            reading.refuse_without_rows(options.name, str(committed), package)
    return reading.find_rows(options.name, options.runs, committed, package)


def add_destination_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--append`` and ``--replace``: what becomes of the rows that the file of ``--out`` holds."""
    parser.add_argument("--append", action="store_true", help="keep the rows of other variants that the file holds")
    parser.add_argument("--replace", action="store_true", help="allow that the file loses rows")
