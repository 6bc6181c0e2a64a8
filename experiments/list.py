"""Every experiment, its variants and what it reproduces.

python -m experiments.list [--json]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import registry
from experiments.command_parser import CommandParser
from experiments.errors import command


def describe(package: str = registry.PACKAGE) -> list[dict[str, Any]]:
    """Per experiment: ``name``, ``reproduces``, ``variants`` (to their descriptions), and the ``sweep`` keys."""
    described = []
    for name in registry.names(package):
        module = registry.module_of(name, package)
        described.append(
            {
                "name": name,
                "reproduces": module.REPRODUCES,
                "variants": dict(module.VARIANTS),
                "sweep": {key: list(values) for key, values in module.get_sweep().items()},
            }
        )
    return described


@command
def main(argv: Sequence[str] | None = None, package: str = registry.PACKAGE) -> int:
    parser = CommandParser(prog="python -m experiments.list", description="List the experiments.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    described = describe(package)
    if options.json:
        print(json.dumps({"experiments": described}, indent=2))
        return 0
    table = Table("experiment", "variant", "what it is", show_lines=False, expand=False)
    for experiment in described:
        table.add_row(Text(experiment["name"], "bold"), "", Text(experiment["reproduces"], "bold"))
        for variant, meaning in experiment["variants"].items():
            table.add_row("", Text(f":{variant}"), Text(meaning))
        table.add_section()
    console = Console()
    console.print(table)
    console.print("Variants compose with commas, as in NAME:a,b. Run one: python -m experiments.run NAME:VARIANT")
    return 0


if __name__ == "__main__":
    sys.exit(main())
