"""The evaluator of constrained problems: exact totals against the planner's, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.planning.linear_programming import Limit, constrained_optimum, totals_of
from envs.native.random_model import random_model
from experiments.assembly import registry
from experiments.assembly.build import build_environment, build_parts
from experiments.assembly.evaluators import build_evaluators
from experiments.errors import UserError


class State:
    """As much of a run's state as an evaluator reads."""

    def __init__(self, agent):
        self.agent, self.reward = agent, ()


def evaluator(name="lagrangian_cmdp:costs_2,model_1", **changes):
    config = registry.load(name).config.copy_and_resolve_references().unlock()
    for key, value in changes.items():
        config.rewards.lagrangian.constraints["1"][key] = value
    source = build_environment(config)
    agent = build_parts(config, source.spec).agent
    [made] = build_evaluators(config, source, agent, None).values()
    return config, agent, made


def test_totals_are_those_of_the_policy_and_the_optimum_is_that_of_the_program():
    config, agent, made = evaluator()
    state = State(agent.init(jax.random.key(0)))
    found = {name: float(value) for name, value in made.evaluate(state, jax.random.key(1)).items()}
    assert tuple(found) and set(found) == set(made.metrics)
    model = random_model(costs=2, seed=1)
    observation = jnp.arange(model.num_states)
    probabilities = agent.action_probabilities(state.agent.params, agent.initial_carry(len(observation)), observation)
    totals = totals_of(model, np.asarray(probabilities, np.float64)[None] / np.sum(probabilities, -1, keepdims=True))
    np.testing.assert_allclose([found["return"], found["return/cost/1"], found["return/cost/2"]], totals, rtol=1e-4)
    limits = {name: Limit(int(name), one.limit) for name, one in config.rewards.lagrangian.constraints.items()}
    plan = constrained_optimum(model, limits)
    assert found["optimum"] == pytest.approx(plan.totals[0], rel=1e-6)
    assert found["gap"] == pytest.approx(1 - totals[0] / plan.totals[0], rel=1e-3)
    multipliers = [found[f"optimal_multiplier/{name}"] for name in limits]
    np.testing.assert_allclose(multipliers, plan.multipliers, rtol=1e-5)
    missed = max(totals[one.component] / one.limit - 1 for one in limits.values())
    assert found["violation"] == pytest.approx(max(missed, 0.0), rel=1e-3)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UserError, match=r"no policy meets all limits: '1' is to be at most 0.1"):
        evaluator(limit=0.1)
    with pytest.raises(UserError, match=r"constraints.1 is on the channel 'env': expected one of cost/1, cost/2"):
        evaluator(channel="env")
