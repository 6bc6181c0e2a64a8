"""TensorBoard events, a sink that is rebuilt from the rows."""

from __future__ import annotations

import contextlib
import shutil
import struct
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from experiments.errors import reason, say
from experiments.rows.reading import Row
from experiments.rows.run_folders import run_folder
from experiments.training.loggers.base import Identity, metrics


class TensorBoard:
    """TensorBoard events of rows: a folder per seed (and variant), a scalar per metric, over environment steps.

    Every record is appended and its file closed: the seeds of a run may be more than the files that a process may have
    open. Once a file cannot be written, the sink is dropped with one line, and the rows go on.

    Args:
      folder: of the event files.
      by_variant: give each variant a folder of its own: the points of a sweep have the same seeds.
    """

    def __init__(self, folder: Path, by_variant: bool = False):
        self._folder, self._by_variant = folder, by_variant
        self._files: set[Path] = set()
        self._dropped = False

    def rebuild(self, rows: Iterable[Row]) -> None:
        """Starts anew, with these rows."""
        self._files = set()
        with self._dropping():
            if self._folder.exists():
                shutil.rmtree(self._folder)
        for row in rows:
            self.append(row)

    def append(self, row: Row) -> None:
        """Writes the events of one row."""
        values = [value for key, number in metrics(row).items() for value in scalar(key, number).value]
        now = datetime.now(UTC).timestamp()
        event = event_pb2.Event(step=row["env_steps"], wall_time=now)
        event.summary.value.extend(values)
        with self._dropping():
            if not self._dropped:
                self._write(self._file_of(row), event, now)

    def settle(self, members: Iterable[Identity]) -> None:
        """Nothing waits: rewinding makes the files anew."""

    def close(self) -> None:
        """Nothing is open."""

    def _write(self, path: Path, event: event_pb2.Event, now: float) -> None:
        records = [event.SerializeToString()]
        if path not in self._files:
            path.parent.mkdir(parents=True, exist_ok=True)
            records.insert(0, event_pb2.Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
            self._files.add(path)
        with open(path, "ab") as file:
            file.write(b"".join(map(_record, records)))

    def _file_of(self, row: Row) -> Path:
        folder = self._folder
        if self._by_variant:
            folder = run_folder(folder.parent, folder.name, row.get("variant", ""))
        # TensorBoard knows an events file by its name.
        return folder / f"seed_{row['seed']}" / "events.out.tfevents.0"

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._dropped:
                say(f"TensorBoard events are no longer written to {self._folder}: {reason(error)}; the rows are")
            self._dropped = True


def _record(content: bytes) -> bytes:
    """A record of a TensorFlow events file: its length and its bytes, each with a masked checksum."""
    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", masked_crc32c(length)) + content + struct.pack("<I", masked_crc32c(content))
