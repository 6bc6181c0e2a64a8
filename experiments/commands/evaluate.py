"""``sagax evaluate RUN [--checkpoint=best]``: a checkpoint on held-out start states.

RUN is a run folder, or ``NAME[:variant]`` under ``--runs``. Every seed has episodes of its own, drawn from the stream
``TEST_SEED``. They are other ones than those that the seed was evaluated on as it trained, which chose the best
checkpoint and would flatter it. The best checkpoint is that of all members together, in a sweep of all points. The
intervals over the seeds cover the draw of the episodes.

The evaluators are those of the run. ``--evaluators=NAME,...`` takes some of them, or others by their kind, with
``--config.evaluators.KIND.KEY=VALUE`` as their arguments.

``--config.environment.KEY=VALUE`` changes the environment for the evaluation alone, and ``--environment=KIND`` replaces
it, with ``--config.environment.KEY=VALUE`` as its arguments: to evaluate on harder rooms with the same observations and
actions, say.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from experiments.assembly import registry
from experiments.commands.command_parser import CommandParser
from experiments.commands.options import add_runs_option
from experiments.errors import UserError, command
from experiments.evaluators.catalogue import EVALUATORS
from experiments.rows import run_folders
from experiments.rows.summary import summarise_members
from experiments.training.compilation_cache import enable_compilation_cache
from experiments.training.restored import evaluate_run, find_folder, read_run


def parser() -> CommandParser:
    made = CommandParser(
        prog="sagax evaluate",
        description="Evaluate a checkpoint on episodes that neither trained nor chose it. "
        "--config.environment.KEY=VALUE changes the environment for this evaluation alone.",
    )
    made.add_argument("run", metavar="RUN", help="a run folder, or NAME[:variant]")
    add_runs_option(made)
    made.add_argument("--checkpoint", default="best", help="best of all seeds (the default), latest or an iteration")
    made.add_argument(
        "--environment", metavar="KIND", help="another kind of environment, its arguments as --config keys"
    )
    made.add_argument(
        "--evaluators", metavar="A,B", help="what to evaluate by (default: the configuration's evaluators)"
    )
    made.add_argument("--episodes", type=int, help="how many held-out episodes (default: the configuration's)")
    acting = made.add_mutually_exclusive_group()
    acting.add_argument("--greedy", action="store_true", default=None, help="act greedily")
    acting.add_argument("--sampled", action="store_false", dest="greedy", help="sample actions")
    made.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates one run.

    Raises:
      UserError: for anything the user can repair.
    """
    made = parser()
    arguments, rest = made.parse_known_args(argv)
    overrides: dict[str, Any] = dict(registry.parse_overrides(rest, made.shown_options()))
    if arguments.episodes is not None and arguments.episodes < 1:
        raise UserError(f"--episodes={arguments.episodes}: expected at least 1")
    folder = find_folder(arguments.run, arguments.runs)
    evaluators = arguments.evaluators.split(",") if arguments.evaluators else []
    config, _ = read_run(folder)
    for option, key in (("episodes", "count"), ("greedy", "greedy")):
        value = getattr(arguments, option)
        if value is not None:
            overrides |= _for_all(config, evaluators, option, key, value)
    enable_compilation_cache()
    rows = evaluate_run(folder, arguments.checkpoint, overrides, arguments.environment, evaluators=evaluators)
    answer = summarise_members(rows)
    if arguments.json:
        # A sweep's folder holds several variants, a run's one.
        [first, *others] = answer.values()
        print(
            json.dumps(
                {"folder": str(folder), "seeds": rows, "metrics": first if not others else None} | {"variants": answer}
            )
        )
        return 0
    print(folder)
    metrics = list(next(iter(answer.values())))
    several = ["variant"] if len(answer) > 1 else []
    table = Table(*several, "seed", "iteration", *metrics)
    for variant, summary in answer.items():
        shown = [variant or run_folders.DEFAULT_VARIANT] if several else []
        for row in (row for row in rows if row["variant"] == variant):
            table.add_row(*shown, str(row["seed"]), str(row["iteration"]), *(f"{row[name]:.4g}" for name in metrics))
        table.add_section()
        table.add_row(*shown, "IQM", "", *(_span(summary[name]) for name in metrics))
        table.add_section()
    Console().print(table)
    return 0


def _for_all(config: ConfigDict, chosen: Sequence[str], option: str, key: str, value: Any) -> dict[str, Any]:
    """``value`` for the ``key`` of every evaluator that has one; of those that are ``chosen``, where any are.

    Raises:
      UserError: if none has.
    """
    names = list(chosen or config.evaluators)
    keys = {name: config.evaluators[name] if name in config.evaluators else _keys_of(name) for name in names}
    found = {f"evaluators.{name}.{key}": value for name in names if key in keys[name]}
    if not found:
        raise UserError(
            f"--{option}: none of the evaluators {', '.join(names)} has a key {key!r}; expected another one by "
            "--evaluators, such as --evaluators=episodes"
        )
    return found


def _keys_of(kind: str) -> Iterable[str]:
    """What the evaluators of a kind that the run has not take; nothing where there is no such kind."""
    return inspect.signature(EVALUATORS[kind].factory).parameters if kind in EVALUATORS else ()


def _span(entry: Mapping[str, float | None]) -> str:
    if entry["low"] is None:
        return f"{entry['iqm']:.4g}"
    return rf"{entry['iqm']:.4g} \[{entry['low']:.4g}, {entry['high']:.4g}]"
