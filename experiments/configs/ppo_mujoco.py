"""PPO on MuJoCo (extra mujoco) with normalised observations and returns, 10^6 steps.

Command:
    sagax run ppo_mujoco:half_cheetah --seeds=5
    sagax run ppo_mujoco:hopper --seeds=5

Expected, mean return of 8 episodes of sampled actions after 1,001,472 steps, from results/ppo_mujoco.jsonl (95 %
intervals), beside what CleanRL publishes for the same settings on version 4 of the tasks (mean and standard deviation
of 3 seeds):
                    here                    CleanRL
    half_cheetah    2263 [1610, 3638]       1443 +- 46
    hopper          2768 [2547, 3064]       2383 +- 272
Nothing was tuned. There are no rows yet of walker2d, ant and raw, nor of PPO of stable-baselines3 and sbx, whose
settings are in BASELINES.

Time: 2 to 4 minutes per seed on one of two busy cores.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import one_of, policy_gradient_config, ppo_as_released

TASKS = {"half_cheetah": "HalfCheetah-v5", "hopper": "Hopper-v5", "walker2d": "Walker2d-v5", "ant": "Ant-v5"}
VARIANTS = {name: identifier for name, identifier in TASKS.items()} | {
    "half_cheetah": "HalfCheetah-v5 (the default)",
    "raw": "observations and rewards as the environment gives them",
    "smoke": "seconds: a few iterations of a small batch",
}
# stable-baselines3's own numbers, and those that rl-baselines3-zoo documents as tuned for version 3 of each task.
_DEFAULTS = {"normalise": True, "n_steps": 2048, "batch_size": 64, "n_epochs": 10, "learning_rate": 3e-4}
_ZOO = {"normalise": True, "n_steps": 512, "ortho_init": False, "activation": "relu", "net_arch": (256, 256)}
_TUNED = {
    "half_cheetah": {
        "batch_size": 64,
        "n_epochs": 20,
        "learning_rate": 2.0633e-5,
        "gamma": 0.98,
        "gae_lambda": 0.92,
        "clip_range": 0.1,
        "ent_coef": 0.000401762,
        "vf_coef": 0.58096,
        "max_grad_norm": 0.8,
        "log_std_init": -2.0,
    },
    "hopper": {
        "batch_size": 32,
        "n_epochs": 5,
        "learning_rate": 9.80828e-5,
        "gamma": 0.999,
        "gae_lambda": 0.99,
        "clip_range": 0.2,
        "ent_coef": 0.00229519,
        "vf_coef": 0.835671,
        "max_grad_norm": 0.7,
        "log_std_init": -2.0,
    },
}
BASELINES = {
    f"{library}_ppo,{task}": _DEFAULTS for library in ("sb3", "sbx") for task in ("half_cheetah", "hopper")
} | {f"sb3_ppo,{task},tuned": _ZOO | settings for task, settings in _TUNED.items()}
REPRODUCES = "PPO (arXiv 1707.06347) with the settings of CleanRL's ppo_continuous_action.py on gymnasium's MuJoCo"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 1,001,472 environment steps.

    The numbers are CleanRL's, except that 8 environments of 256 steps stand for one of 2,048: acting for 8 costs
    hardly more than for one.
    """
    tokens = [token for token in variant.split(",") if token]
    config = policy_gradient_config()
    config.environment = {"kind": "gymnasium", "environment_id": TASKS[one_of(tokens, TASKS, "half_cheetah")]}
    config.network.hidden = (64, 64)
    if "raw" not in tokens:
        config.network.normalise_observations = True
        config.rewards.env = {"kind": "normalise_by_return", "discount": 0.99}
    ppo_as_released(config, learning_rate=3e-4, epochs=10, minibatches=32, entropy_weight=0.0)
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
