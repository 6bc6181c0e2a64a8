"""``sagax show NAME[:variant]``: an experiment's run card, its configuration and what it needs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from experiments.assembly import registry
from experiments.assembly.checks import checked_environment
from experiments.commands.command_parser import CommandParser
from experiments.errors import UserError, command
from experiments.training.requirements import Requirements, memory, requirements, shown_bytes


def parser() -> CommandParser:
    made = CommandParser(
        prog="sagax show", description="Print an experiment's run card, its resolved configuration and what it needs."
    )
    made.add_argument("name", metavar="NAME", help="NAME or NAME:variant,variant; also --config.KEY=VALUE")
    made.add_argument("--seeds", type=int, help="how many seeds are to be trained (default: the configuration's)")
    made.add_argument("--json", action="store_true", help="print the configuration as one JSON object")
    return made


@command
def main(argv: Sequence[str] | None = None, package: str = registry.PACKAGE) -> int:
    """Shows one experiment; nothing is compiled or run.

    Raises:
      UserError: for an unknown experiment, variant or key.
    """
    made = parser()
    options, rest = made.parse_known_args(argv)
    loaded = registry.load(options.name, package)
    overrides = registry.parse_overrides(rest, made.shown_options(), loaded.config)
    config = registry.with_overrides(loaded, overrides).config
    if options.json:
        print(json.dumps(registry.to_json_dict(config), indent=2))
        return 0
    print(f"{loaded.name}:{loaded.variant}" if loaded.variant else loaded.name)
    print(f"\n{registry.run_card(loaded.module)}\n\nConfiguration:")
    for key, value in registry.keys(config).items():
        print(f"  {shlex.quote(f'{registry.PREFIX}{key}={_typed(value)}')}")
    try:
        needs = requirements(config, checked_environment(config), options.seeds)
    except UserError as error:
        # The configuration can be read even where its environment is not installed.
        print(f"\nNeeds: not known, {error}")
        return 0
    print(f"\nNeeds:\n{_described(needs)}")
    return 0


def _typed(value: Any) -> str:
    """A value as it is typed at the command line."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(_typed, value)) if isinstance(value, tuple) and value else str(value)


def _described(needs: Requirements) -> str:
    available = memory()
    parts = ", ".join(f"{name} {shown_bytes(size)}" for name, size in needs.parts.items())
    limit = "" if available is None else f" of the {shown_bytes(available.size)} of {available.owner}"
    return "\n".join(
        (
            f"  environment steps  {needs.env_steps:,} per seed at most, {needs.env_steps * needs.members:,} in all",
            f"  seeds              {needs.members:,}",
            f"  parameters         {needs.parameters:,} per seed",
            f"  memory             at least {shown_bytes(needs.memory)}{limit}",
            f"                     ({parts})",
        )
    )
