"""``sagax benchmark CASE...``: the speed of sagax, beside baselines or by device.

A line per comparison or measurement. With ``--json`` an object per case with ``case``, ``comparisons`` (see
``Comparison.report``), ``tiny`` and ``machine``; for the case devices an object per measurement, with ``measurement``
(see ``Measurement``) in place of ``comparisons``. The standard error stream says what is being measured. ``--out``
appends the objects to a file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.cases import CASES
from experiments.benchmarks.device_cases import Measurement
from experiments.benchmarks.sides import Options, load_average, machine
from experiments.benchmarks.timing import Comparison
from experiments.commands.command_parser import CommandParser
from experiments.disk import append_text
from experiments.errors import UserError, command, unknown


def line(case: str, report: dict[str, Any], where: dict[str, Any]) -> str:
    """One comparison as a line of text."""
    target = "" if report["target"] is None else f", target {report['target']:g}"
    processor = f", by processor time {report['ratio_cpu']:.2f}" if "ratio_cpu" in report else ""
    scalars = {key: value for key, value in report["details"].items() if isinstance(value, float)}
    details = "".join(f", {key} {value:.3g}" for key, value in scalars.items())
    return (
        f"{case}/{report['name']}: {report['ours']}: {report['ours_median']:,.4g} {report['unit']}; "
        f"{report['reference']}: {report['reference_median']:,.4g}; "
        f"ratio {report['ratio']:.2f} ({report['ratio_min']:.2f} to {report['ratio_max']:.2f}, "
        f"{report['pairs']} pairs{processor}{target}){details} "
        f"[{where['device_count']} x {where['device']}, {where['cores']} cores, jax {where['versions']['jax']}]"
    )


def parser() -> CommandParser:
    """The arguments of the command; its help lists the cases."""
    cases = "\n".join(f"  {name:12}{case.summary}" for name, case in CASES.items())
    made = CommandParser(
        prog="sagax benchmark",
        description=f"Measure the speed of sagax, beside baselines or by device.\n\ncases:\n{cases}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("cases", nargs="+", metavar="CASE", help="one or more of the cases above")
    made.add_argument("--json", action="store_true", help="print one JSON object per case")
    made.add_argument("--repeats", type=int, default=7, help="rounds of measurements (default: 7)")
    made.add_argument("--tiny", action="store_true", help="samples too small to mean anything, to see that a case runs")
    made.add_argument("--baseline", type=Path, help="a checkout of PureJaxRL, for the case purejaxrl")
    made.add_argument("--baseline-python", type=Path, help="an interpreter that has the baselines installed")
    made.add_argument(
        "--names",
        type=_words,
        default=(),
        help="configurations of the case devices, NAME,NAME; with commas in variants NAME;NAME",
    )
    made.add_argument("--seeds", type=_counts, default=(), help="its numbers of seeds, N,N (default: 1,10,100)")
    made.add_argument("--seconds", type=float, default=10.0, help="seconds that a measurement steps (default: 10)")
    made.add_argument("--limit", type=float, default=300.0, help="seconds after which one is ended (default: 300)")
    made.add_argument("--out", type=Path, help="also append the JSON objects to this file, a line each")
    return made


def _words(text: str) -> tuple[str, ...]:
    # Variants have commas themselves.
    return tuple(text.split(";" if ";" in text else ","))


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected integers N,N, got {text!r}") from error
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"expected integers of at least 1, got {text!r}")
    return counts


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cases, one after another.

    Raises:
      UserError: for an unknown case or option, a baseline that is missing, or a file that cannot be written.
    """
    arguments = parser().parse_args(argv)
    for name in arguments.cases:
        if name not in CASES:
            raise unknown("case", name, CASES)
    if arguments.repeats < 1:
        raise UserError(f"--repeats={arguments.repeats}: expected at least 1")
    for name, value in (("seconds", arguments.seconds), ("limit", arguments.limit)):
        if value <= 0:
            raise UserError(f"--{name}={value:g}: expected above 0")
    if arguments.out is not None:
        # A file that cannot be written is refused before minutes of measuring.
        append_text(arguments.out, "")
    options = Options(
        repeats=arguments.repeats,
        tiny=arguments.tiny,
        baseline=arguments.baseline,
        baseline_python=arguments.baseline_python,
        names=arguments.names,
        seeds=arguments.seeds,
        seconds=arguments.seconds,
        limit=arguments.limit,
    )

    def tell(record: dict[str, Any], lines: Sequence[str]) -> None:
        if arguments.out is not None:
            append_text(arguments.out, json.dumps(record) + "\n")
        for shown in [json.dumps(record)] if arguments.json else lines:
            print(shown, flush=True)

    for name in arguments.cases:
        about = {"case": name, "tiny": options.tiny}
        comparisons: list[Comparison] = []
        load = load_average()

        def say(text, case=name):
            print(f"{case}: {text}", file=sys.stderr, flush=True)

        say("preparing")
        for found in CASES[name].measure(options._replace(say=say)):
            if isinstance(found, Measurement):
                tell(about | {"measurement": found.report(), "machine": found.machine}, [found.line()])
            else:
                comparisons.append(found)
        if comparisons:
            where = machine() | load
            reports = [comparison.report() for comparison in comparisons]
            record = about | {"comparisons": reports, "machine": where}
            tell(record, [line(name, report, where) for report in reports])
    return 0
