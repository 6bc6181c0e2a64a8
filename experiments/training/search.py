"""Searches: the points of a sweep drawn by Optuna, one after the other or by several processes at a time.

A trial is a point: a run folder of its own, with rows under ``VARIANT+search+KEY=VALUE``. The study is a
journal, ``RUNS/NAME/.search/SEARCH/journal.jsonl``, which processes of one or of several machines share. A process
holds the lock of the trial that it trains, ``trial_N.lock``, which the system releases when it ends, however it ends: a
trial that nobody holds is picked up again, from its last checkpoint. File locks are those of ``flock``, which a shared
file system has to have.

Source: Akiba, Sano, Yanase, Ohta and Koyama, "Optuna: A Next-generation Hyperparameter Optimization Framework", KDD
2019; the median rule is that of Golovin et al., "Google Vizier", KDD 2017 (section 3.5.2).
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.assembly import registry
from experiments.assembly.checks import checked_environment
from experiments.assembly.members import members_of, variant_name
from experiments.errors import UserError, cannot_write, printable
from experiments.rows import reading, run_folders
from experiments.training.search_journal import POLL_SECONDS, JournalLock, lock, mend
from experiments.training.sweeps import (
    PREFIX,
    Job,
    Plan,
    is_traceable,
    ranking,
    run_command,
    run_job,
)
from experiments.training.train import PROLONGABLE

SEARCHES = ("random", "tpe")
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER}):({NUMBER})(:log)?")
# A float is rounded to so many digits, as its name shows it.
SIGNIFICANT_DIGITS = 4
FOLDER, JOURNAL = ".search", "journal.jsonl"


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``, both included; ``log``: even in the logarithm."""

    low: float
    high: float
    log: bool


class Settings(NamedTuple):
    """How points are drawn.

    Attributes:
      kind: ``random`` or ``tpe``.
      trials: how many there are to be in all.
      seed: of the draws.
      prune: end a trial whose metric is below the median of the others at the same evaluation.
      metric, rank: what is maximised, and whether its final value or the area under its curve.
    """

    kind: str
    trials: int
    seed: int
    prune: bool
    metric: str
    rank: str


class Search(NamedTuple):
    """A search that was checked.

    Attributes:
      loaded, base, overrides: the experiment, its configuration with the overrides, and these.
      space: dotted key to a ``Range`` or to a list of values.
      traced: the keys of numbers with which nothing is compiled anew.
      settings: how points are drawn.
      seeds, first_seed, runs: of every trial.
      folder: of the journal.
    """

    loaded: registry.Loaded
    base: ConfigDict
    overrides: dict[str, Any]
    space: dict[str, Range | list[Any]]
    traced: list[str]
    settings: Settings
    seeds: int | None
    first_seed: int
    runs: str
    folder: Path


def is_range(texts: Sequence[Any]) -> bool:
    """Whether the values of a key are one range, ``low:high`` or ``low:high:log``.

    >>> is_range(["1e-4:1e-2:log"]), is_range(["1", "2"]), is_range(["my_module:factory"])
    (True, False, False)
    """
    return len(texts) == 1 and RANGE.fullmatch(str(texts[0])) is not None


def require_optuna() -> Any:
    """Optuna.

    Raises:
      UserError: if it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("--search needs the extra: pip install -e '.[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def search(
    loaded: registry.Loaded,
    base: ConfigDict,
    overrides: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    settings: Settings,
    seeds: int | None,
    first_seed: int,
    runs: str,
) -> Search:
    """Checks what is to be searched; the corners of its space are built, as the points of a grid are.

    Raises:
      UserError: for an unknown key, a value of another type, a range that is none, or a corner that cannot be built.
    """
    if not grid:
        raise UserError(f"experiment {loaded.name!r} sweeps nothing: give {PREFIX}KEY=LOW:HIGH or {PREFIX}KEY=V1,V2")
    # Every value as text: a range is read at both ends.
    ends = {key: RANGE.fullmatch(str(texts[0])) if is_range(texts) else None for key, texts in grid.items()}
    candidates = {key: list(end.groups()[:2]) if end else list(grid[key]) for key, end in ends.items()}
    if not grid.keys() <= registry.keys(base).keys():
        base = registry.apply_overrides(base, {key: values[0] for key, values in candidates.items()})
    typed = {
        key: [registry.keys(registry.apply_overrides(base, {key: value}))[key] for value in values]
        for key, values in candidates.items()
    }
    space: dict[str, Range | list[Any]] = {}
    for key, end in ends.items():
        if end is None:
            space[key] = list(dict.fromkeys(typed[key]))
            continue
        low, high = typed[key]
        said = f"{PREFIX}{key}={end.group()}"
        if any(type(number) not in (int, float) for number in (low, high)):
            raise UserError(f"{said}: {key!r} is no number, expected values, {PREFIX}{key}=V1,V2")
        if not low < high:
            raise UserError(f"{said}: expected the lower number first")
        if end.group(3) and low <= 0:
            raise UserError(f"{said}: a range in the logarithm, expected positive numbers")
        space[key] = Range(low, high, bool(end.group(3)))
    source = checked_environment(base)
    traced = [key for key in typed if is_traceable(base, source, key, typed[key])]
    shown = {key: ends[key].group() if ends[key] else ",".join(map(str, typed[key])) for key in sorted(typed)}  # type: ignore[union-attr]
    named = [key for key in overrides if key not in PROLONGABLE]
    words = [variant_name(loaded.variant or run_folders.DEFAULT_VARIANT, named, base)]
    words += [f"{key}={text}" for key, text in shown.items()]
    own = settings._asdict() | {
        "iterations": base.iterations,
        "seeds": base.seeds if seeds is None else seeds,
        "first_seed": first_seed,
    }
    # A search with more trials is the same search.
    words += [f"{name}={value}" for name, value in own.items() if name != "trials"]
    folder = Path(runs) / run_folders.path_part(loaded.name) / FOLDER / run_folders.path_part("+".join(words))
    made = Search(loaded, base, dict(overrides), space, traced, settings, seeds, first_seed, runs, folder)
    for corner in (0, -1):
        job_of(made, {key: values[corner] for key, values in typed.items()})
    return made


def job_of(made: Search, values: Mapping[str, Any]) -> tuple[Job, str]:
    """The job of one point and the command that runs the point alone.

    Raises:
      UserError: if the point cannot be built.
    """
    loaded = made.loaded
    point = registry.apply_overrides(made.base, values)
    checked_environment(point)
    named = [key for key in made.overrides if key not in PROLONGABLE]
    variant = variant_name(f"{loaded.variant}+{run_folders.SEARCH_MARK}", [*named, *values], point)
    # What is traced stays at the configuration's value, so that all trials share the compiled program.
    config = registry.apply_overrides(made.base, {key: values[key] for key in values if key not in made.traced})
    traced = {key: registry.keys(point)[key] for key in made.traced}
    members = members_of(config, variant, made.seeds, made.first_seed)
    chosen = made.overrides | {key: registry.keys(point)[key] for key in values}
    # As for the grid, the default variant has a name in the folder's.
    name = variant if loaded.variant else f"{run_folders.DEFAULT_VARIANT}{variant}"
    folder = run_folders.run_folder(made.runs, loaded.name, name)
    job = Job(config, [member._replace(values=traced) for member in members], folder)
    return job, run_command(loaded, chosen, made.seeds, made.first_seed)


def run_trials(made: Search, *, fresh: bool = False, **settings: Any) -> int:
    """Trains trials in this process until all are done or others train what is left; returns an exit status.

    Args:
      made: the search.
      fresh: train new trials anew where their run folder is there.
      settings: of ``run_job``.

    Raises:
      UserError: if the journal is none of this search or stays locked, or a trial cannot be trained; the trial has then
        failed, and another takes its place.
    """
    study = open_study(made)
    while True:
        with contextlib.ExitStack() as held:
            found = _next_trial(made, study, held)
            if found is None:
                return 0
            number, values, new = found
            job, command = job_of(made, values)
            _wait_for_others(made, study, number, job)
            watch = _Watch(made, study, number)
            plan = Plan(made.loaded.name, [job], {job.members[0].variant: command})
            try:
                status = run_job(
                    plan,
                    0,
                    fresh=fresh and new,
                    title=f"{made.loaded.name} search, trial {number + 1} of {made.settings.trials}",
                    watch=watch,
                    **settings,
                )
            except UserError:
                with lock(made.folder / "ask.lock"):
                    study.tell(number, state=_states().FAIL)
                raise
            if status and not watch.pruned:
                return status
            with lock(made.folder / "ask.lock"):
                _tell(made, study, number, job, watch.pruned)


def open_study(made: Search) -> Any:
    """The Optuna study of a search; made where there is none.

    Raises:
      UserError: if its journal is that of something else, cannot be read or written, or stays locked.
    """
    optuna = require_optuna()
    path = made.folder / JOURNAL
    name = made.loaded.name
    try:
        made.folder.mkdir(parents=True, exist_ok=True)
        with lock(made.folder / "ask.lock"):
            mend(path)
            storage = optuna.storages.JournalStorage(
                optuna.storages.journal.JournalFileBackend(str(path), lock_obj=JournalLock(path))
            )
            known = [study.study_name for study in storage.get_all_studies()]
            if known and known != [name]:
                raise ValueError(f"it holds the studies {known}")
            pruner = optuna.pruners.MedianPruner() if made.settings.prune else optuna.pruners.NopPruner()
            study = optuna.create_study(
                storage=storage, study_name=name, load_if_exists=True, direction="maximize", pruner=pruner
            )
            for trial in study.get_trials(deepcopy=False):
                if trial.params and trial.params.keys() != made.space.keys():
                    raise ValueError(f"its trials have the keys {sorted(trial.params)}")
            return study
    except OSError as error:
        raise cannot_write(made.folder, error) from error
    except UserError:
        raise
    # A journal of something else may lack anything.
    except Exception as error:
        why = printable(f"{type(error).__name__}: {error}")[:200]
        raise UserError(
            f"{path} is no journal of this search ({why}): remove the folder {made.folder} to start over, or give "
            "--runs for another place"
        ) from error


def remove_search(made: Search) -> None:
    """Removes the journal, so that the search starts over; rows of its trials go when they are trained anew.

    Raises:
      UserError: if it cannot be removed, or a process trains a trial of it.
    """
    for path in made.folder.glob("trial_*.lock"):
        with lock(path, patience=0.0):
            pass
    try:
        if made.folder.exists():
            shutil.rmtree(made.folder)
    except OSError as error:
        raise cannot_write(made.folder, error) from error


def points_of(made: Search) -> tuple[Plan, set[str]]:
    """The trials so far as the points of a plan, and the variants of those that were pruned."""
    states = _states()
    jobs, commands, pruned = {}, {}, set()
    for trial in open_study(made).get_trials(deepcopy=False):
        if trial.state == states.FAIL or trial.params.keys() != made.space.keys():
            continue
        job, command = job_of(made, _values(made, trial.params))
        variant = job.members[0].variant
        jobs[variant], commands[variant] = job, command
        pruned |= {variant} if trial.state == states.PRUNED else set()
    return Plan(made.loaded.name, list(jobs.values()), commands), pruned


def _next_trial(made: Search, study: Any, held: contextlib.ExitStack) -> tuple[int, dict[str, Any], bool] | None:
    """A trial to train, whose lock ``held`` keeps: its number, its values, and whether it is new; ``None`` for none."""
    states = _states()
    with lock(made.folder / "ask.lock"):
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state != states.RUNNING or not _take(made, trial.number, held):
                continue
            if trial.params.keys() == made.space.keys():
                return trial.number, _values(made, trial.params), False
            # Killed while it was drawn: the next one is drawn in its place.
            study.tell(trial.number, state=states.FAIL)
        counted = [trial for trial in study.get_trials(deepcopy=False) if trial.state != states.FAIL]
        if len(counted) >= made.settings.trials:
            return None
        study.sampler = _sampler(made.settings, len(counted))
        trial = study.ask(_distributions(made))
        _take(made, trial.number, held)
        return trial.number, _values(made, trial.params), True


def _sampler(settings: Settings, index: int) -> Any:
    """The sampler of the trial ``index``: what it draws depends on the seed, its index and, of ``tpe``, on the trials
    before it, and not on which process draws it or what was interrupted."""
    optuna = require_optuna()
    seed = int(np.random.SeedSequence([settings.seed, index]).generate_state(1)[0])
    if settings.kind == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)


def _distributions(made: Search) -> dict[str, Any]:
    optuna = require_optuna()
    found: dict[str, Any] = {}
    for key, values in made.space.items():
        if not isinstance(values, Range):
            # By its place: a choice may be a tuple, which a journal cannot hold.
            found[key] = optuna.distributions.CategoricalDistribution(list(range(len(values))))
        elif isinstance(values.low, int):
            found[key] = optuna.distributions.IntDistribution(values.low, int(values.high), log=values.log)
        else:
            found[key] = optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)
    return found


def _values(made: Search, params: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a trial."""
    found = {}
    for key, values in made.space.items():
        if not isinstance(values, Range):
            found[key] = values[params[key]]
        elif isinstance(values.low, int):
            found[key] = params[key]
        else:
            found[key] = min(max(float(f"{params[key]:.{SIGNIFICANT_DIGITS}g}"), values.low), values.high)
    return found


def _wait_for_others(made: Search, study: Any, number: int, job: Job) -> None:
    """Waits until no other process trains the same point: its run folder has one writer, and is then found finished."""
    states = _states()
    variant = job.members[0].variant
    for trial in study.get_trials(deepcopy=False):
        same = trial.number < number and trial.params.keys() == made.space.keys()
        if same and job_of(made, _values(made, trial.params))[0].members[0].variant == variant:
            while study.get_trials(deepcopy=False)[trial.number].state == states.RUNNING:
                with contextlib.ExitStack() as held:
                    if _take(made, trial.number, held):
                        break
                time.sleep(POLL_SECONDS)


def _tell(made: Search, study: Any, number: int, job: Job, pruned: bool) -> None:
    states = _states()
    rows = reading.read_rows(job.folder / run_folders.METRICS_FILE)
    point = ranking(rows, made.settings.metric, made.settings.rank)[0]
    # A point that diverged has no value that could be compared, and is none to draw others like.
    if pruned or point["stopped"] or point["iqm"] is None:
        study.tell(number, state=states.PRUNED)
    else:
        study.tell(number, point["iqm"])


class _Watch:
    """Reports the evaluations of a trial to the study; true once the trial is to end."""

    def __init__(self, made: Search, study: Any, number: int):
        self._made, self._study, self._number = made, study, number
        self.pruned = False

    def __call__(self, iterations: int, metrics: Mapping[str, Any]) -> bool:
        value = metrics.get(self._made.settings.metric)
        if not self._made.settings.prune or value is None or not math.isfinite(value):
            return self.pruned
        optuna = require_optuna()
        frozen = self._study.get_trials(deepcopy=False)[self._number]
        with lock(self._made.folder / "ask.lock"):
            # A trial that was picked up trains its last chunk again.
            if iterations not in frozen.intermediate_values:
                optuna.trial.Trial(self._study, frozen._trial_id).report(value, iterations)
            frozen = self._study.get_trials(deepcopy=False)[self._number]
            self.pruned = self._study.pruner.prune(self._study, frozen)
        return self.pruned


def _states() -> Any:
    return require_optuna().trial.TrialState


def _take(made: Search, number: int, held: contextlib.ExitStack) -> bool:
    """Takes the lock of a trial, where no other process has it; ``held`` keeps it."""
    try:
        held.enter_context(lock(made.folder / f"trial_{number}.lock", patience=0.0))
    except UserError:
        return False
    return True
