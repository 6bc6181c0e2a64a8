"""A run that is asked to stop: the chunk in hand is finished and saved first."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Protocol

from experiments.errors import INTERRUPT_EXIT

# What a second interrupt has to reach Python in before the process ends without it: a compiled program does not look
# for signals while it runs.
GRACE_SECONDS = 2.0
FINISHING = "finishing the chunk in hand, then saving and stopping; Ctrl-C once more interrupts at once"


# SIGHUP: the terminal went away.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class StopRequest(Protocol):
    """True once the run is to stop after the chunk in hand; ``signal`` is what asked for it, if a signal did."""

    @property
    def signal(self) -> int | None: ...

    def __bool__(self) -> bool: ...


class StopRequested:
    """Whether a signal asked the run to stop.

    Attributes:
      signal: the number of the last signal; ``None`` before any.
    """

    def __init__(self):
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequested]:
    """Turns SIGTERM, SIGHUP and the first SIGINT into a request; a second SIGINT interrupts at once.

    A line on the standard error stream acknowledges the first signal, even while a compiled program runs, which may
    take minutes in which no handler of Python is called: a thread reads the signals from a pipe. The second interrupt
    raises ``KeyboardInterrupt``, and ends the process where Python does not get there within ``GRACE_SECONDS``.

    A signal that was ignored when the program started stays ignored: ``nohup`` and a shell's background jobs ask for
    that.
    """
    stop = StopRequested()
    taken = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]
    if not taken:
        yield stop
        return
    interrupt = signal.getsignal(signal.SIGINT)

    def handle(number, frame):
        del frame
        stop.signal = number
        if signal.SIGINT in taken:
            signal.signal(signal.SIGINT, interrupt)

    ended = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    watcher = threading.Thread(target=_watch, args=(reading, ended), name="signals", daemon=True)
    previous = {number: signal.signal(number, handle) for number in taken}
    descriptor = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher.start()
    try:
        yield stop
    finally:
        ended.set()
        signal.set_wakeup_fd(descriptor)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(writing)
        watcher.join()
        os.close(reading)


def _watch(reading: int, ended: threading.Event) -> None:
    """Says that a signal has arrived, and ends the process at the second interrupt if Python does not."""
    first = True
    while number := os.read(reading, 1):
        if first:
            _say(f"{signal.Signals(number[0]).name}: {FINISHING}")
        elif number[0] == signal.SIGINT and not ended.wait(GRACE_SECONDS):
            _say("interrupted")
            os._exit(INTERRUPT_EXIT)
        first = False


def _say(text: str) -> None:
    """Writes a line past Python's buffers, which the interrupted program may hold."""
    stream = sys.stderr
    with contextlib.suppress(OSError, ValueError, AttributeError):
        # A progress bar leaves the cursor at the end of its line, and hides it.
        before, after = ("\r\n", "\x1b[?25h") if stream.isatty() else ("", "")
        os.write(stream.fileno(), f"{before}{text}\n{after}".encode("ascii", "backslashreplace"))
