"""The ranges of a configuration's numbers, all in one place.

A factory refuses what it may branch on: choices, and the counts that shape a program. A number that a sweep may trace
has no value while a factory runs, so that no factory can refuse it. Its range is declared here and looked up on the
configuration of every run, and of every point of a sweep, before anything is built. Environments and functionals, whose
numbers are never traced, check their own arguments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from experiments.assembly import registry
from experiments.errors import UserError


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``, an end itself left out where it is ``open``."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'above' if self.low_open else 'at least'} {self.low:g}"
        if self.low_open:
            return f"above {self.low:g} and {'below' if self.high_open else 'at most'} {self.high:g}"
        return f"from {self.low:g} to {'below ' if self.high_open else ''}{self.high:g}"


ONE_UP, ZERO_UP, POSITIVE = Range(1), Range(0), Range(0, low_open=True)
# A share of a whole, a probability, a discount; and the weight of the past in an average that must not stand still.
SHARE, FADING = Range(0, 1), Range(0, 1, high_open=True)

# Of what an optimiser is made, wherever there is one. Without any norm left, or with an epsilon of 0, a gradient of
# zeros becomes 0 / 0.
_OPTIMISER = {
    "learning_rate": ZERO_UP,
    "critic_learning_rate": ZERO_UP,
    "adam_epsilon": POSITIVE,
    "max_gradient_norm": POSITIVE,
    "weight_decay": ZERO_UP,
}

# By section, then by the last part of the key; ``*`` stands for the name of an entry, "" for the loop's own keys. Of a
# number that is not here any value means something: a weight of rewards may be negative.
RANGES: dict[str, dict[str, Range]] = {
    "": {"iterations": ONE_UP, "evaluate_every": ONE_UP, "seeds": ONE_UP},
    "rollout": {"start_states": ONE_UP},
    "warm_start": {"demonstrations": ZERO_UP, "learning_rate": ZERO_UP},
    "evaluators.*": {"count": ONE_UP, "cut": ONE_UP, "candidates": ONE_UP},
    "agent": _OPTIMISER
    | {
        # Policy gradient.
        "clip": ZERO_UP,
        "clip_high": ZERO_UP,
        "dual_clip": Range(1, low_open=True),
        "value_clip": ZERO_UP,
        "value_weight": ZERO_UP,
        # Value-based.
        "discount": SHARE,
        "return_scale": POSITIVE,
        "huber": ZERO_UP,
        "learning_starts": ZERO_UP,
        "target_rate": SHARE,
        "priority_exponent": ZERO_UP,
        "importance_exponent": SHARE,
        "epsilon_start": SHARE,
        "epsilon_end": SHARE,
        "epsilon_steps": Range(0, registry.LARGEST_INTEGER),
    },
    "credit.*": {"discount": SHARE, "gae_lambda": SHARE},
    "rewards.*": _OPTIMISER
    | {
        "discount": SHARE,
        "target_decay": SHARE,
        "scale_decay": FADING,
        "calibration_smoothing": FADING,
        "forward_share": SHARE,
        "threshold": SHARE,
        "limit": POSITIVE,
        "minimum_std": POSITIVE,
        "reconstruction_weight": ZERO_UP,
        "beta": ZERO_UP,
        "fading": ZERO_UP,
        "tolerance": ZERO_UP,
        "small": ZERO_UP,
    },
}
# Pairs of keys of which the first number must be below the second.
ASCENDING = (("agent.value_low", "agent.value_high"),)
# Sections whose parts have names of their own.
_NAMED = ("credit", "rewards", "evaluators")


def range_of(key: str) -> Range | None:
    """The range of a dotted key; ``None`` where any value is allowed, or a factory checks it."""
    *path, leaf = key.split(".")
    if len(path) == 2 and path[0] in _NAMED:
        path[1] = "*"
    return RANGES.get(".".join(path), {}).get(leaf)


def _is_number(value: Any) -> bool:
    """Whether it is a number that is known now: no truth value, no text, nothing traced, not empty."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def validate(config: ConfigDict) -> None:
    """Checks every number of ``config`` that has a range.

    Raises:
      UserError: for the first that is out of its range, with its key, its value and what was expected.
    """
    values = {key: value for key, value in registry.keys(config).items() if _is_number(value)}
    for key, value in values.items():
        allowed = range_of(key)
        if allowed is not None and value not in allowed:
            raise UserError(f"configuration key {key!r} got {value}, expected {allowed}")
    for lower, upper in ASCENDING:
        if lower in values and upper in values and not values[lower] < values[upper]:
            raise UserError(
                f"configuration key {lower!r} got {values[lower]}, expected below {upper}, which is {values[upper]}"
            )
