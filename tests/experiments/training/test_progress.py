"""Progress: its arithmetic with a fake clock, with and without a terminal; the result table."""

import io
import re
import threading

import pytest
from rich.console import Console

from experiments.training import progress as module
from experiments.training.progress import Done


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_come_at_intervals_and_once_at_the_end():
    clock, stream = Clock(), io.StringIO()
    with module.progress(100, "x", stream=stream, plain_seconds=10, clock=clock) as reporter:
        reporter.resume(Done(20, 200))
        clock.now = 4
        reporter.update(Done(30, 300), {"success": 0.1})
        assert stream.getvalue() == ""
        clock.now = 10
        reporter.update(Done(40, 400), {"success": 0.25})
        clock.now = 16
        reporter.update(Done(60, 550))
    # 20 iterations in 10 s; those of the run before do not count, and 60 are left. Then 40 in 16 s.
    assert stream.getvalue().splitlines() == [
        "x: 40 %, success 0.250, 0:30 left, 400 environment steps, 20/s",
        "x: 60 %, success 0.250, 0:16 left, 550 environment steps, 22/s",
    ]


def test_compilation_is_shown_and_is_not_part_of_the_speed():
    clock, stream = Clock(), io.StringIO()
    with module.progress(4, "x", stream=stream, plain_seconds=10, clock=clock) as reporter:
        reporter.phase(module.COMPILING)
        clock.now = 70
        reporter.phase(module.TRAINING)
        clock.now = 80
        reporter.update(Done(2, 30))
        # What the next program compiles in its first chunk counts neither as time nor as steps.
        reporter.phase(module.FIRST_CHUNK)
        clock.now = 100
        reporter.update(Done(3, 40))
    assert stream.getvalue().splitlines() == [
        "x: 0 %, compiling, 0:00",
        "x: 50 %, 0:10 left, 30 environment steps, 3/s",
        "x: 50 %, compiling and training the first chunk, 0:00",
        "x: 75 %, 0:05 left, 40 environment steps, 3/s",
    ]


def test_a_long_compilation_is_shown_repeatedly():
    written = threading.Event()

    class Stream(io.StringIO):
        def write(self, text):
            if "0:42" in text:
                written.set()
            return super().write(text)

    clock, stream = Clock(), Stream()
    with module.progress(4, "x", stream=stream, plain_seconds=0.001, clock=clock) as reporter:
        reporter.phase(module.COMPILING)
        clock.now = 42
        assert written.wait(30)


def test_unknown_values_are_shown_as_unknown():
    stream = io.StringIO()
    with module.progress(10, "x", stream=stream, plain_seconds=0, clock=Clock()) as reporter:
        reporter.update(Done(0, 0), {"success": None})
    assert stream.getvalue() == "x: 0 %, ? left, 0 environment steps\n"


def test_a_terminal_of_80_columns_shows_a_bar_with_the_metric_and_the_time_left(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    clock, stream = Clock(), Terminal()
    name = "oprl[x]" + "+agent.learning_rate=0.001" * 3
    with module.progress(10, name, stream=stream, metric="success", clock=clock) as reporter:
        reporter.phase(module.COMPILING)
        clock.now = 30
        reporter.phase(module.TRAINING)
        clock.now = 40
        reporter.update(Done(5, 123_456), {"success": 0.5})
    text = stream.getvalue()
    assert "\x1b[" in text and "compiling, 0:00" in text
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    for words in ("oprl[x]", "50%", "success 0.500, 0:10 left, 123,456 environment steps"):
        assert words in shown
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]", shown))


@pytest.mark.parametrize("terminal", [False, True])
def test_an_error_inside_is_raised(terminal):
    with pytest.raises(ZeroDivisionError):
        with module.progress(10, "x", stream=Terminal() if terminal else io.StringIO()):
            raise ZeroDivisionError


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3723, "1:02:03"), (float("inf"), "?")])
def test_duration(seconds, text):
    assert module.duration(seconds) == text


def test_result_table_shows_the_last_evaluation():
    rows = [
        {"seed": seed, "env_steps": steps, "iteration": steps, "success": steps / 1000 * (1 + seed), "none": None}
        for seed in range(4)
        for steps in (100, 200)
    ]
    stream = io.StringIO()
    module.result_table(rows, console=Console(file=stream, width=120))
    text = stream.getvalue()
    assert "after 800 environment steps of 4 seeds together" in text
    (line,) = [line for line in text.splitlines() if "success" in line]
    # 0.2, 0.4, 0.6, 0.8: the middle half is 0.4 and 0.6.
    assert [cell.strip() for cell in line.split("│")[2:6:2]] == ["0.5", "0.2"] and "0.8" in line
    assert "none" not in text
    stream = io.StringIO()
    module.result_table(rows[:2], ["success"], Console(file=stream, width=120))
    assert "one seed" in stream.getvalue()
