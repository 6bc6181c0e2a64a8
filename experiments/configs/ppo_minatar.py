"""PPO on gymnax's MinAtar (extra gymnax), inside jit, with the settings of PureJaxRL.

Command:
    sagax run ppo_minatar[:asterix,freeway,space_invaders] --seeds=10

There are no committed rows yet.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import MINATAR, one_of, policy_gradient_config, ppo_as_released

VARIANTS = MINATAR | {
    "breakout": "Breakout-MinAtar (the default)",
    "smoke": "seconds: a few iterations of a small batch",
}
REPRODUCES = "PPO (arXiv 1707.06347) with the settings of PureJaxRL's brax_minatar.ipynb on gymnax's MinAtar"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 9,994,240 environment steps.

    Actor and critic are two networks of two layers on the flat picture, as PureJaxRL's are. gymnax's MinAtar has no
    sticky actions.
    """
    tokens = [token for token in variant.split(",") if token]
    config = policy_gradient_config()
    config.environment = {"kind": "gymnax", "environment_id": MINATAR[one_of(tokens, MINATAR, "breakout")]}
    config.network.hidden, config.network.activation = (64, 64), "relu"
    ppo_as_released(config, learning_rate=5e-3, epochs=4, minibatches=8)
    config.data = {"kind": "unroll", "length": 128, "batch": 64, "group_size": 1}
    config.evaluators.episodes.count, config.evaluators.episodes.greedy = 64, False
    config.iterations, config.evaluate_every = 1220, 122
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        config.data.length, config.data.batch = 16, 8
        config.evaluators.episodes.count, config.evaluators.episodes.cut = 2, 20
    return config


def get_sweep() -> dict[str, list]:
    """Learning rates and entropy weights."""
    return {"agent.learning_rate": [1e-3, 5e-3], "agent.entropy_weight": [0.01, 0.03]}
