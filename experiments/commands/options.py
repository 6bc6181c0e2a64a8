"""Options that several commands share."""

from __future__ import annotations

import argparse

from experiments.assembly import registry
from experiments.rows import reading, run_folders


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """``--runs=DIR`` and ``--results[=FILE]``: where the rows are read from."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--runs", metavar="DIR", help="read the run folders DIR/NAME/* only")
    source.add_argument(
        "--results", nargs="?", const="", metavar="FILE", help="read the committed rows only (results/NAME.jsonl)"
    )


def rows_of(options: argparse.Namespace, package: str = registry.PACKAGE) -> tuple[list[reading.Row], str]:
    """The rows that ``--runs`` and ``--results`` ask for, and where they are from.

    Raises:
      UserError: if there are none, or the experiment is unknown, with the nearest names.
    """
    committed = options.results
    if committed == "":
        committed = run_folders.committed_file(options.name)
        # Before the file, whose name is made of it: who mistypes the one has not asked for the other.
        if options.name not in registry.names(package) or not committed.is_file():
            reading.refuse_without_rows(options.name, str(committed), package)
    return reading.find_rows(options.name, options.runs, committed, package)


def add_destination_options(parser: argparse.ArgumentParser) -> None:
    """``--append`` and ``--replace``: what becomes of the rows that the file of ``--out`` holds."""
    parser.add_argument("--append", action="store_true", help="keep what the file holds of other variants")
    parser.add_argument("--replace", action="store_true", help="let go of the rows that the file would lose")
