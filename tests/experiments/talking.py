"""Shared by the tests of annotation: a tiny host environment with messages, configurations on it, and messages."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from gymnasium import spaces
from ml_collections import ConfigDict

from envs.base import EnvironmentSpec, TimeStep
from envs.catalogue import ENVIRONMENTS
from envs.snapshots import Snapshot, array_like
from experiments.configs._common import entry
from tests.experiments import corridor

LENGTH = 24


class TalkingHost:
    """A corridor in numpy: action 1 goes right, 0 left, the second cell to the right is the goal, a clock ends it after
    ``limit`` steps. Every cell but the one in the middle says its name on arrival. Nothing in it is random."""

    def __init__(self, num_envs: int, *, limit: int = 5, saved: bool = True):
        self.num_envs, self._limit, self._saved = num_envs, limit, saved
        box = spaces.Box(-9, 9, (2,), np.float32)
        self.spec = EnvironmentSpec(box, spaces.Discrete(2), max_episode_steps=limit, message_length=LENGTH)
        self._position = self._clock = np.zeros(num_envs, np.int64)

    def reset(self, seed):
        self._position = self._clock = np.zeros(self.num_envs, np.int64)
        return self._observation()

    def step(self, action):
        self._position = np.clip(self._position + 2 * np.asarray(action) - 1, -3, 2)
        self._clock = self._clock + 1
        terminated = self._position == 2
        truncated = (self._clock >= self._limit) & ~terminated
        final, message = self._observation(), np.stack([encoded(name_of(cell)) for cell in self._position])
        reward = terminated.astype(np.float32)
        ended = terminated | truncated
        self._position, self._clock = np.where(ended, 0, self._position), np.where(ended, 0, self._clock)
        observation = self._observation()
        return TimeStep(observation, reward, {}, {}, terminated, truncated, final, {"message": message})

    def _observation(self):
        return np.stack([self._position, self._clock], axis=-1).astype(np.float32)

    def snapshot(self):
        return Snapshot({}, {"position": self._position, "clock": self._clock}) if self._saved else None

    def restore(self, snapshot):
        kept = {"position": self._position, "clock": self._clock}
        self._position, self._clock = (array_like(snapshot.arrays, name, like) for name, like in kept.items())
        return self._observation()

    def close(self):
        pass


def name_of(cell: int) -> str:
    return "" if cell == 0 else "You reached the goal" if cell == 2 else f"You came to cell {cell}"


def encoded(text: str) -> np.ndarray:
    return np.frombuffer(text.encode().ljust(LENGTH, b"\0"), np.uint8)


def said(*texts: str, mask=None):
    """The parts of a trajectory ``[T, 1]`` that an exchange reads; its messages are ``texts``, one per step."""
    message = np.stack([encoded(text) for text in texts])[:, None]
    mask = np.ones((len(texts), 1)) if mask is None else np.asarray(mask)[:, None]
    return SimpleNamespace(extras={"info": {"message": message}}, mask=mask)


def read(annotations) -> dict:
    """Labels by message, or by pair."""
    found = {}
    for question, label in zip(
        annotations.messages[annotations.valid], annotations.labels[annotations.valid], strict=True
    ):
        texts = tuple(message.tobytes().rstrip(b"\0").decode() for message in question)
        found[texts if len(texts) > 1 else texts[0]] = float(label)
    return found


def register(patch) -> None:
    """Registers the environment ``talking``; ``patch`` is pytest's ``monkeypatch``."""
    patch.setitem(ENVIRONMENTS, "talking", TalkingHost)


def config_of(model: str = "retrieval", **annotator) -> ConfigDict:
    """Language feedback in addition to the reward, with a small network; ``annotator`` replaces settings."""
    config = corridor.with_critic()
    config.environment = {"kind": "talking"}
    config.data.batch = 4
    config.credit.language = entry("gae", "language", 0.5, discount=0.9, gae_lambda=0.9)
    config.rewards.language = {"kind": "language_feedback", "model": model, "capacity": 16, "bits": 6, "updates": 4}
    if model != "retrieval":
        shape = {"embedding_size": 4, "channels": 4, "kernels": (3,), "pools": (2,), "hidden": (), "batch_size": 4}
        config.rewards.language.update(shape)
    settings = {"kind": "scripted", "phrases": ("reached", "cell 1")}
    config.annotator = {"labels": 4, "pairs": 3, "recent": 10} | (annotator or settings)
    return config
