"""Rows in the formats of other libraries' statistics: rliable and marl-eval.

A task is an experiment, an algorithm is a variant. Where variants name tasks, as ``hopper`` of ``ppo_mujoco`` does, the
tokens that do so are given, and a task is then ``experiment:tokens``.

Source: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021, and the
README of rliable: a dictionary of algorithm to scores ``[runs, tasks]``, or ``[runs, tasks, steps]``. Gorsane et al.,
"Towards a Standardised Performance Evaluation Protocol for Cooperative MARL", NeurIPS 2022, and the README of
marl-eval: nested by environment, task, algorithm, run and step.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import UserError, unknown
from experiments.rows import reading, statistics
from experiments.rows.run_folders import DEFAULT_VARIANT, METRICS_FILE, is_sweep_point

ABSOLUTES = ("final", "best")
# A curve is environment steps [P] and values [P]; by task, algorithm and seed.
Curve = tuple[np.ndarray, np.ndarray]
Curves = dict[str, dict[str, dict[int, Curve]]]


def read_sources(sources: Iterable[Path], sweep_points: bool = False) -> list[reading.Row]:
    """The rows of run folders and of files of rows.

    Args:
      sources: folders that hold a ``metrics.jsonl``, or files such as ``results/NAME.jsonl``.
      sweep_points: keep the points of sweeps.

    Raises:
      UserError: if one is neither, a row does not say of which experiment it is, or is there twice, or there is none.
    """
    rows: list[reading.Row] = []
    for source in sources:
        if source.is_dir() and not (source / METRICS_FILE).is_file():
            raise UserError(f"{source} is no run folder: it has no {METRICS_FILE}")
        path = source / METRICS_FILE if source.is_dir() else source
        found = reading.read_rows(path)
        if any("experiment" not in row for row in found):
            raise UserError(f"{path}: a row lacks its experiment, which is its task")
        rows += found
    reading.refuse_duplicates(rows, ", ".join(map(str, sources)))
    kept = [row for row in rows if sweep_points or not is_sweep_point(row.get("variant", ""))]
    if not kept:
        left = f": all {len(rows):,} are of points of sweeps (--sweep-points)" if rows else ""
        raise UserError(f"no rows to export in {', '.join(map(str, sources))}{left}")
    return kept


def curves_of(rows: Sequence[reading.Row], metric: str, task_variants: Sequence[str] = ()) -> Curves:
    """The curves of a metric by task, algorithm and seed; every algorithm has the same tasks and number of seeds.

    Args:
      rows: of one or several experiments.
      metric: what is exported.
      task_variants: tokens of variants that name a task.

    Raises:
      UserError: if no row has the metric, a token is of no variant, an algorithm lacks a task that another one has, or
        runs of it.
    """
    known = reading.metrics_of(rows)
    if metric not in known:
        raise unknown("metric", metric, known)
    tokens = {token for row in rows for token in row.get("variant", "").partition("+")[0].split(",") if token}
    for token in task_variants:
        if token not in tokens:
            raise unknown("variant", token, sorted(tokens), "of --task-variants")
    grouped: dict[tuple[str, str], list[reading.Row]] = {}
    for row in rows:
        grouped.setdefault(_task_and_algorithm(row, task_variants), []).append(row)
    found: Curves = {}
    for (task, algorithm), own in sorted(grouped.items()):
        curves = {int(seed): each for seed, each in statistics.seed_curves(own, metric).items()}
        if len(curves) < len({row["seed"] for row in own}):
            raise UserError(f"{algorithm!r} of {task!r} has seeds without a value of {metric!r}: expected one of each")
        found.setdefault(task, {})[algorithm] = curves
    algorithms = sorted({algorithm for by_algorithm in found.values() for algorithm in by_algorithm})
    runs = {(task, algorithm): len(found[task].get(algorithm, {})) for task in found for algorithm in algorithms}
    most = max(runs.values())
    for (task, algorithm), count in runs.items():
        if count != most:
            raise UserError(
                f"algorithm {algorithm!r} has {count} runs of task {task!r}, expected {most} as elsewhere: every "
                "algorithm needs as many runs of every task (--variants chooses the algorithms)"
            )
    return found


def on_a_grid(curves: Curves, points: int) -> Curves:
    """The curves, interpolated linearly at ``points`` environment steps: evenly spaced in each task, from the latest
    first evaluation to the earliest last one of all its runs.

    Raises:
      UserError: if there are fewer than 2 points.
    """
    if points < 2:
        raise UserError(f"--steps={points}: expected at least 2")
    found: Curves = {}
    for task, by_algorithm in curves.items():
        own = [curve for by_seed in by_algorithm.values() for curve in by_seed.values()]
        start, end = max(steps[0] for steps, _ in own), min(steps[-1] for steps, _ in own)
        if not start < end:
            raise UserError(f"--steps={points}: the runs of task {task!r} share no range of environment steps")
        grid = np.linspace(start, end, points).round()
        found[task] = {
            algorithm: {seed: (grid, np.interp(grid, *curve)) for seed, curve in by_seed.items()}
            for algorithm, by_seed in by_algorithm.items()
        }
    return found


def rliable_scores(curves: Curves, per_step: bool) -> dict[str, np.ndarray]:
    """Algorithm to scores: ``[runs, tasks]`` of each run's last value, or ``[runs, tasks, steps]`` of curves on a grid.

    Tasks are in the order of their names, runs in that of their seeds: a run of one task has nothing to do with the run
    of another task beside it.
    """
    scores = {}
    for algorithm in next(iter(curves.values())):
        by_task = [[values for _, values in by_algorithm[algorithm].values()] for by_algorithm in curves.values()]
        chosen = [[values if per_step else values[-1] for values in runs] for runs in by_task]
        scores[algorithm] = np.swapaxes(np.asarray(chosen, dtype=float), 0, 1)
    return scores


def marl_eval_data(curves: Mapping[str, Curves], environment: str, absolute: str) -> dict[str, Any]:
    """The raw data of marl-eval: ``environment -> task -> algorithm -> seed_N -> step_K``.

    A step has its ``step_count`` and, of each metric, a list of one element, which is already the mean over the
    episodes of the evaluation. ``absolute_metrics`` are each run's last values, or with ``best`` those of the
    evaluation in which the first metric was largest. The protocol asks for the best policy on new episodes: those that
    chose it flatter it.

    Args:
      curves: by metric.
      environment: the name that all tasks are put under: what marl-eval compares is within one.
      absolute: ``final`` or ``best``.

    Raises:
      UserError: if runs have other numbers of evaluations, or metrics were not measured together.
    """
    first, *_ = curves.values()
    lengths = {
        (task, algorithm, seed): len(steps)
        for task, by_algorithm in first.items()
        for algorithm, by_seed in by_algorithm.items()
        for seed, (steps, _) in by_seed.items()
    }
    longest = max(lengths.values())
    for (task, algorithm, seed), length in lengths.items():
        if length != longest:
            raise UserError(
                f"algorithm {algorithm!r}, task {task!r}, seed {seed} has {length} evaluations, others have {longest}: "
                "expected as many in every run (--steps=N interpolates)"
            )
    data: dict[str, Any] = {}
    for task, by_algorithm in first.items():
        for algorithm, by_seed in by_algorithm.items():
            for seed, (steps, values) in by_seed.items():
                own = {metric: each[task][algorithm][seed] for metric, each in curves.items()}
                for metric, (others, _) in own.items():
                    if not np.array_equal(others, steps):
                        raise UserError(
                            f"algorithm {algorithm!r}, task {task!r}, seed {seed}: {metric!r} was not measured where "
                            "the other metrics were: expected all at each evaluation (--steps=N interpolates)"
                        )
                run: dict[str, Any] = {
                    f"step_{index + 1}": {"step_count": int(count)}
                    | {metric: [float(found[index])] for metric, (_, found) in own.items()}
                    for index, count in enumerate(steps)
                }
                chosen = int(np.argmax(values)) if absolute == "best" else -1
                run["absolute_metrics"] = {metric: [float(found[chosen])] for metric, (_, found) in own.items()}
                data.setdefault(task, {}).setdefault(algorithm, {})[f"seed_{seed}"] = run
    return {environment: data}


def encoded(scores: Mapping[str, np.ndarray], suffix: str) -> bytes:
    """Scores as the content of a ``.npz`` file, an array per algorithm, or of a ``.json`` file, nested lists.

    Raises:
      UserError: if an algorithm has a name that no array of a ``.npz`` file can have.
    """
    if suffix == ".json":
        return (json.dumps({name: array.tolist() for name, array in scores.items()}, allow_nan=False) + "\n").encode()
    buffer = io.BytesIO()
    try:
        np.savez(buffer, **dict(scores))  # type: ignore[arg-type]
    except TypeError as error:
        raise UserError("no array of a .npz file is called 'file', as an algorithm is: expected *.json") from error
    return buffer.getvalue()


def _task_and_algorithm(row: reading.Row, task_variants: Sequence[str]) -> tuple[str, str]:
    """``ppo_mujoco:hopper`` and ``wide+clip=0.1`` of the variant ``hopper,wide+clip=0.1``; ``hopper`` names a task."""
    words, plus, settings = row.get("variant", "").partition("+")
    tokens = [token for token in words.split(",") if token]
    own = [token for token in tokens if token in task_variants]
    rest = ",".join(token for token in tokens if token not in task_variants) or DEFAULT_VARIANT
    task = f"{row['experiment']}:{','.join(own)}" if own else row["experiment"]
    return task, f"{rest}{plus}{settings}"
