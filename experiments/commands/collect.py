"""``sagax collect RUN... --out=FILE.jsonl``: merges run folders into one committed file of rows.

An existing file loses no row unless ``--replace`` allows it; with ``--append`` it keeps its rows of other variants.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.commands.command_parser import CommandParser
from experiments.commands.options import add_destination_options
from experiments.errors import command
from experiments.rows.collecting import collect


def parser() -> CommandParser:
    made = CommandParser(prog="sagax collect", description="Merge run folders into one committed file of rows.")
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder, such as runs/NAME/VARIANT")
    made.add_argument("--out", type=Path, required=True, help="the file to write, such as results/NAME.jsonl")
    made.add_argument("--metrics", default="", help="the metrics to keep, separated by commas (default: all)")
    add_destination_options(made)
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Collects some runs.

    Raises:
      UserError: for anything the user can repair.
    """
    options = parser().parse_args(argv)
    metrics = [metric.strip() for metric in options.metrics.split(",") if metric.strip()]
    rows = collect(options.runs, options.out, metrics or None, options.append, options.replace)
    print(f"{options.out}: {rows} rows")
    return 0
