"""Exploration of a small model in which no episode's policy may be worse than a threshold: StepMix and EpsMix.

Command:
    sagax run stepmix_tabular[:eps_mix|unsafe|baseline][,steps_5][,narrow] --seeds=10

The model has 5 states and 5 actions, the baseline is a softened optimal policy, and the threshold is nine tenths of its
value. What is counted is the exact value of the policy of every episode.

Expected, 10 seeds, 10,000 episodes each (95 % interval):
                    regret of all episodes       regret per episode,    episodes below     largest
                                                 the last 1,000         the threshold      shortfall
    3 steps
      step_mix        95 [79, 123]               .0015 [.0012, .0019]   none               0
      eps_mix        104 [89, 128]               .0014 [.0012, .0019]   none               0
      unsafe          65 [62, 69]                .0020 [.0015, .0026]   9.2 [8, 12]        1.4
      baseline     2,736                         .27                    none               0
    5 steps
      step_mix       115 [98, 145]               .0022 [.0019, .0027]   none               0
      eps_mix        119 [99, 149]               .0022 [.0020, .0027]   none               0
      unsafe          80 [77, 83]                .0020 [.0017, .0023]   6.2 [5.8, 6.8]     2.4
      baseline     4,601                         .46                    none               0
    5 steps, narrow
      step_mix        33 [27, 60]                .0000 [.0000, .0025]   none               0
      unsafe          17 [14, 73]                .0000 [.0000, .0048]   6.3 [5.8, 7.2]     2.4

The promise is kept in all episodes, also of four other models of 5 steps (``model_1`` to ``model_4``), and with the
radii that are proved no bound failed. It is paid for in the first 1,000 episodes, in which all of the additional regret
arises (70 against 34, and 86 against 45); after them, regret is that of optimism alone. Mixtures matter little: often
the optimistic policy is proved safe soon after the baseline, or before it, and StepMix and EpsMix play nearly the same.
With a fifth of the radii no episode of the two is below the threshold, either, but of optimism alone a bound failed
in one of 10 seeds.

Time: 10 seconds for 10 seeds on one core.
"""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from agents.planning.dynamic_programming import policy_evaluation, value_iteration
from envs.native.random_model import random_model
from envs.native.tabular import TabularModel, scalarised
from experiments.configs._common import one_of, tabular_config

SAFETY = {
    "step_mix": ("step_mix", "the baseline in the first steps, optimism after them (the default)"),
    "eps_mix": ("eps_mix", "the baseline in some episodes, optimism in the others"),
    "unsafe": ("none", "optimism alone"),
    "baseline": ("baseline", "the baseline in every episode"),
}
STEPS = {"steps_3": 3, "steps_5": 5}
MODELS = tuple(f"model_{seed}" for seed in range(5))
VARIANTS = {
    **{name: text for name, (_, text) in SAFETY.items()},
    "steps_3": "episodes of 3 steps (the default)",
    "steps_5": "episodes of 5 steps",
    **{name: "one of five models of 5 states and 5 actions" for name in MODELS},
    "model_0": "one of five models of 5 states and 5 actions (the default)",
    "narrow": "a fifth of the radii that are proved",
    "smoke": "seconds: four episodes",
}
REPRODUCES = "StepMix and EpsMix (arXiv 2306.06265): no episode below the threshold, regret as of optimism alone"

# The baseline is a softened optimal policy: probabilities proportional to exp(Q / temperature).
TEMPERATURE = 0.25
# The threshold lies so far below the baseline's value, in shares of it.
MARGIN = 0.1
# Nearly no episode ends but by its time limit.
GOING_ON = 1 - 1e-9


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 10,000 episodes."""
    tokens = [token for token in variant.split(",") if token]
    config = tabular_config()
    steps = STEPS[one_of(tokens, STEPS, "steps_3")]
    seed = MODELS.index(one_of(tokens, MODELS, "model_0"))
    size = {"states": 5, "actions": 5, "costs": 1, "successors": 5}
    config.environment = {"kind": "random_model", **size, "going_on": GOING_ON, "model_seed": seed}
    config.environment.time_limit = config.data.length = steps
    model = random_model(**size, going_on=GOING_ON, seed=seed)
    baseline, value = softened(scalarised(model, (1.0, 0.0)), steps)
    config.agent.safety = SAFETY[one_of(tokens, SAFETY, "step_mix")][0]
    config.agent.baseline = tuple(map(float, baseline.reshape(-1)))
    config.agent.threshold = round((1 - MARGIN) * value, 4)
    # What a pair of state and action pays is always the same.
    config.agent.reward_noise = config.agent.early_ends = False
    if "narrow" in tokens:
        config.agent.bonus_scale = 0.2
    config.evaluators = {"played": {"kind": "played_policy"}}
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
    return config


def softened(model: TabularModel, steps: int) -> tuple[np.ndarray, float]:
    """The baseline, probabilities ``[S, A]`` with four digits, and its value from the distribution of start states.

    ``Q`` is that of the first step, so that the baseline is the same in every step.
    """
    best = np.asarray(value_iteration(model, horizon=steps).action_values)
    weights = np.exp((best - best.max(-1, keepdims=True)) / TEMPERATURE)
    table = np.round(weights / weights.sum(-1, keepdims=True), 4)
    policy = table / table.sum(-1, keepdims=True)
    return table, float(model.initial @ np.asarray(policy_evaluation(model, policy, horizon=steps).values))


def get_sweep() -> dict[str, list]:
    """Shares of the radii that are proved."""
    return {"agent.bonus_scale": [0.05, 0.2, 1.0]}
