"""Reading rows: of run folders and of committed files.

A committed file ``results/NAME.jsonl`` starts with a header line; a header applies to the rows that follow it, up to
the next one. ``experiments.training.row_writer`` writes the rows of a run, ``experiments.rows.collecting`` those of a
committed file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from experiments.assembly import registry
from experiments.disk import JSON_DECODER, parse_json, read_json_object
from experiments.errors import UserError, cannot_read, unknown
from experiments.rows.environment_report import EVALUATION_EPISODES, PER_SEED
from experiments.rows.run_folders import (
    DEFAULT_VARIANT,
    ENVIRONMENT_FILE,
    METRICS_FILE,
    RUNS_FOLDER,
    committed_file,
    run_folders,
)

TEXTS, INTEGERS = ("experiment", "variant"), ("seed", "env_steps")
IDENTITY = (*TEXTS, *INTEGERS)
NOT_METRICS = (*IDENTITY, "iteration")
# How metrics of learning are named, which are no evaluation's.
LEARNING_METRICS = ("agent/", "reward/", "annotator/", "time/")
# Where rows are looked for in a damaged line.
LONGEST_DAMAGED_LINE, MOST_STARTS = 2**20, 1000

Row = dict[str, Any]


class NoRowsError(UserError):
    """An experiment that exists and has no rows yet."""


class Section(NamedTuple):
    """A header and the rows it applies to; the header is empty where a file starts without one."""

    header: dict[str, Any]
    rows: list[Row]


class Damage(NamedTuple):
    """A line of a file of rows that is not as it was written.

    Attributes:
      line: its number.
      kept: how many whole rows it still held: a newline that was damaged joins two of them.
      ends: whether it is the end of the file, without a newline, as a killed process leaves it.
    """

    line: int
    kept: int
    ends: bool


class Parsed(NamedTuple):
    """The rows and headers of a file, in order, each with the number of its line, and what was damaged."""

    lines: list[tuple[int, Row]]
    damage: list[Damage]

    @property
    def rows(self) -> list[Row]:
        return [row for _, row in self.lines]


def read_sections(path: str | os.PathLike) -> list[Section]:
    """The headers of a file, or of a run folder's, each with the rows it applies to; a torn last line is left out.

    Raises:
      UserError: if the file cannot be read, a line before the last is damaged, or one does not say whose it is.
    """
    return read_whole_sections(path)[0]


def read_whole_sections(path: str | os.PathLike) -> tuple[list[Section], bool]:
    """The sections of a file, and whether they are all that it holds.

    Raises:
      UserError: as ``read_sections``.
    """
    parsed = _parsed(path)
    last = max((number for number, _ in parsed.lines), default=0)
    for damage in parsed.damage:
        # What follows the last row is the end of a run that was killed, or no file of rows at all.
        if damage.line <= last:
            raise UserError(
                f"{os.fspath(path)}, line {damage.line}: expected a JSON object; the file was damaged from outside"
            )
    sections: list[Section] = []
    for number, line in parsed.lines:
        place = f"{os.fspath(path)}, line {number}"
        if line.get("header") is True:
            _check_texts(line, place)
            sections.append(Section({key: value for key, value in line.items() if key != "header"}, []))
            continue
        _check_row(line, place)
        if not sections:
            sections.append(Section({}, []))
        sections[-1].rows.append(line)
    return sections, not parsed.damage


def _parsed(path: str | os.PathLike) -> Parsed:
    path = Path(path) / METRICS_FILE if Path(path).is_dir() else path
    try:
        return parse_lines(Path(path).read_bytes())
    except OSError as error:
        raise cannot_read(path, error) from error


def _check_row(row: Row, place: str) -> None:
    """Refuses a row that does not say whose it is; it may leave out experiment and variant."""
    for key in INTEGERS:
        if type(row.get(key)) is not int:
            held = f"{key}={short(row[key])}" if key in row else f"no {key}"
            raise UserError(f"{place}: a row with {held}, expected an integer")
    if type(row.get("iteration", 0)) is not int:
        raise UserError(f"{place}: a row with iteration={short(row['iteration'])}, expected an integer")
    _check_texts(row, place)


def _check_texts(line: Row, place: str) -> None:
    """Refuses names that are no text of printable characters: they are shown, and name folders."""
    for key in TEXTS:
        if not isinstance(line.get(key, ""), str):
            raise UserError(f"{place}: {key}={short(line[key])}, expected text")
    for text in (*(line.get(key, "") for key in TEXTS), *line):
        if not text.isprintable():
            raise UserError(f"{place}: the name {short(text)} has characters that cannot be printed")


def require_rows(rows: Any, place: str) -> None:
    """Refuses what are no rows of a run.

    Raises:
      UserError: if ``rows`` is no list of objects that say whose they are, and of which iteration.
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "iteration" in row for row in rows):
        raise UserError(f"{place} holds no list of rows: {short(rows)}")
    for row in rows:
        _check_row(row, place)
        for key, value in row.items():
            if isinstance(value, list | dict):
                raise UserError(f"{place}: {key}={short(value)}, expected a number, text, truth value or none")


def read_rows(path: str | os.PathLike) -> list[Row]:
    """The rows of a run folder, of its ``metrics.jsonl`` or of a committed file, without its headers.

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
    rows = [row for folder in run_folders(root, name) for row in read_rows(folder / METRICS_FILE)]
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
      committed: read only this file, or run folder.
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


def sharing_episodes(source: str | os.PathLike) -> list[str]:
    """The variants in ``source``, a file, a run folder or a folder of them as ``find_rows`` names it, whose seeds were
    all evaluated on the same episodes: an interval over their seeds leaves out the draw of these episodes.

    Raises:
      UserError: if ``source`` cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        own = path / METRICS_FILE
        files = [own] if own.is_file() else sorted(path.glob(f"*/{METRICS_FILE}"))
        made = [file.with_name(ENVIRONMENT_FILE) for file in files]
        sections = [
            Section(read_json_object(described) if described.is_file() else {}, read_rows(file))
            for file, described in zip(files, made, strict=True)
        ]
    else:
        sections = read_sections(path)
    return variants_of(
        row for section in sections if section.header.get(EVALUATION_EPISODES) != PER_SEED for row in section.rows
    )


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


def _check_rows(rows: Sequence[Row], path: str | os.PathLike) -> None:
    """Refuses rows that are there twice, and a metric that is a number in some of them and something else in others."""
    refuse_duplicates(rows, path)
    numbers = set(metrics_of(rows))
    for row in rows:
        for key in numbers & row.keys():
            if not isinstance(row[key], int | float | None):
                shown = ", ".join(f"{name}={row.get(name)!r}" for name in IDENTITY)
                raise UserError(f"{os.fspath(path)}: {key}={short(row[key])}, {shown}: expected a number as elsewhere")


def short(value: Any) -> str:
    """A value from a file as a message shows it."""
    shown = repr(value)
    return shown if len(shown) < 40 else f"{shown[:36]} ..."


def refuse_duplicates(rows: Iterable[Row], path: str | os.PathLike) -> None:
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


def parse_lines(content: bytes) -> Parsed:
    """What can be read of a file of rows, whatever became of it.

    A line that is no row is searched for rows: where a newline was damaged it holds two. The end of a file may be torn,
    or zeros after a crash.
    """
    lines: list[tuple[int, Row]] = []
    damage: list[Damage] = []
    # Only newlines end a line: a carriage return is a damaged one.
    parts = content.split(b"\n")
    for number, line in enumerate(parts, start=1):
        last = number == len(parts)
        if last and not line:
            break
        row = None if last else _row(line)
        if row is not None:
            lines.append((number, row))
            continue
        # The end without its newline may be cut in the middle of a number, and still be JSON.
        found = [] if last and b"\r" not in line else _rows_within(line)
        lines += [(number, row) for row in found]
        damage.append(Damage(number, len(found), last and not found))
    return Parsed(lines, damage)


def _row(line: bytes) -> Row | None:
    try:
        value = parse_json(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _rows_within(line: bytes) -> list[Row]:
    """The rows and headers in a damaged line."""
    found: list[Row] = []
    if len(line) > LONGEST_DAMAGED_LINE:
        return found
    text, position = line.decode(errors="replace"), 0
    for _ in range(MOST_STARTS):
        position = text.find('{"', position)
        if position < 0:
            break
        try:
            value, end = JSON_DECODER.raw_decode(text, position)
            parse_json(text[position:end])
        except (ValueError, RecursionError):
            position += 1
            continue
        position = end
        if value.get("header") is True or all(type(value.get(key)) is int for key in INTEGERS):
            found.append(value)
    return found
