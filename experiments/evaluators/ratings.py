"""What a model of language feedback pays for each message.

It is no ``Evaluator``: which messages there were is known to the annotator, not to the run state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.base import PyTree, Transition
from rewards.base import RewardTransform


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
