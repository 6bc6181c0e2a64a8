"""Shared by the tests of the loop: a tiny environment, configurations that compile in seconds, and comparisons."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from envs.base import EnvironmentSpec, TimeStep
from envs.catalogue import ENVIRONMENTS
from envs.hosts.jax import JaxHost
from experiments.assembly import registry
from experiments.assembly.members import Member
from experiments.configs._common import entry, policy_gradient_config, value_based_config
from experiments.configs.oprl_sokoban import process_reward
from experiments.rows import reading, run_folders
from experiments.training.checkpoint import Checkpoints


@dataclass(frozen=True)
class Corridor:
    """Action 1 goes right, 0 left; the goal, two cells to the right, pays 1; ``limit`` steps are the time limit.

    ``fixed`` starts every episode in the same cell, so that nothing in the environment is random. The reward of step
    ``poison`` of an episode is NaN.
    """

    fixed: bool = False
    limit: int = 4
    poison: int = -1

    @cached_property
    def spec(self) -> EnvironmentSpec:
        box = gymnasium.spaces.Box(-9, 9, (2,), np.float32)
        return EnvironmentSpec(box, gymnasium.spaces.Discrete(2), max_episode_steps=self.limit)

    def reset(self, key):
        position = jnp.float32(0) if self.fixed else (jax.random.bits(key) % 2).astype(jnp.float32)
        state = (position, jnp.int32(0))
        return state, self._observation(state)

    def step(self, key, state, action):
        del key
        position, clock = state
        position = jnp.clip(position + 2.0 * action - 1.0, -3.0, 2.0)
        state = (position, clock + 1)
        observation = self._observation(state)
        terminated = position == 2
        reward = jnp.where(clock == self.poison, jnp.nan, terminated.astype(jnp.float32))
        truncated = (clock + 1 == self.limit) & ~terminated
        return state, TimeStep(observation, reward, {}, {}, terminated, truncated, observation, {})

    @staticmethod
    def _observation(state):
        position, clock = state
        return jnp.stack([position, clock.astype(jnp.float32) / 4])


def register(patch) -> None:
    """Registers the environments ``corridor`` and ``corridor_host``; ``patch`` is ``monkeypatch`` or alike."""
    patch.setitem(ENVIRONMENTS, "corridor", Corridor)
    patch.setitem(ENVIRONMENTS, "corridor_host", lambda num_envs, **arguments: JaxHost(Corridor(**arguments), num_envs))


def base() -> ConfigDict:
    config = policy_gradient_config()
    config.iterations, config.evaluate_every = 4, 2
    config.environment = {"kind": "corridor"}
    config.data = {"kind": "episodes", "length": 4, "batch": 8, "group_size": 4}
    config.network.hidden = (4,)
    config.agent.epochs, config.agent.learning_rate = 1, 0.02
    config.evaluators.episodes.count = 4
    return config


def without_critic() -> ConfigDict:
    config = base()
    config.credit.env = entry("group_outcome", baseline="mean", scale="std")
    return config


def with_critic() -> ConfigDict:
    config = base()
    config.data = {"kind": "unroll", "length": 4, "batch": 8, "group_size": 1}
    config.credit.env = entry("gae", discount=0.9, gae_lambda=0.9)
    return config


def with_replay() -> ConfigDict:
    """A value-based agent that learns from its second unroll on, from a buffer that four unrolls fill."""
    config = value_based_config()
    config.iterations, config.evaluate_every = 4, 2
    config.environment = {"kind": "corridor"}
    config.data = {"kind": "replay", "length": 4, "batch": 4, "group_size": 1}
    config.network.hidden = (4,)
    config.agent.update({"capacity": 48, "learning_starts": 32, "batch_size": 8, "updates": 2, "prioritised": True})
    config.evaluators.episodes.count = 4
    return config


def with_unrolls() -> ConfigDict:
    """A value-based agent that learns from fresh unrolls, with a learning rate that stays."""
    config = with_replay()
    config.data = {"kind": "unroll", "length": 4, "batch": 8, "group_size": 1}
    config.agent.update({"prioritised": False, "updates": 1, "epochs": 2, "minibatches": 2})
    config.agent.update({"trace_decay": 0.5, "optimiser": "radam"})
    return config


def process(**changes) -> ConfigDict:
    """The implicit process reward in addition to the outcome."""
    config = without_critic()
    config.credit.implicit_prm = entry(
        "group_steps", "implicit_prm", baseline="mean", scale="std", first_row_baseline=False
    )
    config.rewards.implicit_prm = process_reward(**{"beta": 0.5, "learning_rate": 0.02} | changes)
    return config


def members(*seeds: int) -> list[Member]:
    return [Member(seed, "") for seed in seeds or (0,)]


def loaded(config: ConfigDict, name: str = "corridor") -> registry.Loaded:
    """``config`` as ``registry.load`` returns one."""
    return registry.Loaded(name, "", None, config.copy_and_resolve_references().lock())


def arrays(tree) -> list[np.ndarray]:
    """Every leaf as numpy; typed keys as their data."""

    def plain(leaf):
        key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if key else leaf)

    return [plain(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same_arrays(found, expected) -> None:
    """Asserts equality bit for bit, NaN included."""
    found, expected = arrays(found), arrays(expected)
    assert len(found) == len(expected) > 0
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.tobytes() == other.tobytes(), (index, one, other)


def rows_of(folder: Path) -> list[dict]:
    """The rows without their times; asserts that there are no duplicates."""
    rows = reading.read_rows(folder / run_folders.METRICS_FILE)
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def checkpoint_of(folder: Path, template, iteration: int | None = None):
    """The latest checkpoint of a run folder's first program."""
    found = Checkpoints(folder / "checkpoints" / "program_0", read_only=True)
    try:
        return found.restore(template, iteration)
    finally:
        found.close()
