"""PQN on gymnax's MinAtar (extra gymnax), inside jit: Q-learning without a replay buffer and a target network.

Command:
    sagax run pqn_minatar[:asterix,freeway,space_invaders] --seeds=10

There are no committed rows yet.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import MINATAR, one_of, pqn_for_minatar, value_based_config

VARIANTS = MINATAR | {
    "breakout": "Breakout-MinAtar (the default)",
    "smoke": "seconds: a few iterations of a small batch",
}
REPRODUCES = "PQN (Gallici et al., 2024, arXiv 2407.04811) with the settings of its authors on gymnax's MinAtar"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 9,994,240 environment steps."""
    tokens = [token for token in variant.split(",") if token]
    config = value_based_config()
    config.environment = {"kind": "gymnax", "environment_id": MINATAR[one_of(tokens, MINATAR, "breakout")]}
    pqn_for_minatar(config)
    config.evaluators.episodes.count = 64
    config.evaluate_every = 244
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        config.data.length, config.data.batch, config.agent.minibatches = 8, 8, 2
        config.evaluators.episodes.count, config.evaluators.episodes.cut = 2, 20
    return config


def get_sweep() -> dict[str, list]:
    """Learning rates and how far returns are looked at before values take over."""
    return {"agent.learning_rate": [2.5e-4, 5e-4, 1e-3], "agent.trace_decay": [0.3, 0.65, 0.95]}
