"""Lagrangian methods on MuJoCo robots that must not be faster than a limit (extra mujoco).

The velocity tasks of Safety-Gymnasium (Ji et al., 2023, arXiv 2310.12567) on gymnasium's present robots: a step that is
faster than about half of what PPO reaches costs 1, and an episode of 1,000 steps may cost 25.

Command:
    sagax run lagrangian_velocity[:hopper][,pid] --seeds=5

There are no committed rows yet.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs import ppo_mujoco
from experiments.configs._common import CONSTRAINED, constrain, one_of

LIMIT = 25.0
# For each task: the speed in metres per second above which a step costs 1, from Safety-Gymnasium.
SPEEDS = {"half_cheetah": 3.2096, "hopper": 0.7402, "walker2d": 2.3415, "ant": 2.6222}
VARIANTS = {
    **{name: f"{ppo_mujoco.TASKS[name]}, at most {speed} m/s" for name, speed in SPEEDS.items()},
    "hopper": f"{ppo_mujoco.TASKS['hopper']}, at most {SPEEDS['hopper']} m/s (the default)",
    **{name: text for name, (text, _) in CONSTRAINED.items()},
    "smoke": "seconds: a few iterations of a small batch",
}
REPRODUCES = "Lagrangian methods (Ray et al., 2019; arXiv 2007.03964) on Safety-Gymnasium's velocity tasks"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``: that of ``ppo_mujoco`` with a cost; 1,001,472 environment steps."""
    tokens = [token for token in variant.split(",") if token]
    task = one_of(tokens, SPEEDS, "hopper")
    config = ppo_mujoco.get_config(",".join([task, *(token for token in tokens if token == "smoke")]))
    components = ("x_velocity", "y_velocity") if task == "ant" else ("x_velocity",)
    speed = {"kind": "speed_limit", "limit": SPEEDS[task], "components": components}
    config.environment.update({"wrappers": {"speed": speed}, "cost_keys": {"cost": "speed"}})
    # Advantages without units: a multiplier of 1 weighs the cost as much as the reward.
    config.agent.whiten = "entries"
    constrain(config, {"speed": ("cost/speed", LIMIT)}, one_of(tokens, CONSTRAINED, "pid"), unit=LIMIT)
    return config


def get_sweep() -> dict[str, list]:
    """Learning rates of the agent."""
    return {"agent.learning_rate": [1e-4, 3e-4, 1e-3]}
