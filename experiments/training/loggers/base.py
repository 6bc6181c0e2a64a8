"""What a logger is: it takes the rows of one seed at a time, and may fail at any moment without ending the run."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from experiments.errors import UserError
from experiments.rows.reading import NOT_METRICS, Row

Identity = tuple[str, int]


class Sink(Protocol):
    """What a ``RowWriter`` hands its rows to. No method raises because of what the sink cannot do."""

    def rebuild(self, rows: Iterable[Row]) -> None:
        """The file holds these rows, and no others: it was opened or rewound."""

    def append(self, row: Row) -> None:
        """The file holds one row more."""

    def settle(self, members: Iterable[Identity]) -> None:
        """A checkpoint covers all rows of these pairs of variant and seed: none of them will be rewound."""

    def close(self) -> None:
        """No row follows."""


class Seed(NamedTuple):
    """One seed of a run, which is one run of a logger.

    Attributes:
      key: the name by which the logger's run is found again when the run is continued; letters and digits.
      experiment, variant, seed: whose rows they are.
      config: the configuration in JSON values, with the seed's own traced values in place.
      folder: the run folder, for what the logger writes beside the rows.
    """

    key: str
    experiment: str
    variant: str
    seed: int
    config: dict[str, Any]
    folder: Path

    @property
    def group(self) -> str:
        """``experiment:variant``, which all seeds of a run share."""
        return f"{self.experiment}:{self.variant}" if self.variant else self.experiment

    @property
    def name(self) -> str:
        """``experiment:variant seed N``."""
        return f"{self.group} seed {self.seed}"


class LoggerRun(NamedTuple):
    """An open run of a logger.

    Attributes:
      log: ``(row)``: takes one row.
      close: ``()``: hands over what it still holds.
      logged: the last iteration that the logger itself says it has, 0 for none; ``None`` where it cannot tell, and what
        the run folder says counts.
    """

    log: Callable[[Row], None]
    close: Callable[[], None]
    logged: int | None = None


class Logger(NamedTuple):
    """An entry of the catalogue.

    Attributes:
      require: ``()``: checks before any work that the package is there and that it will take rows, or raises a
        ``UserError``.
      begin: ``(seed)``: begins the logger's run of a seed, or continues the one that has its key.
    """

    require: Callable[[], None]
    begin: Callable[[Seed], LoggerRun]


def installed(name: str, package: str, extra: str) -> ModuleType:
    """The module ``package`` of the logger ``name``.

    Raises:
      UserError: if it is not installed, with the extra that installs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"--logger={name} needs the extra: pip install -e '.[{extra}]'") from error


def metrics(row: Row) -> dict[str, float]:
    """The metrics of a row that are numbers, in order; those without a value are left out.

    >>> metrics({"seed": 0, "env_steps": 8, "iteration": 1, "return": 0.5, "loss": None, "train/stopped": 1})
    {'return': 0.5, 'train/stopped': 1.0}
    """
    return {
        key: float(value) for key, value in row.items() if key not in NOT_METRICS and isinstance(value, int | float)
    }


def fitting(text: str, limit: int) -> str:
    """``text``, cut to ``limit`` characters and a digest of the whole, so that two texts never become one.

    >>> fitting("ppo", 20), fitting("agent.learning_rate=0.001", 20)
    ('ppo', 'agent.lear~2f7e0701c')
    """
    if len(text) <= limit:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:9]
    return f"{text[: limit - len(digest) - 1]}~{digest}"


def leaves(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration's values by dotted key.

    >>> leaves({"agent": {"clip": 0.2}, "seeds": 3})
    {'agent.clip': 0.2, 'seeds': 3}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        inside = isinstance(value, Mapping) and value
        found |= leaves(value, f"{prefix}{key}.") if inside else {f"{prefix}{key}": value}
    return found
