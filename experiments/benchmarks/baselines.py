"""Another library's agent on an experiment's environment, trained in an interpreter of its own."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from experiments.assembly import registry
from experiments.assembly.build import build_environment
from experiments.disk import read_json_object, write_atomic, write_json_atomic
from experiments.errors import UserError, reason, unknown
from experiments.evaluators.base import episode_length, episode_seeds, evaluator_key
from experiments.rows import reading, run_folders
from experiments.rows.environment_report import environment_report
from experiments.training.keys import evaluation_key

SCRIPT = Path(__file__).with_name("baseline_learning.py")


class Point(NamedTuple):
    """A baseline with its settings, the variant that its rows are filed under, and their run folder."""

    variant: str
    settings: dict[str, Any]
    folder: Path


def environment_id(config: Any) -> str:
    """The gymnasium identifier of the environment of ``config``.

    Raises:
      UserError: for an environment that is not one of gymnasium's.
    """
    section = config.environment
    if section.kind == "functional":
        return section.name
    if section.kind == "gymnasium":
        return section.environment_id
    raise UserError(f"environment.kind={section.kind!r}: a baseline trains on gymnasium's environments only")


def evaluation_settings(config: Any) -> dict[str, int]:
    """``episodes`` and ``length`` of a baseline's evaluations, and ``greedy`` where it is false: those of the
    experiment's evaluator of kind episodes.

    Raises:
      UserError: if it has none.
    """
    sections = [section for section in config.evaluators.values() if section.kind == "episodes"]
    if not sections:
        raise UserError(
            "evaluators: a baseline is evaluated on episodes alone; expected an evaluator of kind 'episodes'"
        )
    spec = build_environment(config).spec
    settings = {"episodes": sections[0].count, "length": episode_length(spec, sections[0].cut)}
    # Greedy episodes go without saying: rows that were made before there was a choice stay comparable.
    return settings if sections[0].greedy else settings | {"greedy": False}


def evaluation_seeds(seed: int, count: int) -> list[int]:
    """The seeds of the ``count`` episodes on which seed ``seed`` of a baseline is evaluated: those of a run's first
    evaluator on host environments."""
    return episode_seeds(evaluator_key(evaluation_key(seed), 0), count)


def points(loaded: registry.Loaded, baseline: str, sweep: bool, runs: str) -> list[Point]:
    """The baseline with its own settings, or every point of its grid.

    Raises:
      UserError: if the experiment has no such baseline, or no grid for baselines.
    """
    baselines = getattr(loaded.module, "BASELINES", {})
    if baseline not in baselines:
        raise unknown("baseline", baseline, baselines, f"of {loaded.name!r}")
    if sweep and not hasattr(loaded.module, "get_baseline_sweep"):
        raise UserError(f"--sweep: experiment {loaded.name!r} has no get_baseline_sweep(), the grid of its baselines")
    grid = loaded.module.get_baseline_sweep() if sweep else {}
    found = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        described = [f"{key}={chosen[key]}" for key in sorted(chosen)]
        variant = "+".join([baseline, *([run_folders.SWEEP_MARK, *described] if sweep else [])])
        found.append(
            Point(variant, {**baselines[baseline], **chosen}, run_folders.run_folder(runs, loaded.name, variant))
        )
    return found


def prepare(point: Point, job: Mapping[str, Any]) -> list[reading.Row]:
    """Makes the run folder, or reads the rows of the seeds that it holds.

    Raises:
      UserError: if the folder holds a run of another job.
    """
    path = point.folder / run_folders.CONFIG_FILE
    described = registry.to_json_dict(
        {key: value for key, value in job.items() if key not in ("seed", "evaluation_seeds")}
    )
    if path.exists():
        differences = registry.difference(read_json_object(path), described)
        if differences:
            shown = "; ".join(str(one) for one in differences[:3])
            raise UserError(f"{point.folder} holds a run of another baseline ({shown}); give --runs for another place")
    else:
        write_json_atomic(path, described)
    rows = point.folder / run_folders.METRICS_FILE
    return reading.read_rows(rows) if rows.exists() else []


def unfinished(
    loaded: registry.Loaded, baseline: str, made: Sequence[Point], seeds: Sequence[int]
) -> list[tuple[Point, dict[str, Any]]]:
    """The jobs that are left: each point with each of ``seeds`` that its run folder, made where there is none, lacks.

    Raises:
      UserError: if a folder holds a run of another job, the environment is not one of gymnasium's, or the experiment
        has no evaluator of kind episodes.
    """
    config, evaluation = loaded.config, evaluation_settings(loaded.config)
    slots = config.data.length * config.data.batch
    waiting = []
    for point in made:
        job = {
            "baseline": baseline.partition(",")[0],
            "environment_id": environment_id(config),
            "steps": config.iterations * slots,
            "evaluate_every": config.evaluate_every * slots,
            "settings": point.settings,
            **evaluation,
        }
        finished = {row["seed"] for row in prepare(point, job)}
        for seed in (seed for seed in seeds if seed not in finished):
            own = evaluation_seeds(seed, evaluation["episodes"])
            waiting.append((point, job | {"seed": seed, "evaluation_seeds": own}))
    return waiting


def train_all(
    experiment: str, waiting: Sequence[tuple[Point, dict[str, Any]]], python: str, jobs: int
) -> Iterator[tuple[Point, int, float]]:
    """Trains the jobs of ``unfinished``, ``jobs`` at a time, and files the rows of each as soon as it has ended.

    Yields:
      For each job its point, its seed and its last return.

    Raises:
      UserError: as ``train``; jobs that have not been started are not started then.
    """
    with ThreadPoolExecutor(jobs) as executor:
        running = {executor.submit(train, python, job): (point, job) for point, job in waiting}
        try:
            for future in as_completed(running):
                point, job = running[future]
                versions, rows = future.result()
                identity = {"experiment": experiment, "variant": point.variant, "seed": job["seed"]}
                path = point.folder / run_folders.METRICS_FILE
                held = reading.read_rows(path) if path.exists() else []
                report = environment_report() | {"versions": versions}
                write_json_atomic(point.folder / run_folders.ENVIRONMENT_FILE, report)
                lines = [reading.encode_line(row) for row in (*held, *(identity | row for row in rows))]
                write_atomic(path, b"".join(lines))
                yield point, job["seed"], rows[-1]["return"]
        finally:
            executor.shutdown(cancel_futures=True)


def train(python: str, job: Mapping[str, Any]) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """One seed of a baseline in its own process: the versions there, and its evaluations.

    Raises:
      UserError: if the interpreter cannot be started, the baseline fails (its last line is quoted), or the output is
        anything but versions and evaluations.
    """
    try:
        done = subprocess.run(
            [python, "-P", str(SCRIPT), json.dumps(job)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise UserError(f"cannot start {python}: {reason(error)}; expected a Python interpreter") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise UserError(
            f"{python}: the baseline {job['baseline']!r} failed: {said[-1] if said else f'status {done.returncode}'}"
        )
    answer = _evaluations(done.stdout)
    if answer is None:
        first = (done.stdout.splitlines() or [""])[0][:60]
        raise UserError(f"{python} answered {first!r}: expected the interpreter that has {job['baseline']!r} installed")
    return answer


def _evaluations(answer: str) -> tuple[dict[str, str], list[dict[str, Any]]] | None:
    """Versions and rows of what a baseline printed; None where it printed anything else."""
    try:
        versions, *rows = [json.loads(line) for line in answer.splitlines()]
    except ValueError:
        return None
    if not rows or not all(isinstance(line, dict) for line in (versions, *rows)):
        return None
    numbers = all(type(row.get("env_steps")) is int and isinstance(row.get("return"), int | float) for row in rows)
    return (versions, rows) if numbers else None
