"""A reward of your own: a channel that a transform adds and an entry of credit reads.

    python examples/my_reward.py

or from the shell, in the root of the repository:

    sagax run ppo_cartpole:native --config.rewards.upright.kind=examples.my_reward:upright \\
        --config.credit.upright.channel=upright --config.credit.upright.estimator=gae --config.credit.upright.weight=0.5
"""

import jax.numpy as jnp

from experiments.api import load, train
from rewards.base import RewardTransform, stateless


def upright(*, angle_limit: float = 0.2, channel: str = "upright") -> RewardTransform:
    """CartPole's pole held straight: ``channel_t = 1 - |angle_t| / angle_limit``, at least 0.

    ``angle`` is the third number of the observation that followed the step. The factory's keyword arguments are the
    keys of its section in the configuration. A transform that learns has a state; see ``rewards.curiosity.rnd``.
    """

    def relabel(trajectory):
        angle = trajectory.next_observation[..., 2]
        reward = jnp.maximum(0.0, 1.0 - jnp.abs(angle) / angle_limit) * trajectory.mask
        return trajectory._replace(rewards=trajectory.rewards | {channel: reward})

    return stateless(relabel)


def main(folder: str = "runs/my_reward", iterations: int = 20) -> float:
    """Trains PPO on both channels; returns the last mean return of the environment's own reward."""
    overrides = {
        "rewards.upright.kind": "examples.my_reward:upright",
        "rewards.upright.angle_limit": 0.1,
        "credit.upright.estimator": "gae",
        "credit.upright.channel": "upright",
        "credit.upright.weight": 0.5,
        "iterations": iterations,
        "evaluate_every": iterations,
    }
    rows = train(load("ppo_cartpole:native", overrides), folder, seeds=1)
    return rows[-1]["return"]


if __name__ == "__main__":
    print(f"mean return {main():.0f}")
