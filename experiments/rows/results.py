"""Rows: reading and finding those that runs left on disk, and collecting them into committed results.

A run folder ``RUNS/NAME/VARIANT`` (``default`` for no variant) holds

* ``config.json`` and ``environment.json``: what was run, with what, on what, and with what it was continued;
* ``metrics.jsonl``: one row per seed and evaluation, the truth;
* ``tensorboard/seed_N``: TensorBoard events, a sink of the same rows that is rebuilt from them; of a sweep
  ``tensorboard/VARIANT/seed_N``;
* the checkpoints.

A committed file ``results/NAME.jsonl`` starts with a header line; a header applies to the rows that follow it, up to
the next one. ``experiments.training.row_writer`` writes the rows of a run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from experiments.assembly import registry
from experiments.disk import read_json_object, write_atomic
from experiments.errors import UserError, cannot_read, unknown
from experiments.rows.environment_report import changed_sessions

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
DEFAULT_VARIANT = "default"
RUNS_FOLDER = "runs"
RESULTS_FOLDER = "results"
TEXTS, INTEGERS = ("experiment", "variant"), ("seed", "env_steps")
IDENTITY = (*TEXTS, *INTEGERS)
# What the configuration of every experiment has.
SECTIONS = ("environment", "data", "network", "agent", "rewards", "evaluation")
NOT_METRICS = (*IDENTITY, "iteration")
SIGNIFICANT_DIGITS = 6
# Some room is left for what is written beside it under the same name.
LONGEST_NAME = 200

Row = dict[str, Any]


class NoRowsError(UserError):
    """An experiment that exists and has no rows yet."""


class Section(NamedTuple):
    """A header and the rows it applies to; the header is empty where a file starts without one."""

    header: dict[str, Any]
    rows: list[Row]


def run_folder(root: str | os.PathLike, name: str, variant: str = "") -> Path:
    """``root/NAME/VARIANT``; the default variant has the folder ``default``.

    File systems take names of 255 bytes. Where many overrides make a longer one, its end is replaced by a digest of the
    whole; the rows inside keep the variant in full.
    """
    folder = variant or DEFAULT_VARIANT
    encoded = folder.encode()
    if len(encoded) > LONGEST_NAME:
        digest = hashlib.sha256(encoded).hexdigest()[:16]
        folder = f"{encoded[: LONGEST_NAME - len(digest) - 1].decode(errors='ignore')}~{digest}"
    return Path(root) / name / folder


def read_sections(path: str | os.PathLike) -> list[Section]:
    """The headers of a file, each with the rows it applies to; a torn last line is left out.

    Raises:
      UserError: if the file cannot be read, a line before the last is damaged, or one does not say whose it is.
    """
    return _read_sections(path)[0]


def _read_sections(path: str | os.PathLike) -> tuple[list[Section], bool]:
    """The sections of a file, and whether they are all that it holds."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise cannot_read(path, error) from error
    lines, size = parse_lines(Path(path), content)
    sections: list[Section] = []
    for number, line in enumerate(lines, start=1):
        header = line.get("header") is True
        _check_identity(line, INTEGERS if not header else (), f"{os.fspath(path)}, line {number}")
        if header:
            sections.append(Section({key: value for key, value in line.items() if key != "header"}, []))
            continue
        if not sections:
            sections.append(Section({}, []))
        sections[-1].rows.append(line)
    return sections, size == len(content)


def _check_identity(line: Row, integers: Sequence[str], place: str) -> None:
    """Refuses a line that does not say whose it is; a row may leave out experiment and variant, a header anything."""
    for key in integers:
        if type(line.get(key)) is not int:
            held = f"{key}={_short(line[key])}" if key in line else f"no {key}"
            raise UserError(f"{place}: a row with {held}, expected an integer")
    for key in TEXTS:
        if not isinstance(line.get(key, ""), str):
            raise UserError(f"{place}: {key}={_short(line[key])}, expected text")


def read_rows(path: str | os.PathLike) -> list[Row]:
    """The rows of a ``metrics.jsonl`` or of a committed file, without its headers.

    Raises:
      UserError: if the file cannot be read, a line before the last is damaged, one does not say whose it is, a row is
        there twice, or a metric is a number in some rows and text or a list in others.
    """
    rows = [row for section in read_sections(path) for row in section.rows]
    _check_rows(rows, path)
    return rows


def read_runs(root: str | os.PathLike, name: str) -> list[Row]:
    """The rows of every variant's run folder ``root/NAME/*``; empty where there is none.

    Raises:
      UserError: as ``read_rows``.
    """
    rows = [row for path in sorted((Path(root) / name).glob(f"*/{METRICS_FILE}")) for row in read_rows(path)]
    _check_rows(rows, Path(root) / name)
    return rows


def refuse_without_rows(name: str, place: str, package: str = registry.PACKAGE) -> NoReturn:
    """Refuses an experiment of which ``place`` has no rows.

    Raises:
      NoRowsError: if it exists.
      UserError: if it does not, with the nearest names.
    """
    known = registry.names(package)
    if name not in known:
        raise unknown("experiment", name, known)
    raise NoRowsError(f"no rows of {name!r} in {place}: run `sagax run {name}` first")


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
        held = read_rows(committed)
        if not held:
            raise UserError(f"{os.fspath(committed)} holds no rows: expected a file of `sagax collect`")
        rows = [row for row in held if row.get("experiment", name) == name]
        if not rows:
            others = dict.fromkeys(row.get("experiment") for row in held)
            raise unknown("experiment", name, [one for one in others if one], f"in {os.fspath(committed)}")
        return rows, os.fspath(committed)
    root = Path(runs if runs is not None else RUNS_FOLDER)
    rows = read_runs(root, name)
    if rows:
        return rows, os.fspath(root / name)
    default = committed_file(name)
    if runs is None and default.is_file():
        return find_rows(name, committed=default)
    refuse_without_rows(name, f"{root / name}" if runs is not None else f"{root / name} nor {default}", package)


def read_description(folder: Path) -> dict[str, Any]:
    """What a run folder says of itself: ``config`` in JSON values; ``members`` with ``seed``, ``variant``, ``values``.

    Raises:
      UserError: if the description cannot be read, or is none.
    """
    path = folder / CONFIG_FILE
    found = read_json_object(path)
    config, members = found.get("config"), found.get("members")
    lacking = [name for name in SECTIONS if not (isinstance(config, dict) and isinstance(config.get(name), dict))]
    if lacking:
        raise UserError(f"{path} describes no run: its 'config' lacks the section {lacking[0]!r}")
    kinds = {"seed": int, "variant": str, "values": dict}
    for member in members if isinstance(members, list) and members else [None]:
        if not isinstance(member, dict) or any(type(member.get(key)) is not kind for key, kind in kinds.items()):
            raise UserError(f"{path} describes no run: its 'members' are no list of objects with {', '.join(kinds)}")
    return found


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
    replace: bool = False,
) -> int:
    """Merges run folders into one committed file: a header per folder, then its rows.

    A row keeps ``experiment``, ``variant``, ``seed``, ``env_steps`` and the chosen metrics, floats rounded to 6
    significant digits. The header holds the experiment, variant, commit, dirty flag, command, versions, device and
    the configuration's fingerprint, and where a run was continued with others of these, what changed from which row on.

    Args:
      run_folders: folders of ended or running runs.
      destination: the file; replaced as a whole, or not at all.
      metrics: the metrics to keep; all if none.
      append, replace: as in ``write_sections``.

    Returns:
      The number of rows written.

    Raises:
      UserError: if a folder is no run folder, a metric is unknown, rows are there twice or would be lost, or writing
        fails.
    """
    sections = [run_section(Path(folder)) for folder in run_folders]
    known = metrics_of(row for section in sections for row in section.rows)
    for metric in metrics or ():
        if metric not in known:
            raise unknown("metric", metric, known)
    chosen = list(metrics or known)
    sections = [Section(header, [_compact(row, chosen) for row in rows]) for header, rows in sections]
    return write_sections(sections, destination, append, replace)


def write_sections(
    sections: Sequence[Section], destination: str | os.PathLike, append: bool = False, replace: bool = False
) -> int:
    """Writes a committed file whole, or not at all: per section its header, then its rows.

    Args:
      sections: headers with the rows of their runs.
      destination: the file.
      append: keep the sections of an existing destination, except those of the same experiment and variant.
      replace: let go of what else an existing destination holds.

    Returns:
      The number of rows written.

    Raises:
      UserError: if rows are there twice or would be lost, or writing fails.
    """
    written = [*kept_sections(sections, destination, append, replace), *sections]
    rows = [row for section in written for row in section.rows]
    _refuse_duplicates(rows, destination)
    lines = []
    for section in written:
        lines += [encode_line({"header": True, **section.header}), *(encode_line(row) for row in section.rows)]
    write_atomic(destination, b"".join(lines))
    return len(rows)


def kept_sections(
    sections: Sequence[Section], destination: str | os.PathLike, append: bool = False, replace: bool = False
) -> list[Section]:
    """The sections of a file that stay where ``sections`` are written to it.

    Args:
      sections, destination, append, replace: as in ``write_sections``.

    Raises:
      UserError: unless ``replace``, if a seed of a variant would have fewer rows than the file holds of it, or the file
        holds anything but rows.
    """
    if not Path(destination).exists():
        return []
    present, whole = _read_sections(destination)
    replaced = {_identity(section) for section in sections}
    kept = [old for old in present if append and _identity(old) not in replaced]
    if replace:
        return kept
    if not whole:
        raise UserError(f"{os.fspath(destination)} holds more than rows: expected --replace or another --out")
    lost = _seeds_of(present) - _seeds_of([*kept, *sections])
    if lost:
        (experiment, variant, seed), count = next(iter(lost.items()))
        others = "" if append else "--append, which keeps other variants, "
        raise UserError(
            f"{os.fspath(destination)} would lose {lost.total():,} rows, the first {count:,} of experiment "
            f"{experiment!r}, variant {variant!r}, seed {seed!r}: expected {others}--replace or another --out"
        )
    return kept


def _identity(section: Section) -> tuple[Any, Any]:
    return section.header.get("experiment"), section.header.get("variant")


def _seeds_of(sections: Iterable[Section]) -> Counter[tuple[Any, ...]]:
    """How many rows each experiment, variant and seed has."""
    return Counter(
        tuple(row.get(key) for key in ("experiment", "variant", "seed")) for section in sections for row in section.rows
    )


def run_section(folder: Path) -> Section:
    """The rows of a run folder and the header that ``collect`` gives them.

    Raises:
      UserError: if it is no run folder, or has no rows, or a row lacks what says whose it is.
    """
    if not (folder / METRICS_FILE).is_file():
        raise UserError(f"{folder} is no run folder: it has no {METRICS_FILE}")
    rows = read_rows(folder / METRICS_FILE)
    if not rows:
        raise UserError(f"{folder} has no rows yet")
    lacking = [key for key in IDENTITY if any(key not in row for row in rows)]
    if lacking:
        raise UserError(f"{folder / METRICS_FILE}: a row lacks {', '.join(lacking)}")
    header: dict[str, Any] = {"experiment": rows[0]["experiment"], "variant": rows[0]["variant"]}
    environment = read_json_object(folder / ENVIRONMENT_FILE)
    sources = ("commit", "dirty", "versions", "device", "device_count", "platform")
    for key in ("command", *sources):
        header[key] = environment.get(key)
    continued = changed_sessions(environment, sources)
    if continued:
        header["continued"] = continued
    header["config_fingerprint"] = registry.fingerprint(read_json_object(folder / CONFIG_FILE))
    return Section(header, rows)


def _compact(row: Row, metrics: Sequence[str]) -> Row:
    return {key: row[key] for key in IDENTITY} | {key: _rounded(row[key]) for key in metrics if key in row}


def _rounded(value: Any) -> Any:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value


def _check_rows(rows: Sequence[Row], path: str | os.PathLike) -> None:
    """Refuses rows that are there twice, and a metric that is a number in some of them and something else in others."""
    _refuse_duplicates(rows, path)
    numbers = set(metrics_of(rows))
    for row in rows:
        for key in numbers & row.keys():
            if not isinstance(row[key], int | float | None):
                shown = ", ".join(f"{name}={row.get(name)!r}" for name in IDENTITY)
                raise UserError(f"{os.fspath(path)}: {key}={_short(row[key])}, {shown}: expected a number as elsewhere")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) < 40 else f"{shown[:36]} ..."


def _refuse_duplicates(rows: Iterable[Row], path: str | os.PathLike) -> None:
    seen = set()
    for row in rows:
        identity = tuple(row.get(key) for key in IDENTITY)
        if identity in seen:
            shown = ", ".join(f"{key}={value!r}" for key, value in zip(IDENTITY, identity, strict=True))
            raise UserError(f"{os.fspath(path)} has two rows of {shown}: expected one row per seed and evaluation")
        seen.add(identity)


def encode_line(row: Mapping[str, Any]) -> bytes:
    """A row as one line of JSON."""
    return (json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n").encode()


def parse_lines(path: Path, content: bytes) -> tuple[list[Row], int]:
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
