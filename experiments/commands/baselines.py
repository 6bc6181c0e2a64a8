"""``sagax baselines NAME:BASELINE --baseline-python=PYTHON``: another library's agent on an experiment's environment.

The baseline trains for as many environment steps as the experiment and is evaluated at the same steps, on as many
greedy episodes, each seed on its own. Its settings are ``BASELINES[BASELINE]`` of the experiment's configuration, in
that library's words; ``--sweep`` runs the grid of ``get_baseline_sweep()`` instead. The rows are filed under the
variant ``BASELINE`` (``BASELINE+sweep+KEY=VALUE``), in run folders like any other. The same command continues: a seed
that was finished is not run again. What follows a comma in ``BASELINE`` names other settings of the same agent.

What runs in the other interpreter is ``experiments/benchmarks/baseline_learning.py``, which imports nothing of this
repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from experiments.assembly import registry
from experiments.benchmarks.baselines import (
    Point,
    environment_id,
    evaluation_seeds,
    evaluation_settings,
    points,
    prepare,
    train,
)
from experiments.commands.command_parser import CommandParser
from experiments.disk import write_atomic, write_json_atomic
from experiments.errors import UserError, command
from experiments.rows import reading, run_folders
from experiments.rows.environment_report import environment_report


def parser() -> CommandParser:
    made = CommandParser(prog="sagax baselines", description=(__doc__ or "").split("\n")[0])
    made.add_argument("name", help="NAME:BASELINE, such as dqn_cartpole:sb3_dqn or dqn_cartpole:sb3_dqn,tuned")
    made.add_argument("--baseline-python", required=True, help="the interpreter that has the baseline installed")
    made.add_argument("--seeds", type=int, default=1, help="how many seeds, counted from --first-seed (default: 1)")
    made.add_argument("--first-seed", type=int, default=0)
    made.add_argument("--sweep", action="store_true", help="run the baselines' grid in place of the settings")
    made.add_argument("--limit", type=int, help="start at most so many seeds; the same command goes on with the others")
    made.add_argument("--jobs", type=int, default=1, help="processes at a time (default: 1)")
    made.add_argument("--runs", default=run_folders.RUNS_FOLDER, help="where run folders are (default: runs)")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Trains one baseline.

    Raises:
      UserError: for anything the user can repair.
    """
    arguments = parser().parse_args(argv)
    lowest = {"seeds": 1, "first_seed": 0, "jobs": 1, "limit": 1}
    for option, least in lowest.items():
        value = getattr(arguments, option)
        if value is not None and value < least:
            raise UserError(f"--{option.replace('_', '-')}={value}: expected at least {least}")
    name, _, baseline = arguments.name.partition(":")
    loaded = registry.load(name)
    config = loaded.config
    slots = config.data.length * config.data.batch
    evaluation = evaluation_settings(config)
    waiting: list[tuple[Point, dict[str, Any]]] = []
    kept: dict[Path, list[reading.Row]] = {}
    for point in points(loaded, baseline, arguments.sweep, arguments.runs):
        job = {
            "baseline": baseline.partition(",")[0],
            "environment_id": environment_id(config),
            "steps": config.iterations * slots,
            "evaluate_every": config.evaluate_every * slots,
            "settings": point.settings,
            **evaluation,
        }
        kept[point.folder] = prepare(point, job)
        finished = {row["seed"] for row in kept[point.folder]}
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        for seed in (seed for seed in seeds if seed not in finished):
            own = evaluation_seeds(seed, evaluation["episodes"])
            waiting.append((point, job | {"seed": seed, "evaluation_seeds": own}))
    with ThreadPoolExecutor(arguments.jobs) as executor:
        running = {
            executor.submit(train, arguments.baseline_python, job): (point, job)
            for point, job in waiting[: arguments.limit]
        }
        try:
            for future in as_completed(running):
                point, job = running[future]
                versions, rows = future.result()
                identity = {"experiment": loaded.name, "variant": point.variant, "seed": job["seed"]}
                kept[point.folder] += [identity | row for row in rows]
                report = environment_report() | {"versions": versions}
                write_json_atomic(point.folder / run_folders.ENVIRONMENT_FILE, report)
                lines = [reading.encode_line(row) for row in kept[point.folder]]
                write_atomic(point.folder / run_folders.METRICS_FILE, b"".join(lines))
                print(f"{point.variant}, seed {job['seed']}: return {rows[-1]['return']:g}", flush=True)
        finally:
            executor.shutdown(cancel_futures=True)
    for folder in kept:
        print(folder)
    return 0
