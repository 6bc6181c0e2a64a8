"""One clear message for a mistake of the user, the same way in every command."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from envs import choices

USAGE_EXIT = 2
# A shell reports the end by signal N as 128 + N.
SIGNAL_EXIT = 128
INTERRUPT_EXIT = 130
BROKEN_PIPE_EXIT = 141


class UserError(Exception):
    """A mistake that the user can repair; its text is the whole message, without a traceback."""


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


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Makes ``main(argv=None)`` a command: it always returns an exit status and never prints a traceback for a mistake.

    ``UserError`` prints ``error: ...`` on the standard error stream and returns 2; an interrupt returns 130
    and a closed pipe (``... | head``) 141, as a shell reports them. Any other exception is a defect of the program and
    keeps its traceback.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None, *arguments: Any, **keywords: Any) -> int:
        try:
            status = main(argv, *arguments, **keywords)
            sys.stdout.flush()
            return int(status or 0)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return USAGE_EXIT
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPT_EXIT
        except BrokenPipeError:
            _silence_standard_output()
            return BROKEN_PIPE_EXIT
        except SystemExit as leaving:
            if leaving.code is None or isinstance(leaving.code, int):
                return int(leaving.code or 0)
            print(leaving.code, file=sys.stderr)
            return 1

    return wrapped


def _silence_standard_output() -> None:
    """Points the standard output at nothing, because the interpreter flushes it once more at exit."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, descriptor)
    finally:
        os.close(nothing)
