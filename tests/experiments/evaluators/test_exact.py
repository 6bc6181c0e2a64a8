"""Exact evaluation, compared with all trajectories of small models, the planner's evaluation and many episodes."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.planning.dynamic_programming import policy_evaluation
from envs.native.tabular import from_outcomes, gridworld
from experiments.assembly import registry
from experiments.assembly.build import build_environment, build_parts
from experiments.assembly.evaluators import build_evaluators
from experiments.configs._common import stock_evaluator
from experiments.errors import UserError
from experiments.evaluators import exact as exact_module
from experiments.evaluators.base import PureEpisodes
from experiments.evaluators.exact import follow, reachable

# Two states, two actions, rewards of three sizes, and an end: probability, next state, reward, whether it ends.
MODEL = from_outcomes(
    [
        [[(0.5, 0, 1.0, False), (0.5, 1, -1.0, False)], [(1.0, 1, 0.0, False)]],
        [[(0.25, 0, 1.0, False), (0.75, 1, 0.0, False)], [(0.5, 1, 2.0, True), (0.5, 0, 2.0, False)]],
    ],
    [0.75, 0.25],
)


def policy(time, state, paid):
    """Probabilities of two actions that depend on everything that a policy may observe."""
    first = jax.nn.sigmoid(0.3 * time - state + 0.7 * paid)
    return jnp.stack([first, 1 - first], axis=-1)


def by_trajectories(length, discount):
    """``{return: probability}``, expected undiscounted reward and length, one trajectory after the other."""
    found, total, steps = {}, 0.0, 0.0
    waiting = [(p, 0, state, 0.0, 0.0) for state, p in enumerate(MODEL.initial)]
    while waiting:
        mass, time, state, paid, plain = waiting.pop()
        chances = np.asarray(policy(jnp.float32(time), jnp.asarray([state]), jnp.asarray([paid])))[0]
        for action, outcome in itertools.product(range(2), range(MODEL.probability.shape[2])):
            where = state, action, outcome
            here = mass * chances[action] * MODEL.probability[where]
            if here == 0:
                continue
            reward = MODEL.reward[where]
            after = time + 1, MODEL.next_state[where], paid + discount**time * reward, plain + reward
            if MODEL.terminated[where] or time + 1 == length:
                name = round(after[2], 6)
                found[name] = found.get(name, 0.0) + here
                total, steps = total + here * after[3], steps + here * after[0]
            else:
                waiting.append((here, *after))
    return found, total, steps


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_a_policy_is_followed_as_all_trajectories_are(discount):
    problem = reachable(MODEL, 4, discount, returns=True)
    found = jax.jit(lambda: follow(problem, policy))()
    expected, total, steps = by_trajectories(4, discount)
    assert [round(value, 6) for value in problem.returns] == sorted(expected)
    np.testing.assert_allclose(found.probability, [expected[value] for value in sorted(expected)], atol=1e-6)
    np.testing.assert_allclose((found.total, found.length), (total, steps), rtol=1e-5)


def test_equal_pairs_of_state_and_reward_are_merged():
    # Discounted sums are all different, undiscounted ones are the integers in between.
    sizes = [reachable(gridworld("open"), 16, discount, returns=True).state.shape[1] for discount in (1.0, 0.99)]
    assert sizes[0] < 300 < 5_000 < sizes[1]
    assert reachable(gridworld("open"), 16, 0.99, returns=False).state.shape == (16, 16)


def test_a_model_that_is_too_large_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(exact_module, "MOST_PAIRS", 1000)
    with pytest.raises(ValueError, match=r"\d+ pairs .* after 12 steps, more than 1000: .* 'stock_objectives'"):
        reachable(gridworld("open", slip=0.25), 16, 0.99, returns=True)


def evaluators_of(config):
    source = build_environment(config)
    agent = build_parts(config, source.spec).agent
    return agent, build_evaluators(config, source, agent, PureEpisodes(source.pure, agent))


def test_the_mean_of_many_episodes_is_the_exact_value():
    config = registry.load("eta_gridworld:cvar,smoke").config.copy_and_resolve_references()
    with config.unlocked():
        # Random weights alone would make the same action the best from every stock.
        config.network.hidden, config.evaluators.exact.candidates = (16,), 31
        config.evaluators.sampled = stock_evaluator(config.evaluators.exact.objectives.to_dict(), 31, 4096)
    agent, evaluators = evaluators_of(config)
    state = jax.jit(agent.init)(jax.random.key(3))
    params = jax.tree.map(lambda x: 5 * x, state.params["online"])
    run = SimpleNamespace(agent=state._replace(params=state.params | {"online": params}))
    exact, sampled = (
        jax.jit(lambda key, name=name: evaluators[name].evaluate(run, key))(jax.random.key(1))
        for name in ("exact", "sampled")
    )
    assert exact.keys() == sampled.keys() == set(evaluators["exact"].metrics)
    assert len({float(exact[f"mean/tau_{level}"]) for level in (10, 25, 50, 100)}) > 1
    for name, value in exact.items():
        # The stocks are the same numbers; a mean of 4,096 returns has a standard error of about 0.03.
        np.testing.assert_allclose(sampled[name], value, atol=1e-6 if name[:5] in ("stock", "edge/") else 0.15)


def test_without_a_stock_the_return_is_that_of_the_planner():
    config = registry.load("ppo_cartpole:native,smoke").config.copy_and_resolve_references().unlock()
    config.environment = {"kind": "gridworld", "layout": "short_and_risky", "slip": 0.25, "time_limit": 7}
    config.network.hidden, config.evaluators = (8,), {"exact": {"kind": "exact", "greedy": False}}
    agent, evaluators = evaluators_of(config)
    state = jax.jit(agent.init)(jax.random.key(0))
    found = jax.jit(lambda key: evaluators["exact"].evaluate(SimpleNamespace(agent=state), key))(jax.random.key(1))
    model = gridworld("short_and_risky", slip=0.25)
    states = jnp.arange(model.num_states)
    probabilities = agent.action_probabilities(state.params, agent.initial_carry(len(states)), states)
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, rtol=1e-6)
    expected = policy_evaluation(model, np.asarray(probabilities, np.float64), horizon=7)
    np.testing.assert_allclose(found["return"], model.initial @ np.asarray(expected.values), atol=1e-5)
    assert 1 <= found["length"] <= 7


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ppo_cartpole:native,smoke", {}, "the environment's model is not known: expected one of the kinds gridworld"),
        ("eta_gridworld:smoke", {"objectives": {}}, "an episode starts as an objective asks for|expected objectives"),
        ("ppo_cartpole:native,recurrent,smoke", {"environment": True}, "expected network.recurrent_size=0"),
    ],
)
def test_what_cannot_be_evaluated_exactly_is_refused(name, change, message):
    config = registry.load(name).config.copy_and_resolve_references().unlock()
    if "environment" in change:
        config.environment = {"kind": "gridworld", "layout": "open", "slip": 0.0, "time_limit": 7}
    config.evaluators = {"exact": {"kind": "exact"} | {k: v for k, v in change.items() if k == "objectives"}}
    with pytest.raises(UserError, match=message):
        evaluators_of(config)
