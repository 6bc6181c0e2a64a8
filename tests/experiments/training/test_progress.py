"""Progress: its arithmetic with a clock of our own, with and without a terminal; the result table."""

import io

import pytest
from rich.console import Console

from experiments.training import progress as module


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_come_at_intervals_and_once_at_the_end():
    clock, stream = Clock(), io.StringIO()
    with module.progress(1000, "x", initial_steps=200, stream=stream, plain_seconds=10, clock=clock) as reporter:
        clock.now = 4
        reporter.update(300, {"success": 0.1, "iteration": 3})
        assert stream.getvalue() == ""
        clock.now = 10
        reporter.update(400, {"success": 0.25, "iteration": 4})
        clock.now = 16
        reporter.update(600)
    # 200 steps in 10 s; the 200 steps of the run before do not count, and 600 are left.
    assert stream.getvalue().splitlines() == [
        "x: 400/1,000 steps, 20 steps/s, 0:30 left, iteration 4, success 0.250",
        "x: 600/1,000 steps, 25 steps/s, 0:16 left, iteration 4, success 0.250",
    ]


def test_nothing_known_yet_is_said():
    stream = io.StringIO()
    with module.progress(10, "x", stream=stream, plain_seconds=0, clock=Clock()) as reporter:
        reporter.update(0, {"success": None})
    assert stream.getvalue() == "x: 0/10 steps, 0 steps/s, ? left\n"


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with module.progress(1000, "oprl[x]", stream=stream, metric="score") as reporter:
        reporter.update(500, {"score": 0.5})
    text = stream.getvalue()
    assert "500/1,000 steps" in text and "score 0.500" in text and "oprl[x]" in text and "\x1b[" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_an_error_inside_comes_out(terminal):
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
    assert "after 200 environment steps, 4 seeds" in text
    (line,) = [line for line in text.splitlines() if "success" in line]
    # 0.2, 0.4, 0.6, 0.8: the middle half is 0.4 and 0.6.
    assert [cell.strip() for cell in line.split("│")[2:6:2]] == ["0.5", "0.2"] and "0.8" in line
    assert "none" not in text
    stream = io.StringIO()
    module.result_table(rows[:2], ["success"], Console(file=stream, width=120))
    assert "one seed" in stream.getvalue()
