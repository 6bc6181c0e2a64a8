"""What annotators have answered and what was spent on it, in a file that runs share."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.annotation.service import Question, as_text
from experiments.disk import parse_json, require_writable
from experiments.errors import cannot_read


class Cache:
    """What was answered and what was spent, in a file that only grows; in memory alone without ``path``.

    Every line is written at once, so that a kill costs the last one at most, and several runs may share a file, at the
    same time, too.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self._labels: dict[str, float] = {}
        # Who wrote a line, to tell those of others, and how far the file was read.
        self._writer, self._position = secrets.token_hex(4), 0
        self.requests, self.cost, self.unsaved = 0, 0.0, 0

    def open(self) -> None:
        """Reads what is there.

        Raises:
          UserError: if the file cannot be read or written.
        """
        if self.path is None:
            return
        require_writable(self.path)
        try:
            torn = self._read_on(self.path)
        except OSError as error:
            raise cannot_read(self.path, error) from error
        if torn:
            # Of a run that was killed; what it said is asked again.
            self._append(b"\n")

    def refresh(self) -> None:
        """Reads what other runs have written since; a file that cannot be read now is read the next time."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self._read_on(self.path)

    def _read_on(self, path: Path) -> bytes:
        """Reads the lines that are new; returns what stands after the last of them."""
        if not path.exists():
            return b""
        with open(path, "rb") as file:
            file.seek(self._position)
            *lines, rest = file.read().split(b"\n")
        self._position += sum(len(line) + 1 for line in lines)
        for line in lines:
            entry = _entry(line)
            if entry is not None and entry.get("writer") != self._writer:
                self._read(entry)
        return rest

    def _read(self, entry: dict[str, Any]) -> None:
        if "cost" in entry:
            self.requests, self.cost = self.requests + 1, self.cost + entry["cost"]
        else:
            self._labels[entry["key"]] = float(entry["label"])

    def get(self, key: str) -> float | None:
        """The label of a key, or ``None``."""
        return self._labels.get(key)

    def spend(self, cost: float) -> None:
        """Notes a request."""
        self._write([{"cost": cost}])

    def add(self, entries: Iterable[tuple[str, Question, float]]) -> None:
        """Notes labels by key; the messages are for whoever reads the file."""
        self._write([{"key": key, "label": label, "messages": [*map(as_text, q)]} for key, q, label in entries])

    def _write(self, entries: Sequence[dict[str, Any]]) -> None:
        for entry in entries:
            self._read(entry)
        self._append(b"".join(json.dumps(entry | {"writer": self._writer}).encode() + b"\n" for entry in entries))

    def _append(self, content: bytes) -> None:
        if self.path is None or not content:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab", buffering=0) as file:
                file.write(content)
                os.fsync(file.fileno())
        except OSError:
            # A full disk does not stop the labels; a run says elsewhere that it cannot write its rows.
            self.unsaved += 1


def _entry(line: bytes) -> dict[str, Any] | None:
    """A request that was paid for or a label that was given; ``None`` for what a line holds otherwise."""
    try:
        entry = parse_json(line)
    except ValueError:
        return None
    if not isinstance(entry, dict):
        return None
    number: Any = entry.get("cost" if "cost" in entry else "label")
    if not isinstance(number, int | float) or isinstance(number, bool):
        return None
    if "cost" in entry:
        return entry if number >= 0 else None
    return entry if number in (0, 0.5, 1) and isinstance(entry.get("key"), str) else None
