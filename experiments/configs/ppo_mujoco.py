"""PPO on MuJoCo (extra mujoco) with normalised observations and returns, 10^6 steps.

Command:
    sagax run ppo_mujoco:half_cheetah --seeds=5
    sagax run ppo_mujoco:hopper --seeds=5

Time: on one core that also did other work, 8 to 10 minutes per seed.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import entry, one_of, policy_gradient_config

TASKS = {"half_cheetah": "HalfCheetah-v5", "hopper": "Hopper-v5", "walker2d": "Walker2d-v5", "ant": "Ant-v5"}
VARIANTS = {name: identifier for name, identifier in TASKS.items()} | {
    "half_cheetah": "HalfCheetah-v5 (the default)",
    "raw": "observations and rewards as the environment gives them",
    "smoke": "seconds: a few iterations of a small batch",
}
REPRODUCES = "PPO (arXiv 1707.06347) with the settings of CleanRL's ppo_continuous_action.py on gymnasium's MuJoCo"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 1,001,472 environment steps.

    The numbers are CleanRL's, except that 8 environments of 256 steps stand for one of 2,048: acting for 8 costs
    hardly more than for one.
    """
    tokens = [token for token in variant.split(",") if token]
    config = policy_gradient_config()
    config.environment = {"kind": "gymnasium", "environment_id": TASKS[one_of(tokens, TASKS, "half_cheetah")]}
    config.credit.env = entry("gae", discount=0.99, gae_lambda=0.95)
    config.network.hidden = (64, 64)
    if "raw" not in tokens:
        config.network.normalise_observations = True
        config.rewards.env = {"kind": "normalise_by_return", "discount": 0.99}
    config.agent.update(
        {
            "epochs": 10,
            "minibatches": 32,
            "learning_rate": 3e-4,
            "schedule": "linear",
            "entropy_weight": 0.0,
            "value_clip": 0.2,
            "whiten": "minibatch",
        }
    )
    config.data = {"kind": "unroll", "length": 256, "batch": 8, "group_size": 1}
    config.evaluators.episodes.count, config.evaluators.episodes.greedy = 8, False
    config.iterations, config.evaluate_every = 489, 49
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        config.data.length, config.agent.epochs, config.agent.minibatches = 16, 2, 2
        config.evaluators.episodes.count, config.evaluators.episodes.cut = 2, 20
    return config


def get_sweep() -> dict[str, list]:
    """Learning rates and lengths of an unroll."""
    return {"agent.learning_rate": [3e-4, 1e-3], "data.length": [64, 256]}
