"""Collecting run folders into the committed files of ``results/``, without losing what they hold."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.assembly import registry
from experiments.disk import read_json_object, write_atomic
from experiments.errors import UserError, unknown
from experiments.rows.environment_report import EVALUATION_EPISODES, changed_sessions, read_environment
from experiments.rows.reading import (
    IDENTITY,
    Row,
    Section,
    encode_line,
    metrics_of,
    read_rows,
    read_whole_sections,
    refuse_duplicates,
)
from experiments.rows.run_folders import CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE

SIGNIFICANT_DIGITS = 6


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
    refuse_duplicates(rows, destination)
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
    present, whole = read_whole_sections(destination)
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
    environment = read_environment(folder / ENVIRONMENT_FILE)
    sources = ("commit", "dirty", "versions", "device", "device_count", "platform", EVALUATION_EPISODES)
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
