"""Curiosity in a maze with a noisy TV: which intrinsic reward still explores when part of the observation is random.

Compares with Figure 6 of "Curiosity in hindsight: intrinsic exploration in stochastic environments" (Jarrett et al.,
2023, arXiv 2211.10515): four rooms in a chain, five kinds of noise, intrinsic reward only. The map is our own, and the
networks and runs are far smaller than the paper's.

Command:
    sagax run curiosity_maze:METHOD,NOISE --seeds=5
    sagax summary curiosity_maze --results --metric=train/trackers
    sagax visits curiosity_maze:METHOD,NOISE ... --append --out=results/curiosity_maze_visits.jsonl

Expected, trackers per training episode, mean over a run of 1,024,000 steps, from results/curiosity_maze.jsonl (5 seeds,
95 % intervals; ``notebooks/curiosity.ipynb`` prints them):
                 quiet                brownian             pixel                on_demand
    hindsight    2.13 [2.09, 2.18]    2.00 [1.91, 2.12]    2.02 [1.96, 2.16]    2.03 [1.96, 2.11]
    explore      2.08 [1.72, 2.14]    1.40 [1.23, 1.77]    2.04 [1.97, 2.10]    2.02 [1.97, 2.10]
    rnd          2.45 [2.39, 2.52]    2.37 [2.34, 2.50]    2.49 [2.45, 2.58]    1.33 [1.06, 1.40]
    icm          1.83 [1.51, 1.97]    1.90 [1.68, 1.95]    1.74 [1.43, 1.86]    1.90 [1.70, 2.13]
    count        2.29 [2.15, 2.40]    2.27 [2.12, 2.35]    1.57 [1.37, 1.71]    0.05 [0.05, 0.06]
    ppo          1.14 [1.09, 1.19]    1.34 [1.30, 1.41]    1.12 [1.10, 1.15]    1.12 [1.08, 1.17]
The notebook says which findings of the paper's figure hold here. In on_demand, random actions turn the noise on in a
fifth of the steps, count in all of them, rnd in 93 %, hindsight and explore in 13 %, icm in 4 %, and explore with a
target_decay of 1 in 98 %. There are no rows yet of the variant episodic or of sticky actions.

Tuned on other seeds (rows in results/curiosity_maze_tuning.jsonl): the optimiser steps per update, with the following
command and --config.iterations=150 --config.evaluate_every=15:
    sagax sweep curiosity_maze:METHOD --seeds=2 --first-seed=100

Time: 5 seeds side by side take 6 (rnd) to 15 minutes (hindsight) on two busy cores. Speed of the whole loop as a share
of plain PPO's (``sagax benchmark curiosity``): hindsight 0.50, explore 0.56, icm 0.74, rnd 0.80, counts 0.97 to 0.99.
The speed of hindsight is 0.62 of that of rnd.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from envs.native.maze import SETTINGS
from experiments.configs._common import choose_curiosity, curiosity_variants, entry, one_of, policy_gradient_config

NOISE = {
    "quiet": ("none", "blocks that oscillate (the default)"),
    "brownian": ("brownian", "blocks that wander"),
    "pixel": ("pixel", "a layer of random pixels, shown in a quarter of the frames"),
    "on_demand": ("on_demand", "a layer of random pixels, shown whenever the agent does nothing"),
    "sticky": ("sticky", "each action is replaced by the previous one with probability 0.1"),
}
VARIANTS = (
    curiosity_variants("hindsight", "the policy stays random")
    | {name: description for name, (_, description) in NOISE.items()}
    | {
        "trackers": "a reward of 1 for every tracker, in addition to the intrinsic reward",
        "smoke": "seconds: a few iterations of a small batch",
    }
)
REPRODUCES = "BYOL-Hindsight (arXiv 2211.10515), Figure 6: trackers reached by noise and method, on a map of our own"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 1,024,000 environment steps."""
    tokens = [token for token in variant.split(",") if token]
    config = policy_gradient_config()
    config.iterations, config.evaluate_every = 250, 10
    config.environment = {"kind": "maze", "time_limit": 500} | SETTINGS[NOISE[one_of(tokens, NOISE, "quiet")][0]]
    config.data = {"kind": "unroll", "length": 128, "batch": 32, "group_size": 1}
    # The network has to remember blocks and rooms that are out of sight.
    config.network.hidden, config.network.recurrent_size = (64, 64), 64
    config.agent.update({"epochs": 2, "minibatches": 4, "learning_rate": 1e-3, "entropy_weight": 0.003})
    method = choose_curiosity(config, tokens, "hindsight")
    if method == "ppo" or "trackers" in tokens:
        config.credit.env = entry("gae", discount=0.999, gae_lambda=0.95)
    if "trackers" in tokens:
        config.environment.reward = "trackers"
    config.evaluators.episodes.count, config.evaluation.metric = 16, "trackers"
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        config.data.length, config.data.batch = 16, 8
        config.environment.time_limit = 20
        config.evaluators.episodes.count = 4
    return config


def get_sweep() -> dict[str, list]:
    """Optimiser steps per update, for the methods that learn: they decided whether the agent explored."""
    return {"rewards.curiosity.updates": [1, 4, 16]}
