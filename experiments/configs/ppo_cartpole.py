"""PPO on CartPole-v1: gymnasium's environment with the host driver, or its functional version with the loop in jit.

Command:
    sagax run ppo_cartpole[:native] --seeds=10
    sagax summary ppo_cartpole --metric=return --threshold=475

Expected, 10 seeds, greedy return on 32 episodes (95 % interval):
    host     500 [500, 500] after 100,352 steps; 475 is first passed after 30 [22, 45] thousand
    native   500 [500, 500] after 512,000 steps; 475 is first passed after 61 [51, 81] thousand

Time: 10 to 60 seconds per seed on the host, on 2 cores that also did other work.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import entry, one_of, policy_gradient_config

VARIANTS = {
    "host": "gymnasium's CartPole-v1, stepped from Python (the default)",
    "native": "gymnasium's functional CartPole inside jit, the same dynamics",
    "recurrent": "the network has a GRU after the dense layers",
    "smoke": "seconds: a few iterations of a small batch",
}
REPRODUCES = "PPO (arXiv 1707.06347) on gymnasium CartPole-v1: return 500"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 100,352 environment steps on the host, 512,000 native."""
    tokens = [token for token in variant.split(",") if token]
    config = policy_gradient_config()
    config.credit.env = entry("gae", discount=0.99, gae_lambda=0.95)
    config.network.hidden = (64, 64)
    config.agent.update(
        {"epochs": 4, "minibatches": 4, "learning_rate": 2.5e-3, "schedule": "linear", "whiten": "minibatch"}
    )
    config.evaluators.episodes.count, config.evaluators.episodes.greedy = 32, True
    if one_of(tokens, ("host", "native"), "host") == "host":
        config.environment = {"kind": "gymnasium", "environment_id": "CartPole-v1"}
        config.data = {"kind": "unroll", "length": 64, "batch": 16, "group_size": 1}
        config.iterations, config.evaluate_every = 98, 14
    else:
        config.environment = {"kind": "functional", "name": "CartPole-v1"}
        config.data = {"kind": "unroll", "length": 128, "batch": 16, "group_size": 1}
        config.iterations, config.evaluate_every = 250, 25
    if "recurrent" in tokens:
        config.network.recurrent_size = 32
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        config.data.length = 32
        config.evaluators.episodes.count, config.evaluators.episodes.cut = 4, 100
    return config


def get_sweep() -> dict[str, list]:
    """Learning rates and entropy weights."""
    return {"agent.learning_rate": [3e-4, 1e-3, 2.5e-3], "agent.entropy_weight": [0.0, 0.01]}
