"""Curiosity on MiniGrid, where the only reward comes at the end of a task that random actions do not solve.

Follows "Random network distillation" (Burda et al., 2018, arXiv 1810.12894) and "Curiosity in hindsight" (Jarrett et
al., 2023, arXiv 2211.10515) on procedurally generated rooms. The environment's reward and the intrinsic reward are two
channels with one value head each, as in section 2.3 of the first paper.

Command:
    sagax run curiosity_minigrid:METHOD,TASK --seeds=10
    sagax summary curiosity_minigrid --results --metric=train/success --threshold=0.5 --baseline=ppo

Expected on KeyCorridorS3R3, share of training episodes that succeed, from results/curiosity_minigrid.jsonl (10 seeds,
819,200 steps):
    episodic   0.995 [0.988, 0.998] at the end; every seed passes one half, after 493k [431k, 593k] steps
    ppo        0.000 [0.000, 0.001]; random actions succeed in 3 of 1000 episodes, and ppo does no better at the end
Neither was tuned. There are no rows yet of other methods, tasks or noises.

The extra minigrid installs MiniGrid. Time: 5 minutes per seed of episodic, 3.5 of ppo, on one of two busy cores.
Speed of the whole loop as a share of plain PPO's, by wall-clock and by processor time (``sagax benchmark
minigrid``): hindsight 0.73 and 0.67, explore 0.77 and 0.71, icm 0.81 and 0.75, rnd 0.85 and 0.83, count 0.94 and 0.87,
episodic 0.95 and 0.90.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import (
    MINIGRID_TASKS,
    choose_curiosity,
    curiosity_variants,
    entry,
    one_of,
    policy_gradient_config,
)

NOISE = {
    "quiet": ("none", "nothing besides the rooms (the default)"),
    "pixel": ("pixel", "a layer of random pixels, shown in a quarter of the frames"),
    "on_demand": ("on_demand", "a layer of random pixels, shown whenever the agent does nothing"),
}
VARIANTS = (
    curiosity_variants("rnd", "the agent finds the goal by chance only")
    | {name: description for choices in (MINIGRID_TASKS, NOISE) for name, (_, description) in choices.items()}
    | {"smoke": "seconds: a few iterations of a small batch"}
)
REPRODUCES = "RND (arXiv 1810.12894), BYOL-Hindsight (arXiv 2211.10515), ICM and counts on MiniGrid's hard tasks"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 819,200 environment steps.

    Raises:
      ValueError: if two variants exclude each other.
    """
    tokens = [token for token in variant.split(",") if token]
    config = policy_gradient_config()
    config.iterations, config.evaluate_every = 400, 20
    task, noise = (
        MINIGRID_TASKS[one_of(tokens, MINIGRID_TASKS, "key_corridor")][0],
        NOISE[one_of(tokens, NOISE, "quiet")][0],
    )
    config.environment = {"kind": "minigrid", "task": task, "noise": noise}
    config.data = {"kind": "unroll", "length": 128, "batch": 16, "group_size": 1}
    config.network.hidden = (64, 64)
    config.agent.update({"epochs": 4, "minibatches": 4, "learning_rate": 1e-3, "entropy_weight": 0.003})
    config.credit.env = entry("gae", weight=2.0, discount=0.99, gae_lambda=0.95)
    choose_curiosity(config, tokens, "rnd")
    config.evaluators.episodes.count, config.evaluation.metric = 16, "success"
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        config.data.length, config.data.batch = 16, 8
        config.environment.max_episode_steps = 20
        config.evaluators.episodes.count = 4
    return config


def get_sweep() -> dict[str, list]:
    """The weight of the intrinsic reward, and entropy weights."""
    return {"credit.curiosity.weight": [0.1, 0.3, 1.0], "agent.entropy_weight": [0.001, 0.01]}
