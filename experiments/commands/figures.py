"""``sagax figures PAPER|NAME``: learning curves with intervals, from rows alone.

``NAME`` is an experiment. ``PAPER`` stands for every experiment whose name starts with it or that reproduces it, a row
of panels each; those without rows, or without rows that have the metric, are left out. The rows are found as by
``sagax summary``; in place of a name, a run folder may be given.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

from experiments.assembly import registry
from experiments.commands.command_parser import CommandParser
from experiments.commands.options import add_source_options, rows_of, take_run_folder
from experiments.errors import UserError, command, unknown
from experiments.rows import reading
from experiments.rows.figures import draw, experiments_of, labels_of, require_destination, save, size_of


def parser() -> CommandParser:
    made = CommandParser(prog="sagax figures", description="Draw learning curves with intervals.")
    made.add_argument("name", metavar="PAPER|NAME", help="a paper, such as oprl, an experiment or a run folder")
    made.add_argument("--metric", default="success", help="the metric on the y-axis (default: success)")
    made.add_argument("--variants", help="variants to draw: a,b or, where they have commas, a,warm;b,warm")
    made.add_argument("--sweep-points", action="store_true", help="also draw the points of sweeps")
    made.add_argument("--labels", metavar="VARIANT=LABEL;...", help="names of variants in the legend")
    made.add_argument("--title", default="", help="a title above all panels")
    made.add_argument("--size", metavar="WIDTHxHEIGHT", help="in inches (default: as the panels need)")
    made.add_argument("--smoothing", type=int, default=1, help="evaluations per trailing mean (default: 1)")
    made.add_argument("--threshold", type=float, help="a height to mark")
    made.add_argument("--out", type=Path, help="a .pdf, .png or .svg file (default: NAME.png)")
    add_source_options(made)
    return made


@command
def main(argv: Sequence[str] | None = None, package: str = registry.PACKAGE) -> int:
    """Draws one figure.

    Raises:
      UserError: for anything the user can repair.
    """
    options = parser().parse_args(argv)
    take_run_folder(options)
    out = Path(f"{options.name}.png") if options.out is None else options.out
    size = None if options.size is None else size_of(options.size)
    found: dict[str, list[reading.Row]] = {}
    sources: dict[str, str] = {}
    # Rows of an experiment that is not installed here can still be drawn from the file given.
    asked = [options.name] if options.results else experiments_of(options.name, package)
    for name in asked:
        try:
            rows, source = rows_of(argparse.Namespace(**{**vars(options), "name": name}), package)
        except reading.NoRowsError:
            if len(asked) == 1:
                raise
            continue
        found[name], sources[name] = rows, source
    if not found:
        raise UserError(f"no rows of {', '.join(asked)}: run one first, `sagax run {asked[0]}`")
    require_destination(out)
    metrics = {name: reading.metrics_of(rows) for name, rows in found.items()}
    lacking = [name for name, known in metrics.items() if options.metric not in known]
    if len(lacking) == len(found):
        every = list(dict.fromkeys(itertools.chain.from_iterable(metrics.values())))
        raise unknown("metric", options.metric, every, f"in the rows of {', '.join(found)}")
    for name in lacking:
        del found[name], sources[name]
    known = {name: reading.variants_of(rows) for name, rows in found.items()}
    chosen = None
    if options.variants:
        chosen = {name: reading.select_variants(options.variants, variants) for name, variants in known.items()}
    labels = None
    if options.labels:
        labels = labels_of(options.labels, list(dict.fromkeys(itertools.chain.from_iterable(known.values()))))
    figure = draw(
        found,
        options.metric,
        chosen,
        options.smoothing,
        options.threshold,
        labels=labels,
        title=options.title,
        size=size,
        sweep_points=options.sweep_points,
    )
    save(figure, out)
    print(f"{out}: {options.metric} of {', '.join(found)}, rows of {', '.join(sources.values())}")
    if lacking:
        print(f"left out, without {options.metric}: {', '.join(lacking)}")
    return 0
