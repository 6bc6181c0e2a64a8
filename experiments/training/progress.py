"""The progress of a run on the standard error stream, and its result as a small table."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from experiments.rows import reading, statistics

PLAIN_SECONDS = 10.0


class Reporter(Protocol):
    """What ``progress`` gives."""

    def resume(self, steps: int) -> None:
        """Says that ``steps`` were done before, by the run that is resumed; they do not count for the speed."""

    def update(self, steps: int, metrics: Mapping[str, Any] | None = None) -> None:
        """Shows that ``steps`` environment steps are done in all, and the latest metrics."""


@contextmanager
def progress(
    total_steps: int,
    description: str,
    *,
    initial_steps: int = 0,
    metric: str = "success",
    stream: TextIO | None = None,
    plain_seconds: float = PLAIN_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Reporter]:
    """Shows steps, steps per second, time left, the iteration and the latest value of ``metric``.

    A bar on a terminal; elsewhere (a file, a pipe, a scheduler's log) a plain line every ``plain_seconds``, and one
    at the end.

    Args:
      total_steps: environment steps of the whole run.
      description: the run's name.
      initial_steps: done before, by the run that is resumed; they do not count for the speed.
      metric: the one to show, where ``update`` has it; ``iteration`` is shown likewise.
      stream: standard error if none.
      plain_seconds: between plain lines.
      clock: seconds that only increase.

    Yields:
      An object with ``update(steps, metrics)``; ``steps`` counts from the run's very start.
    """
    stream = stream if stream is not None else sys.stderr
    console = Console(file=stream)
    tracker = _Tracker(total_steps, initial_steps, metric, clock)
    if console.is_terminal:
        yield from _bar(console, tracker, description)
    else:
        yield from _lines(stream, tracker, description, plain_seconds)


class _Tracker:
    """Speed, time left and the latest metrics; no output."""

    def __init__(self, total: int, initial: int, metric: str, clock: Callable[[], float]):
        self.total, self.initial, self.steps = total, initial, initial
        self.clock, self.start = clock, clock()
        self._metric = metric
        self._latest: dict[str, Any] = {}

    def resume(self, steps: int) -> None:
        self.initial = self.steps = int(steps)
        self.start = self.clock()

    def update(self, steps: int, metrics: Mapping[str, Any] | None) -> None:
        self.steps = int(steps)
        self._latest.update(metrics or {})

    @property
    def speed(self) -> float:
        """Environment steps per second since the start of this process's share of the run; 0 before any."""
        elapsed = self.clock() - self.start
        return (self.steps - self.initial) / elapsed if elapsed > 0 else 0.0

    def words(self) -> dict[str, str]:
        left = (self.total - self.steps) / self.speed if self.speed > 0 else math.inf
        words = {
            "steps": f"{self.steps:,}/{self.total:,} steps",
            "speed": f"{self.speed:,.0f} steps/s",
            "left": f"{duration(left)} left",
        }
        if "iteration" in self._latest:
            words["iteration"] = f"iteration {int(self._latest['iteration'])}"
        value = self._latest.get(self._metric)
        if value is not None:
            words["metric"] = f"{self._metric} {float(value):.3f}"
        return words


def _bar(console: Console, tracker: _Tracker, description: str) -> Iterator[Reporter]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=tracker.total, completed=tracker.initial, text="")

        class Bar:
            def resume(self, steps: int) -> None:
                tracker.resume(steps)
                bar.update(task, completed=tracker.steps)

            def update(self, steps: int, metrics: Mapping[str, Any] | None = None) -> None:
                tracker.update(steps, metrics)
                bar.update(task, completed=tracker.steps, text=", ".join(tracker.words().values()))

        yield Bar()


def _lines(stream: TextIO, tracker: _Tracker, description: str, seconds: float) -> Iterator[Reporter]:
    last = {"time": tracker.clock(), "steps": tracker.initial}

    def write() -> None:
        last.update(time=tracker.clock(), steps=tracker.steps)
        print(f"{description}: {', '.join(tracker.words().values())}", file=stream, flush=True)

    class Lines:
        def resume(self, steps: int) -> None:
            tracker.resume(steps)
            last.update(steps=tracker.steps)

        def update(self, steps: int, metrics: Mapping[str, Any] | None = None) -> None:
            tracker.update(steps, metrics)
            if tracker.clock() - last["time"] >= seconds:
                write()

    try:
        yield Lines()
    finally:
        if tracker.steps != last["steps"]:
            write()


def duration(seconds: float) -> str:
    """``1:02:03``, ``2:03``; ``?`` where it is unknown."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def result_table(
    rows: Sequence[reading.Row], metrics: Sequence[str] | None = None, console: Console | None = None
) -> None:
    """Prints the last evaluation of one variant's rows: per metric the interquartile mean over the seeds, its
    interval, the lowest and the highest seed.

    Args:
      rows: of one variant, at least one.
      metrics: which, in this order; all of the rows if none. A metric without any value is left out.
      console: standard output if none.
    """
    chosen = list(metrics) if metrics is not None else reading.metrics_of(rows)
    seeds = len({row["seed"] for row in rows})
    steps = max(row["env_steps"] for row in rows)
    title = f"after {steps:,} environment steps, {seeds} seed{'s' if seeds != 1 else ''}"
    table = Table("metric", title=title, title_justify="left")
    for column in ("interquartile mean", f"{100 * statistics.CONFIDENCE:g} % interval", "lowest", "highest"):
        table.add_column(column, justify="right")
    for metric in chosen:
        values = statistics.final_values(rows, metric)
        if not len(values):
            continue
        interval = statistics.stratified_bootstrap(values, repetitions=2000)
        ends = "one seed" if math.isnan(interval.low) else f"{interval.low:.4g} to {interval.high:.4g}"
        table.add_row(metric, f"{interval.estimate:.4g}", ends, f"{values.min():.4g}", f"{values.max():.4g}")
    (console or Console()).print(table)
