"""Fair thresholds in a closed loop: optimistic feasible search beside an unconstrained and a primal-dual bandit.

Command:
    sagax run ofs_threshold[:ucb|primal_dual] --seeds=10
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import bandit_config, one_of

RULES = {
    "ofs": "the best bound among the thresholds whose bounds are feasible (the default)",
    "ucb": "the best bound, without constraints",
    "primal_dual": "the best bound with a learned price on each constraint",
}
VARIANTS = {**RULES, "smoke": "seconds: four periods"}
REPRODUCES = "optimistic feasible search (arXiv 2512.22313): a gap below 0.003, fewer violations than primal-dual"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 10,000 periods of one population, which is never reset."""
    tokens = [token for token in variant.split(",") if token]
    config = bandit_config()
    noise = 0.05
    config.environment = {"kind": "selection", "noise": noise, "time_limit": None}
    config.agent.rule = one_of(tokens, RULES, "ofs")
    # The radius of Gaussian noise, see ``agents.constrained_bandit``.
    config.agent.bonus_scale = 2 * noise
    config.evaluators = {"settled": {"kind": "steady_state"}}
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
    return config


def get_sweep() -> dict[str, list]:
    """Widths of the bounds. That of primal-dual: ``--sweep.agent.multiplier_step=0.01,0.05,0.25``."""
    return {"agent.bonus_scale": [0.03, 0.1, 0.3]}
