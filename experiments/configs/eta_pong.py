"""The eta-network on Pong: it aims at a chosen discounted return instead of the largest one.

Set up as for the Atari figure of "Optimizing return distributions with distributional dynamic programming" (Pires et
al., 2025, JMLR 26(185)). A run starts, trains and resumes on a CPU. A result takes millions of steps and a GPU, and
none is claimed here. Needs the extra ``atari``.

Command:
    sagax run eta_pong
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import stock_evaluator, value_based_config

# Discounted returns: points come dozens of steps apart, so that they add up to a few at most.
TARGETS = (-2, -1, 0, 1, 2)
VARIANTS = {
    "target": "a given discounted return (the default)",
    "smoke": "a few iterations of a small batch on small frames",
}
REPRODUCES = "Pires et al. 2025 (JMLR 26(185)): DηN on Atari Pong; starts, trains and resumes, no result claimed"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 4 million environment steps."""
    tokens = [token for token in variant.split(",") if token]
    config = value_based_config()
    config.iterations, config.evaluate_every = 31_250, 1_250
    config.environment = {"kind": "atari", "game": "Pong", "time_limit": 3_000}
    config.environment.stock = {"low": -3.0, "high": 3.0}
    config.data = {"kind": "replay", "length": 16, "batch": 8, "group_size": 1}
    config.network.channels, config.network.strides, config.network.hidden = (32, 64, 64), (4, 2, 2), (512,)
    agent = config.agent
    agent.functional = {"kind": "target_return", "target": 0.0}
    agent.head, agent.quantiles, agent.huber = "quantile", 64, 0.1
    agent.discount, agent.learning_rate, agent.adam_epsilon = 0.99, 1e-4, 1e-6
    agent.stock_features, agent.stock_edits = 31, 3
    agent.capacity, agent.learning_starts = 40_000, 10_000
    agent.updates, agent.batch_size, agent.target_rate = 16, 32, 0.005
    agent.epsilon_end, agent.epsilon_steps = 0.01, 500_000.0
    config.evaluators.episodes.count, config.evaluation.metric = 4, "objective"
    objectives = {f"target_{target}": {"kind": "target_return", "target": float(target)} for target in TARGETS}
    config.evaluators.objectives = stock_evaluator(objectives, candidates=61, count=4)
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        config.environment.size, config.environment.frames, config.environment.time_limit = 42, 2, 50
        config.data.length, config.data.batch = 8, 2
        agent.capacity, agent.learning_starts, agent.updates, agent.batch_size = 500, 32, 2, 8
        config.evaluators.episodes.count = config.evaluators.objectives.count = 1
    return config


def get_sweep() -> dict[str, list]:
    """Learning rates and how fast the target network follows."""
    return {"agent.learning_rate": [5e-5, 1e-4, 3e-4], "agent.target_rate": [0.001, 0.005]}
