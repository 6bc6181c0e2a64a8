"""The eta-network on 4x4 gridworlds: one agent, many objectives, beside the exact planner.

For the figure family of "Optimizing return distributions with distributional dynamic programming" (Pires et al., 2025,
JMLR 26(185)): target returns, and the mean against the tail. The layouts are ours (``envs.tabular.LAYOUTS``), not the
paper's. No rows of it are committed yet, so that nothing is claimed here.

Command:
    python -m experiments.run eta_gridworld[:cvar] --seeds=10
    python -m experiments.summary eta_gridworld --metric=objective
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import one_of, value_based_config

TARGETS = tuple(range(-5, 6))
LEVELS = (0.1, 0.25, 0.5, 1.0)
# Functional to train with, layout, slip, discount, and what the agent is evaluated for.
PROBLEMS = {
    "target": ({"kind": "target_return", "target": 0.0}, "two_rewards", 0.0, 1.0),
    "cvar": ({"kind": "cvar", "level": 0.5}, "short_and_risky", 0.25, 1.0),
    "optimistic_cvar": ({"kind": "optimistic_cvar", "level": 0.5}, "short_and_risky", 0.25, 1.0),
    "mean_cvar": ({"kind": "mean_cvar", "level": 0.25, "mean_weight": 0.5}, "short_and_risky", 0.25, 1.0),
    "homeostasis": ({"kind": "target_return", "target": 0.0}, "open", 0.25, 0.99),
}
VARIANTS = {
    "target": "a given return, no more and no less (the default)",
    "cvar": "the mean of the worst share of the returns, in a slippery world",
    "optimistic_cvar": "the mean of the best share of the returns",
    "mean_cvar": "half the mean, half the mean of the worst quarter",
    "homeostasis": "a stock that stays near its set point 0, whatever the world adds",
    "stockless": "for comparison: greedy for the functional of the return to come, without stock",
    **{f"target_{target}": "trained and evaluated for this target alone" for target in TARGETS},
    **{f"tau_{level:.0%}"[:-1]: "trained and evaluated for this share alone" for level in LEVELS},
    "smoke": "seconds: a few iterations of a small batch",
}
REPRODUCES = "Pires et al. 2025 (JMLR 26(185)): eta-networks on small gridworlds, on layouts of our own"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 64,000 environment steps."""
    tokens = [token for token in variant.split(",") if token]
    problem = one_of(tokens, PROBLEMS, "target")
    functional, layout, slip, discount = PROBLEMS[problem]
    config = value_based_config()
    config.iterations, config.evaluate_every = 250, 25
    config.environment = {"kind": "gridworld", "layout": layout, "slip": slip, "time_limit": 16}
    config.data = {"kind": "replay", "length": 16, "batch": 16, "group_size": 1}
    agent = config.agent
    agent.functional = functional
    agent.head, agent.quantiles, agent.huber = "quantile", 32, 0.1
    agent.discount = discount
    agent.updates, agent.batch_size = 8, 64
    agent.epsilon_steps, agent.target_rate = 20_000.0, 0.01
    config.evaluation = {"episodes": 512, "length": 16, "greedy": True, "metric": "objective"}
    config.environment.stock = {"low": -9.0, "high": 9.0, "horizon": 16}
    agent.stock_features, agent.stock_edits = 19, 7
    config.evaluation.candidates = 181
    wanted = objectives(problem)
    only = one_of(tokens, wanted, "")
    if only:
        agent.functional = wanted[only]
        wanted = {only: wanted[only]}
    config.evaluation.objectives = wanted
    if "stockless" in tokens:
        agent.use_stock, agent.stock_features, agent.stock_edits = False, 0, 0
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        agent.learning_starts, agent.updates, agent.batch_size = 256, 2, 16
        config.evaluation.episodes = 16
    return config


def objectives(problem: str) -> dict[str, dict]:
    """What the agent of ``problem`` is evaluated for, by name: a name has no dot, so that a key can be overridden."""
    if problem in ("target", "homeostasis"):
        targets = TARGETS if problem == "target" else (0,)
        return {f"target_{target}": {"kind": "target_return", "target": float(target)} for target in targets}
    if problem == "mean_cvar":
        # Its utility depends on the level: another level is another agent.
        return {"tau_25": PROBLEMS[problem][0]}
    return {f"tau_{level:.0%}"[:-1]: {"kind": problem, "level": level} for level in LEVELS}


def get_sweep() -> dict[str, list]:
    """Learning rates and how fast the target network follows."""
    return {"agent.learning_rate": [3e-4, 1e-3, 3e-3], "agent.target_rate": [0.005, 0.02]}
