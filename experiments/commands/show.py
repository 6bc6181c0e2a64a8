"""``sagax show NAME[:variant]``: an experiment's run card and its resolved configuration."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence

from experiments.assembly import registry
from experiments.commands.command_parser import CommandParser
from experiments.errors import command


def _parser() -> CommandParser:
    made = CommandParser(prog="sagax show", description="Print an experiment's run card and its configuration.")
    made.add_argument("name", help="NAME or NAME:variant,variant; --config.KEY=VALUE changes a key as in sagax run")
    made.add_argument("--json", action="store_true", help="print the configuration as one JSON object")
    return made


@command
def main(argv: Sequence[str] | None = None, package: str = registry.PACKAGE) -> int:
    """Shows one experiment; nothing is built or run.

    Raises:
      UserError: for an unknown experiment, variant or key.
    """
    made = _parser()
    options, rest = made.parse_known_args(argv)
    loaded = registry.load(options.name, package)
    overrides = registry.parse_overrides(rest, made.shown_options())
    config = registry.apply_overrides(loaded.config, overrides)
    if options.json:
        print(json.dumps(registry.to_json_dict(config), indent=2))
        return 0
    title = f"{loaded.name}:{loaded.variant}" if loaded.variant else loaded.name
    card = inspect.cleandoc(loaded.module.__doc__ or "(this experiment has no run card)")
    print(f"{title}\n\n{card}\n\nConfiguration:")
    for key, value in registry.keys(config).items():
        print(f"  {registry.PREFIX}{key}={'none' if value is None else value}")
    return 0
