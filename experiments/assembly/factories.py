"""Calling a factory with a section of the configuration, so that what it refuses is said of the configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from envs import choices
from experiments.errors import UserError


def call(factory: Callable, where: str, *positional, **arguments) -> Any:
    """``factory(*positional, **arguments)``.

    Args:
      factory: whose keyword arguments the section is.
      where: the dotted key of the section.
      positional: what is not of the configuration.
      arguments: the section's keys, and what else is not of the configuration.

    Raises:
      UserError: that says where it stands, for a key that the factory does not take, one that it lacks, and a value
        that it refuses.
    """
    require_accepted(factory, where, len(positional), arguments)
    try:
        return factory(*positional, **arguments)
    except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
        if isinstance(error, jax.errors.ConcretizationTypeError):
            raise
        raise UserError(f"configuration section {where!r}: {error}") from error


def require_accepted(factory: Callable, where: str, positional: int, arguments: Mapping[str, Any]) -> None:
    """Refuses a key that ``factory`` does not take, or lacks, in the words of the configuration and not of Python."""
    parameters = list(inspect.signature(factory).parameters.values())[positional:]
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    free = [one.name for one in named if one.name not in arguments]
    for key in arguments:
        if key not in [one.name for one in named] and not any(one.kind is one.VAR_KEYWORD for one in parameters):
            raise UserError(f"configuration section {where!r}: {choices.unknown('key', key, free)}")
    lacking = [repr(one.name) for one in named if one.name in free and one.default is one.empty]
    if lacking:
        raise UserError(f"configuration section {where!r} lacks {', '.join(lacking)}")


def arguments_of(section: Mapping[str, Any], *others: str) -> dict[str, Any]:
    """A section without the key that names its kind, and without ``others``."""
    return {key: value for key, value in section.items() if key not in ("kind", *others)}


def wrong_result(where: str, kind: Any, made: Any, expected: str) -> UserError:
    """The refusal of what an imported factory returned."""
    return UserError(f"configuration section {where!r}: {kind} returned {type(made).__name__}, expected {expected}")
