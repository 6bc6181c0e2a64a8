"""Timing by turns: samples of two sides of a benchmark, and their ratio.

The sides of a comparison take turns (A B, B A, A B, ...), so that other work of the machine disturbs both alike. The
ratio is the median of the pairs' ratios, reported with the smallest and the largest. Processor time is reported beside
wall-clock time: on a machine that does other work it is the more reliable of the two.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Sample(NamedTuple):
    """One timed sample: the steps that it took, its wall-clock seconds and its processor seconds."""

    steps: int
    seconds: float
    cpu_seconds: float


class Comparison(NamedTuple):
    """Two sides that took turns; a figure is a rate in ``unit``, and more is better.

    Attributes:
      name: names the comparison within its case.
      ours, reference: describe the two sides.
      unit: of the figures.
      figures: ``(ours, reference)`` for every pair of samples.
      cpu_figures: the same per second of processor time; empty where it was not measured.
      target: the median ratio that is aimed at, or ``None``.
      details: further measurements.
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
    """Times ``piece``, which returns the number of its steps once the device has finished them."""
    wall, processor = time.perf_counter(), time.process_time()
    steps = piece()
    return Sample(steps, time.perf_counter() - wall, time.process_time() - processor)


def in_turns(
    sides: dict[str, Side], repeats: int, say: Callable[[str], None] = lambda text: None
) -> dict[str, list[Sample]]:
    """``repeats`` samples of every side, one round after another, every second round in reverse order.

    ``say`` is told before each sample which side is measured; the time that it takes is not in the sample.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in list(sides) if repeat % 2 == 0 else reversed(sides):
            say(f"measuring {name}, round {repeat + 1} of {repeats}")
            samples[name].append(sides[name]())
    return samples


def rates(samples: Sequence[Sample]) -> list[float]:
    """Steps per wall-clock second."""
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
