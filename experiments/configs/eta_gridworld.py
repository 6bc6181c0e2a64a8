"""The eta-network on 4x4 gridworlds: one agent for many objectives, compared with the exact planner.

Compares with the figures of "Optimizing return distributions with distributional dynamic programming" (Pires et al.,
2025, JMLR 26(185)): target returns, and the mean and the tail of the return. The layouts are those of
``tabular.LAYOUTS``, not the paper's.

Command:
    sagax run eta_gridworld[:cvar] --seeds=10
    sagax run eta_gridworld:cvar,stockless,tau_10 --seeds=10
    sagax summary eta_gridworld --results --metric=objective

Found after 64,000 environment steps, interquartile mean of 10 seeds, each policy evaluated exactly, and the planner's
optimum (``agents.planning.distributional``). The largest and the smallest possible return differ by 14 (target,
homeostasis) or 23 (the others):
    target           all 11 targets are hit exactly, 10 of them by every seed; the planner hits all exactly
    cvar             tau .1: 0.46, .25: 1.37, .5: 2.44, 1: 3.86; planner 0.60, 1.43, 2.45, 3.86
    optimistic_cvar  tau .1: 5.88, .25: 5.91, .5: 5.22, 1: 3.86; planner 6.28, 5.92, 5.30, 3.86 (an upper bound); two
                     seeds of ten are far below
    mean_cvar        2.61; planner 2.61
    homeostasis      -0.020 [-0.029, -0.015]; planner -0.003
    cvar,stockless   tau .1: -1.00, .25: -0.17, .5: 2.41, 1: 3.86; without the stock the tail is worse, the mean is not
    target,stockless -3 and 3 are hit, too: in a deterministic environment whose rewards stay available until the end,
                     an agent without the stock can collect them all in the last steps
The exact evaluation follows all pairs of state and rewards so far (a few hundred at a time step, 7,048 with the
discount of homeostasis), so that no value lies above the planner's by chance. The rows of target are of 512 episodes,
in which there is no chance.

Time: 1 to 3 minutes for 10 seeds on 2 cores.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import ignore_stock, one_of, tail_objectives, value_based_config

TARGETS = tuple(range(-5, 6))
LEVELS = (0.1, 0.25, 0.5, 1.0)
# For each problem: the functional to train with, the layout, the slip and the discount.
PROBLEMS = {
    "target": ({"kind": "target_return", "target": 0.0}, "two_rewards", 0.0, 1.0),
    "cvar": ({"kind": "cvar", "level": 0.5}, "short_and_risky", 0.25, 1.0),
    "optimistic_cvar": ({"kind": "optimistic_cvar", "level": 0.5}, "short_and_risky", 0.25, 1.0),
    "mean_cvar": ({"kind": "mean_cvar", "level": 0.25, "mean_weight": 0.5}, "short_and_risky", 0.25, 1.0),
    "homeostasis": ({"kind": "target_return", "target": 0.0}, "open", 0.25, 0.99),
}
ONLY = {f"target_{target}": "trained and evaluated for this target alone" for target in TARGETS}
ONLY |= dict.fromkeys(tail_objectives("cvar", LEVELS), "trained and evaluated for this share of the returns alone")
VARIANTS = {
    "target": "a given return, neither more nor less (the default)",
    "cvar": "the mean of the worst share of the returns, in a slippery environment",
    "optimistic_cvar": "the mean of the best share of the returns",
    "mean_cvar": "half the mean, half the mean of the worst quarter",
    "homeostasis": "keep the stock near 0, whatever the environment adds; for a scalar stock this is a target return",
    "stockless": "a baseline without the stock: greedy for the functional of the future return",
    **ONLY,
    "smoke": "seconds: a few iterations of a small batch",
}
REPRODUCES = "Pires et al. 2025 (JMLR 26(185)): eta-networks on small gridworlds, on layouts of our own"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 64,000 environment steps."""
    tokens = [token for token in variant.split(",") if token]
    only = one_of(tokens, ONLY, "")
    problem = one_of(tokens, PROBLEMS, "cvar" if only.startswith("tau") else "target")
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
    config.evaluation.metric = "objective"
    config.environment.stock = {"low": -9.0, "high": 9.0, "horizon": 16}
    agent.stock_features, agent.stock_edits = 19, 7
    wanted = objectives(problem)
    if only and only not in wanted:
        raise ValueError(f"{problem} has no objective {only}: expected one of {', '.join(wanted)}")
    if only:
        agent.functional = wanted[only]
        wanted = {only: wanted[only]}
    config.evaluators = {"exact": {"kind": "exact", "objectives": wanted, "candidates": 181, "greedy": True}}
    if "stockless" in tokens:
        ignore_stock(agent)
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        agent.learning_starts, agent.updates, agent.batch_size = 256, 2, 16
    return config


def objectives(problem: str) -> dict[str, dict]:
    """The objectives that the agent of ``problem`` is evaluated for, by name.

    The names have no dots, so that ``--config`` can override their keys.
    """
    if problem in ("target", "homeostasis"):
        targets = TARGETS if problem == "target" else (0,)
        return {f"target_{target}": {"kind": "target_return", "target": float(target)} for target in targets}
    if problem == "mean_cvar":
        # The utility depends on the level, so that every level needs an agent of its own.
        return {"tau_25": PROBLEMS[problem][0]}
    return tail_objectives(problem, LEVELS)


def get_sweep() -> dict[str, list]:
    """Learning rates and how fast the target network follows."""
    return {"agent.learning_rate": [3e-4, 1e-3, 3e-3], "agent.target_rate": [0.005, 0.02]}
