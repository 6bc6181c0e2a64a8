"""``python -m experiments.ratings RUN... --out=FILE.jsonl``: what models of language feedback pay for each message.

RUN is a run folder with a scripted annotator, or ``NAME[:variant]`` under ``--runs``. Every seed becomes a row with
lists of equal length: ``messages``, those of its training, the latest where they were many; ``paid``, what its reward
model gives for each of them, said once; ``good``, whether the annotator likes it, noise aside; ``withheld``, whether it
says nothing about it, so that the model never saw a label of it. The file is like those of ``experiments.collect``.
"""

from __future__ import annotations

import inspect
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from envs.types import PyTree, Transition
from experiments import results
from experiments.annotation import Scripted, as_text, remembered_messages
from experiments.build import build_parts, build_world
from experiments.checkpoint_rows import row_starts, rows_parser, write_rows
from experiments.errors import UserError, command
from experiments.evaluate import read_single_run, restored_programs
from rewards.base import RewardTransform
from rewards.language_feedback import language_feedback


def paid_for(
    reward: RewardTransform, state: PyTree, channel: str, messages: Sequence[bytes], *, length: int, batch: int
) -> np.ndarray:
    """What a reward chain writes into ``channel`` for ``messages``, each said once in an episode of its own, ``[N]``.

    Args:
      reward, state: the chain and what it has learnt.
      channel: that of the language feedback.
      messages: of at most ``length`` bytes each.
      length, batch: bytes of a message and worlds of a rollout, as the chain was built for.
    """
    if not messages:
        return np.zeros(0, np.float32)
    rows = -(-len(messages) // batch)
    said = np.zeros((rows * batch, length), np.uint8)
    for place, message in enumerate(messages):
        said[place, : len(message)] = np.frombuffer(message, np.uint8)
    shape = (rows, batch)
    trajectory = Transition(
        observation=(),
        action=(),
        rewards={"env": np.zeros(shape, np.float32)},
        terminated=np.ones(shape, bool),
        truncated=np.zeros(shape, bool),
        next_observation=(),
        mask=np.ones(shape, np.float32),
        extras={"info": {"message": said.reshape(*shape, length)}, "episode_start": np.ones(shape, bool)},
    )
    relabelled, _ = reward.apply(state, trajectory)
    return np.asarray(relabelled.rewards[channel]).reshape(-1)[: len(messages)]


def rate(folder: Path, checkpoint: str = "latest") -> results.Section:
    """One row per seed of a run, see the module.

    Raises:
      UserError: if the run is a sweep or has no scripted annotator, no rows, or no such checkpoint.
    """
    config, members = read_single_run(folder)
    kind = config.annotator.kind if "annotator" in config else None
    if kind != "scripted":
        raise UserError(f"{folder}: annotator.kind={kind!r}: expected a run with a scripted annotator")
    header, start = row_starts(folder)
    world = build_world(config)
    reward, channel, script = build_parts(config, world.spec).reward, _channel(config), _script(config)
    length, batch = world.spec.message_length, config.data.batch
    rows = []
    for [member], found in restored_programs(folder, config, world, members, checkpoint):
        messages = remembered_messages(_annotated(found.host))
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
    return results.Section(header, rows)


def _channel(config: ConfigDict) -> str:
    """The channel of the one reward that reads labels."""
    [section] = (each for each in config.rewards.values() if each.kind == "language_feedback")
    return section.get("channel", inspect.signature(language_feedback).parameters["channel"].default)


def _script(config: ConfigDict) -> Scripted:
    taken = inspect.signature(Scripted).parameters
    return Scripted(**{name: value for name, value in config.annotator.items() if name in taken})


def _annotated(host: Any) -> dict[str, Any]:
    """The state of the annotation service in the bytes that a driver of host worlds saved of itself."""
    return pickle.loads(host)[1]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Rates the messages of some runs.

    Raises:
      UserError: for anything the user can repair.
    """
    arguments = rows_parser("ratings", "List what reward models pay for messages.").parse_args(argv)
    write_rows(arguments, lambda folder: rate(folder, arguments.checkpoint))
    return 0


if __name__ == "__main__":
    sys.exit(main())
