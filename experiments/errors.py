"""One clear message for a mistake of the user, the same way in every command, and streams that never end the work."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from envs import choices

USAGE_EXIT = 2
# A shell reports the end by signal N as 128 + N.
SIGNAL_EXIT = 128
INTERRUPT_EXIT = 130
BROKEN_PIPE_EXIT = 141


class UserError(Exception):
    """A mistake that the user can repair; its text is the whole message, without a traceback."""


class RefusedAtStartError(UserError):
    """A mistake that shows at the first step of a run, before anything was learned; what the run has made on the disk
    until then is taken back."""


def unknown(kind: str, name: Any, known: Iterable[str], where: str = "") -> UserError:
    """The error for a ``name`` that is none of ``known``: what it was, the nearest ones, and the whole list."""
    return UserError(choices.unknown(kind, name, known, where))


def unknown_argument(argument: str, options: Iterable[str], meant: Sequence[str] = ()) -> UserError:
    """The error for an argument of a command that has ``options``: its name alone, without the value after ``=``.

    ``meant`` is what another library's word for it stands for.
    """
    return UserError(choices.unknown("argument", argument.partition("=")[0], options, meant=meant))


def reason(error: OSError) -> str:
    """The short text of an operating system error, such as ``No space left on device``."""
    return error.strerror or str(error) or type(error).__name__


def cannot_write(path: Any, error: OSError) -> UserError:
    """The error for a file that could not be written, such as on a full or read-only disk."""
    return UserError(f"cannot write {os.fspath(path)}: {reason(error)}")


def cannot_read(path: Any, error: OSError) -> UserError:
    """The error for a file that could not be read."""
    return UserError(f"cannot read {os.fspath(path)}: {reason(error)}")


def printable(text: Any) -> str:
    r"""``text`` with escapes in place of what a terminal would obey or could not show; it may be a stranger's words.

    >>> print(printable("\x1b[31mred\n"))
    \x1b[31mred\n
    """
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(text))


def in_one_line(error: BaseException, limit: int = 200) -> str:
    r"""What an exception of another library says, as one line of at most ``limit`` characters; its type if nothing.

    >>> in_one_line(ValueError("no such\n  thing")), in_one_line(ConnectionError())
    ('no such thing', 'ConnectionError')
    """
    return printable(" ".join(str(error).split()))[:limit] or type(error).__name__


def say(message: Any) -> None:
    """Prints one line on the standard error stream; a stream that cannot be written does not end the work."""
    with contextlib.suppress(OSError, ValueError):
        print(printable(message), file=sys.stderr, flush=True)


class ForgivingStream:
    """A text stream that drops what it can no longer write: a terminal that went away, a full disk, a closed pipe.

    Attributes:
      failure: why it has been dropping since then, ``None`` as long as it writes.
    """

    def __init__(self, stream: Any):
        self._stream = stream
        self.failure: Exception | None = None

    def write(self, text: str) -> int:
        self._try(lambda: self._write(text))
        return len(text)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            # A terminal without UTF-8 is shown what it has letters for.
            encoding = self._stream.encoding
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, work: Callable[[], Any]) -> None:
        if self.failure is not None:
            return
        try:
            work()
        # A closed stream raises a ValueError.
        except (OSError, ValueError) as error:
            self.failure = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Makes ``main(argv=None)`` a command: it always returns an exit status and never prints a traceback for a mistake.

    ``UserError`` prints ``error: ...`` on the standard error stream and returns 2; an interrupt returns 130
    and a closed pipe (``... | head``) 141, as a shell reports them. Any other exception is a defect of the program and
    keeps its traceback. A stream that is closed, or cannot be written any more, does not end the work: what was to be
    printed is dropped, and where it was the standard output, the status says so at the end.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None, *arguments: Any, **keywords: Any) -> int:
        _open_standard_descriptors()
        with _forgiving_streams() as output:
            status = _status(lambda: main(argv, *arguments, **keywords))
            if output is None:
                return status
            output.flush()
            if output.failure is None:
                return status
            _silence(output)
            if isinstance(output.failure, BrokenPipeError):
                return status or BROKEN_PIPE_EXIT
            why = reason(output.failure) if isinstance(output.failure, OSError) else output.failure
            say(f"error: cannot write the standard output: {why}")
            return status or USAGE_EXIT

    return wrapped


def _status(main: Callable[[], int | None]) -> int:
    """The exit status of ``main()``, once a mistake has been said."""
    try:
        return int(main() or 0)
    except UserError as error:
        say(f"error: {error}")
        return USAGE_EXIT
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPT_EXIT
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return int(leaving.code or 0)
        say(leaving.code)
        return 1


@contextlib.contextmanager
def _forgiving_streams() -> Iterator[ForgivingStream | None]:
    """Lends the standard streams to ``ForgivingStream`` as long as the block lasts; gives that of the output."""
    before = sys.stdout, sys.stderr
    # A command within a command has them already; a stream that was closed from the start is none.
    ours = [s if s is None or isinstance(s, ForgivingStream) else ForgivingStream(s) for s in before]
    with contextlib.ExitStack() as stack:
        if ours[1] is None:
            # ``print(..., file=None)`` would write to the standard output, in between the result.
            ours[1] = ForgivingStream(stack.enter_context(open(os.devnull, "w")))
        sys.stdout, sys.stderr = ours
        try:
            yield ours[0]
        finally:
            # Rich and warnings may hold a stream for longer; it goes on as it is.
            sys.stdout, sys.stderr = before


def _open_standard_descriptors() -> None:
    """Opens what was closed (``>&-``) to nothing: the next file would get its number, and what a library writes to the
    standard error stream would go into it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _silence(stream: ForgivingStream) -> None:
    """Points a broken standard stream at nothing, because the interpreter flushes it once more at exit."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, descriptor)
    finally:
        os.close(nothing)
