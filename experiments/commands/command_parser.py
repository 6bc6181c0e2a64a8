"""The options of a command, refused in the same way as every other mistake."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from experiments.errors import UserError, unknown, unknown_argument


class CommandParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that raises ``UserError`` instead of printing the usage and leaving.

    An option or a choice that it does not know is refused with the nearest that it knows, a number with what was
    expected. Options are never abbreviated: ``--seed=3`` would be read as ``--seeds=3``, three seeds in place of the
    seed 3.
    """

    def __init__(self, **settings: Any):
        super().__init__(**{"allow_abbrev": False} | settings)
        self.register("type", int, _integer)
        self.register("type", float, _number)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's, without arguments left over.

        Raises:
          UserError: for a mistake in the arguments.
        """
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            raise unknown_argument(rest[0], self.shown_options())
        return found

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the arguments")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = "/".join(action.option_strings) or action.dest
            raise unknown("value", value, action.choices, f"of {name}")

    def shown_options(self) -> list[str]:
        """The options that ``--help`` lists."""
        shown = (action for action in self._actions if action.help != argparse.SUPPRESS)
        return [option for action in shown for option in action.option_strings if option.startswith("--")]


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected an integer, got {text!r}") from error


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return number
