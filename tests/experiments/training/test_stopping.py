"""Signals are acknowledged at once, handled only if they were not ignored; a second interrupt ends the process."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from experiments.errors import INTERRUPT_EXIT
from experiments.training.stopping import FINISHING

# A program that stops when it is asked to. While it is ``BUSY``, signals do not reach its main thread: a compiled
# program does not look for them.
PROGRAM = """
import signal, time
from experiments.training import stopping
stopping.GRACE_SECONDS = 0.1
with stopping.stop_on_signals() as stop:
    print("ready", flush=True)
    {busy}
print("stopped by", stop.signal, flush=True)
"""
WAITS = "while not stop: time.sleep(0.01)"
BUSY = "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}); time.sleep(60)"


@pytest.fixture
def start():
    started = []

    def run(busy, ignored=()):
        def ignore():
            # Whatever the tests were started with: a shell lets what it runs in the background ignore SIGINT.
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(busy=busy)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=ignore,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_is_a_request_and_is_acknowledged(start, number):
    process = start(WAITS)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert out == f"stopped by {number.value}\n" and err == f"{number.name}: {FINISHING}\n"
    assert process.returncode == 0


def test_signals_are_acknowledged_while_python_does_not_run_and_the_second_interrupt_ends(start):
    process = start(BUSY)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == f"SIGINT: {FINISHING}\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (out, err) == ("", "interrupted\n") and process.returncode == INTERRUPT_EXIT


def test_the_second_interrupt_raises_where_python_runs(start):
    process = start("signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGINT)")
    _, err = process.communicate(timeout=30)
    assert err.splitlines()[-1] == "KeyboardInterrupt"


def test_an_interrupt_that_was_ignored_stays_ignored(start):
    process = start(WAITS, ignored=[signal.SIGINT])
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert out == f"stopped by {signal.SIGTERM.value}\n" and err == f"SIGTERM: {FINISHING}\n"


def test_if_both_signals_were_ignored_neither_is_handled(start):
    ignored = [signal.SIGINT, signal.SIGTERM]
    process = start("[signal.raise_signal(number) for number in (2, 15)]", ignored=ignored)
    # ``communicate`` would miss the lines that ``readline`` has already buffered.
    assert process.stdout.read() == "stopped by None\n" and process.stderr.read() == ""
