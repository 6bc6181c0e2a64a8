"""Curiosity on Montezuma's Revenge, whose first reward takes about a hundred right steps.

Set up as in "Random network distillation" (Burda et al., 2018, arXiv 1810.12894) and "Curiosity in hindsight" (Jarrett
et al., 2023, arXiv 2211.10515), where sticky actions (repeated with probability 0.1) stop BYOL-Explore but not
BYOL-Hindsight.
A run starts, trains and resumes on a CPU. A result takes hundreds of millions of steps, and none is claimed here. Needs
the extra ``atari``.

Command:
    sagax run curiosity_montezuma:METHOD,STICKINESS
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import choose_curiosity, curiosity_variants, entry, one_of, policy_gradient_config

# The probability that the emulator repeats the last action, by a short name.
STICKY = {
    "sticky": (0.1, "the previous action is repeated with probability 0.1 (the default)"),
    "stickier": (0.25, "the previous action is repeated with probability 0.25, as in RND's experiments"),
    "deterministic": (0.0, "the chosen action is always executed"),
}
VARIANTS = (
    curiosity_variants("hindsight", "the agent finds rewards by chance only")
    | {name: description for name, (_, description) in STICKY.items()}
    | {"smoke": "a few iterations of a small batch on small frames"}
)
REPRODUCES = (
    "BYOL-Hindsight (arXiv 2211.10515) and RND (arXiv 1810.12894) on Atari Montezuma's Revenge; starts, trains and "
    "resumes, no result claimed"
)


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 20 million environment steps of four frames.

    Raises:
      ValueError: if two variants exclude each other.
    """
    tokens = [token for token in variant.split(",") if token]
    config = policy_gradient_config()
    config.iterations, config.evaluate_every = 4_883, 200
    sticky = STICKY[one_of(tokens, STICKY, "sticky")][0]
    config.environment = {"kind": "atari", "game": "MontezumaRevenge", "sticky": sticky, "time_limit": 4_500}
    config.data = {"kind": "unroll", "length": 128, "batch": 32, "group_size": 1}
    config.network.channels, config.network.strides, config.network.hidden = (32, 64, 64), (4, 2, 2), (256,)
    config.network.activation = "relu"
    config.agent.update({"epochs": 4, "minibatches": 4, "learning_rate": 1e-4, "entropy_weight": 0.001, "clip": 0.1})
    # As in the RND paper, every treasure counts as 1, and the advantage of the game's reward counts twice.
    config.rewards.env = {"kind": "clip", "channel": "env"}
    config.credit.env = entry("gae", weight=2.0, discount=0.999, gae_lambda=0.95)
    choose_curiosity(config, tokens, "hindsight")
    config.evaluators.episodes.count = 8
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        config.environment.size, config.environment.frames, config.environment.time_limit = 42, 2, 50
        config.data.length, config.data.batch = 8, 8
        config.network.channels, config.network.strides, config.network.hidden = (8, 16), (4, 2), (32,)
        config.evaluators.episodes.count = 1
    return config


def get_sweep() -> dict[str, list]:
    """The weight of the intrinsic reward, and learning rates."""
    return {"credit.curiosity.weight": [0.3, 1.0], "agent.learning_rate": [1e-4, 3e-4]}
