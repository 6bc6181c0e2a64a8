"""``python -m experiments.visits RUN... --out=FILE.jsonl``: where trained policies go in the maze, for heat maps.

RUN is a run folder of a maze, or ``NAME[:variant]`` under ``--runs``. The policy of every seed walks through the world
that it was trained in and becomes a row: ``visits``, how often it stood on each cell, as rows and columns of the map,
and ``no_op``, the share of steps in which it chose to do nothing. The file is like those of ``experiments.collect``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from agents.credit import masked_mean
from envs.maze import NO_OP, visits
from experiments import learn, results
from experiments.build import build_parts, build_world
from experiments.checkpoint_rows import row_starts, rows_parser, write_rows
from experiments.command_parser import CommandParser
from experiments.drivers import evaluation_key
from experiments.errors import UserError, command
from experiments.evaluate import read_single_run, restored_programs


def parser() -> CommandParser:
    made = rows_parser("visits", "Count where trained policies go in a maze.")
    made.add_argument("--episodes", type=int, help="how many episodes per seed (default: the config's)")
    return made


def count_visits(folder: Path, checkpoint: str = "latest", episodes: int | None = None) -> results.Section:
    """One row per seed of a run: ``visits [H][W]`` and ``no_op``, over all steps of ``episodes`` sampled episodes.

    Raises:
      UserError: if the run is a sweep or not of a maze, has no rows, or no such checkpoint.
    """
    config, members = read_single_run(folder)
    if config.environment.kind != "maze":
        raise UserError(f"{folder}: environment.kind={config.environment.kind!r}: expected a run of a maze")
    header, start = row_starts(folder)
    reporting = config.copy_and_resolve_references()
    with reporting.unlocked():
        reporting.environment.report_cell = True
    # A maze is a pure world.
    environment: Any = build_world(reporting).environment
    world = build_world(config)
    agent = build_parts(config, world.spec).agent
    walk = jax.jit(
        functools.partial(
            learn.evaluation_rollout,
            environment,
            agent,
            num_episodes=episodes or config.evaluation.episodes,
            length=config.evaluation.length,
            greedy=False,
        )
    )
    rows = []
    for own, found in restored_programs(folder, config, world, members, checkpoint):
        for position, member in enumerate(own):
            params = jax.tree.map(lambda x, position=position: x[position], found.state.agent.params)
            trajectory = walk(params, evaluation_key())
            rows.append(
                start(member, found.iteration)
                | {
                    "no_op": round(float(masked_mean(trajectory.action == NO_OP, trajectory.mask)), 4),
                    "visits": np.asarray(visits(trajectory)).tolist(),
                }
            )
    return results.Section(header, rows)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Counts the visits of some runs.

    Raises:
      UserError: for anything the user can repair.
    """
    arguments = parser().parse_args(argv)
    if arguments.episodes is not None and arguments.episodes < 1:
        raise UserError(f"--episodes={arguments.episodes}: expected at least 1")
    write_rows(arguments, lambda folder: count_visits(folder, arguments.checkpoint, arguments.episodes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
