"""Small files on disk: replaced as a whole or not at all, read as data that may be damaged or hostile."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from experiments.errors import UserError, cannot_read, cannot_write

# What no file of ours exceeds: brackets within brackets, and integers.
DEEPEST = 64
LARGEST_INTEGER = 2**63 - 1
# Of a small file, read whole; rows are read by the line.
LARGEST_FILE = 2**28


def write_json_atomic(path: str | os.PathLike, value: Any) -> None:
    """Writes ``value`` as JSON so that a reader sees the old file or the new one, never a part.

    Raises:
      UserError: if the disk is full, read-only or not writable.
    """
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_atomic(path: str | os.PathLike, content: bytes) -> None:
    """Writes a whole file through a temporary one beside it and ``os.replace``; leaves nothing behind on failure.

    Raises:
      UserError: if the disk is full, read-only or not writable.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def append_text(path: str | os.PathLike, text: str) -> None:
    """Appends ``text`` to a file; the file and its folder are made where there are none.

    Raises:
      UserError: if it cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            file.write(text)
    except OSError as error:
        raise cannot_write(path, error) from error


def require_writable(path: str | os.PathLike) -> None:
    """Checks, before the work that a file is to hold, that it could be written; leaves nothing behind.

    Raises:
      UserError: if the path is a folder, or the folder that is there or would be made cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise cannot_write(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    folder = path.absolute().parent
    try:
        while not folder.exists():
            folder = folder.parent
        # What the permissions say is not enough: a disk may be read-only or full.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise cannot_write(path, error) from error


def _integer(text: str) -> int:
    # Python refuses to convert a long text; an integer that no float holds would fail later, in arithmetic.
    if len(text) > 20 or abs(int(text)) > LARGEST_INTEGER:
        raise ValueError(f"the integer {text[:20]}... is too large" if len(text) > 20 else f"{text} is too large")
    return int(text)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


JSON_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_number, parse_constant=_constant)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text whose numbers are finite, whose integers have 64 bits and whose nesting is shallow.

    Raises:
      ValueError: it is no such text.

    >>> parse_json('{"return": 1.5}')
    {'return': 1.5}
    >>> parse_json("NaN")
    Traceback (most recent call last):
    ValueError: NaN is no JSON
    """
    if isinstance(text, bytes):
        text = text.decode()
    try:
        value = JSON_DECODER.decode(text)
        # A value can only be as deep as it has brackets: most lines are not walked.
        if text.count("[") + text.count("{") > DEEPEST:
            _check_depth(value)
        # Half a pair of surrogates is no character; it could be neither printed nor written.
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    return value


_TOO_DEEP = f"its values are nested more than {DEEPEST} deep"


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        inner = [one for one in level if isinstance(one, dict | list)]
        if not inner:
            return
        level = [part for one in inner for part in (one.values() if isinstance(one, dict) else one)]
    if any(isinstance(one, dict | list) for one in level):
        raise ValueError(_TOO_DEEP)


def read_json(path: str | os.PathLike) -> Any:
    """The value of a JSON file, see ``parse_json``.

    Raises:
      UserError: if it cannot be read, is larger than ``LARGEST_FILE`` or is no such JSON.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise cannot_read(path, error) from error
    try:
        if len(content) > LARGEST_FILE:
            raise ValueError(f"it has more than {LARGEST_FILE} bytes")
        return parse_json(content)
    except ValueError as error:
        raise UserError(f"{os.fspath(path)} is no JSON file: {error}") from error


def read_json_object(path: str | os.PathLike) -> dict[str, Any]:
    """The value of a JSON file that holds one object.

    Raises:
      UserError: if it cannot be read, is no JSON or is anything but an object.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{os.fspath(path)} holds {json.dumps(value)[:40]}: expected a JSON object")
    return value


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable; some file systems cannot, and then it is merely atomic."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
