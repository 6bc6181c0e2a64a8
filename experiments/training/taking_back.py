"""A run that is refused at its first step leaves the disk as it found it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from experiments.disk import write_atomic
from experiments.errors import RefusedAtStartError, reason, say
from experiments.rows.run_folders import CONFIG_FILE, METRICS_FILE
from experiments.training.processes import writes


@contextlib.contextmanager
def taken_back_if_refused(folder: Path, *, fresh: bool = False) -> Iterator[None]:
    """Takes back what the block made of a run folder, where a ``RefusedAtStartError`` ends it before the first row.

    A folder that the block made is removed, with those around it that it made; one that was there keeps its files and
    gets its description back. What ``fresh`` has removed stays removed, as it was told to.

    Args:
      folder: of the run, before it is prepared.
      fresh: the block starts over in a folder that is there.
    """
    description = folder / CONFIG_FILE
    # The folder and those around it that are to be made, the innermost first.
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    before = description.read_bytes() if description.is_file() and not fresh else None
    try:
        yield
    except RefusedAtStartError:
        # The first of several members may have been trained before the second was refused.
        if writes() and not _has_rows(folder):
            try:
                _take_back(folder, missing, before, fresh)
            except OSError as error:
                say(f"cannot take back all of {folder}: {reason(error)}")
        raise


def _has_rows(folder: Path) -> bool:
    rows = folder / METRICS_FILE
    return rows.is_file() and rows.stat().st_size > 0


def _take_back(folder: Path, missing: list[Path], before: bytes | None, fresh: bool) -> None:
    if before is not None:
        write_atomic(folder / CONFIG_FILE, before)
    elif missing:
        shutil.rmtree(folder)
        # Another run may have put its own folder beside it meanwhile.
        with contextlib.suppress(OSError):
            for path in missing[1:]:
                path.rmdir()
    elif fresh:
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    else:
        (folder / CONFIG_FILE).unlink(missing_ok=True)
