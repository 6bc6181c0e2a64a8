"""Rows that are made of the checkpoints of a run: where its policies go, and what its reward models pay."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.annotation.service import Scripted, as_text, remembered_messages
from experiments.assembly.build import build_annotation, build_environment, build_parts
from experiments.assembly.evaluators import evaluation_context
from experiments.assembly.factories import call
from experiments.assembly.members import Member
from experiments.errors import UserError
from experiments.evaluators.base import PureEpisodes
from experiments.evaluators.ratings import paid_for
from experiments.evaluators.visits import visits
from experiments.rows import collecting, reading, run_folders
from experiments.training.host_driver import annotation_state
from experiments.training.keys import evaluation_key
from experiments.training.published import is_published
from experiments.training.restored import read_single_run, restored_programs
from rewards.feedback.language_feedback import language_feedback


def row_starts(folder: Path) -> tuple[reading.Row, Callable[[Member, int], reading.Row]]:
    """The header of a run's rows, and what a row begins with: ``(member, iteration) -> row``.

    Raises:
      UserError: if the run has no rows; from what is returned, if it has none of a seed and iteration.
    """
    header, known = collecting.run_section(folder)
    steps = {(row["seed"], row.get("iteration")): row["env_steps"] for row in known}

    def start(member: Member, iteration: int) -> reading.Row:
        if (member.seed, iteration) not in steps:
            raise UserError(
                f"{folder / run_folders.METRICS_FILE} has no row of seed {member.seed}, iteration {iteration}"
            )
        return {
            "experiment": header["experiment"],
            "variant": member.variant,
            "seed": member.seed,
            "env_steps": steps[member.seed, iteration],
        }

    return header, start


def count_visits(folder: Path, checkpoint: str = "latest", episodes: int | None = None) -> reading.Section:
    """One row per seed of a run: ``visits [H][W]`` and ``no_op`` (``evaluators.visits``), over ``episodes`` whole
    episodes that are drawn per seed; as many as the run's own evaluation has where ``None``.

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
    reporting_source = build_environment(reporting)
    environment: Any = reporting_source.pure
    source = build_environment(config)
    agent = build_parts(config, source.spec).agent
    context = evaluation_context(reporting, reporting_source, agent, PureEpisodes(environment, agent))
    counts = [section.count for section in config.evaluators.values() if "count" in section]
    evaluator = call(visits, "evaluators", context, count=episodes or max(counts, default=16))
    count = jax.jit(evaluator.evaluate)
    rows = []
    for own, found in restored_programs(folder, config, source, members, checkpoint):
        for position, member in enumerate(own):
            state = jax.tree.map(lambda x, position=position: x[position], found.state._replace(rollout=()))
            counted = count(state, evaluation_key(member.seed))
            rows.append(
                start(member, found.iteration)
                | {"no_op": round(float(counted["no_op"]), 4), "visits": np.asarray(counted["visits"]).tolist()}
            )
    return reading.Section(header, rows)


def rate(folder: Path, checkpoint: str = "latest") -> reading.Section:
    """One row per seed of a run: its messages and what its reward model pays for each (``evaluators.ratings``).

    Raises:
      UserError: if the run is a sweep or has no scripted annotator, no rows, or no such checkpoint.
    """
    config, members = read_single_run(folder)
    kind = config.annotator.kind if "annotator" in config else None
    if kind != "scripted":
        raise UserError(f"{folder}: annotator.kind={kind!r}: expected a run with a scripted annotator")
    if is_published(folder):
        raise UserError(f"{folder} holds no reward model: expected the run folder that it was published from")
    header, start = row_starts(folder)
    source = build_environment(config)
    build_annotation(config, source)
    reward, channel, script = build_parts(config, source.spec).reward, _channel(config), _script(config)
    length, batch = source.spec.message_length, config.data.batch
    rows = []
    for [member], found in restored_programs(folder, config, source, members, checkpoint):
        messages = remembered_messages(annotation_state(found.host) or {})
        paid = paid_for(reward, found.state.reward, channel, messages, length=length, batch=batch)
        rows.append(
            start(member, found.iteration)
            | {
                "messages": [as_text(message) for message in messages],
                "paid": [round(float(each), 4) for each in paid],
                "good": [script.worth(message) > 0 for message in messages],
                "withheld": [script.withholds((message,)) for message in messages],
            }
        )
    return reading.Section(header, rows)


def _channel(config: ConfigDict) -> str:
    """The channel of the one reward that reads labels.

    Raises:
      UserError: if none of the catalogue's does.
    """
    found = [each for each in config.rewards.values() if each.kind == "language_feedback"]
    if len(found) != 1:
        raise UserError(f"{len(found)} rewards of kind 'language_feedback': expected one, whose payments can be listed")
    [section] = found
    return section.get("channel", inspect.signature(language_feedback).parameters["channel"].default)


def _script(config: ConfigDict) -> Scripted:
    taken = inspect.signature(Scripted).parameters
    return call(Scripted, "annotator", **{name: value for name, value in config.annotator.items() if name in taken})
