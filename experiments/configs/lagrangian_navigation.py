"""Lagrangian methods in a navigation task inside jit: reach goals, keep out of hazards.

The environment is ``envs/native/navigation.py``: what users know from Safety Gym's PointGoal, on dynamics and a layout
of our own, so that no published figure compares with it. An episode of 1,000 steps may cost 25.

Command:
    sagax run lagrangian_navigation[:pid] --seeds=10

There are no committed rows yet.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import CONSTRAINED, constrain, one_of, policy_gradient_config, ppo_as_released

LIMIT = 25.0
VARIANTS = {
    **{name: text for name, (text, _) in CONSTRAINED.items()},
    "smoke": "seconds: a few iterations of a small batch",
}
REPRODUCES = "Lagrangian methods (Ray et al., 2019; arXiv 2007.03964) on a navigation task of our own"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 2,048,000 environment steps."""
    tokens = [token for token in variant.split(",") if token]
    config = policy_gradient_config()
    config.environment = {"kind": "navigation", "time_limit": 1000}
    config.network.hidden = (64, 64)
    config.network.normalise_observations = True
    ppo_as_released(config, learning_rate=3e-4, epochs=4, minibatches=8, gae_lambda=0.97, entropy_weight=0.0)
    config.agent.value_clip = None
    config.data = {"kind": "unroll", "length": 128, "batch": 32, "group_size": 1}
    config.iterations, config.evaluate_every = 500, 25
    config.evaluators.episodes.count, config.evaluators.episodes.greedy = 32, False
    # Advantages without units: a multiplier of 1 weighs the cost as much as the reward.
    config.agent.whiten = "entries"
    constrain(config, {"hazards": ("cost/hazards", LIMIT)}, one_of(tokens, CONSTRAINED, "pid"), unit=LIMIT)
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        config.data.length, config.agent.epochs, config.agent.minibatches = 16, 1, 2
        config.evaluators.episodes.count, config.evaluators.episodes.cut = 2, 20
    return config


def get_sweep() -> dict[str, list]:
    """Learning rates of the agent."""
    return {"agent.learning_rate": [1e-4, 3e-4, 1e-3]}
