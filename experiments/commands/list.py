"""``sagax list``: the experiments, a line each; ``sagax list NAME``: the variants of one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.assembly import registry
from experiments.commands.command_parser import CommandParser
from experiments.errors import command


def describe(package: str = registry.PACKAGE, name: str | None = None) -> list[dict[str, Any]]:
    """Per experiment, or of ``name`` alone: ``name``, ``reproduces``, ``variants`` (to their descriptions), and the
    ``sweep`` keys.

    Raises:
      UserError: if there is no experiment ``name``.
    """
    described = []
    for one in registry.names(package) if name is None else [name]:
        module = registry.module_of(one, package)
        described.append(
            {
                "name": one,
                "reproduces": module.REPRODUCES,
                "variants": dict(module.VARIANTS),
                "sweep": {key: list(values) for key, values in module.get_sweep().items()},
            }
        )
    return described


def _parser() -> CommandParser:
    parser = CommandParser(prog="sagax list", description="List the experiments, or the variants of one.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="an experiment, to list its variants")
    parser.add_argument("--json", action="store_true", help="print one JSON object, variants included")
    return parser


@command
def main(argv: Sequence[str] | None = None, package: str = registry.PACKAGE) -> int:
    """Lists the experiments.

    Raises:
      UserError: if the named experiment is unknown.
    """
    options = _parser().parse_args(argv)
    described = describe(package, options.name)
    if options.json:
        print(json.dumps({"experiments": described}, indent=2))
        return 0
    console = Console()
    table = Table(box=None, show_header=False, pad_edge=False)
    if options.name is None:
        for experiment in described:
            table.add_row(Text(experiment["name"], "bold"), Text(experiment["reproduces"]))
        console.print(table)
        console.print("The variants of one: sagax list NAME. Train one: sagax run NAME[:variant,variant]", style="dim")
        return 0
    [experiment] = described
    console.print(f"{experiment['name']}: {experiment['reproduces']}", markup=False)
    for variant, meaning in experiment["variants"].items():
        table.add_row(Text(f"  :{variant}", "bold"), Text(meaning))
    console.print(table)
    console.print("Variants compose with commas, as in NAME:a,b.", style="dim")
    return 0
