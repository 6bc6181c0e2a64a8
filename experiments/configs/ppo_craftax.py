"""PPO on Craftax (extra craftax): open-ended survival and crafting from symbols, inside jit.

Command:
    sagax run ppo_craftax --seeds=3

There are no committed rows yet. The environment takes a minute to compile on two cores.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import one_of, policy_gradient_config, ppo_as_released

WORLDS = {"classic": "Craftax-Classic-Symbolic-v1", "full": "Craftax-Symbolic-v1"}
VARIANTS = {
    "classic": "Craftax-Classic-Symbolic-v1 (the default)",
    "full": "Craftax-Symbolic-v1, nine floors",
    "smoke": "a few iterations of a small batch; compiling takes a minute",
}
REPRODUCES = "PPO on Craftax (Matthews et al., 2024, arXiv 2402.16801) with the settings of its baselines"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 1,024,000 environment steps.

    The numbers are those of the baselines of Craftax's authors, except that 64 environments stand for 1,024: the
    authors train for 1,000 times as many steps.
    """
    tokens = [token for token in variant.split(",") if token]
    config = policy_gradient_config()
    config.environment = {"kind": "craftax", "environment_id": WORLDS[one_of(tokens, WORLDS, "classic")]}
    config.network.hidden = (512, 512, 512)
    ppo_as_released(config, learning_rate=2e-4, epochs=4, minibatches=8, gae_lambda=0.8, max_gradient_norm=1.0)
    config.data = {"kind": "unroll", "length": 64, "batch": 64, "group_size": 1}
    config.evaluators.episodes.count, config.evaluators.episodes.greedy = 32, False
    config.evaluators.episodes.cut = 2_000
    config.iterations, config.evaluate_every = 250, 50
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        config.network.hidden = (16,)
        config.data.length, config.data.batch = 8, 8
        config.evaluators.episodes.count, config.evaluators.episodes.cut = 2, 10
    return config


def get_sweep() -> dict[str, list]:
    """Learning rates and entropy weights."""
    return {"agent.learning_rate": [2e-4, 1e-3], "agent.entropy_weight": [0.01, 0.03]}
