"""Standard streams that are closed, full or gone do not end the work, and control codes are not printed."""

import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from experiments import errors
from experiments.errors import BROKEN_PIPE_EXIT, USAGE_EXIT, ForgivingStream, UserError, command, printable

ROOT = Path(__file__).resolve().parents[2]


def test_control_codes_are_shown_as_text(capsys):
    assert printable("plain, é, 漢字, 'quoted'") == "plain, é, 漢字, 'quoted'"
    assert printable("\x1b[31mred\x07\r\n\u202e\ud800") == r"\x1b[31mred\x07\r\n\u202e\ud800"

    @command
    def main(argv=None):
        raise UserError("variant '\x1b]0;title\x07'\nerror: nothing")

    assert main([]) == USAGE_EXIT
    assert capsys.readouterr().err == "error: variant '\\x1b]0;title\\x07'\\nerror: nothing\n"


class Broken(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error

    def fileno(self):
        raise OSError("no descriptor: a test's stream")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (BrokenPipeError(), BROKEN_PIPE_EXIT, ""),
        (OSError(28, "No space left on device"), USAGE_EXIT, "error: cannot write the standard output: No space left"),
        (OSError(5, "Input/output error"), USAGE_EXIT, "error: cannot write the standard output: Input/output error"),
        (ValueError("I/O operation on closed file."), USAGE_EXIT, "error: cannot write the standard output: I/O"),
    ],
)
def test_work_goes_on_without_its_output(error, status, message, capsys, monkeypatch):
    done = []

    @command
    def main(argv=None):
        for step in range(3):
            print(step)
            done.append(step)

    monkeypatch.setattr(sys, "stdout", Broken(error))
    assert main([]) == status
    assert done == [0, 1, 2]
    err = capsys.readouterr().err
    assert err.startswith(message) and err.count("\n") == (1 if message else 0)


def test_work_goes_on_without_its_log(capsys, monkeypatch):
    @command
    def main(argv=None):
        for _ in range(3):
            print("progress", file=sys.stderr, flush=True)
            errors.say("a line")
        print("result")

    monkeypatch.setattr(sys, "stderr", Broken(OSError(28, "No space left on device")))
    assert main([]) == 0
    assert capsys.readouterr().out == "result\n"


def test_a_closed_log_is_not_written_among_the_results(capsys, monkeypatch):
    """Python has no stream where a descriptor was closed (``2>&-``), and prints to the output in place of ``None``."""

    @command
    def main(argv=None):
        print("progress", file=sys.stderr)
        errors.say("a line")
        print("result")
        raise UserError("a mistake")

    monkeypatch.setattr(sys, "stderr", None)
    assert main([]) == USAGE_EXIT
    assert sys.stderr is None
    assert capsys.readouterr().out == "result\n"


def test_letters_that_a_terminal_does_not_have_are_escaped():
    content = io.BytesIO()
    stream = ForgivingStream(io.TextIOWrapper(content, encoding="latin-1"))
    stream.write("é – 漢\n")
    stream.flush()
    assert content.getvalue() == b"\xe9 \\u2013 \\u6f22\n" and stream.failure is None


def test_the_next_file_does_not_get_the_number_of_a_closed_stream(tmp_path):
    program = textwrap.dedent(
        """
        import os, sys
        from experiments.errors import command, say
        @command
        def main(argv=None):
            with open("rows", "w") as file:
                print("printed"); say("said")
                os.write(1, b"by a library"); os.write(2, b"by a library")
                print(file.fileno(), file=file)
        sys.exit(main())
        """
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", program]
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&- 2>&- <&-', "sh", *arguments], cwd=tmp_path, env=environment, timeout=60, check=False
    )
    assert closed.returncode == 0
    assert int((tmp_path / "rows").read_text()) > 2
