"""The arguments of a command: read in one way, and refused like every other mistake."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from experiments.errors import UserError, unknown, unknown_argument


class CommandParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that raises ``UserError`` instead of printing the usage and leaving.

    An unknown option or choice is refused with the nearest known one, a number with what was expected. Options are
    never abbreviated: ``--seed=3`` would be read as ``--seeds=3``, which is three seeds instead of the seed 3. In an
    argument of type ``Path`` a leading ``~`` stands for the home folder; no shell expands it in ``--runs=~/x``.
    """

    def __init__(self, **settings: Any):
        super().__init__(**{"allow_abbrev": False} | settings)
        self.register("type", int, _integer)
        self.register("type", float, _number)
        self.register("type", Path, expanded)

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


def expanded(text: str) -> Path:
    """The path of ``text``, with a leading ``~`` or ``~USER`` replaced by that home folder.

    Raises:
      argparse.ArgumentTypeError: if there is no such home folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text}: there is no such home folder") from error


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = _float(text)
    # 1e3 is an integer, too, as in a configuration.
    if not math.isfinite(number) or number != int(number):
        raise argparse.ArgumentTypeError(f"expected an integer, got {text[:40]!r}")
    return int(number)


def _number(text: str) -> float:
    number = _float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text[:40]!r}")
    return number


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
