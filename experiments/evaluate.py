"""``python -m experiments.evaluate RUN [--checkpoint=best]``: a checkpoint on held-out start states.

RUN is a run folder, or ``NAME[:variant]`` under ``--runs``. ``--config.KEY=VALUE`` changes the configuration for the
evaluation alone, such as the world: train on small rooms, evaluate on others of the same observation shape.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from experiments import registry, results, statistics
from experiments.build import build_world
from experiments.cache import enable_compilation_cache
from experiments.checkpoint import Checkpoints
from experiments.drivers import Driver, Member, drivers
from experiments.errors import UserError, command, nearest
from experiments.train import CHECKPOINT_FOLDER, program_name, restore

CHOICES = ("best", "latest")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m experiments.evaluate", description=__doc__.split("\n")[0])
    made.add_argument("run", help="a run folder, or NAME[:variant]")
    made.add_argument("--runs", default=results.RUNS_FOLDER, help="where run folders are (default: runs)")
    made.add_argument("--checkpoint", default="best", help="best (the default), latest or an iteration")
    made.add_argument("--episodes", type=int, help="how many held-out episodes (default: the config's)")
    acting = made.add_mutually_exclusive_group()
    acting.add_argument("--greedy", action="store_true", default=None, help="act greedily")
    acting.add_argument("--sampled", action="store_false", dest="greedy", help="sample actions")
    made.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return made


def find_folder(run: str, runs: str) -> Path:
    """The run folder of ``run``.

    Raises:
      UserError: if there is none, with the nearest that there is.
    """
    folder = Path(run)
    if (folder / results.CONFIG_FILE).is_file():
        return folder
    name, _, variant = run.partition(":")
    folder = results.run_folder(runs, name, variant)
    if (folder / results.CONFIG_FILE).is_file():
        return folder
    known = [path.parent for path in sorted(Path(runs).glob(f"*/*/{results.CONFIG_FILE}"))]
    named = [f"{path.parent.name}:{path.name}" for path in known]
    raise UserError(f"no run {run!r}: neither {run} nor {folder} holds a {results.CONFIG_FILE}{nearest(run, named)}")


def read_run(folder: Path) -> tuple[ConfigDict, list[Member]]:
    """The configuration and the members of a run folder.

    Raises:
      UserError: if its description cannot be read.
    """
    found = results.read_json(folder / results.CONFIG_FILE)
    try:
        config = registry.from_json_dict(found["config"])
        members = [Member(one["seed"], one["variant"], one["values"]) for one in found["members"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / results.CONFIG_FILE} describes no run: it lacks {error}") from error
    return config, members


def iteration_of(checkpoints: Checkpoints, wanted: str) -> int:
    """The iteration that ``best``, ``latest`` or a number names.

    Raises:
      UserError: if there is no checkpoint, or ``wanted`` is none of these.
    """
    if wanted not in CHOICES and not wanted.isdigit():
        raise UserError(f"--checkpoint={wanted}: expected best, latest or an iteration{nearest(wanted, CHOICES)}")
    if wanted.isdigit():
        return int(wanted)
    found = checkpoints.best() if wanted == "best" else checkpoints.latest()
    if found is None:
        raise UserError(f"no checkpoint in {checkpoints.folder}: run the experiment first")
    return found


def evaluate_run(
    folder: Path, checkpoint: str = "best", overrides: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Evaluates every member of a run: one row per seed with ``seed``, ``variant``, ``iteration`` and the metrics.

    Args:
      folder: the run folder.
      checkpoint: ``best``, ``latest`` or an iteration.
      overrides: dotted key to value, for the evaluation alone.

    Raises:
      UserError: if there is no such checkpoint, it is of another configuration, or the changed world has other shapes.
    """
    config, members = read_run(folder)
    changed = registry.apply_overrides(config, overrides or {})
    world = build_world(config)
    changed_world = build_world(changed) if changed.environment != config.environment else world
    described, wanted = world.spec.observation_template(), changed_world.spec.observation_template()
    if described != wanted or world.spec.action_space != changed_world.spec.action_space:
        raise UserError(
            f"the changed world has observations {wanted} and actions {changed_world.spec.action_space}; "
            f"the run was trained on {described} and {world.spec.action_space}"
        )
    rows = []
    pairs = zip(drivers(config, world, members), drivers(changed, changed_world, members), strict=True)
    for index, (make, make_changed) in enumerate(pairs):
        path = folder / CHECKPOINT_FOLDER / program_name(index)
        if not path.is_dir():
            raise UserError(f"no checkpoint in {path}: run the experiment first")
        checkpoints = Checkpoints(path, read_only=True)
        driver: Driver = make()
        judge: Driver = make_changed()
        try:
            found = restore(checkpoints, config, driver, iteration_of(checkpoints, checkpoint))
            evaluated = judge.evaluate(found.state)
        finally:
            checkpoints.close()
            driver.close()
            judge.close()
        for position, member in enumerate(driver.members):
            row = {"seed": member.seed, "variant": member.variant, "iteration": found.iteration}
            rows.append(row | {name: float(values[position]) for name, values in evaluated.items()})
    return rows


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates one run.

    Raises:
      UserError: for anything the user can repair.
    """
    arguments, rest = parser().parse_known_args(argv)
    overrides: dict[str, Any] = dict(registry.parse_overrides(rest))
    if arguments.episodes is not None:
        if arguments.episodes < 1:
            raise UserError(f"--episodes={arguments.episodes}: expected at least 1")
        overrides["evaluation.episodes"] = arguments.episodes
    if arguments.greedy is not None:
        overrides["evaluation.greedy"] = arguments.greedy
    folder = find_folder(arguments.run, arguments.runs)
    enable_compilation_cache()
    rows = evaluate_run(folder, arguments.checkpoint, overrides)
    metrics = [name for name in rows[0] if name not in ("seed", "variant", "iteration")]
    answer = {}
    for name in metrics:
        values = np.asarray([row[name] for row in rows])
        interval = statistics.stratified_bootstrap(values)
        low, high = (None if math.isnan(end) else end for end in (interval.low, interval.high))
        answer[name] = {"iqm": interval.estimate, "low": low, "high": high}
    if arguments.json:
        print(json.dumps({"folder": str(folder), "seeds": rows, "metrics": answer}))
        return 0
    table = Table("seed", "iteration", *metrics, title=str(folder), title_justify="left")
    for row in rows:
        table.add_row(str(row["seed"]), str(row["iteration"]), *(f"{row[name]:.4g}" for name in metrics))
    table.add_section()
    table.add_row("IQM", "", *(f"{answer[name]['iqm']:.4g}" for name in metrics))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
