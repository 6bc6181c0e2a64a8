"""The DQN family on MinAtar's Breakout, inside jit, with a convolutional network. There are no committed rows yet.

Command:
    sagax run iqn_breakout[:dqn,double,...] --seeds=5        (iqn_breakout:pqn: many environments, without replay)
    sagax summary iqn_breakout --metric=return --threshold=10
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import (
    HEADS,
    choose_value_based,
    one_of,
    pqn_for_minatar,
    value_based_config,
    value_based_variants,
)

# The implicit head has no dueling form.
VARIANTS = {name: about for name, about in value_based_variants("iqn").items() if name != "dueling"}
VARIANTS |= {
    "pqn": "PQN: Q(lambda) on fresh unrolls of 128 environments, without a replay buffer and a target network",
    "smoke": "seconds: a few iterations of a small batch",
}
REPRODUCES = "IQN (Dabney et al., 2018), DQN, C51 and QR-DQN on MinAtar's Breakout (arXiv 1903.03176), rebuilt in JAX"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 512,000 environment steps, 9,994,240 of ``pqn``."""
    tokens = [token for token in variant.split(",") if token]
    config = value_based_config()
    config.iterations, config.evaluate_every = 8000, 800
    config.data = {"kind": "replay", "length": 4, "batch": 16, "group_size": 1}
    config.environment = {"kind": "breakout", "sticky": 0.1, "time_limit": 1000}
    config.network.channels, config.network.strides, config.network.hidden = (16,), (1,), (128,)
    agent = config.agent
    choose_value_based(config, tokens, "iqn")
    agent.updates, agent.batch_size, agent.learning_rate = 16, 32, 3e-4
    agent.quantiles, agent.n_step, agent.learning_starts = 16, 3, 5_000
    agent.value_low, agent.value_high = 0.0, 20.0
    agent.epsilon_steps, agent.epsilon_end = 100_000.0, 0.02
    unrolls = one_of(tokens, (*HEADS, "pqn"), "iqn") == "pqn"
    if unrolls:
        pqn_for_minatar(config)
        config.evaluate_every = 122
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        agent.learning_starts, agent.updates, agent.batch_size = 64, 1 if unrolls else 2, 8
        config.evaluators.episodes.count, config.evaluators.episodes.cut = 4, 100
    return config


def get_sweep() -> dict[str, list]:
    """Learning rates and how fast the target network follows."""
    return {"agent.learning_rate": [1e-4, 3e-4, 1e-3], "agent.target_rate": [0.005, 0.02]}
