"""PPO on Pendulum-v1: a continuous task with Gaussian or tanh-Gaussian actions, bootstrapped at its time limit.

Command:
    sagax run ppo_pendulum --seeds=10
    sagax summary ppo_pendulum --metric=return --threshold=-250

Expected, 10 seeds, greedy return on 32 episodes (95 % interval): -183 [-184, -182] after 614,400 steps. It
exceeds -250 from the first or second evaluation on, after 54 [51, 62] thousand steps.

Time: 10 seeds side by side took 13 minutes on 2 cores that also did much other work.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import entry, one_of, policy_gradient_config

VARIANTS = {
    "native": "gymnasium's functional Pendulum inside jit (the default)",
    "host": "gymnasium's Pendulum-v1, stepped from Python",
    "tanh": "tanh-Gaussian actions instead of clipped Gaussian ones",
    "smoke": "seconds: a few iterations of a small batch",
}
REPRODUCES = "PPO (arXiv 1707.06347) on gymnasium Pendulum-v1: return above -250"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 614,400 environment steps."""
    tokens = [token for token in variant.split(",") if token]
    config = policy_gradient_config()
    config.credit.env = entry("gae", discount=0.95, gae_lambda=0.95)
    config.rewards.env = {"kind": "scale", "channel": "env", "factor": 0.1}
    config.network.hidden = (64, 64)
    config.agent.update(
        {
            "epochs": 10,
            "minibatches": 8,
            "learning_rate": 1e-3,
            "schedule": "linear",
            "entropy_weight": 0.0,
            "whiten": "minibatch",
        }
    )
    config.data = {"kind": "unroll", "length": 200, "batch": 16, "group_size": 1}
    config.evaluators.episodes.count, config.evaluators.episodes.greedy = 32, True
    config.iterations, config.evaluate_every = 192, 16
    if one_of(tokens, ("host", "native"), "native") == "native":
        config.environment = {"kind": "functional", "name": "Pendulum-v1"}
    else:
        config.environment = {"kind": "gymnasium", "environment_id": "Pendulum-v1"}
    if "tanh" in tokens:
        config.agent.continuous = "tanh_gaussian"
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        config.data.length, config.agent.epochs = 40, 2
        config.evaluators.episodes.count = 4
    return config


def get_sweep() -> dict[str, list]:
    """Learning rates and discounts."""
    return {"agent.learning_rate": [3e-4, 1e-3], "credit.env.discount": [0.9, 0.95, 0.99]}
