"""The record that a catalogue holds for what a configuration can name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from envs.ranges import Range

# Parameter to what other parameters must be for it to have an effect: ``{"atoms": {"head": ("categorical",)}}``.
Needs = Mapping[str, Mapping[str, tuple[Any, ...]]]


class Kind(NamedTuple):
    """One entry of a catalogue. A catalogue may hold the bare factory where there is nothing else to declare.

    Attributes:
      factory: its keyword arguments are the keys of the section of the configuration that names it.
      ranges: of its numbers, by parameter; a number without a range may have any value.
      needs: parameters that have an effect only together with others. A configuration may hold them all the same; a
        value that is set for a run and has no effect is refused.
    """

    factory: Callable[..., Any]
    ranges: Mapping[str, Range] = {}
    needs: Needs = {}  # noqa: RUF012  (never written)
