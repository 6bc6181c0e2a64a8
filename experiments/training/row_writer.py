"""Writing rows: to ``metrics.jsonl``, the truth, and to sinks of the same rows, such as TensorBoard events."""

from __future__ import annotations

import contextlib
import fcntl
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.disk import write_atomic
from experiments.errors import UserError, cannot_read, cannot_write, say
from experiments.rows.reading import Row, encode_line, parse_lines, require_rows
from experiments.training.loggers.base import Identity, Sink

PROGRESS = ("seed", "env_steps", "iteration")


class RowWriter:
    """Appends rows to a ``metrics.jsonl``, and hands them to sinks.

    A row is one line. When the file is opened, what is damaged in it is taken out, whole rows in damaged lines are
    kept, and one line says so; the file as it was stays beside it (``metrics.jsonl.damaged``), unless it only ended in
    a line that a killed run left torn. A failed write leaves whole lines only. The file is locked while it is open: a
    second writer is refused. After restoring a checkpoint, ``rewind(iteration)`` drops the rows that are newer than it,
    so that the resumed run writes them once; ``settle(members)`` says of which rows this will not happen any more.

    Args:
      path: the file; made, with its folder, where there is none.
      constants: entries of every row, such as ``{"experiment": NAME, "variant": VARIANT}``.
      sinks: what the rows are handed to, besides.

    Raises:
      UserError: if the disk is full, read-only or not writable, a row does not say whose it is, or another writer has
        the file open.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        constants: Mapping[str, Any] | None = None,
        sinks: Sequence[Sink] = (),
    ):
        self.path = Path(path)
        self._constants = dict(constants or {})
        self._sinks = tuple(sinks)
        self._file = self._open()
        self._size = os.fstat(self._file.fileno()).st_size
        rows = self._mend()
        for sink in self._sinks:
            sink.rebuild(rows)

    def append(self, row: Mapping[str, Any]) -> Row:
        """Writes one row; returns it as it was written, numbers that are not finite as None.

        The row needs ``seed``, ``env_steps`` and ``iteration``.
        """
        written = {key: _json_scalar(key, value) for key, value in {**self._constants, **row}.items()}
        lacking = [key for key in PROGRESS if not isinstance(written.get(key), int)]
        if lacking:
            raise ValueError(f"a row needs an integer {', '.join(lacking)}; it has {', '.join(written)}")
        self._write_line(encode_line(written))
        for sink in self._sinks:
            sink.append(written)
        return written

    def flush(self) -> None:
        """Returns when every row is on the disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def rewind(self, to_iteration: int, members: Iterable[Identity] | None = None) -> int:
        """Drops the rows of iterations after ``to_iteration``, all or none of them; returns how many.

        Args:
          to_iteration: the restored checkpoint's.
          members: drop only rows of these pairs of variant and seed; of all if none.
        """
        rows = self.rows()
        chosen = None if members is None else set(members)

        def stays(row):
            other = chosen is not None and (row.get("variant", ""), row["seed"]) not in chosen
            return other or row["iteration"] <= to_iteration

        kept = [row for row in rows if stays(row)]
        if len(kept) < len(rows):
            self._replace(kept)
            for sink in self._sinks:
                sink.rebuild(kept)
        return len(rows) - len(kept)

    def settle(self, members: Iterable[Identity]) -> None:
        """Tells the sinks that a checkpoint covers every row of these pairs of variant and seed."""
        members = list(members)
        for sink in self._sinks:
            sink.settle(members)

    def close(self) -> None:
        """Flushes and closes; a second call does nothing."""
        if self._file.closed:
            return
        try:
            self.flush()
        finally:
            self._file.close()
            for sink in self._sinks:
                sink.close()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self) -> io.FileIO:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = io.FileIO(self.path, "a+")
        except OSError as error:
            raise cannot_write(self.path, error) from error
        _lock(file, self.path)
        return file

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise cannot_read(self.path, error) from error

    def _mend(self) -> list[Row]:
        content = self._read()
        parsed = parse_lines(content)
        require_rows(parsed.rows, os.fspath(self.path))
        if parsed.damage:
            message = f"{self.path}: its last line was torn, and is left out"
            if not parsed.damage[-1].ends or len(parsed.damage) > 1:
                aside = self.path.with_name(f"{self.path.name}.damaged")
                write_atomic(aside, content)
                shown = ", ".join(str(damage.line) for damage in parsed.damage[:5])
                saved = sum(damage.kept for damage in parsed.damage)
                message = (
                    f"{self.path} was damaged in {len(parsed.damage)} lines ({shown}): the {len(parsed.rows)} rows "
                    f"that can be read are kept, {saved} of them from these lines; the file as it was is {aside}"
                )
            say(message)
            self._replace(parsed.rows)
        return parsed.rows

    def rows(self) -> list[Row]:
        """The rows that the file holds."""
        return parse_lines(self._read()).rows

    def _replace(self, rows: Iterable[Row]) -> None:
        write_atomic(self.path, b"".join(encode_line(row) for row in rows))
        self._file.close()
        self._file = self._open()
        self._size = os.fstat(self._file.fileno()).st_size

    def _write_line(self, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            # A part of the line may be on the disk; making the file shorter needs no room.
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise cannot_write(self.path, error) from error
        self._size += len(line)


@contextlib.contextmanager
def kept_from_writers(path: Path) -> Iterator[None]:
    """Keeps every ``RowWriter`` from a file, where there is one, as long as the block lasts.

    Raises:
      UserError: if a writer has it open.
    """
    with contextlib.ExitStack() as stack:
        # None to keep from what cannot be opened.
        with contextlib.suppress(OSError):
            _lock(stack.enter_context(io.FileIO(path)), path)
        yield


def _lock(file: io.FileIO, path: Path) -> None:
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(f"{path} is being written by another run: expected one at a time") from error
    except OSError:
        # Some network file systems have no locks; the file can be written all the same.
        pass


def _json_scalar(key: str, value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    array = np.asarray(value)
    if array.size != 1 or (array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16"):
        raise ValueError(f"{key!r} in a row is {value!r}, expected one number, text, truth value or none")
    if array.dtype.kind in "biu":
        return array.item()
    number = float(array.item())
    return number if math.isfinite(number) else None
