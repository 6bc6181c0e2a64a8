"""``python -m experiments.evaluate RUN [--checkpoint=best]``: a checkpoint on held-out start states.

RUN is a run folder, or ``NAME[:variant]`` under ``--runs``. The episodes are those of ``TEST_SEED``, the same for every
run and none of those on which it was evaluated as it trained: these chose the best checkpoint and would flatter it. The
best is that of all members together, in a sweep of all points.

``--config.environment.KEY=VALUE`` changes the world for the evaluation alone, ``--environment=KIND`` replaces it, with
``--config.environment.KEY=VALUE`` as its arguments: train on easy rooms, evaluate on harder ones of the same
observations and actions.
"""

from __future__ import annotations

import contextlib
import json
import math
import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from envs.choices import nearest
from experiments import registry, results, statistics
from experiments.build import TEST_SEED, World, build_world
from experiments.cache import enable_compilation_cache
from experiments.checkpoint import Checkpoints, Restored
from experiments.command_parser import CommandParser
from experiments.drivers import Member, drivers
from experiments.errors import UserError, command
from experiments.learn import RunState
from experiments.ranges import validate
from experiments.train import CHECKPOINT_FOLDER, program_name, restore

CHOICES = ("best", "latest")
CHANGEABLE = ("environment.", "evaluation.")


def parser() -> CommandParser:
    made = CommandParser(prog="python -m experiments.evaluate", description=__doc__.split("\n")[0])
    made.add_argument("run", help="a run folder, or NAME[:variant]")
    made.add_argument("--runs", default=results.RUNS_FOLDER, help="where run folders are (default: runs)")
    made.add_argument("--checkpoint", default="best", help="best of all seeds (the default), latest or an iteration")
    made.add_argument("--environment", metavar="KIND", help="another kind of world, its arguments as --config keys")
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
    # A variant with overrides is no variant of the experiment's; it is looked up as it is.
    with contextlib.suppress(UserError):
        variant = registry.load(run).variant
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
    found = results.read_description(folder)
    members = [Member(one["seed"], one["variant"], one["values"]) for one in found["members"]]
    return registry.from_json_dict(found["config"]), members


def read_single_run(folder: Path) -> tuple[ConfigDict, list[Member]]:
    """The same of a run, whose members are the seeds of one variant.

    Raises:
      UserError: if it is a sweep, or its description cannot be read.
    """
    config, members = read_run(folder)
    if len({member.variant for member in members}) > 1:
        raise UserError(f"{folder} holds a sweep: expected a run, whose seeds are of one variant")
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


def changed_config(config: ConfigDict, kind: str | None, overrides: Mapping[str, Any]) -> ConfigDict:
    """``config`` for an evaluation: with another world, or another number of episodes.

    Args:
      config: what was trained.
      kind: of a world that replaces the trained one's section; ``None`` keeps it.
      overrides: dotted key to value; with ``kind`` those of the section environment are the new world's arguments.

    Raises:
      UserError: for a key that is unknown or of the training, or a value of another type.
    """
    for key in overrides:
        if not key.startswith(CHANGEABLE):
            raise UserError(
                f"key {key!r} is of the training: an evaluation changes {' and '.join(f'{c}KEY' for c in CHANGEABLE)}"
            )
    changed = config.copy_and_resolve_references()
    # Where the policy started from is over; a host world would have no expert.
    if "warm_start" in changed:
        changed.warm_start.rooms = 0
    if kind is not None:
        given = [key.removeprefix("environment.") for key in overrides if key.startswith("environment.")]
        with changed.unlocked():
            # Empty fields take values of any type.
            changed.environment = {"kind": kind} | dict.fromkeys(given)
    changed = registry.apply_overrides(changed, overrides)
    validate(changed)
    return changed


def evaluate_run(
    folder: Path,
    checkpoint: str = "best",
    overrides: Mapping[str, Any] | None = None,
    environment: str | None = None,
    seed: int = TEST_SEED,
) -> list[dict[str, Any]]:
    """Evaluates every member of a run: one row per seed with ``seed``, ``variant``, ``iteration`` and the metrics.

    Args:
      folder: the run folder.
      checkpoint: ``best``, ``latest`` or an iteration.
      overrides, environment: for the evaluation alone, see ``changed_config``.
      seed: of the episodes; ``EVALUATION_SEED`` repeats what the run's rows say.

    Raises:
      UserError: if there is no such checkpoint, it is of another configuration, or the changed world has other shapes
        or is not finite.
    """
    config, members = read_run(folder)
    changed = changed_config(config, environment, overrides or {})
    world = build_world(config)
    changed_world = build_world(changed) if changed.environment != config.environment else world
    described, wanted = world.spec.observation_template(), changed_world.spec.observation_template()
    if described != wanted or world.spec.action_space != changed_world.spec.action_space:
        raise UserError(
            f"the changed world has observations {wanted} and actions {changed_world.spec.action_space}; "
            f"the run was trained on {described} and {world.spec.action_space}"
        )
    rows: list[dict[str, Any]] = []
    for own, found in restored_programs(folder, config, world, members, checkpoint):
        state = found.state
        if (world.environment is None) == (changed_world.environment is None):
            states = [state]
        elif world.environment is None:
            states = [_with_params(state, operator.itemgetter(None))]
        else:
            # Worlds of a host are stepped for one member at a time.
            states = [_with_params(state, operator.itemgetter(position)) for position in range(len(own))]
        evaluated = _evaluated(drivers(changed, changed_world, own), states, seed)
        for position, member in enumerate(own):
            row = {"seed": member.seed, "variant": member.variant, "iteration": found.iteration}
            rows.append(row | {name: float(values[position]) for name, values in evaluated.items()})
    return rows


def restored_programs(
    folder: Path, config: ConfigDict, world: World, members: Sequence[Member], checkpoint: str
) -> Iterator[tuple[list[Member], Restored]]:
    """Per program of a run: its members and its checkpoint.

    Args:
      folder: the run folder.
      config, world, members: what it was run with.
      checkpoint: ``best``, ``latest`` or an iteration.

    Raises:
      UserError: if there is no such checkpoint, or it is of another configuration.
    """
    done = index = 0
    while done < len(members):
        path = folder / CHECKPOINT_FOLDER / program_name(index)
        if not path.is_dir():
            raise UserError(f"no checkpoint in {path}: run the experiment first")
        checkpoints = Checkpoints(path, read_only=True)
        try:
            iteration = iteration_of(checkpoints, checkpoint)
            # How many members a program has is the run's business: a sweep may have cut them up.
            own = list(members[done : done + len(checkpoints.meta(iteration)["members"])])
            [make] = drivers(config, world, own)
            with contextlib.closing(make()) as driver:
                found = restore(checkpoints, config, driver, iteration)
        finally:
            checkpoints.close()
        yield own, found
        done += len(own)
        index += 1


def _with_params(state: RunState, change: Callable[[Any], Any]) -> RunState:
    return state._replace(agent=state.agent._replace(params=jax.tree.map(change, state.agent.params)))


def _evaluated(makers: Sequence[Callable[[], Any]], states: Sequence[RunState], seed: int) -> dict[str, np.ndarray]:
    """The metrics ``[members]`` of each driver's state, one after the other."""
    parts: list[dict[str, np.ndarray]] = []
    for make, state in zip(makers, states, strict=True):
        with contextlib.closing(make()) as judge:
            try:
                parts.append(judge.evaluate(state, seed))
            except FloatingPointError as error:
                raise UserError(str(error)) from error
    evaluated = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name, values in evaluated.items():
        if not np.all(np.isfinite(values)):
            raise UserError(f"the world gives a {name!r} of {values.tolist()}: expected finite rewards")
    return evaluated


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per variant and metric ``iqm``, ``low`` and ``high`` over the seeds."""
    metrics = [name for name in rows[0] if name not in ("seed", "variant", "iteration")]
    answer: dict[str, dict[str, Any]] = {}
    for variant in dict.fromkeys(row["variant"] for row in rows):
        answer[variant] = {}
        for name in metrics:
            values = np.asarray([row[name] for row in rows if row["variant"] == variant])
            interval = statistics.stratified_bootstrap(values)
            low, high = (None if math.isnan(end) else end for end in (interval.low, interval.high))
            answer[variant][name] = {"iqm": interval.estimate, "low": low, "high": high}
    return answer


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates one run.

    Raises:
      UserError: for anything the user can repair.
    """
    made = parser()
    arguments, rest = made.parse_known_args(argv)
    overrides: dict[str, Any] = dict(registry.parse_overrides(rest, made.shown_options()))
    if arguments.episodes is not None:
        if arguments.episodes < 1:
            raise UserError(f"--episodes={arguments.episodes}: expected at least 1")
        overrides["evaluation.episodes"] = arguments.episodes
    if arguments.greedy is not None:
        overrides["evaluation.greedy"] = arguments.greedy
    folder = find_folder(arguments.run, arguments.runs)
    enable_compilation_cache()
    rows = evaluate_run(folder, arguments.checkpoint, overrides, arguments.environment)
    answer = summarise(rows)
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
        shown = [variant or results.DEFAULT_VARIANT] if several else []
        for row in (row for row in rows if row["variant"] == variant):
            table.add_row(*shown, str(row["seed"]), str(row["iteration"]), *(f"{row[name]:.4g}" for name in metrics))
        table.add_section()
        table.add_row(*shown, "IQM", "", *(_span(summary[name]) for name in metrics))
        table.add_section()
    Console().print(table)
    return 0


def _span(entry: Mapping[str, float | None]) -> str:
    if entry["low"] is None:
        return f"{entry['iqm']:.4g}"
    return rf"{entry['iqm']:.4g} \[{entry['low']:.4g}, {entry['high']:.4g}]"


if __name__ == "__main__":
    sys.exit(main())
