"""Merges run folders into one committed file of rows.

python -m experiments.collect RUN... --out=results/NAME.jsonl [--metrics=success,episode_length] [--append | --replace]

A file that is there loses no row: what it holds of other variants stays with --append, and where a seed would have
fewer rows than before, --replace has to say so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from experiments.command_parser import CommandParser
from experiments.errors import command
from experiments.results import collect


def add_destination_options(parser: argparse.ArgumentParser) -> None:
    """``--append`` and ``--replace``: what becomes of the rows that the file of ``--out`` holds."""
    parser.add_argument("--append", action="store_true", help="keep what the file holds of other variants")
    parser.add_argument("--replace", action="store_true", help="let go of the rows that the file would lose")


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(prog="python -m experiments.collect", description="Merge run folders into one file.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, such as runs/NAME/VARIANT")
    parser.add_argument("--out", required=True, help="the file to write, such as results/NAME.jsonl")
    parser.add_argument("--metrics", default="", help="the metrics to keep, separated by commas; all if none")
    add_destination_options(parser)
    options = parser.parse_args(argv)
    metrics = [metric.strip() for metric in options.metrics.split(",") if metric.strip()]
    rows = collect(options.runs, options.out, metrics or None, options.append, options.replace)
    print(f"{options.out}: {rows} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
