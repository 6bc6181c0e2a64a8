"""``sagax list``: the experiments, a line each; ``sagax list NAME``: the variants of one."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.text import Text

from experiments.assembly import kinds, registry
from experiments.commands.command_parser import CommandParser
from experiments.errors import UserError, command


def describe(package: str = registry.PACKAGE, name: str | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """Per experiment, or of ``name`` alone: ``name``, ``reproduces``, ``variants`` (to their descriptions), and the
    ``sweep`` keys; and a line about every experiment that is broken and left out.

    Raises:
      UserError: if there is no experiment ``name``, or it is broken.
    """
    if name is not None:
        return [_described(name, registry.module_of(name, package))], []
    modules, broken = registry.whole_modules(package)
    described = []
    for one, module in modules.items():
        try:
            described.append(_described(one, module))
        except UserError as error:
            broken.append(f"left out: {error}")
    return described, broken


def _described(name: str, module: ModuleType) -> dict[str, Any]:
    try:
        return {
            "name": name,
            "reproduces": str(module.REPRODUCES),
            "variants": dict(module.VARIANTS),
            "sweep": {key: list(values) for key, values in module.get_sweep().items()},
        }
    except Exception as error:
        raise UserError(f"experiment {name!r} is broken: {kinds.broken(error)}") from error


def parser() -> CommandParser:
    made = CommandParser(prog="sagax list", description="List the experiments, or the variants of one.")
    made.add_argument("name", nargs="?", metavar="NAME", help="an experiment, to list its variants")
    made.add_argument("--json", action="store_true", help="print one JSON object, variants included")
    return made


@command
def main(argv: Sequence[str] | None = None, package: str = registry.PACKAGE) -> int:
    """Lists the experiments.

    Raises:
      UserError: if the named experiment is unknown.
    """
    options = parser().parse_args(argv)
    described, broken = describe(package, options.name)
    for line in broken:
        print(line, file=sys.stderr)
    if options.json:
        print(json.dumps({"experiments": described}, indent=2))
        return 0
    if options.name is None:
        _print_lines([(experiment["name"], experiment["reproduces"]) for experiment in described])
        print("The variants of one: sagax list NAME. Train one: sagax run NAME[:variant,variant]")
        return 0
    [experiment] = described
    print(f"{experiment['name']}: {experiment['reproduces']}")
    _print_lines([(f"  :{variant}", meaning) for variant, meaning in experiment["variants"].items()])
    print("Variants compose with commas, as in NAME:a,b.")
    return 0


def _print_lines(entries: Sequence[tuple[str, str]]) -> None:
    """A line per entry: its name, then its description, cut at the edge of a terminal and whole elsewhere."""
    console = Console()
    width = max((len(name) for name, _ in entries), default=0)
    for name, description in entries:
        if not console.is_terminal:
            print(f"{name:{width}}  {description}")
            continue
        room = console.width - width - 2
        if len(description) > room:
            ellipsis = "..." if console.options.ascii_only else "\N{HORIZONTAL ELLIPSIS}"
            description = description[: max(room - len(ellipsis), 0)].rstrip() + ellipsis
        console.print(Text(f"{name:{width}}  ", "bold").append(description, "not bold"), no_wrap=True, overflow="crop")
