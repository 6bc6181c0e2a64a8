"""How fast the house is, and against what.

sagax benchmark CASE... [--json] [--repeats=N] [--tiny] [--out=results/benchmark.jsonl]

One line per comparison, or one JSON object per case: ``case``, ``comparisons`` (see ``Comparison.report``), ``tiny``
and ``machine``. Nothing is written unless ``--out`` says where.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.cases import CASES
from experiments.benchmarks.sides import Options
from experiments.commands.command_parser import CommandParser
from experiments.errors import UserError, cannot_write, command, unknown
from experiments.rows.environment_report import environment_report


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    report = environment_report()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return report | {"cores": usable, "load_average": round(os.getloadavg()[0], 2)}


def line(case: str, report: dict[str, Any], where: dict[str, Any]) -> str:
    """One comparison in words."""
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
    """The command line; the help lists the cases by the first paragraphs of their docstrings."""
    summaries = {name: " ".join((case.__doc__ or "").split("\n\n")[0].split()) for name, case in CASES.items()}
    cases = "\n".join(f"  {name:12}{summary}" for name, summary in summaries.items())
    made = CommandParser(
        prog="sagax benchmark",
        description=f"{(__doc__ or '').splitlines()[0]}\n\ncases:\n{cases}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("cases", nargs="+", metavar="CASE", help="one or more of the cases above")
    made.add_argument("--json", action="store_true", help="print one JSON object per case")
    made.add_argument("--repeats", type=int, default=7, help="pairs of measurements (default: 7)")
    made.add_argument("--tiny", action="store_true", help="pieces too small to measure, to see that a case runs")
    made.add_argument("--baseline", type=Path, help="a checkout of PureJaxRL, for the case purejaxrl")
    made.add_argument("--baseline-python", type=Path, help="the interpreter that has the baselines installed")
    made.add_argument("--out", type=Path, help="also append one JSON line per case to this file")
    return made


def append(path: Path, text: str) -> None:
    """Appends ``text`` to a file that need not be there.

    Raises:
      UserError: if that cannot be done.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            file.write(text)
    except OSError as error:
        raise cannot_write(path, error) from error


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
    if arguments.out is not None:
        # A file that cannot be written is told before minutes of measuring.
        append(arguments.out, "")
    options = Options(arguments.repeats, arguments.tiny, arguments.baseline, arguments.baseline_python)
    for name in arguments.cases:
        where = machine()
        reports = [comparison.report() for comparison in CASES[name](options)]
        record = {"case": name, "comparisons": reports, "tiny": options.tiny, "machine": where}
        if arguments.out is not None:
            append(arguments.out, json.dumps(record) + "\n")
        if arguments.json:
            print(json.dumps(record), flush=True)
        else:
            for report in reports:
                print(line(name, report, where), flush=True)
    return 0
