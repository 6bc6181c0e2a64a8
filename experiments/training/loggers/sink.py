"""Rows on their way to loggers: each once, whatever was killed, and never at the cost of the run."""

from __future__ import annotations

import contextlib
import itertools
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.assembly import registry
from experiments.assembly.members import Member
from experiments.disk import read_json_object, write_json_atomic
from experiments.errors import UserError, in_one_line, say, unknown
from experiments.rows.reading import Row
from experiments.rows.run_folders import LOGGERS_FILE
from experiments.training.loggers.base import Identity, Logger, LoggerRun, Seed
from experiments.training.loggers.catalogue import LOGGERS


def require_loggers(names: Iterable[str]) -> None:
    """Checks, before any work, that the loggers will take rows.

    Raises:
      UserError: if one is unknown, a package is missing, nobody is logged in, or a server does not answer.
    """
    for name in names:
        if name not in LOGGERS:
            raise unknown("logger", name, LOGGERS)
        LOGGERS[name].require()


def logger_sinks(
    names: Iterable[str],
    folder: Path,
    experiment: str,
    config: ConfigDict,
    members: Iterable[Member],
    catalogue: Mapping[str, Logger] = LOGGERS,
) -> list[LoggerSink]:
    """A sink for each of the loggers ``names``.

    Args:
      names: of the catalogue; one that is named twice counts once.
      folder: of the run, where ``loggers.json`` says what was logged.
      experiment, config, members: whose rows they are.
      catalogue: of the loggers.

    Raises:
      UserError: if ``loggers.json`` cannot be read or is none.
    """
    chosen = list(dict.fromkeys(names))
    if not chosen:
        return []
    record = Record(folder / LOGGERS_FILE)
    by_identity = {(member.variant, member.seed): member for member in members}
    return [LoggerSink(name, catalogue[name], record, experiment, config, by_identity) for name in chosen]


class Record:
    """What the loggers of a run folder were given: ``loggers.json``, replaced as a whole.

    An object per logger and seed: ``logger``, ``variant``, ``seed``; ``key``, by which the logger's run is found again;
    ``handed``, the last iteration that was about to be handed over; ``logged``, the last one that was. Where the two
    differ, the process was killed, or the logger failed, in between.

    Raises:
      UserError: if the file cannot be read, or is no such record.
    """

    def __init__(self, path: Path):
        self._path, self.folder = path, path.parent
        self._entries: dict[tuple[str, str, int], dict[str, Any]] = {}
        if path.exists():
            found: Any = read_json_object(path).get("runs")
            entries: list[Any] = found if isinstance(found, list) else [None]
            kinds = {"logger": str, "variant": str, "seed": int, "key": str, "handed": int, "logged": int}
            for entry in entries:
                wrong = not isinstance(entry, dict) or any(type(entry.get(key)) is not kinds[key] for key in kinds)
                # A key becomes a part of a query and of the names of files.
                if wrong or not (entry["key"].isascii() and entry["key"].isalnum() and len(entry["key"]) <= 64):
                    raise UserError(
                        f"{path} is no record of loggers: expected 'runs' with {', '.join(kinds)}; without the file "
                        "the loggers begin new runs"
                    )
                self._entries[entry["logger"], entry["variant"], entry["seed"]] = {key: entry[key] for key in kinds}

    def entry(self, logger: str, identity: Identity) -> dict[str, Any]:
        """The entry of a seed; a new one, with a key of its own, where there is none."""
        variant, seed = identity
        new = {"logger": logger, "variant": variant, "seed": seed, "key": uuid.uuid4().hex[:16]}
        return self._entries.setdefault((logger, variant, seed), new | {"handed": 0, "logged": 0})

    def save(self) -> None:
        """Writes the file.

        Raises:
          UserError: if it cannot be written.
        """
        write_json_atomic(self._path, {"runs": list(self._entries.values())})


class LoggerSink:
    """Hands the rows of a run to one logger, a run of the logger per seed.

    A row is handed over once a checkpoint covers it, so that no row is ever rewound there. ``loggers.json`` is written
    before and after: a row that was being handed over when the process was killed counts as logged, unless the logger
    says that it does not have it, so that none is there twice. A logger that fails is dropped until the run is
    continued, with one line; then it is given what it missed.
    """

    def __init__(
        self,
        name: str,
        logger: Logger,
        record: Record,
        experiment: str,
        config: ConfigDict,
        members: Mapping[Identity, Member],
    ):
        self._name, self._logger, self._record = name, logger, record
        self._experiment, self._config, self._members = experiment, config, members
        self._runs: dict[Identity, LoggerRun] = {}
        self._waiting: dict[Identity, list[Row]] = {}
        self._dropped = False

    def rebuild(self, rows: Iterable[Row]) -> None:
        """Takes the rows of the file in place of those that wait."""
        self._waiting = {}
        for row in rows:
            self.append(row)

    def append(self, row: Row) -> None:
        """Lets a row wait until a checkpoint covers it."""
        identity = row.get("variant", ""), row["seed"]
        if identity in self._members and not self._dropped:
            self._waiting.setdefault(identity, []).append(row)

    def settle(self, members: Iterable[Identity]) -> None:
        """Hands over what waits of these members."""
        if self._dropped:
            return
        with self._dropping():
            rows = [row for identity in members for row in self._new_rows(identity)]
            rows.sort(key=lambda row: row["iteration"])
            for iteration, together in itertools.groupby(rows, lambda row: row["iteration"]):
                self._hand_over(iteration, list(together))

    def close(self) -> None:
        """Ends the runs of the logger that are open."""
        for run in self._runs.values():
            # One that failed might keep the program waiting.
            if not self._dropped:
                with self._dropping():
                    run.close()
        self._runs = {}

    def _new_rows(self, identity: Identity) -> list[Row]:
        """The waiting rows of a member that its run does not have; the run is begun where there may be some."""
        rows = self._waiting.get(identity, [])
        entry = self._record.entry(self._name, identity)
        if not rows or (identity not in self._runs and rows[-1]["iteration"] <= entry["logged"]):
            return []
        if identity not in self._runs:
            self._record.save()
            run = self._runs[identity] = self._logger.begin(self._seed(identity, entry["key"]))
            entry["logged"] = entry["handed"] if run.logged is None else run.logged
        self._waiting[identity] = []
        return [row for row in rows if row["iteration"] > entry["logged"]]

    def _hand_over(self, iteration: int, rows: Sequence[Row]) -> None:
        for word in ("handed", "logged"):
            for row in rows:
                identity = row.get("variant", ""), row["seed"]
                if word == "logged":
                    self._runs[identity].log(row)
                self._record.entry(self._name, identity)[word] = iteration
            self._record.save()

    def _seed(self, identity: Identity, key: str) -> Seed:
        member = self._members[identity]
        config = registry.to_json_dict(registry.apply_overrides(self._config, member.values))
        return Seed(key, self._experiment, member.variant, member.seed, config, self._record.folder)

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        # Whatever a library, a server or a disk may raise.
        except Exception as error:
            self._dropped, self._waiting = True, {}
            say(
                f"the logger {self._name} takes no more rows: {in_one_line(error)}; the run goes on, and its rows are "
                "on the disk"
            )
