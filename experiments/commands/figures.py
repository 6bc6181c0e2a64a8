"""Learning curves with intervals, from rows alone."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

from experiments.assembly import registry
from experiments.commands.command_parser import CommandParser
from experiments.commands.options import add_source_options, rows_of
from experiments.errors import UserError, command, unknown
from experiments.rows import reading
from experiments.rows.figures import draw, experiments_of, save


@command
def main(argv: Sequence[str] | None = None, package: str = registry.PACKAGE) -> int:
    parser = CommandParser(prog="sagax figures", description="Draw learning curves.")
    parser.add_argument("name", metavar="PAPER|NAME", help="a paper, such as oprl, or an experiment")
    parser.add_argument("--metric", default="success")
    parser.add_argument("--variants", help="variants to draw: a,b or, where they have commas, a,warm;b,warm")
    parser.add_argument("--smoothing", type=int, default=1, help="evaluations per trailing mean (1)")
    parser.add_argument("--threshold", type=float, help="a height to mark")
    parser.add_argument("--out", help="the PNG file (NAME.png)")
    add_source_options(parser)
    options = parser.parse_args(argv)
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
    metrics = {name: reading.metrics_of(rows) for name, rows in found.items()}
    lacking = [name for name, known in metrics.items() if options.metric not in known]
    if len(lacking) == len(found):
        every = list(dict.fromkeys(itertools.chain.from_iterable(metrics.values())))
        raise unknown("metric", options.metric, every, f"in the rows of {', '.join(found)}")
    for name in lacking:
        del found[name], sources[name]
    if options.variants:
        chosen = {
            name: reading.select_variants(options.variants, reading.variants_of(rows)) for name, rows in found.items()
        }
    else:
        chosen = None
    out = options.out or f"{options.name}.png"
    save(draw(found, options.metric, chosen, options.smoothing, options.threshold), out)
    print(f"{out}: {options.metric} of {', '.join(found)}, rows of {', '.join(sources.values())}")
    if lacking:
        print(f"left out, without {options.metric}: {', '.join(lacking)}")
    return 0
