"""An environment of your own, in jit, trained by PPO without a change to the repository.

    python examples/my_environment.py

or from the shell, in the root of the repository:

    sagax run ppo_cartpole:native --config.environment.time_limit=30 \\
        --config.environment.kind=examples.my_environment:Walk
"""

from dataclasses import dataclass
from functools import cached_property

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from envs.base import EnvironmentSpec, TimeStep
from experiments.api import load, train


@dataclass(frozen=True)
class Walk:
    """A walk on ``size`` cells: action 1 goes right, 0 left; the right end pays 1 and ends it, a step costs ``cost``.

    A pure environment is written for one environment; rollouts add the batch axis. ``reset`` depends on the key alone.
    """

    size: int = 7
    cost: float = 0.01

    @cached_property
    def spec(self) -> EnvironmentSpec:
        return EnvironmentSpec(
            observation_space=gymnasium.spaces.Box(0.0, 1.0, (self.size,), np.float32),
            action_space=gymnasium.spaces.Discrete(2),
            info=("success",),
        )

    def reset(self, key):
        position = jax.random.randint(key, (), 0, self.size - 1)
        return position, self._observe(position)

    def step(self, key, position, action):
        del key
        position = jnp.clip(position + 2 * action - 1, 0, self.size - 1)
        observation, goal = self._observe(position), position == self.size - 1
        step = TimeStep(
            observation=observation,
            reward=goal.astype(jnp.float32) - self.cost,
            costs={},
            objectives={},
            terminated=goal,
            truncated=jnp.zeros((), bool),
            final_observation=observation,
            info={"success": goal.astype(jnp.float32)},
        )
        return position, step

    def _observe(self, position):
        return jax.nn.one_hot(position, self.size)


def main(folder: str = "runs/my_environment", iterations: int = 20) -> float:
    """Trains PPO on it; returns the share of evaluation episodes that reach the goal."""
    overrides = {
        "environment.kind": "examples.my_environment:Walk",
        "environment.size": 9,
        "environment.time_limit": 30,
        "evaluation.metric": "success",
        "iterations": iterations,
        "evaluate_every": iterations,
    }
    rows = train(load("ppo_cartpole:native", overrides), folder, seeds=1)
    return rows[-1]["success"]


if __name__ == "__main__":
    print(f"{main():.0%} of the episodes reach the goal")
