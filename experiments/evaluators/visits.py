"""Where trained policies go in the maze."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from agents.statistics import masked_mean
from envs.native.maze import NO_OP, visits
from experiments.assembly.build import build_environment, build_parts
from experiments.errors import UserError
from experiments.rows import reading
from experiments.training import learn
from experiments.training.checkpoint_rows import row_starts
from experiments.training.keys import evaluation_key
from experiments.training.restored import read_single_run, restored_programs


def count_visits(folder: Path, checkpoint: str = "latest", episodes: int | None = None) -> reading.Section:
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
    # A maze is a pure environment.
    environment: Any = build_environment(reporting).pure
    source = build_environment(config)
    agent = build_parts(config, source.spec).agent
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
    for own, found in restored_programs(folder, config, source, members, checkpoint):
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
    return reading.Section(header, rows)
