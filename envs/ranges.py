"""Ranges of numbers, declared beside the factories that take them and checked before anything is built."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``; an end that is ``open`` does not belong to it.

    A factory refuses what it may branch on: choices, and counts that shape a program. A number that a sweep traces has
    no value while the factory runs, so that the factory cannot refuse it: its range is declared in a catalogue.
    """

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def __str__(self) -> str:
        if self.low == -math.inf:
            return f"{'below' if self.high_open else 'at most'} {self.high:g}"
        if self.high == math.inf:
            return f"{'above' if self.low_open else 'at least'} {self.low:g}"
        if self.low_open:
            return f"above {self.low:g} and {'below' if self.high_open else 'at most'} {self.high:g}"
        return f"from {self.low:g} to {'below ' if self.high_open else ''}{self.high:g}"


ONE_UP, ZERO_UP, POSITIVE = Range(1), Range(0), Range(0, low_open=True)
# A share of a whole, a probability, a discount.
SHARE = Range(0, 1)
# The weight of the past in a running average, which must not stand still.
DECAY = Range(0, 1, high_open=True)
