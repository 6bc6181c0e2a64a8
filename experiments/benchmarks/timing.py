"""Taking turns: samples of two sides of a benchmark, and what they say of each other.

Two sides of a comparison take turns (A B, B A, A B, ...), so that what else the machine does meets both; the ratio is
the median of the pairs' ratios, beside the smallest and the largest of them. Processor time is given beside the clock:
on a machine that does other work it tells more.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Sample(NamedTuple):
    """One timed piece: environment slots it filled, and the seconds of the clock and of the processor it took."""

    steps: int
    seconds: float
    cpu_seconds: float


class Comparison(NamedTuple):
    """Two sides that took turns; a figure is a rate in ``unit`` where more is better.

    Attributes:
      name: within the case.
      ours, reference: what the sides are, in words.
      unit: of the figures.
      figures: ``(ours, reference)`` of every pair.
      cpu_figures: the same per second of processor time, or empty.
      target: what the median ratio should reach, or ``None``.
      details: what else was measured.
    """

    name: str
    ours: str
    reference: str
    unit: str
    figures: list[tuple[float, float]]
    cpu_figures: list[tuple[float, float]] = []  # noqa: RUF012  (never written)
    target: float | None = None
    details: dict[str, Any] = {}  # noqa: RUF012  (never written)

    def report(self) -> dict[str, Any]:
        """As JSON: medians, and the median and range of the pairs' ratios."""
        ratios = [ours / reference for ours, reference in self.figures]
        report = {
            "name": self.name,
            "ours": self.ours,
            "reference": self.reference,
            "unit": self.unit,
            "ours_median": statistics.median(ours for ours, _ in self.figures),
            "reference_median": statistics.median(reference for _, reference in self.figures),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "pairs": len(ratios),
            "target": self.target,
        }
        if self.cpu_figures:
            report["ratio_cpu"] = statistics.median(ours / reference for ours, reference in self.cpu_figures)
        return report | {"details": self.details}


Side = Callable[[], Sample]


def timed(piece: Callable[[], int]) -> Sample:
    """Runs ``piece``, which returns its steps once the device has finished them."""
    wall, processor = time.perf_counter(), time.process_time()
    steps = piece()
    return Sample(steps, time.perf_counter() - wall, time.process_time() - processor)


def in_turns(sides: dict[str, Side], repeats: int) -> dict[str, list[Sample]]:
    """``repeats`` samples of every side, one round after another, every second round in reverse order."""
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in list(sides) if repeat % 2 == 0 else reversed(sides):
            samples[name].append(sides[name]())
    return samples


def rates(samples: Sequence[Sample]) -> list[float]:
    """Steps per second of the clock."""
    return [sample.steps / sample.seconds for sample in samples]


def compared(samples: dict[str, list[Sample]], first: str, second: str, **fields: Any) -> Comparison:
    """The comparison of the sides ``first`` and ``second`` of ``in_turns``."""
    clock = list(zip(rates(samples[first]), rates(samples[second]), strict=True))
    processor = [
        (a.steps / a.cpu_seconds, b.steps / b.cpu_seconds)
        for a, b in zip(samples[first], samples[second], strict=True)
        if a.cpu_seconds > 0 and b.cpu_seconds > 0
    ]
    return Comparison(figures=clock, cpu_figures=processor, **fields)
