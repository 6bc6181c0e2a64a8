"""``python -m experiments.run NAME[:variant] [--config.KEY=VALUE ...]``: trains, resumes, reports.

The same command again continues where the run stopped, or was killed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from envs.types import EnvironmentSpec
from experiments import figures, registry, results
from experiments.build import (
    TEST_SEED,
    World,
    build_annotation,
    build_objectives,
    build_parts,
    build_world,
    require_expert,
)
from experiments.cache import enable_compilation_cache
from experiments.command_parser import CommandParser
from experiments.drivers import Member
from experiments.errors import UserError, command, unknown
from experiments.progress import progress, result_table
from experiments.ranges import validate
from experiments.train import PROLONGABLE, Outcome, devices, planned_steps, prepare_folder, stop_on_signals, train

SIGNAL_EXIT = 128
# What says that a range of stocks is too narrow, shown where it says so.
NARROW = ("agent/stock_outside", "edge/")


def parser() -> CommandParser:
    made = CommandParser(prog="python -m experiments.run", description=__doc__.split("\n")[0])
    made.add_argument("name", help="NAME or NAME:variant,variant; see python -m experiments.list")
    made.add_argument("--seeds", type=int, help="how many seeds, counted from --first-seed (default: the config's)")
    made.add_argument("--first-seed", type=int, default=0)
    made.add_argument("--runs", default=results.RUNS_FOLDER, help="where run folders are (default: runs)")
    made.add_argument("--fresh", action="store_true", help="delete what an earlier run left and start over")
    made.add_argument("--figure", help="also write the learning curve to this PNG file")
    made.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return made


def members_of(config, variant: str, seeds: int | None, first_seed: int) -> list[Member]:
    """The members of a run: consecutive seeds.

    Raises:
      UserError: for fewer than one seed or a negative one.
    """
    count = config.seeds if seeds is None else seeds
    if count < 1 or first_seed < 0 or first_seed + count > TEST_SEED:
        raise UserError(
            f"--seeds={count}, --first-seed={first_seed}: expected one seed or more, from 0 to {TEST_SEED - 1}"
        )
    return [Member(seed, variant) for seed in range(first_seed, first_seed + count)]


def checked_world(config: ConfigDict) -> World:
    """The world of ``config``, once everything else that ``config`` describes has been built on it as well.

    Raises:
      UserError: for a configuration that cannot be run, before anything is written or computed.
    """
    validate(config)
    world = build_world(config)
    build_parts(config, world.spec)
    build_objectives(config, world.spec)
    build_annotation(config, world)
    require_expert(config, world)
    measured = evaluation_metrics(config, world.spec)
    if config.evaluation.metric not in measured:
        raise unknown("metric", config.evaluation.metric, measured, "in evaluation.metric")
    return world


def evaluation_metrics(config: ConfigDict, spec: EnvironmentSpec) -> list[str]:
    """The names of what an evaluation measures in a world of ``spec``."""
    measured = ["return", "length", *spec.info]
    for name in config.evaluation.get("objectives", {}):
        measured += ["objective", f"objective/{name}", f"mean/{name}", f"stock/{name}", f"edge/{name}"]
    return measured


def variant_name(variant: str, overrides: Iterable[str], config: ConfigDict) -> str:
    """The variant that rows are filed under: overrides make another variant, ``grpo+agent.learning_rate=0.001``.

    Values are written as ``config`` holds them, so that ``1e-3`` and ``0.001`` are one variant; a slash would make
    another folder of what follows it.
    """
    values = registry.keys(config)
    described = [f"{key}={values[key]}".replace("/", "-") for key in sorted(overrides)]
    return "+".join([variant, *described])


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs one experiment.

    Raises:
      UserError: for anything the user can repair.
    """
    made = parser()
    arguments, rest = made.parse_known_args(argv)
    if arguments.figure:
        figures.require_destination(arguments.figure)
    loaded = registry.load(arguments.name)
    overrides = registry.parse_overrides(rest, made.shown_options())
    config = registry.apply_overrides(loaded.config, overrides)
    world = checked_world(config)
    members = members_of(config, loaded.variant, arguments.seeds, arguments.first_seed)
    variant = variant_name(loaded.variant, overrides.keys() - set(PROLONGABLE), config)
    members = [member._replace(variant=variant) for member in members]
    folder = results.run_folder(arguments.runs, loaded.name, variant)
    enable_compilation_cache()
    prepare_folder(folder, config, members, fresh=arguments.fresh)
    title = f"{loaded.name}:{variant}" if variant else loaded.name
    print(f"{title}: {len(members)} seeds on {devices()}, in {folder}", file=sys.stderr)
    total = planned_steps(config, len(members))
    with stop_on_signals() as stop, progress(total, title, metric=config.evaluation.metric) as reporter:
        outcome = train(config, loaded.name, members, folder, reporter, stop, world)
    return _report(outcome, loaded.name, config, folder, arguments)


def _report(outcome: Outcome, loaded_name: str, config, folder: Path, arguments: argparse.Namespace) -> int:
    metrics = [config.evaluation.metric, "return", "length"]
    metrics = list(dict.fromkeys(name for name in metrics if any(name in row for row in outcome.rows)))
    final = [row for row in outcome.rows if row["iteration"] == outcome.rows[-1]["iteration"]]
    found = [name for name in results.metrics_of(final) if name.startswith(NARROW)]
    metrics += [name for name in found if any(row.get(name) for row in final)]
    if arguments.figure and outcome.rows:
        figures.save(figures.draw({loaded_name: outcome.rows}, config.evaluation.metric), arguments.figure)
    if arguments.json:
        last = {}
        for row in outcome.rows:
            last[row["seed"]] = {key: row.get(key) for key in ("seed", "env_steps", "iteration", *metrics)}
        print(
            json.dumps(
                {
                    "folder": str(folder),
                    "finished": outcome.finished,
                    "resumed_from": outcome.resumed_from,
                    "seeds": list(last.values()),
                }
            )
        )
    else:
        if outcome.resumed_from is not None:
            print(f"continued from iteration {outcome.resumed_from}")
        if outcome.rows:
            result_table(outcome.rows, metrics)
        if arguments.figure and outcome.rows:
            print(f"learning curve: {arguments.figure}")
    if not outcome.finished:
        print(f"stopped by signal {outcome.signal}; the same command continues", file=sys.stderr)
        return SIGNAL_EXIT + (outcome.signal or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
