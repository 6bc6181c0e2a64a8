"""The eta-network on gymnasium's slippery CliffWalking: the mean and the tail of the return where a safe path exists.

Compares with the risk figures of "Optimizing return distributions with distributional dynamic programming" (Pires et
al., 2025, JMLR 26(185)), on an environment of gymnasium. Its slips go sideways only, so that a path without falls
exists, and the planner finds one policy that is optimal for the mean and for every share down to 0.1
(``notebooks/distributional_dp.ipynb``). Random actions find the goal in 2 of 100 episodes of 200 steps only, so that
the agent explores for a long time and keeps all transitions in its buffer. Until it finds the goal, the best policy
that it knows is to stand still.

Command:
    sagax run eta_cliffwalking --seeds=5
    sagax summary eta_cliffwalking --results --metric=objective/tau_10

Expected, mean of the worst share tau of the returns of 512 episodes, from results/eta_cliffwalking.jsonl (5 seeds,
1,024,000 steps), and the planner's optimum:
    tau 0.1    -116.5 [-166.8, -115.3]    planner -116.6
    tau 0.25    -98.9 [-137.3, -97.8]              -98.3
    tau 0.5     -84.4 [-111.5, -83.5]              -83.2
    tau 1       -65.5 [-78.0, -64.7]               -64.7
Four seeds end within 2 of the optimum. The fifth had been near it and ends far off (-190.9 at 0.1): at the end of
training the policies still change from one evaluation to the next. There are no rows of the variant stockless.

Time: 25 minutes for 5 seeds side by side on one of two busy cores.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import ignore_stock, stock_evaluator, tail_objectives, value_based_config

LEVELS = (0.1, 0.25, 0.5, 1.0)
HORIZON = 200
VARIANTS = {
    "cvar": "the mean of the worst share of the returns (the default)",
    "stockless": "a baseline without the stock: greedy for the worst tenth of the future return",
    "smoke": "seconds: a few iterations of a small batch",
}
REPRODUCES = "Pires et al. 2025 (JMLR 26(185)): risk on gymnasium's CliffWalking-v1, slippery"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 1,024,000 environment steps."""
    tokens = [token for token in variant.split(",") if token]
    config = value_based_config()
    config.iterations, config.evaluate_every = 4000, 400
    config.environment = {
        "kind": "gymnasium_table",
        "environment_id": "CliffWalking-v1",
        "is_slippery": True,
        "time_limit": HORIZON,
    }
    # Start stocks up to 150 cover tail returns down to -150: a fall costs 100.
    config.environment.stock = {"low": 0.0, "high": 150.0, "horizon": HORIZON}
    config.data = {"kind": "replay", "length": 16, "batch": 16, "group_size": 1}
    config.rewards.env = {"kind": "scale", "channel": "env", "factor": 0.05}
    agent = config.agent
    agent.functional = {"kind": "cvar", "level": 0.1}
    agent.return_scale = 20.0
    agent.head, agent.quantiles, agent.huber = "quantile", 32, 0.1
    agent.discount = 1.0
    agent.stock_features, agent.stock_edits = 31, 7
    agent.updates, agent.batch_size, agent.target_rate = 8, 64, 0.01
    agent.double = True
    agent.capacity, agent.epsilon_steps = 400_000, 400_000.0
    config.evaluators.episodes.count, config.evaluation.metric = 512, "objective"
    levels: tuple[float, ...] = LEVELS
    if "stockless" in tokens:
        ignore_stock(agent)
        levels = LEVELS[:1]
    config.evaluators.objectives = stock_evaluator(tail_objectives("cvar", levels), candidates=151, count=512)
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        agent.learning_starts, agent.updates, agent.batch_size = 256, 2, 16
        config.evaluators.episodes.count = config.evaluators.objectives.count = 16
    return config


def get_sweep() -> dict[str, list]:
    """Learning rates and how fast the target network follows."""
    return {"agent.learning_rate": [3e-4, 1e-3], "agent.target_rate": [0.005, 0.02]}
