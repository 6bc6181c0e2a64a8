"""Fair thresholds in a closed loop: optimistic feasible search beside an unconstrained and a primal-dual bandit.

Command:
    sagax run ofs_threshold[:ucb|primal_dual] --seeds=10

Two groups apply, and the share of each moves with who is accepted (``envs.native.selection``). A threshold is to accept
at least half of the applicants, and the groups at rates that differ by .15 at most.

Expected, 10 seeds, 10,000 periods each (95 % interval); violations are without noise, the gap is to the best feasible
fixed threshold, whose reward is .0984:
                                       reward of a period     sum of violations     gap in the last 1,000 periods
    ofs                                .0942 [.0939, .0944]      17 [16, 19]         .0012 [.0008, .0016]
    ofs, bounds 0.3 times as wide      .0958 [.0933, .0980]     7.4 [7.1, 7.7]       .0017 [.0000, .0044]
    ofs, bounds 3 times as wide        .0880 [.0878, .0883]     139 [137, 141]       .0080 [.0075, .0090]
    ucb                                .1126 [.1121, .1128]   1,095 [1,078, 1,109]  -.0175 [-.0179, -.0169]
    primal_dual, step 0.05             .0953 [.0951, .0955]     526 [518, 535]       .0020 [.0014, .0025]

The gap is below .003, as the paper has it, and the violations sum to a thirtieth of those of primal-dual, of which
steps of 0.01 and 0.25 are no better. The paper's higher reward is not found: what pays most is not feasible, and
primal-dual still misses its limits by .046 on average in the last 1,000 periods. With bounds three times as wide,
10,000 periods are too few: the threshold next to the best feasible one still looks feasible.

Time: 5 seconds for 10 seeds on one core.
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
