"""PPO on Atari games stepped by envpool (extra fast), with the settings of CleanRL's ppo_atari_envpool.py.

Command:
    sagax run ppo_atari[:pong,qbert,...]

A run starts, trains and resumes on a CPU. A result takes ten million steps and a GPU, and none is claimed here.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import one_of, policy_gradient_config, ppo_as_released

GAMES = {
    "breakout": "Breakout-v5",
    "pong": "Pong-v5",
    "qbert": "Qbert-v5",
    "beam_rider": "BeamRider-v5",
    "seaquest": "Seaquest-v5",
    "space_invaders": "SpaceInvaders-v5",
}
VARIANTS = GAMES | {
    "breakout": "Breakout-v5 (the default)",
    "smoke": "seconds: a few iterations of a small batch on small frames",
}
REPRODUCES = "PPO (arXiv 1707.06347) with CleanRL's settings on Atari; starts, trains and resumes, no result claimed"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 9,999,360 environment steps of four frames each.

    Rewards are clipped for learning, and returns are reported as the game counts them. Two things are not CleanRL's: an
    episode is a whole game, so that the loss of a life does not end it, and images are padded before each convolution.
    """
    tokens = [token for token in variant.split(",") if token]
    config = policy_gradient_config()
    config.environment = {
        "kind": "envpool",
        "environment_id": GAMES[one_of(tokens, GAMES, "breakout")],
        "make_kwargs": {"stack_num": 4, "img_height": 84, "img_width": 84},
        # The game's own word for its end; envpool takes an end in the last step before the time limit for truncation.
        "terminal_keys": ("terminated",),
    }
    config.rewards.clip = {"kind": "clip"}
    network = config.network
    network.channels, network.strides, network.kernels = (32, 64, 64), (4, 2, 1), (8, 4, 3)
    network.hidden, network.activation = (512,), "relu"
    ppo_as_released(config, learning_rate=2.5e-4, epochs=4, minibatches=4, clip=0.1, shared_critic=True)
    config.data = {"kind": "unroll", "length": 128, "batch": 8, "group_size": 1}
    config.evaluators.episodes.count, config.evaluators.episodes.greedy = 8, False
    # A run is saved, and stops when asked to, where it is evaluated: after minutes, also on a CPU.
    config.iterations, config.evaluate_every = 9765, 105
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        config.environment.make_kwargs = {"stack_num": 2, "img_height": 36, "img_width": 36}
        config.network.hidden, config.network.channels = (16,), (4, 8, 8)
        config.data.length, config.data.batch, config.agent.minibatches = 8, 2, 2
        config.evaluators.episodes.count, config.evaluators.episodes.cut = 1, 20
    return config


def get_sweep() -> dict[str, list]:
    """Learning rates and entropy weights."""
    return {"agent.learning_rate": [1e-4, 2.5e-4], "agent.entropy_weight": [0.0, 0.01]}
