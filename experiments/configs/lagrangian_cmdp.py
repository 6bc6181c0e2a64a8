"""Lagrangian methods on random constrained Markov decision processes, whose optimum a linear program gives.

Command:
    sagax run lagrangian_cmdp[:pid][,costs_2][,model_3] --seeds=3

Each model has 8 states, 4 actions and 1 to 3 costs (``envs.native.random_model``); an episode takes 10 steps on
average. The limits lie halfway between the costs of the best unconstrained policy and those of the policy of the least
total cost, so that they can be met together. There are no committed rows yet.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from agents.planning.linear_programming import constrained_optimum
from envs.native.random_model import random_model
from envs.native.tabular import TabularModel
from experiments.configs._common import CONSTRAINED, constrain, entry, one_of, policy_gradient_config

MODELS = tuple(f"model_{seed}" for seed in range(10))
COSTS = {"costs_1": 1, "costs_2": 2, "costs_3": 3}
_DEFAULT = {"costs_1", "model_0"}
_CHOICES = {
    **{name: f"{count} cost{'s' if count > 1 else ''} with a limit each" for name, count in COSTS.items()},
    **{name: "one of ten models" for name in MODELS},
}
VARIANTS = {
    **{name: text for name, (text, _) in CONSTRAINED.items()},
    **{name: f"{text} (the default)" if name in _DEFAULT else text for name, text in _CHOICES.items()},
    "smoke": "seconds: a few iterations of a small batch",
}
REPRODUCES = "Lagrangian methods (Ray et al., 2019; arXiv 2007.03964, 1805.11074) against the exact optimum"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 1,638,400 environment steps."""
    tokens = [token for token in variant.split(",") if token]
    config = policy_gradient_config()
    costs = COSTS[one_of(tokens, COSTS, "costs_1")]
    seed = MODELS.index(one_of(tokens, MODELS, "model_0"))
    limits = halfway(random_model(costs=costs, seed=seed))
    config.environment = {"kind": "random_model", "costs": costs, "model_seed": seed, "time_limit": 200}
    config.data = {"kind": "unroll", "length": 32, "batch": 128, "group_size": 1}
    config.iterations, config.evaluate_every = 400, 20
    config.network.hidden = (32,)
    config.credit.env = entry("gae", discount=1.0, gae_lambda=0.95)
    config.agent.update(
        # Where limits bind, actions tie. A policy that has become certain, or whose learning rate has fallen to 0, no
        # longer follows its multipliers.
        {"epochs": 4, "minibatches": 4, "learning_rate": 5e-3, "schedule": "constant", "entropy_weight": 0.02}
    )
    config.agent.whiten = "none"
    method = one_of(tokens, CONSTRAINED, "pid")
    constrain(config, {str(number): (f"cost/{number}", limit) for number, limit in enumerate(limits, start=1)}, method)
    config.evaluators = {"exact": {"kind": "constrained"}}
    config.evaluation.metric = "return"
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
    return config


def halfway(model: TabularModel) -> list[float]:
    """Limits of the costs, halfway between the best unconstrained policy's and those of the least total cost."""
    count = model.reward_dimension - 1
    rewarded = constrained_optimum(model, {}).totals[1:]
    summed = model.reward.copy()
    summed[..., 0] = -model.reward[..., 1:].sum(-1)
    cautious = constrained_optimum(model._replace(reward=summed), {}).totals[1:]
    return [float((rewarded[index] + cautious[index]) / 2) for index in range(count)]


def get_sweep() -> dict[str, list]:
    """Learning rates of the agent."""
    return {"agent.learning_rate": [2e-3, 5e-3, 1e-2]}
