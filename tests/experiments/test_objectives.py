"""Objectives of a stock-augmented agent: the searched stock, what is realised, and an agent that does nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.functionals import cvar, initial_stock, optimistic_cvar
from experiments import registry
from experiments.build import build_objectives, build_parts, build_world
from experiments.errors import UserError
from experiments.objectives import evaluate_objectives, searched_stock

KEY = jax.random.key(0)


@pytest.mark.parametrize("functional", [cvar(0.25), cvar(1.0), optimistic_cvar(0.3)])
def test_the_searched_stock_is_that_of_the_planner(functional):
    stocks = jnp.linspace(-4, 4, 17)
    returns = jnp.array([-2.0, 0.0, 1.0, 3.0])
    utilities = jnp.mean(functional.utility(stocks[:, None] + returns), axis=1)
    _, index = initial_stock(functional, stocks, utilities)
    assert jax.jit(lambda u: searched_stock(functional, stocks, u))(utilities) == stocks[index]


@pytest.fixture(scope="module")
def staying():
    """``eta_gridworld:smoke`` with a network of zeros but for a bias that prefers to stay: it never gets a reward."""
    config = registry.load("eta_gridworld:smoke").config
    world = build_world(config)
    agent = build_parts(config, world.spec).agent
    params = jax.tree.map(jnp.zeros_like, jax.jit(agent.init)(KEY).params)
    return config, world, agent, params


def test_an_agent_whose_returns_are_zero_misses_every_target_by_its_size(staying):
    config, world, agent, params = staying
    quantiles = config.agent.quantiles
    # Stock 0 with a return of 0 is best where it is the target; elsewhere any action ties, so that all prefer action 0.
    bias = params["online"]["head_advantage"]["bias"]
    params["online"]["head_advantage"]["bias"] = bias.at[quantiles:].set(-100.0)
    objectives = build_objectives(config, world.spec)
    metrics = jax.jit(
        lambda params: evaluate_objectives(
            world.environment, agent, objectives, params, KEY, num_episodes=4, length=16, greedy=True
        )
    )(params)
    for target in range(-5, 6):
        np.testing.assert_allclose(metrics[f"stock/target_{target}"], -target)
        np.testing.assert_allclose(metrics[f"mean/target_{target}"], 0.0)
        np.testing.assert_allclose(metrics[f"objective/target_{target}"], -abs(target))
    np.testing.assert_allclose(metrics["objective"], -30 / 11, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluation.objectives": {"x": {"kind": "cvr", "level": 0.1}}}, "did you mean 'cvar'"),
        ({"evaluation.objectives": {"x": {"kind": "cvar", "level": 2.0}}}, "level"),
        ({"evaluation.objectives": {"x": {"kind": "mean"}}}, "expected 'expectation'"),
        ({"environment.stock": None}, "the world has no stock"),
    ],
)
def test_objectives_that_cannot_be_evaluated_are_refused(change, message):
    config = registry.load("eta_gridworld:smoke").config.copy_and_resolve_references()
    config.unlock()
    for key, value in change.items():
        section, name = key.split(".")
        if value is None:
            del config[section][name]
        else:
            config[section][name] = value
    spec = build_world(registry.load("eta_gridworld:smoke").config).spec
    with pytest.raises(UserError, match=message):
        build_objectives(config, spec)
