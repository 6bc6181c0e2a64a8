"""``sagax run NAME[:variant] [--config.KEY=VALUE ...]``: trains an experiment and reports its last evaluation.

The same command again continues a run that was stopped or killed. With more ``--seeds`` than a run has, it continues
with the new seeds beside the old ones.

``--logger=wandb`` and ``--logger=mlflow`` log the rows there as well, a run per seed: what the module of each in
``experiments/training/loggers`` says of its variables. A continued run continues their runs, too, and hands over what
they missed; ``loggers.json`` in the run folder says what was logged.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.assembly import registry
from experiments.assembly.checks import checked_environment, require_observations
from experiments.assembly.members import members_of, variant_name
from experiments.commands.command_parser import CommandParser
from experiments.commands.options import add_logger_option, add_runs_option
from experiments.errors import SIGNAL_EXIT, UserError, command, say
from experiments.rows import reading, run_folders
from experiments.training.compilation_cache import enable_compilation_cache
from experiments.training.loggers.sink import require_loggers
from experiments.training.processes import SharedStop, join_processes, writer_first, writes
from experiments.training.progress import progress, result_table
from experiments.training.requirements import memory, require_memory, requirements
from experiments.training.stopping import stop_on_signals
from experiments.training.taking_back import taken_back_if_refused
from experiments.training.train import (
    PROLONGABLE,
    Outcome,
    devices,
    prepare_folder,
    require_annotator,
    train,
)

# Metrics that show where a range of stocks is too narrow; printed only where they are not 0.
NARROW = ("agent/stock_outside", "edge/")


def parser() -> CommandParser:
    made = CommandParser(
        prog="sagax run",
        description="Train an experiment, or continue it where it stopped. --config.KEY=VALUE changes any key of its "
        "configuration; sagax show NAME lists them.",
    )
    made.add_argument("name", metavar="NAME", help="NAME or NAME:variant,variant; see sagax list")
    made.add_argument(
        "--seeds", type=int, help="how many seeds, counted from --first-seed (default: the configuration's)"
    )
    made.add_argument("--first-seed", type=int, default=0, help="the first seed (default: 0)")
    add_runs_option(made)
    made.add_argument("--fresh", action="store_true", help="delete what an earlier run left and start over")
    made.add_argument("--members-per-program", type=int, help="seeds in one program at most (default: all); 1 is exact")
    made.add_argument(
        "--unpickle-environments", action="store_true", help="load saved environments that run code, whoever wrote them"
    )
    add_logger_option(made)
    made.add_argument("--figure", type=Path, help="also draw the learning curve, to a .pdf, .png or .svg file")
    made.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs one experiment.

    Raises:
      UserError: for anything the user can repair.
    """
    made = parser()
    arguments, rest = made.parse_known_args(argv)
    join_processes()
    if arguments.figure:
        # Here, so that a run without a figure does not wait for matplotlib.
        from experiments.rows import figures

        figures.require_destination(arguments.figure)
    loaded = registry.load(arguments.name)
    overrides = registry.parse_overrides(rest, made.shown_options(), loaded.config)
    loaded = registry.with_overrides(loaded, overrides)
    config = loaded.config
    source = checked_environment(config)
    require_observations(config, source)
    size = arguments.members_per_program
    if size is not None and size < 1:
        raise UserError(f"--members-per-program={size}: expected at least 1")
    require_memory(requirements(config, source, arguments.seeds, size), memory())
    members = members_of(config, loaded.variant, arguments.seeds, arguments.first_seed)
    variant = variant_name(loaded.variant, loaded.overrides.keys() - set(PROLONGABLE), config)
    members = [member._replace(variant=variant) for member in members]
    folder = run_folders.run_folder(arguments.runs, loaded.name, variant)
    require_annotator(config, source, folder, fresh=arguments.fresh)
    enable_compilation_cache()
    title = f"{loaded.name}:{variant}" if variant else loaded.name
    total = config.iterations * len(members)
    writer_first(lambda: require_loggers(arguments.logger if writes() else ()))
    with contextlib.ExitStack() as stack:
        stack.enter_context(taken_back_if_refused(folder, fresh=arguments.fresh))
        programs = writer_first(
            lambda: prepare_folder(
                folder, config, members, fresh=arguments.fresh and writes(), members_per_program=size
            )
        )
        # One process tells the user about the run.
        told = sys.stderr if writes() else stack.enter_context(open(os.devnull, "w"))
        seeds = f"{len(members)} seed{'s' if len(members) > 1 else ''}"
        print(f"{title}: {seeds} on {devices()}, in {folder}", file=told)
        stop = SharedStop(stack.enter_context(stop_on_signals()))
        reporter = stack.enter_context(progress(total, title, metric=config.evaluation.metric, stream=told))
        outcome = train(
            config,
            loaded.name,
            programs,
            folder,
            reporter,
            stop,
            source,
            unpickle=arguments.unpickle_environments,
            loggers=arguments.logger,
        )
    if not writes():
        return 0 if outcome.finished else SIGNAL_EXIT + (outcome.signal or 0)
    return _report(outcome, loaded.name, config, folder, arguments)


def _report(outcome: Outcome, loaded_name: str, config, folder: Path, arguments: argparse.Namespace) -> int:
    # The totals of costs and objectives stand beside the return.
    others = [name for name in reading.metrics_of(outcome.rows) if name.startswith("return/")]
    metrics = [config.evaluation.metric, "return", *others, "length"]
    metrics = list(dict.fromkeys(name for name in metrics if any(name in row for row in outcome.rows)))
    final = [row for row in outcome.rows if row["iteration"] == outcome.rows[-1]["iteration"]]
    found = [name for name in reading.metrics_of(final) if name.startswith(NARROW)]
    metrics += [name for name in found if any(row.get(name) for row in final)]
    if arguments.figure and outcome.rows:
        from experiments.rows import figures

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
        say(f"stopped by signal {outcome.signal}; the same command continues")
        return SIGNAL_EXIT + (outcome.signal or 0)
    return 0
