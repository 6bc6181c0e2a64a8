"""The progress of a run on the standard error stream, and its result as a small table."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn
from rich.table import Column, Table
from rich.text import Text

from experiments.rows import reading, statistics

PLAIN_SECONDS = 10.0
# Phases of a run. A host driver compiles as it first steps its environments.
TRAINING, COMPILING, FIRST_CHUNK = "training", "compiling", "compiling and training the first chunk"


@dataclass(frozen=True)
class Done:
    """How far a run is, over all its seeds.

    Attributes:
      iterations: finished iterations, those of every seed counted.
      env_steps: environment steps that were actually taken; steps after an episode's end are padding and do not count.
    """

    iterations: int
    env_steps: int

    def __add__(self, other: Done) -> Done:
        return Done(self.iterations + other.iterations, self.env_steps + other.env_steps)


class Reporter(Protocol):
    """The object that ``progress`` yields."""

    def resume(self, done: Done) -> None:
        """Sets what an earlier part of the run has done; it does not count for the speed."""

    def phase(self, name: str) -> None:
        """Says what happens from now on; only ``TRAINING`` counts for the speed, and ``update`` returns to it."""

    def update(self, done: Done, metrics: Mapping[str, Any] | None = None) -> None:
        """Shows what is done in all, and the latest metrics."""


class Silent:
    """A reporter that shows nothing."""

    def resume(self, done: Done) -> None:
        pass

    def phase(self, name: str) -> None:
        pass

    def update(self, done: Done, metrics: Mapping[str, Any] | None = None) -> None:
        pass


@contextmanager
def progress(
    total_iterations: int,
    description: str,
    *,
    metric: str = "success",
    stream: TextIO | None = None,
    plain_seconds: float = PLAIN_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Reporter]:
    """Shows the latest value of ``metric``, environment steps of all seeds, steps per second and the time left.

    While a program is compiled, it shows for how long. Speed and time left are measured without compilation. A bar on
    a terminal; elsewhere (a file, a pipe, a scheduler's log) a line every ``plain_seconds`` at most and one at the end.

    Args:
      total_iterations: iterations of the whole run, those of every seed counted. The environment steps that they take
        are known only afterwards, because episodes differ in length.
      description: the run's name.
      metric: the one to show, where ``update`` has it.
      stream: where to write; the standard error stream if ``None``.
      plain_seconds: seconds between lines.
      clock: seconds that only increase.

    Yields:
      The object that is told what happens.
    """
    stream = stream if stream is not None else sys.stderr
    console = Console(file=stream)
    tracker = _Tracker(total_iterations, metric, clock)
    if console.is_terminal:
        yield from _bar(console, tracker, description)
    else:
        yield from _lines(stream, tracker, description, plain_seconds)


class _Tracker:
    """The phase, the speed, the time left and the latest metric; no output.

    Only the time in which programs trained is measured, and what they did in it.
    """

    def __init__(self, total: int, metric: str, clock: Callable[[], float]):
        self.total, self.done = total, Done(0, 0)
        self.clock, self._since = clock, clock()
        self._phase = TRAINING
        self._seconds, self._iterations, self._env_steps = 0.0, 0, 0
        self._metric, self._value = metric, None

    @property
    def trains(self) -> bool:
        return self._phase == TRAINING

    def resume(self, done: Done) -> None:
        self.done, self._since = done, self.clock()

    def phase(self, name: str) -> None:
        self._phase, self._since = name, self.clock()

    def update(self, done: Done, metrics: Mapping[str, Any] | None) -> None:
        now = self.clock()
        if self.trains:
            self._seconds += now - self._since
            self._iterations += done.iterations - self.done.iterations
            self._env_steps += done.env_steps - self.done.env_steps
        self.done, self._since, self._phase = done, now, TRAINING
        self._value = (metrics or {}).get(self._metric, self._value)

    def words(self) -> str:
        """The most important first, because a terminal cuts what does not fit."""
        if not self.trains:
            return f"{self._phase}, {duration(self.clock() - self._since)}"
        words = [] if self._value is None else [f"{self._metric} {float(self._value):.3f}"]
        left = math.inf
        if self._iterations:
            left = (self.total - self.done.iterations) * self._seconds / self._iterations
        words += [f"{duration(left)} left", f"{self.done.env_steps:,} environment steps"]
        words += [f"{self._env_steps / self._seconds:,.0f}/s"] if self._seconds > 0 else []
        return ", ".join(words)


def _bar(console: Console, tracker: _Tracker, description: str) -> Iterator[Reporter]:
    class Words(ProgressColumn):
        """Drawn anew with the bar, so that the seconds of a compilation go on."""

        def render(self, task):
            del task
            return Text(tracker.words(), no_wrap=True, overflow="ellipsis")

    # The name, which may be as long as all its overrides, leaves most of the line to the words.
    name = TextColumn(
        "{task.description}",
        markup=False,
        table_column=Column(no_wrap=True, overflow="ellipsis", max_width=max(12, console.width // 5)),
    )
    columns = (name, BarColumn(bar_width=max(4, console.width // 16)), TaskProgressColumn(), Words())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=tracker.total)

        class Bar:
            def resume(self, done: Done) -> None:
                tracker.resume(done)
                bar.update(task, completed=done.iterations)

            def phase(self, name: str) -> None:
                tracker.phase(name)
                bar.refresh()

            def update(self, done: Done, metrics: Mapping[str, Any] | None = None) -> None:
                tracker.update(done, metrics)
                bar.update(task, completed=done.iterations, refresh=True)

        yield Bar()


def _lines(stream: TextIO, tracker: _Tracker, description: str, seconds: float) -> Iterator[Reporter]:
    lock, ended = threading.Lock(), threading.Event()
    last, shown = tracker.clock(), Done(0, 0)

    def write() -> None:
        nonlocal last, shown
        with lock:
            last, shown = tracker.clock(), tracker.done
            share = f"{100 * tracker.done.iterations / max(tracker.total, 1):.0f} %"
            print(f"{description}: {share}, {tracker.words()}", file=stream, flush=True)

    def tick() -> None:
        # A compilation may take minutes in which nothing else is called.
        while not ended.wait(seconds):
            if not tracker.trains:
                write()

    class Lines:
        def resume(self, done: Done) -> None:
            nonlocal shown
            tracker.resume(done)
            shown = done

        def phase(self, name: str) -> None:
            tracker.phase(name)
            if not tracker.trains:
                write()

        def update(self, done: Done, metrics: Mapping[str, Any] | None = None) -> None:
            tracker.update(done, metrics)
            if tracker.clock() - last >= seconds:
                write()

    ticker = threading.Thread(target=tick, name="progress", daemon=True)
    if seconds > 0:
        ticker.start()
    try:
        yield Lines()
    finally:
        ended.set()
        if ticker.ident is not None:
            ticker.join()
        if tracker.done != shown:
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
    steps: dict[int, int] = {}
    for row in rows:
        steps[row["seed"]] = max(row["env_steps"], steps.get(row["seed"], 0))
    seeds = "1 seed" if len(steps) == 1 else f"{len(steps)} seeds together"
    title = f"after {sum(steps.values()):,} environment steps of {seeds}"
    table = Table("metric", title=title, title_justify="left")
    for column in ("interquartile mean", f"{100 * statistics.CONFIDENCE:g} % interval", "lowest", "highest"):
        table.add_column(column, justify="right")
    for metric in chosen:
        values = statistics.final_values(rows, metric)
        if not len(values):
            continue
        interval = statistics.stratified_bootstrap(values, repetitions=2000)
        ends = "one seed" if math.isnan(interval.low) else f"{interval.low:.4g} to {interval.high:.4g}"
        table.add_row(Text(metric), f"{interval.estimate:.4g}", ends, f"{values.min():.4g}", f"{values.max():.4g}")
    (console or Console()).print(table)
