"""What models of language feedback pay for each message."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from envs.base import PyTree, Transition
from experiments.annotation.service import Scripted, as_text, remembered_messages
from experiments.assembly.build import build_environment, build_parts
from experiments.errors import UserError
from experiments.rows import reading
from experiments.training.checkpoint_rows import row_starts
from experiments.training.restored import read_single_run, restored_programs
from rewards.base import RewardTransform
from rewards.feedback.language_feedback import language_feedback


def paid_for(
    reward: RewardTransform, state: PyTree, channel: str, messages: Sequence[bytes], *, length: int, batch: int
) -> np.ndarray:
    """What a reward chain writes into ``channel`` for ``messages``, each said once in an episode of its own, ``[N]``.

    Args:
      reward, state: the chain and what it has learnt.
      channel: that of the language feedback.
      messages: of at most ``length`` bytes each.
      length, batch: bytes of a message and environments of a rollout, as the chain was built for.
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


def rate(folder: Path, checkpoint: str = "latest") -> reading.Section:
    """One row per seed of a run, see the module.

    Raises:
      UserError: if the run is a sweep or has no scripted annotator, no rows, or no such checkpoint.
    """
    config, members = read_single_run(folder)
    kind = config.annotator.kind if "annotator" in config else None
    if kind != "scripted":
        raise UserError(f"{folder}: annotator.kind={kind!r}: expected a run with a scripted annotator")
    header, start = row_starts(folder)
    source = build_environment(config)
    reward, channel, script = build_parts(config, source.spec).reward, _channel(config), _script(config)
    length, batch = source.spec.message_length, config.data.batch
    rows = []
    for [member], found in restored_programs(folder, config, source, members, checkpoint):
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
    return reading.Section(header, rows)


def _channel(config: ConfigDict) -> str:
    """The channel of the one reward that reads labels."""
    [section] = (each for each in config.rewards.values() if each.kind == "language_feedback")
    return section.get("channel", inspect.signature(language_feedback).parameters["channel"].default)


def _script(config: ConfigDict) -> Scripted:
    taken = inspect.signature(Scripted).parameters
    return Scripted(**{name: value for name, value in config.annotator.items() if name in taken})


def _annotated(host: Any) -> dict[str, Any]:
    """The state of the annotation service in the bytes that a driver of host environments saved of itself."""
    return pickle.loads(host)[1]
