"""``sagax list``: the experiments, a line each; ``sagax list NAME``: the variants of one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from experiments.assembly import registry
from experiments.commands.command_parser import CommandParser
from experiments.errors import command


def describe(package: str = registry.PACKAGE, name: str | None = None) -> list[dict[str, Any]]:
    """Every experiment, or ``name`` alone: ``name``, ``reproduces``, ``variants`` (to their descriptions), and the
    keys of its ``sweep`` with their values.

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
    described = describe(package, options.name)
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
