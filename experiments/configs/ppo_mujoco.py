"""PPO on MuJoCo (extra mujoco) with normalised observations and returns, 10^6 steps.

Command:
    sagax run ppo_mujoco:half_cheetah --seeds=5
    sagax run ppo_mujoco:hopper --seeds=5
    sagax run ppo_mujoco:walker2d --seeds=3
    sagax run ppo_mujoco:half_cheetah,tuned --seeds=5

Expected, mean return of 8 episodes of sampled actions after 1,001,472 steps, from results/ppo_mujoco.jsonl (95 %
intervals), beside what CleanRL publishes for the same settings on version 4 of the tasks (mean and standard deviation
of 3 seeds):
                    here                    CleanRL
    half_cheetah    2263 [1610, 3638]       1443 +- 46
    hopper          2768 [2547, 3064]       2383 +- 272
    walker2d        2881 [2401, 3655]       (3 seeds here)
Nothing was tuned. There are no rows yet of ant, raw and tuned, nor of PPO of stable-baselines3 and sbx, whose
settings are in BASELINES.

Time: 2 to 4 minutes per seed on one of two busy cores.
"""

from __future__ import annotations

import math
from typing import Any

from ml_collections import ConfigDict

from experiments.configs._common import one_of, policy_gradient_config, ppo_as_released

TASKS = {"half_cheetah": "HalfCheetah-v5", "hopper": "Hopper-v5", "walker2d": "Walker2d-v5", "ant": "Ant-v5"}
VARIANTS = {name: identifier for name, identifier in TASKS.items()} | {
    "half_cheetah": "HalfCheetah-v5 (the default)",
    "raw": "observations and rewards as the environment gives them",
    "tuned": "what rl-baselines3-zoo documents as tuned for the task, one environment; there is nothing for ant",
    "smoke": "seconds: a few iterations of a small batch",
}
# By stable-baselines3's names: its own numbers, and those that rl-baselines3-zoo documents as tuned (its
# hyperparams/ppo.yml, version 4 of the tasks). What is not there is stable-baselines3's own.
_DEFAULTS = {"normalise": True, "n_steps": 2048, "batch_size": 64, "n_epochs": 10, "learning_rate": 3e-4}
_WIDE = {"ortho_init": False, "activation": "relu", "net_arch": (256, 256), "log_std_init": -2.0}
TUNED: dict[str, dict[str, Any]] = {
    "half_cheetah": {
        **_WIDE,
        "batch_size": 64,
        "n_epochs": 20,
        "learning_rate": 2.0633e-5,
        "gamma": 0.98,
        "gae_lambda": 0.92,
        "clip_range": 0.1,
        "ent_coef": 0.000401762,
        "vf_coef": 0.58096,
        "max_grad_norm": 0.8,
    },
    "hopper": {
        **_WIDE,
        "batch_size": 32,
        "n_epochs": 5,
        "learning_rate": 9.80828e-5,
        "gamma": 0.999,
        "gae_lambda": 0.99,
        "clip_range": 0.2,
        "ent_coef": 0.00229519,
        "vf_coef": 0.835671,
        "max_grad_norm": 0.7,
    },
    "walker2d": {
        "batch_size": 32,
        "n_epochs": 20,
        "learning_rate": 5.05041e-5,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "clip_range": 0.1,
        "ent_coef": 0.000585045,
        "vf_coef": 0.871923,
        "max_grad_norm": 1.0,
    },
}
TUNED = {task: {"normalise": True, "n_steps": 512} | settings for task, settings in TUNED.items()}
BASELINES = {
    f"{library}_ppo,{task}": _DEFAULTS for library in ("sb3", "sbx") for task in ("half_cheetah", "hopper")
} | {f"sb3_ppo,{task},tuned": settings for task, settings in TUNED.items()}
REPRODUCES = "PPO (arXiv 1707.06347) with the settings of CleanRL's ppo_continuous_action.py on gymnasium's MuJoCo"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 1,001,472 environment steps, of ``tuned`` 999,936.

    The numbers are CleanRL's, except that 8 environments of 256 steps stand for one of 2,048: acting for 8 costs
    hardly more than for one.

    Raises:
      ValueError: no tuned settings are known for the task.
    """
    tokens = [token for token in variant.split(",") if token]
    task = one_of(tokens, TASKS, "half_cheetah")
    config = policy_gradient_config()
    config.environment = {"kind": "gymnasium", "environment_id": TASKS[task]}
    config.network.hidden = (64, 64)
    ppo_as_released(config, learning_rate=3e-4, epochs=10, minibatches=32, entropy_weight=0.0)
    config.data = {"kind": "unroll", "length": 256, "batch": 8, "group_size": 1}
    config.evaluators.episodes.count, config.evaluators.episodes.greedy = 8, False
    config.iterations, config.evaluate_every = 489, 49
    if "tuned" in tokens:
        if task not in TUNED:
            raise ValueError(f"{task} and tuned exclude each other: expected one of {', '.join(TUNED)}")
        _as_stable_baselines3(config, TUNED[task])
        config.iterations, config.evaluate_every = 1953, 217
    if "raw" not in tokens:
        config.network.normalise_observations = True
        config.rewards.env = {"kind": "normalise_by_return", "discount": config.credit.env.discount}
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        config.data.length, config.agent.epochs, config.agent.minibatches = 16, 2, 2
        config.evaluators.episodes.count, config.evaluators.episodes.cut = 2, 20
    return config


def _as_stable_baselines3(config: ConfigDict, settings: dict[str, Any]) -> None:
    """Makes ``config`` PPO with the ``settings`` of stable-baselines3 for one environment.

    One thing is not the same: without ``ortho_init``, stable-baselines3 starts from torch's uniform weights.
    """
    config.data = {"kind": "unroll", "length": settings["n_steps"], "batch": 1, "group_size": 1}
    config.network.hidden = settings.get("net_arch", (64, 64))
    config.network.activation = settings.get("activation", "tanh")
    ppo_as_released(
        config,
        learning_rate=settings["learning_rate"],
        epochs=settings["n_epochs"],
        minibatches=settings["n_steps"] // settings["batch_size"],
        discount=settings["gamma"],
        gae_lambda=settings["gae_lambda"],
        clip=settings["clip_range"],
        schedule="constant",
        value_clip=None,
        entropy_weight=settings["ent_coef"],
        # There the value loss is the squared error, here half of it.
        value_weight=2 * settings["vf_coef"],
        max_gradient_norm=settings["max_grad_norm"],
        initial_std=math.exp(settings.get("log_std_init", 0.0)),
    )


def get_sweep() -> dict[str, list]:
    """Learning rates and lengths of an unroll."""
    return {"agent.learning_rate": [3e-4, 1e-3], "data.length": [64, 256]}
