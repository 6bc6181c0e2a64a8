"""Objectives of a stock-augmented agent: the searched stock, what is realised, and an agent that does nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.functionals import cvar, optimistic_cvar, target_return
from agents.networks import NetworkConfig
from agents.return_networks import return_network
from envs.jax_host import JaxHost
from envs.probes import ObservationActionReward
from envs.stock import StockAugmented
from experiments import build, registry
from experiments.build import build_objectives, build_parts, build_world
from experiments.drivers import HostDriver, Member, ScanDriver
from experiments.errors import UserError
from experiments.objectives import Objectives, evaluate_objectives, initial_stocks

KEY = jax.random.key(0)
OBJECTIVES = ("target_1", "tau_50")


def test_the_initial_stocks_by_what_the_network_predicts():
    # G is 0, 1 or 2 with probabilities 1/4, 1/4 and 1/2 whatever is done: CVaR at 1/2 is 1/2, and the quantile is 1.
    world = StockAugmented(ObservationActionReward(), 1.0, -3.0, 1.0)
    plain = NetworkConfig(hidden=())
    network = return_network(world.spec, plain, head="categorical", atoms=3, value_low=0.0, value_high=2.0)
    params = jax.tree.map(jnp.zeros_like, network.init(KEY))
    params["head_advantage"]["bias"] = jnp.log(jnp.array([0.25, 0.25, 0.5] * 2))
    functionals = {"tail": cvar(0.5), "target": target_return(1.5), "best": optimistic_cvar(0.25)}
    objectives = Objectives(functionals, network, 1.0, jnp.linspace(-3, 1, 9))
    _, observation = jax.vmap(world.reset)(jax.random.split(KEY, 4))
    found = jax.jit(lambda online: initial_stocks(objectives, online, observation))(params)
    # All stocks from -2 to -1 tie for the first; the last is at minus the best quarter's quantile.
    np.testing.assert_allclose(found, [-1.0, -1.5, -2.0])


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


def test_both_drivers_find_the_same_in_a_world_without_chance(monkeypatch):
    def host(num_envs, **arguments):
        return JaxHost(build.PURE_WORLDS["gridworld"](**arguments), num_envs)

    monkeypatch.setitem(build.HOST_WORLDS, "gridworld_host", host)
    config = registry.load("eta_gridworld:smoke").config
    config.unlock()
    config.evaluation.objectives = {
        "target_1": {"kind": "target_return", "target": 1.0},
        "tau_50": {"kind": "cvar", "level": 0.5},
    }
    config.evaluation.episodes, config.evaluation.candidates = 3, 7
    members = [Member(0, "")]
    scan = ScanDriver(config, build_world(config), members)
    state = scan.start()
    expected = scan.evaluate(state)
    config.environment.kind = "gridworld_host"
    driver = HostDriver(config, build_world(config), members[0])
    found = driver.evaluate(driver.start())
    assert found.keys() == expected.keys() and "stock/tau_50" in found
    for name in ("objective", *(f"{kind}/{each}" for kind in ("objective", "mean", "stock") for each in OBJECTIVES)):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    driver.close()


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
