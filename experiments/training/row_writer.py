"""Writing rows: to ``metrics.jsonl``, the truth, and to TensorBoard events, a sink of the same rows."""

from __future__ import annotations

import contextlib
import fcntl
import io
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from experiments.disk import write_atomic
from experiments.errors import UserError, cannot_read, cannot_write
from experiments.rows.reading import NOT_METRICS, Row, encode_line, parse_lines
from experiments.rows.run_folders import run_folder

PROGRESS = ("seed", "env_steps", "iteration")


class RowWriter:
    """Appends rows to a ``metrics.jsonl`` and, as a sink of the same rows, to TensorBoard event files.

    A row is one line. A last line that a killed run left torn is dropped when the file is opened; a failed write
    leaves whole lines only. The file is locked while it is open: a second writer is refused. After restoring a
    checkpoint, ``rewind(iteration)`` drops the rows that are newer than it, so that the resumed run writes them once.

    Args:
      path: the file; made, with its folder, where there is none.
      constants: entries of every row, such as ``{"experiment": NAME, "variant": VARIANT}``.
      tensorboard: the folder of the event files; None for none.
      by_variant: give each variant a folder of its own in ``tensorboard``: the points of a sweep have the same seeds.

    Raises:
      UserError: if the disk is full, read-only or not writable, a line before the last is damaged, or
        another writer has the file open.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        constants: Mapping[str, Any] | None = None,
        tensorboard: str | os.PathLike | None = None,
        by_variant: bool = False,
    ):
        self.path = Path(path)
        self._constants = dict(constants or {})
        self._events = None if tensorboard is None else _EventSink(Path(tensorboard), by_variant)
        self._file = self._open()
        self._size = os.fstat(self._file.fileno()).st_size
        rows, size = parse_lines(self.path, self._read())
        if size < self._size:
            self._truncate(size)
        if self._events is not None:
            self._events.rebuild(rows)

    def append(self, row: Mapping[str, Any]) -> Row:
        """Writes one row; returns it as it was written, numbers that are not finite as None.

        The row needs ``seed``, ``env_steps`` and ``iteration``.
        """
        written = {key: _json_scalar(key, value) for key, value in {**self._constants, **row}.items()}
        lacking = [key for key in PROGRESS if not isinstance(written.get(key), int)]
        if lacking:
            raise ValueError(f"a row needs an integer {', '.join(lacking)}; it has {', '.join(written)}")
        self._write_line(encode_line(written))
        if self._events is not None:
            self._events.append(written)
        return written

    def flush(self) -> None:
        """Returns when every row is on the disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error
        if self._events is not None:
            self._events.flush()

    def rewind(self, to_iteration: int, members: Iterable[tuple[str, int]] | None = None) -> int:
        """Drops the rows of iterations after ``to_iteration``, all or none of them; returns how many.

        Args:
          to_iteration: the restored checkpoint's.
          members: drop only rows of these pairs of variant and seed; of all if none.
        """
        rows, _ = parse_lines(self.path, self._read())
        chosen = None if members is None else set(members)

        def stays(row):
            other = chosen is not None and (row.get("variant", ""), row["seed"]) not in chosen
            return other or row["iteration"] <= to_iteration

        kept = [row for row in rows if stays(row)]
        if len(kept) < len(rows):
            write_atomic(self.path, b"".join(encode_line(row) for row in kept))
            self._file.close()
            self._file = self._open()
            self._size = os.fstat(self._file.fileno()).st_size
            if self._events is not None:
                self._events.rebuild(kept)
        return len(rows) - len(kept)

    def close(self) -> None:
        """Flushes and closes; a second call does nothing."""
        if self._file.closed:
            return
        try:
            self.flush()
        finally:
            self._file.close()
            if self._events is not None:
                self._events.close()

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

    def _truncate(self, size: int) -> None:
        try:
            self._file.truncate(size)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._size = size

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


class _EventSink:
    """TensorBoard events of rows: a folder per seed (and variant), a scalar per metric, over environment steps.

    Written synchronously: tensorboardX's queue never returns once its thread has died of a full disk.
    """

    def __init__(self, folder: Path, by_variant: bool):
        self._folder, self._by_variant = folder, by_variant
        self._writers: dict[Path, EventsWriter] = {}

    def rebuild(self, rows: Iterable[Row]) -> None:
        self.close()
        try:
            if self._folder.exists():
                shutil.rmtree(self._folder)
        except OSError as error:
            raise cannot_write(self._folder, error) from error
        for row in rows:
            self.append(row)

    def append(self, row: Row) -> None:
        values = []
        for key, value in row.items():
            if key not in NOT_METRICS and isinstance(value, int | float):
                values.extend(scalar(key, value).value)
        event = event_pb2.Event(step=row["env_steps"], wall_time=datetime.now(UTC).timestamp())
        event.summary.value.extend(values)
        try:
            self._writer(row).write_event(event)
        except OSError as error:
            raise cannot_write(self._folder, error) from error

    def flush(self) -> None:
        try:
            for writer in self._writers.values():
                writer.flush()
        except OSError as error:
            raise cannot_write(self._folder, error) from error

    def close(self) -> None:
        writers, self._writers = self._writers, {}
        try:
            for writer in writers.values():
                writer.close()
        except OSError as error:
            raise cannot_write(self._folder, error) from error

    def _writer(self, row: Row) -> EventsWriter:
        folder = self._folder
        if self._by_variant:
            folder = run_folder(folder.parent, folder.name, row.get("variant", ""))
        folder = folder / f"seed_{row['seed']}"
        if folder not in self._writers:
            folder.mkdir(parents=True, exist_ok=True)
            self._writers[folder] = EventsWriter(os.fspath(folder / "events"))
        return self._writers[folder]


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
