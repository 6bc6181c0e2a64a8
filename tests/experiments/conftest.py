"""Tiny configurations, a silent trainer and the contents of checkpoints, for the tests of the loop."""

import contextlib
from dataclasses import dataclass
from functools import cached_property

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from envs.types import EnvironmentSpec, TimeStep
from experiments import results
from experiments.configs._common import entry, policy_gradient_config
from experiments.drivers import Member
from experiments.train import CHECKPOINT_FOLDER, StopRequested, prepare_folder, program_name, train

WORLDS = {
    "pure": {"kind": "functional", "name": "CartPole-v1", "max_episode_steps": 20},
    "host": {"kind": "gymnasium", "environment_id": "CartPole-v1"},
}


@pytest.fixture(scope="session")
def tiny_config():
    """``(world, credit, groups=False, **dotted key: value)``: a configuration whose programs compile in seconds."""

    def make(world="pure", *, credit=None, groups=False, rewards=None, changes=None):
        config = policy_gradient_config()
        config.iterations, config.evaluate_every = 4, 2
        config.environment = WORLDS[world]
        data = {"kind": "episodes", "length": 20, "batch": 8, "group_size": 4}
        config.data = data if groups else {"kind": "unroll", "length": 8, "batch": 2, "group_size": 1}
        config.network.hidden = (8,)
        config.agent.epochs = 1
        config.evaluation = {"episodes": 4, "length": 20, "greedy": False, "metric": "return"}
        config.credit = credit or {"env": entry("gae", discount=0.99, trace=0.95)}
        config.rewards = rewards or {}
        with config.unlocked():
            config.update_from_flattened_dict(changes or {})
        config.lock()
        return config

    return make


@dataclass(frozen=True)
class Corridor:
    """Nothing random: from the left end, action 1 walks right and pays 1 at the far end, action 0 walks left.

    Observation ``[position / size, steps / 10]``; an episode is cut after ten steps. From step ``broken_at`` of an
    episode on, rewards are NaN.
    """

    size: int = 3
    broken_at: int = 1000

    @cached_property
    def spec(self):
        return EnvironmentSpec(
            gymnasium.spaces.Box(0, 1, (2,), np.float32), gymnasium.spaces.Discrete(2), max_episode_steps=10
        )

    def _observe(self, state):
        return jnp.stack([state[0] / self.size, state[1] / 10]).astype(jnp.float32)

    def reset(self, key):
        del key
        state = jnp.zeros(2, jnp.int32)
        return state, self._observe(state)

    def step(self, key, state, action):
        del key
        position, steps = jnp.maximum(state[0] + 2 * action - 1, 0), state[1] + 1
        state = jnp.stack([position, steps]).astype(jnp.int32)
        terminated = position >= self.size
        reward = jnp.where(steps >= self.broken_at, jnp.nan, terminated.astype(jnp.float32))
        observation = self._observe(state)
        return state, TimeStep(observation, reward, {}, {}, terminated, (steps >= 10) & ~terminated, observation, {})


@pytest.fixture(scope="session")
def corridor():
    return Corridor


class Silent:
    """A reporter that remembers the last number of steps."""

    steps = 0

    def resume(self, steps):
        self.steps = steps

    def update(self, steps, metrics=None):
        self.steps = steps


class StopAfter(StopRequested):
    """Asks to stop after ``chunks`` questions, as a signal in the middle of that chunk would."""

    def __init__(self, chunks):
        super().__init__()
        self._left = chunks

    def __bool__(self):
        self._left -= 1
        if self._left < 0:
            self.signal = 15
        return self.signal is not None


@pytest.fixture(scope="session")
def train_in():
    """``(folder, config, seeds=(0,), world=None, chunks=None) -> Outcome``; stops after ``chunks``."""

    def run(folder, config, seeds=(0,), world=None, chunks=None, **arguments):
        members = [Member(seed, "v") for seed in seeds]
        prepare_folder(folder, config, members)
        stop = StopRequested() if chunks is None else StopAfter(chunks)
        return train(config, "tiny", members, folder, Silent(), stop, world, **arguments)

    return run


@pytest.fixture(scope="session")
def saved_arrays():
    """``(folder, iteration, program=0)``: every array of a checkpoint, by position."""

    def read(folder, iteration, program=0):
        path = folder / CHECKPOINT_FOLDER / program_name(program) / str(iteration) / "state"
        with contextlib.closing(ocp.StandardCheckpointer()) as checkpointer:
            return jax.tree.map(np.asarray, checkpointer.restore(path.resolve()))

    return read


@pytest.fixture(scope="session")
def lasting_rows():
    """``(folder)``: its rows without what depends on the clock."""

    def read(folder):
        rows = results.read_rows(folder / results.METRICS_FILE)
        return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]

    return read


@pytest.fixture(scope="session")
def assert_equal_arrays():
    """Two sets of arrays are equal bit for bit."""

    def check(first, second):
        assert first.keys() == second.keys() and first
        for name in first:
            assert first[name].dtype == second[name].dtype, name
            # The bytes: nan equals nan, and 0 is not -0.
            assert first[name].tobytes() == second[name].tobytes(), name

    return check
