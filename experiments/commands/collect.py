"""Merges run folders into one committed file of rows.

sagax collect RUN... --out=results/NAME.jsonl [--metrics=success,episode_length] [--append | --replace]

A file that is there loses no row: what it holds of other variants stays with --append, and where a seed would have
fewer rows than before, --replace has to say so.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.commands.command_parser import CommandParser
from experiments.commands.options import add_destination_options
from experiments.errors import command
from experiments.rows.collecting import collect


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(prog="sagax collect", description="Merge run folders into one file.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, such as runs/NAME/VARIANT")
    parser.add_argument("--out", required=True, help="the file to write, such as results/NAME.jsonl")
    parser.add_argument("--metrics", default="", help="the metrics to keep, separated by commas; all if none")
    add_destination_options(parser)
    options = parser.parse_args(argv)
    metrics = [metric.strip() for metric in options.metrics.split(",") if metric.strip()]
    rows = collect(options.runs, options.out, metrics or None, options.append, options.replace)
    print(f"{options.out}: {rows} rows")
    return 0
