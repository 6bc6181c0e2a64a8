"""The DQN family on CartPole-v1: one agent, heads and targets as variants. No rows of it are committed yet.

Command:
    python -m experiments.run dqn_cartpole[:double,dueling,...] --seeds=10
    python -m experiments.summary dqn_cartpole --metric=return --threshold=475
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import one_of, value_based_config

HEADS = {
    "dqn": ("expected", "one value per action (the default)"),
    "c51": ("categorical", "a categorical law of the return"),
    "qrdqn": ("quantile", "quantiles of the return"),
    "iqn": ("implicit_quantile", "quantiles at sampled fractions"),
}
VARIANTS = {name: description for name, (_, description) in HEADS.items()} | {
    "double": "the online network chooses the target's action",
    "dueling": "value and advantage as two heads",
    "prioritised": "surprising transitions are replayed more often",
    "host": "gymnasium's CartPole-v1, stepped from Python",
    "smoke": "seconds: a few iterations of a small batch",
}
REPRODUCES = "DQN (Mnih et al., 2015), C51, QR-DQN and IQN on gymnasium CartPole-v1: return 500"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 50,000 environment steps."""
    tokens = [token for token in variant.split(",") if token]
    config = value_based_config()
    config.iterations, config.evaluate_every = 781, 71
    config.data = {"kind": "replay", "length": 16, "batch": 4, "group_size": 1}
    config.environment = {"kind": "functional", "name": "CartPole-v1"}
    if "host" in tokens:
        config.environment = {"kind": "gymnasium", "environment_id": "CartPole-v1"}
    agent = config.agent
    agent.head = HEADS[one_of(tokens, HEADS, "dqn")][0]
    agent.updates, agent.batch_size, agent.learning_rate = 32, 64, 1e-3
    agent.double, agent.dueling = "double" in tokens, "dueling" in tokens
    agent.prioritised = "prioritised" in tokens
    agent.value_low, agent.value_high = 0.0, 100.0
    config.evaluation = {"episodes": 32, "length": 500, "greedy": True, "metric": "return"}
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        agent.learning_starts, agent.updates = 64, 2
        config.evaluation.episodes, config.evaluation.length = 4, 100
    return config


def get_sweep() -> dict[str, list]:
    """Learning rates and how fast the target network follows."""
    return {"agent.learning_rate": [3e-4, 1e-3, 3e-3], "agent.target_rate": [0.005, 0.02]}
