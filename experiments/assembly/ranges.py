"""The numbers of a configuration are checked before anything is built.

A number that a sweep may trace has no value while a factory runs, so that no factory can refuse it. Its range is
declared beside its factory (``envs.kinds.Kind.ranges``); those of sections without a factory are here. All are looked
up on the configuration of every run, and of every point of a sweep.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from envs.ranges import ONE_UP, ZERO_UP, Range
from experiments.assembly import sections
from experiments.assembly.overrides import keys
from experiments.errors import UserError

# By section, "" for the loop's own keys, then by name.
RANGES: dict[str, dict[str, Range]] = {
    "": {"iterations": ONE_UP, "evaluate_every": ONE_UP, "seeds": ONE_UP},
    "rollout": {"start_states": ONE_UP},
    # What builds the agent reads it, and not the agent's factory.
    "agent": {"warmup": Range(0, 1, high_open=True)},
    "warm_start": {"demonstrations": ZERO_UP, "learning_rate": ZERO_UP},
}
# Pairs of keys of which the first number must be below the second.
ASCENDING = (("agent.value_low", "agent.value_high"),)


def ranges_of(config: ConfigDict) -> dict[str, Range]:
    """The range of every dotted key of ``config`` that has one.

    Raises:
      UserError: for a section that names something unknown.
    """
    declared = {f"{section}.{name}": one for section, ranges in RANGES.items() for name, one in ranges.items()}
    for found in sections.sections_of(config):
        declared |= {f"{found.where}.{name}": one for name, one in found.entry.ranges.items()}
    return {key.removeprefix("."): one for key, one in declared.items()}


def _is_number(value: Any) -> bool:
    """Whether it is a number that is known now: no truth value, no text, nothing traced, not empty."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def validate(config: ConfigDict) -> None:
    """Checks every number of ``config`` that has a range.

    Raises:
      UserError: for the first that is out of its range, with its key, its value and what was expected; and for a
        section that names something unknown.
    """
    values = {key: value for key, value in keys(config).items() if _is_number(value)}
    ranges = ranges_of(config)
    for key, value in values.items():
        if key in ranges and value not in ranges[key]:
            raise UserError(f"configuration key {key!r} got {value}, expected {ranges[key]}")
    for lower, upper in ASCENDING:
        if lower in values and upper in values and not values[lower] < values[upper]:
            raise UserError(
                f"configuration key {lower!r} got {values[lower]}, expected below {upper}, which is {values[upper]}"
            )
