"""``sagax summary NAME``: final values, steps to a threshold and ratios to a baseline, with intervals.

The rows are those of the run folders ``runs/NAME/*``, or else the committed ones in ``results/NAME.jsonl``; in place of
NAME, one run folder may be given. The first line of the answer says which.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.commands.command_parser import CommandParser
from experiments.commands.options import add_source_options, rows_of, take_run_folder
from experiments.errors import UserError, command
from experiments.rows import reading, run_folders, statistics
from experiments.rows.summary import NOT_REACHED, summarise

# The least number of characters of a name in a line, however narrow the terminal is.
NARROWEST_NAME = 12


def parser() -> CommandParser:
    made = CommandParser(
        prog="sagax summary",
        description="Final values, steps to a threshold and ratios to a baseline: interquartile means over the seeds "
        "with bootstrap intervals.",
    )
    made.add_argument(
        "name", metavar="NAME", help="the experiment, or a run folder; NAME:variant is short for --variants"
    )
    made.add_argument("--metric", default="success", help="the metric to summarise (default: success)")
    made.add_argument("--threshold", type=float, default=0.8, help="the value to reach (default: 0.8)")
    made.add_argument("--baseline", help="the variant whose steps the others are divided by")
    made.add_argument("--variants", help="variants to show: a,b or, where they have commas, a,warm;b,warm")
    made.add_argument("--smoothing", type=int, default=1, help="evaluations per trailing mean (default: 1)")
    made.add_argument("--confidence", type=float, default=statistics.CONFIDENCE, help="of the intervals (0.95)")
    add_source_options(made)
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Summarises the rows of one experiment.

    Raises:
      UserError: for anything the user can repair.
    """
    options = parser().parse_args(argv)
    if not 0 < options.confidence < 1:
        raise UserError(f"confidence={options.confidence}: expected a share between 0 and 1, such as 0.95")
    take_run_folder(options)
    options.name, _, variant = options.name.partition(":")
    if variant and options.variants:
        raise UserError(f"--variants={options.variants} beside {options.name}:{variant}: expected one of the two")
    options.variants = variant or options.variants
    rows, source = rows_of(options)
    known = reading.variants_of(rows)
    baseline = None
    if options.baseline is not None:
        baseline = _one_variant(options.baseline, known)
    variants = reading.select_variants(options.variants, known) if options.variants else None
    summary = summarise(
        rows, options.metric, options.threshold, variants, baseline, options.smoothing, options.confidence
    )
    shown = variants if variants is not None else known
    # What was measured in training is of no evaluation.
    evaluated = not options.metric.startswith(("train/", *reading.LEARNING_METRICS))
    sharing = [one for one in reading.sharing_episodes(source) if one in shown] if evaluated else []
    heading = {
        "experiment": options.name,
        "source": source,
        "metric": options.metric,
        "threshold": options.threshold,
        "smoothing": options.smoothing,
        "confidence": options.confidence,
        "sharing_episodes": [one or run_folders.DEFAULT_VARIANT for one in sharing],
        "baseline": None if baseline is None else baseline or run_folders.DEFAULT_VARIANT,
    }
    if options.json:
        print(json.dumps({**heading, "variants": summary}, indent=2, allow_nan=False))
        return 0
    _print(heading, summary)
    return 0


def _one_variant(requested: str, known: Sequence[str]) -> str:
    found = reading.select_variants(requested, known)
    if len(found) != 1:
        raise UserError(f"baseline {requested!r} names {len(found)} variants, expected one")
    return found[0]


def _print(heading: dict[str, Any], summary: list[dict[str, Any]], console: Console | None = None) -> None:
    """Prints one table, or where a terminal is too narrow for it two: of the values and of the steps.

    Names and numbers are never cut: a row is one line in a pipe or a file, and names are folded in a terminal.
    """
    console = console or Console()
    columns = _columns(heading, summary)
    title = f"interquartile mean over seeds [{100 * heading['confidence']:g} % interval]"
    tables = [_table(columns, title)]
    if console.is_terminal and _width(tables[0]) > console.width:
        tables = [_table(columns[:4], title), _table([columns[0], *columns[4:]])]
    # The width that names give up where they are folded; numbers are never folded.
    room = max(0, max(map(len, columns[0])) - NARROWEST_NAME) if console.is_terminal else 0
    console.width = max(console.width, *(_width(table) - room for table in tables))
    console.print(f"{heading['experiment']}: {heading['metric']}, rows of {heading['source']}", markup=False)
    for table in tables:
        console.print(table)
    if heading["sharing_episodes"]:
        whose = "all" if len(heading["sharing_episodes"]) == len(summary) else ", ".join(heading["sharing_episodes"])
        words = f"intervals leave out the draw of the evaluation episodes, which the seeds share ({whose})"
        console.print(words, markup=False)
    if heading["baseline"] is not None:
        words = f"ratio: steps over those of {heading['baseline']}; *: its interval excludes 1; ?: unbounded or unknown"
        console.print(words, markup=False)


def _columns(heading: dict[str, Any], summary: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The columns of the table, each with its heading first."""
    columns = [["variant"], ["seeds"], ["steps"], ["final"], [f"steps to {heading['threshold']:g}"], ["reached"]]
    columns += [["ratio"]] if heading["baseline"] is not None else []
    for entry in summary:
        steps, ratio = entry["steps_to_threshold"], entry["ratio_to_baseline"]
        cells = [
            entry["variant"],
            str(entry["seeds"]),
            f"{entry['env_steps']:,}",
            _span(entry["final"], "iqm", "{:.3f}", "?"),
            _span(steps, "iqm", "{:,.0f}", NOT_REACHED if entry["seeds"] > 1 or not steps["reached"] else "?"),
            f"{steps['reached']}/{entry['seeds']}",
        ]
        if ratio is not None:
            cells.append(_span(ratio, "ratio", "{:.2f}", "?") + (" *" if ratio["excludes_1"] else ""))
        for column, cell in zip(columns, cells, strict=True):
            column.append(cell)
    return columns


def _table(columns: Sequence[Sequence[str]], title: Any = None) -> Table:
    table = Table(title=title, title_justify="left")
    names, *numbers = columns
    table.add_column(names[0], overflow="fold")
    for column in numbers:
        table.add_column(column[0], justify="right", no_wrap=True)
    for row in zip(*(column[1:] for column in columns), strict=True):
        # As text, because brackets would be read as markup.
        table.add_row(*map(Text, row))
    return table


def _width(table: Table) -> int:
    """The width of a table in which nothing is folded."""
    return Console(width=10_000).measure(table).maximum


def _span(entry: dict[str, Any], name: str, form: str, missing: str) -> str:
    def show(value):
        return missing if value is None else form.format(value)

    if entry[name] is None and entry["low"] is None and entry["high"] is None:
        return missing
    return f"{show(entry[name])} [{show(entry['low'])}, {show(entry['high'])}]"
