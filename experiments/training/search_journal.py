"""The journal of a search as a file that processes share: its locks, and what a kill left of it.

Locks are those of ``flock``, which the system releases when a process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator
from pathlib import Path

from experiments.errors import UserError, cannot_read, cannot_write

# How long a process waits for the journal, which another one writes for milliseconds, and how often it looks.
PATIENCE_SECONDS, POLL_SECONDS = 60.0, 0.05


def mend(path: Path) -> None:
    """Takes out a last line that a killed process left torn, which Optuna refuses from the next line on.

    Raises:
      UserError: if the file cannot be read or written.
      ValueError: if it is no journal at all; it is not touched.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
        if content and not content.endswith(b"\n"):
            # What is no journal at all is not touched.
            if not content.startswith(b"{") or b"\n" not in content:
                raise ValueError("its lines are no JSON")
            with open(path, "r+b") as file:
                file.truncate(content.rindex(b"\n") + 1)
    except OSError as error:
        raise cannot_read(path, error) from error
    for line in content.splitlines()[:1]:
        if not isinstance(json.loads(line), dict):
            raise ValueError("its lines are no JSON objects")


@contextlib.contextmanager
def lock(path: Path, patience: float | None = None) -> Iterator[None]:
    """Holds the lock of a file as long as the block lasts; the system releases it where the process is killed.

    Args:
      path: of the file; made where there is none.
      patience: seconds to wait for it; ``PATIENCE_SECONDS`` if ``None``.

    Raises:
      UserError: if another process holds it for longer than that, or it cannot be made.
    """
    limit = PATIENCE_SECONDS if patience is None else patience
    deadline = time.monotonic() + limit
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "ab"))
        except OSError as error:
            raise cannot_write(path, error) from error
        while True:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise UserError(
                        f"{path} is held by another process for more than {limit:g} seconds: expected that it lets go, "
                        "or is ended; then the same command continues"
                    ) from error
                time.sleep(POLL_SECONDS)
        yield


class JournalLock:
    """Optuna's lock of a journal; ``flock`` in place of a link, which a killed process would leave."""

    def __init__(self, path: Path):
        self._path = path.with_name(f"{path.name}.lock")
        self._held = contextlib.ExitStack()

    def acquire(self) -> bool:
        self._held.enter_context(lock(self._path))
        return True

    def release(self) -> None:
        self._held.close()
