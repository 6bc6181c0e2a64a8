"""What the rows of an experiment say: final values, steps to a threshold, ratios to a baseline, with intervals.

    python -m experiments.summary NAME --metric=success --threshold=0.8 [--baseline=VARIANT] [--json]

Estimates are interquartile means over the seeds, intervals percentile intervals of a bootstrap over the seeds
(``experiments.statistics``). The rows are those of the run folders ``runs/NAME/*``, or else the committed ones in
``results/NAME.jsonl``; the first line of the answer says which.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import registry, results, statistics
from experiments.command_parser import CommandParser
from experiments.errors import UserError, command, unknown
from experiments.statistics import Interval

NOT_REACHED = "not reached"
# Characters of a name per line at least, however narrow the terminal is.
NARROWEST_NAME = 12


def summarise(
    rows: Sequence[results.Row],
    metric: str,
    threshold: float,
    variants: Sequence[str] | None = None,
    baseline: str | None = None,
    smoothing: int = 1,
    confidence: float = statistics.CONFIDENCE,
    repetitions: int = statistics.REPETITIONS,
) -> list[dict[str, Any]]:
    """Per variant, in JSON values (None for what is infinite or unknown):

    * ``seeds``, ``env_steps`` (of the seed with the fewest);
    * ``final``: ``iqm``, ``low``, ``high`` of the mean over each seed's last ``smoothing`` evaluations;
    * ``area_under_curve``: the same of the average height over the steps;
    * ``steps_to_threshold``: ``iqm``, ``low``, ``high`` (None: not reached), ``reached`` (how many seeds did);
    * ``ratio_to_baseline``: of the steps, ``ratio``, ``low``, ``high``, ``excludes_1``; None without a baseline. A
      baseline that does not get there has no steps to divide by.

    Raises:
      UserError: if no row has the metric, a variant has no value of it, or fewer evaluations than ``smoothing``.
    """
    known = results.metrics_of(rows)
    if metric not in known:
        raise unknown("metric", metric, known)
    if smoothing < 1:
        raise UserError(f"smoothing={smoothing}: expected at least 1 evaluation")
    chosen = list(variants) if variants is not None else results.variants_of(rows)
    by_variant = {
        variant: [row for row in rows if row.get("variant", "") == variant]
        for variant in dict.fromkeys([*chosen, *([] if baseline is None else [baseline])])
    }
    bootstrap: dict[str, Any] = {"confidence": confidence, "repetitions": repetitions}
    steps = {
        variant: statistics.steps_per_seed(own, metric, threshold, smoothing) for variant, own in by_variant.items()
    }
    answer = []
    for variant in chosen:
        own = by_variant[variant]
        curves = statistics.seed_curves(own, metric)
        shown = variant or results.DEFAULT_VARIANT
        if not curves:
            raise UserError(f"variant {shown!r} has no value of {metric!r}")
        fewest = min(len(values) for _, values in curves.values())
        if fewest < smoothing:
            raise UserError(f"smoothing={smoothing}: a seed of variant {shown!r} has only {fewest} evaluations")
        final = statistics.stratified_bootstrap(statistics.final_values(own, metric, smoothing), **bootstrap)
        areas = [statistics.area_under_curve(*points) for points in curves.values()]
        reached = statistics.stratified_bootstrap(steps[variant], **bootstrap)
        answer.append(
            {
                "variant": shown,
                "seeds": len({row["seed"] for row in own}),
                "env_steps": int(min(at[-1] for at, _ in curves.values())),
                "final": _interval(final, "iqm"),
                "area_under_curve": _interval(statistics.stratified_bootstrap(areas, **bootstrap), "iqm"),
                "steps_to_threshold": _interval(reached, "iqm")
                | {"reached": int(sum(map(math.isfinite, steps[variant])))},
                "ratio_to_baseline": None if baseline is None else _ratio(steps[variant], steps[baseline], bootstrap),
            }
        )
    return answer


def _ratio(own, reference, bootstrap) -> dict[str, Any]:
    unknown_ratio = {"ratio": None, "low": None, "high": None, "excludes_1": False}
    # A curve that is above the threshold at its first evaluation, at 0 steps, has no ratio.
    if min(*own, *reference) <= 0:
        return unknown_ratio
    interval = statistics.interval_of_ratio(own, reference, **bootstrap)
    # A quotient of 0 is one by infinity: the baseline never gets there, and how much sooner this is nobody knows.
    if interval.high == 0:
        return unknown_ratio
    shown = interval._replace(estimate=interval.estimate or math.nan)
    return _interval(shown, "ratio") | {"excludes_1": statistics.excludes(interval, 1.0)}


def _interval(interval: Interval, name: str) -> dict[str, float | None]:
    values = zip((name, "low", "high"), interval, strict=True)
    return {key: value if math.isfinite(value) else None for key, value in values}


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(prog="python -m experiments.summary", description="Summarise an experiment's rows.")
    parser.add_argument("name", metavar="NAME", help="the experiment; NAME:variant is --variants=variant")
    parser.add_argument("--metric", default="success")
    parser.add_argument("--threshold", type=float, default=0.8, help="the height of the metric to reach")
    parser.add_argument("--baseline", help="the variant whose steps the others are divided by")
    parser.add_argument("--variants", help="variants to show: a,b or, where they have commas, a,warm;b,warm")
    parser.add_argument("--smoothing", type=int, default=1, help="evaluations per trailing mean (1)")
    parser.add_argument("--confidence", type=float, default=statistics.CONFIDENCE)
    add_source_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    if not 0 < options.confidence < 1:
        raise UserError(f"confidence={options.confidence}: expected a share between 0 and 1, such as 0.95")
    options.name, _, variant = options.name.partition(":")
    if variant and options.variants:
        raise UserError(f"--variants={options.variants} beside {options.name}:{variant}: expected one of the two")
    options.variants = variant or options.variants
    rows, source = rows_of(options)
    known = results.variants_of(rows)
    baseline = None
    if options.baseline is not None:
        baseline = _one_variant(options.baseline, known)
    variants = results.select_variants(options.variants, known) if options.variants else None
    summary = summarise(
        rows, options.metric, options.threshold, variants, baseline, options.smoothing, options.confidence
    )
    heading = {
        "experiment": options.name,
        "source": source,
        "metric": options.metric,
        "threshold": options.threshold,
        "smoothing": options.smoothing,
        "confidence": options.confidence,
        "baseline": None if baseline is None else baseline or results.DEFAULT_VARIANT,
    }
    if options.json:
        print(json.dumps({**heading, "variants": summary}, indent=2, allow_nan=False))
        return 0
    _print(heading, summary)
    return 0


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """``--runs=DIR`` and ``--results[=FILE]``: where the rows are read from."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--runs", metavar="DIR", help="read the run folders DIR/NAME/* only")
    source.add_argument(
        "--results", nargs="?", const="", metavar="FILE", help="read the committed rows only (results/NAME.jsonl)"
    )


def rows_of(options: argparse.Namespace, package: str = registry.PACKAGE) -> tuple[list[results.Row], str]:
    """The rows that ``--runs`` and ``--results`` ask for, and where they are from.

    Raises:
      UserError: if there are none, or the experiment is unknown, with the nearest names.
    """
    committed = options.results
    if committed == "":
        committed = results.committed_file(options.name)
        # Before the file, whose name is made of it: who mistypes the one has not asked for the other.
        if options.name not in registry.names(package) or not committed.is_file():
            results.refuse_without_rows(options.name, str(committed), package)
    return results.find_rows(options.name, options.runs, committed, package)


def _one_variant(requested: str, known: Sequence[str]) -> str:
    found = results.select_variants(requested, known)
    if len(found) != 1:
        raise UserError(f"baseline {requested!r} names {len(found)} variants, expected one")
    return found[0]


def _print(heading: dict[str, Any], summary: list[dict[str, Any]], console: Console | None = None) -> None:
    """One table; two, of the values and of the steps, where a terminal is too narrow for one.

    Names and numbers are whole at any width: a row of a pipe or a file is one line, as long as it has to be, and names
    are folded in a terminal.
    """
    console = console or Console()
    columns = _columns(heading, summary)
    title = f"interquartile mean over seeds [{100 * heading['confidence']:g} % interval]"
    tables = [_table(columns, title)]
    if console.is_terminal and _width(tables[0]) > console.width:
        tables = [_table(columns[:4], title), _table([columns[0], *columns[4:]])]
    # What a name gives up where it is folded; numbers are never folded.
    room = max(0, max(map(len, columns[0])) - NARROWEST_NAME) if console.is_terminal else 0
    console.width = max(console.width, *(_width(table) - room for table in tables))
    console.print(f"{heading['experiment']}: {heading['metric']}, rows of {heading['source']}", markup=False)
    for table in tables:
        console.print(table)
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
        # As text: brackets are no markup here.
        table.add_row(*map(Text, row))
    return table


def _width(table: Table) -> int:
    """The columns of a terminal that a table takes where nothing is folded."""
    return Console(width=10_000).measure(table).maximum


def _span(entry: dict[str, Any], name: str, form: str, missing: str) -> str:
    def show(value):
        return missing if value is None else form.format(value)

    if entry[name] is None and entry["low"] is None and entry["high"] is None:
        return missing
    return f"{show(entry[name])} [{show(entry['low'])}, {show(entry['high'])}]"


if __name__ == "__main__":
    sys.exit(main())
