"""Small files on disk: replaced as a whole or not at all, and refused with one message."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from experiments.errors import UserError, cannot_read, cannot_write


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


def read_json(path: str | os.PathLike) -> Any:
    """The value of a JSON file.

    Raises:
      UserError: if it cannot be read or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise cannot_read(path, error) from error
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
