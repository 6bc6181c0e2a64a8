"""Rows: what a run leaves on disk, and the committed results made of it.

A run folder ``RUNS/NAME/VARIANT`` (``default`` for no variant) holds

* ``config.json`` and ``environment.json``: what was run, with what, on what;
* ``metrics.jsonl``: one row per seed and evaluation, the truth;
* ``tensorboard/seed_N``: TensorBoard events, a sink of the same rows that is rebuilt from them;
* the checkpoints.

A committed file ``results/NAME.jsonl`` starts with a header line; a header applies to the rows that follow it, up to
the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import io
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from experiments import registry
from experiments.errors import UserError, cannot_read, cannot_write, unknown

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
DEFAULT_VARIANT = "default"
RUNS_FOLDER = "runs"
RESULTS_FOLDER = "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "gymnasium")
IDENTITY = ("experiment", "variant", "seed", "env_steps")
PROGRESS = ("seed", "env_steps", "iteration")
NOT_METRICS = (*IDENTITY, "iteration")
SIGNIFICANT_DIGITS = 6

Row = dict[str, Any]


class NoRowsError(UserError):
    """An experiment that exists and has no rows yet."""


class Section(NamedTuple):
    """A header and the rows it applies to; the header is empty where a file starts without one."""

    header: dict[str, Any]
    rows: list[Row]


def run_folder(root: str | os.PathLike, name: str, variant: str = "") -> Path:
    """``root/NAME/VARIANT``; the default variant has the folder ``default``."""
    return Path(root) / name / (variant or DEFAULT_VARIANT)


def environment_report(command: Sequence[str] | None = None) -> dict[str, Any]:
    """What a run depends on beside its configuration.

    Args:
      command: the command line as words; ``sys.argv`` if none.

    Returns:
      ``commit`` (None outside a git checkout), ``dirty`` (tracked files differ from the commit), ``versions``,
      ``device`` (kind), ``device_count``, ``platform``, ``command``, ``started`` (UTC).
    """
    import jax

    root = Path(__file__).resolve().parent.parent
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    device = jax.devices()[0]
    return {
        "commit": commit,
        "dirty": None if status is None else bool(status),
        "versions": versions,
        "device": device.device_kind,
        "device_count": jax.device_count(),
        "platform": device.platform,
        "system": platform.platform(),
        "command": shlex.join(command if command is not None else _command_line()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


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


class RowWriter:
    """Appends rows to a ``metrics.jsonl`` and, as a sink of the same rows, to TensorBoard event files.

    A row is one line. A last line that a killed run left torn is dropped when the file is opened; a failed write
    leaves whole lines only. The file is locked while it is open: a second writer is refused. After restoring a
    checkpoint, ``rewind(iteration)`` drops the rows that are newer than it, so that the resumed run writes them once.

    Args:
      path: the file; made, with its folder, where there is none.
      constants: entries of every row, such as ``{"experiment": NAME, "variant": VARIANT}``.
      tensorboard: the folder of the event files; None for none.

    Raises:
      UserError: if the disk is full, read-only or not writable, a line before the last is damaged, or
        another writer has the file open.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        constants: Mapping[str, Any] | None = None,
        tensorboard: str | os.PathLike | None = None,
    ):
        self.path = Path(path)
        self._constants = dict(constants or {})
        self._events = None if tensorboard is None else _EventSink(Path(tensorboard))
        self._file = self._open()
        self._size = os.fstat(self._file.fileno()).st_size
        rows, size = _parse_lines(self.path, self._read())
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
        self._write_line(_line(written))
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
        rows, _ = _parse_lines(self.path, self._read())
        chosen = None if members is None else set(members)

        def stays(row):
            other = chosen is not None and (row.get("variant", ""), row["seed"]) not in chosen
            return other or row["iteration"] <= to_iteration

        kept = [row for row in rows if stays(row)]
        if len(kept) < len(rows):
            write_atomic(self.path, b"".join(_line(row) for row in kept))
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
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise UserError(f"{self.path} is being written by another run: expected one at a time") from error
        except OSError:
            # Some network file systems have no locks; the file can be written all the same.
            pass
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


class _EventSink:
    """TensorBoard events of rows: one folder per seed, a scalar per metric, environment steps on the x-axis.

    Written synchronously: tensorboardX's queue never returns once its thread has died of a full disk.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._writers: dict[int, EventsWriter] = {}

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
            self._writer(row["seed"]).write_event(event)
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

    def _writer(self, seed: int) -> EventsWriter:
        if seed not in self._writers:
            folder = self._folder / f"seed_{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            self._writers[seed] = EventsWriter(os.fspath(folder / "events"))
        return self._writers[seed]


def read_sections(path: str | os.PathLike) -> list[Section]:
    """The headers of a file, each with the rows it applies to; a torn last line is left out.

    Raises:
      UserError: if the file cannot be read or a line before the last is damaged.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise cannot_read(path, error) from error
    sections: list[Section] = []
    for line in _parse_lines(Path(path), content)[0]:
        if line.get("header") is True:
            sections.append(Section({key: value for key, value in line.items() if key != "header"}, []))
            continue
        if not sections:
            sections.append(Section({}, []))
        sections[-1].rows.append(line)
    return sections


def read_rows(path: str | os.PathLike) -> list[Row]:
    """The rows of a ``metrics.jsonl`` or of a committed file, without its headers.

    Raises:
      UserError: if the file cannot be read, a line before the last is damaged, or a row is there twice.
    """
    rows = [row for section in read_sections(path) for row in section.rows]
    _refuse_duplicates(rows, path)
    return rows


def read_runs(root: str | os.PathLike, name: str) -> list[Row]:
    """The rows of every variant's run folder ``root/NAME/*``; empty where there is none.

    Raises:
      UserError: as ``read_rows``.
    """
    rows = [row for path in sorted((Path(root) / name).glob(f"*/{METRICS_FILE}")) for row in read_rows(path)]
    _refuse_duplicates(rows, Path(root) / name)
    return rows


def find_rows(
    name: str,
    runs: str | os.PathLike | None = None,
    committed: str | os.PathLike | None = None,
    package: str = registry.PACKAGE,
) -> tuple[list[Row], str]:
    """The rows of an experiment and where they are from: its run folders, or else the committed file.

    Args:
      name: the experiment.
      runs: read only the run folders under this one.
      committed: read only this file.
      package: of the configurations, for the suggestions.

    Returns:
      The rows, at least one, and the path they were read from.

    Raises:
      NoRowsError: if there is none.
      UserError: if the experiment is unknown, with the nearest names.
    """
    if committed is not None:
        rows = [row for row in read_rows(committed) if row.get("experiment", name) == name]
        if not rows:
            held = dict.fromkeys(row.get("experiment") for row in read_rows(committed))
            raise unknown("experiment", name, [one for one in held if one], f"in {os.fspath(committed)}")
        return rows, os.fspath(committed)
    root = Path(runs if runs is not None else RUNS_FOLDER)
    rows = read_runs(root, name)
    if rows:
        return rows, os.fspath(root / name)
    default = committed_file(name)
    if runs is None and default.is_file():
        return find_rows(name, committed=default)
    known = registry.names(package)
    if name not in known:
        raise unknown("experiment", name, known)
    place = f"{root / name}" if runs is not None else f"{root / name} nor {default}"
    raise NoRowsError(f"no rows of {name!r} in {place}: run `python -m experiments.run {name}` first")


def committed_file(name: str) -> Path:
    """``results/NAME.jsonl``."""
    return Path(RESULTS_FOLDER) / f"{name}.jsonl"


def select_variants(requested: str, known: Sequence[str]) -> list[str]:
    """The variants of ``a,b`` or ``a,warm;b,warm``: each part between semicolons is one variant if rows have it.

    Otherwise its commas separate variants. The order of a variant's tokens does not matter; ``default`` is the
    default variant.

    Raises:
      UserError: if rows have no such variant.
    """
    by_tokens = {frozenset(variant.split(",")): variant for variant in known}
    found = []
    for part in requested.split(";"):
        whole = frozenset(_variant_tokens(part))
        pieces = [whole] if whole in by_tokens else [frozenset(_variant_tokens(piece)) for piece in part.split(",")]
        for piece in pieces:
            if piece not in by_tokens:
                shown = [variant or DEFAULT_VARIANT for variant in known]
                raise unknown("variant", ",".join(sorted(piece)), shown, "in the rows")
            found.append(by_tokens[piece])
    return list(dict.fromkeys(found))


def _variant_tokens(text: str) -> list[str]:
    tokens = [token.strip() for token in text.split(",")]
    return [""] if tokens == [DEFAULT_VARIANT] else tokens


def variants_of(rows: Iterable[Row]) -> list[str]:
    """The variants of rows in the order of their appearance; the default one is the empty string."""
    return list(dict.fromkeys(row.get("variant", "") for row in rows))


def metrics_of(rows: Iterable[Row]) -> list[str]:
    """The names of the metrics of rows: every key that is not the row's identity and holds a number somewhere."""
    found: dict[str, None] = {}
    for row in rows:
        for key, value in row.items():
            if key not in NOT_METRICS and isinstance(value, int | float):
                found[key] = None
    return list(found)


def collect(
    run_folders: Sequence[str | os.PathLike],
    destination: str | os.PathLike,
    metrics: Sequence[str] | None = None,
    append: bool = False,
) -> int:
    """Merges run folders into one committed file: a header per folder, then its rows.

    A row keeps ``experiment``, ``variant``, ``seed``, ``env_steps`` and the chosen metrics, floats rounded to 6
    significant digits. The header holds the experiment, variant, commit, dirty flag, command, versions, device and
    the configuration's fingerprint.

    Args:
      run_folders: folders of ended or running runs.
      destination: the file; replaced as a whole, or not at all.
      metrics: the metrics to keep; all if none.
      append: keep the sections of an existing destination, except those of the same experiment and variant.

    Returns:
      The number of rows written.

    Raises:
      UserError: if a folder is no run folder, a metric is unknown, rows are there twice, or writing fails.
    """
    sections = [_run_section(Path(folder)) for folder in run_folders]
    known = metrics_of(row for section in sections for row in section.rows)
    for metric in metrics or ():
        if metric not in known:
            raise unknown("metric", metric, known)
    chosen = list(metrics or known)
    sections = [Section(header, [_compact(row, chosen) for row in rows]) for header, rows in sections]
    if append and Path(destination).exists():
        replaced = {_identity(section) for section in sections}
        sections = [old for old in read_sections(destination) if _identity(old) not in replaced] + sections
    rows = [row for section in sections for row in section.rows]
    _refuse_duplicates(rows, destination)
    lines = []
    for section in sections:
        lines += [_line({"header": True, **section.header}), *(_line(row) for row in section.rows)]
    write_atomic(destination, b"".join(lines))
    return len(rows)


def _identity(section: Section) -> tuple[Any, Any]:
    return section.header.get("experiment"), section.header.get("variant")


def _run_section(folder: Path) -> Section:
    if not (folder / METRICS_FILE).is_file():
        raise UserError(f"{folder} is no run folder: it has no {METRICS_FILE}")
    rows = read_rows(folder / METRICS_FILE)
    if not rows:
        raise UserError(f"{folder} has no rows yet")
    lacking = [key for key in IDENTITY if key not in rows[0]]
    if lacking:
        raise UserError(f"{folder / METRICS_FILE}: a row lacks {', '.join(lacking)}")
    header: dict[str, Any] = {"experiment": rows[0]["experiment"], "variant": rows[0]["variant"]}
    environment = read_json(folder / ENVIRONMENT_FILE)
    for key in ("commit", "dirty", "command", "versions", "device", "device_count", "platform"):
        header[key] = environment.get(key)
    header["config_fingerprint"] = registry.fingerprint(read_json(folder / CONFIG_FILE))
    return Section(header, rows)


def _compact(row: Row, metrics: Sequence[str]) -> Row:
    return {key: row[key] for key in IDENTITY} | {key: _rounded(row[key]) for key in metrics if key in row}


def _rounded(value: Any) -> Any:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value


def _refuse_duplicates(rows: Iterable[Row], path: str | os.PathLike) -> None:
    seen = set()
    for row in rows:
        identity = tuple(row.get(key) for key in IDENTITY)
        if identity in seen:
            shown = ", ".join(f"{key}={value!r}" for key, value in zip(IDENTITY, identity, strict=True))
            raise UserError(f"{os.fspath(path)} has two rows of {shown}: expected one row per seed and evaluation")
        seen.add(identity)


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n").encode()


def _parse_lines(path: Path, content: bytes) -> tuple[list[Row], int]:
    """The rows of the whole lines, and the bytes they take, without a damaged end (torn, or zeros after a crash)."""
    rows: list[Row] = []
    size = 0
    damaged: int | None = None
    for number, line in enumerate(_whole_lines(content), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            damaged = damaged or number
            continue
        if damaged is not None:
            raise UserError(f"{path}, line {damaged}: expected a JSON object; the file was damaged from outside")
        rows.append(row)
        size += len(line)
    return rows, size


def _whole_lines(content: bytes) -> Iterator[bytes]:
    for line in content.splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield line


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


def _command_line() -> list[str]:
    specification = getattr(sys.modules.get("__main__"), "__spec__", None)
    start = ["python", "-m", specification.name] if specification is not None else ["python", sys.argv[0]]
    return [*start, *sys.argv[1:]]


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable; some file systems cannot, and then it is merely atomic."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
