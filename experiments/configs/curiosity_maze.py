"""Curiosity in a maze with a noisy TV: which intrinsic reward still explores when part of what is seen is random.

For Figure 6 of "Curiosity in hindsight: intrinsic exploration in stochastic environments" (Jarrett et al., 2023,
arXiv 2211.10515): four rooms in a chain, five kinds of noise, intrinsic reward alone. The map is ours, networks and
runs are far smaller than the paper's. No rows of it are committed yet, so that nothing is claimed here.

Command:
    python -m experiments.run curiosity_maze:METHOD,NOISE --seeds=5
    python -m experiments.summary curiosity_maze --metric=trackers --threshold=4
"""

from __future__ import annotations

from ml_collections import ConfigDict

from envs.maze import SETTINGS
from experiments.configs._common import choose_curiosity, curiosity_variants, entry, one_of, policy_gradient_config

NOISE = {
    "quiet": ("none", "blocks that oscillate (the default)"),
    "brownian": ("brownian", "blocks that wander"),
    "pixel": ("pixel", "a layer of random pixels in every fourth frame"),
    "on_demand": ("on_demand", "that layer whenever the agent does nothing"),
    "sticky": ("sticky", "every tenth action is the last one again"),
}
VARIANTS = (
    curiosity_variants("hindsight", "the policy stays random")
    | {name: description for name, (_, description) in NOISE.items()}
    | {
        "trackers": "a reward of 1 for every tracker besides the intrinsic one",
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
    # A block out of sight is where it was seen last, and so is a room.
    config.network.hidden, config.network.recurrent_size = (64, 64), 64
    config.agent.update({"epochs": 2, "minibatches": 4, "learning_rate": 1e-3, "entropy_weight": 0.003})
    method = choose_curiosity(config, tokens, "hindsight")
    if method == "ppo" or "trackers" in tokens:
        config.credit.env = entry("gae", discount=0.999, trace=0.95)
    if "trackers" in tokens:
        config.environment.reward = "trackers"
    config.evaluation = {"episodes": 16, "length": 500, "greedy": False, "metric": "trackers"}
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        config.data.length, config.data.batch = 16, 8
        config.environment.time_limit = 20
        config.evaluation.episodes, config.evaluation.length = 4, 20
    return config


def get_sweep() -> dict[str, list]:
    """How often a method that learns does so per update: what decided between standing still and exploring."""
    return {"rewards.curiosity.updates": [1, 4, 16]}
