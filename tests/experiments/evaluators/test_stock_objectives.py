"""Objectives of a stock-augmented agent: the searched stock, the realised objective, an agent that does nothing."""

import contextlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.functionals import cvar, optimistic_cvar, target_return
from agents.networks.sequence import NetworkConfig
from agents.return_networks import return_network
from envs.catalogue import ENVIRONMENTS
from envs.hosts.jax import JaxHost
from envs.native.probes import ObservationActionReward
from envs.stock import StockAugmented
from envs.wrappers import TimeLimit
from experiments.assembly import registry
from experiments.assembly.build import build_environment, build_parts
from experiments.assembly.evaluators import build_evaluators, evaluation_metrics
from experiments.assembly.members import Member
from experiments.configs._common import stock_evaluator
from experiments.errors import UserError
from experiments.evaluators.base import PureEpisodes
from experiments.evaluators.stock_objectives import (
    Objectives,
    initial_stocks,
    objective_metrics,
    require_units_of_stock,
)
from experiments.training.host_driver import HostDriver
from experiments.training.scan_driver import ScanDriver

KEY = jax.random.key(0)
OBJECTIVES = ("target_1", "tau_50")


def test_initial_stocks_are_searched_by_the_predictions_of_the_network():
    # G is 0, 1 or 2 with probabilities 1/4, 1/4 and 1/2 whatever is done: CVaR at 1/2 is 1/2, and the quantile is 1.
    source = StockAugmented(ObservationActionReward(), 1.0, -3.0, 1.0)
    plain = NetworkConfig(hidden=())
    network = return_network(source.spec, plain, head="categorical", atoms=3, value_low=0.0, value_high=2.0)
    params = jax.tree.map(jnp.zeros_like, network.init(KEY))
    params["head_advantage"]["bias"] = jnp.log(jnp.array([0.25, 0.25, 0.5] * 2))
    functionals = {"tail": cvar(0.5), "target": target_return(1.5), "best": optimistic_cvar(0.25)}

    def predicted(params, observation):
        return network.distribution(network.apply(params, observation))

    objectives = Objectives(functionals, predicted, jnp.linspace(-3, 1, 9))
    _, observation = jax.vmap(source.reset)(jax.random.split(KEY, 4))
    found = jax.jit(lambda params: initial_stocks(objectives, params, observation))(params)
    # All stocks from -2 to -1 tie for the first; the last is at minus the best quarter's quantile.
    np.testing.assert_allclose(found, [-1.0, -1.5, -2.0])


def test_a_range_of_stocks_that_may_be_too_narrow_is_reported():
    functionals = {
        "tail": cvar(0.5),
        "best": optimistic_cvar(0.5),
        "near": target_return(-1.0),
        "far": target_return(4.0),
    }
    objectives = Objectives(functionals, None, jnp.linspace(-3.0, 1.0, 9))
    returns = jnp.zeros((4, 2))

    def edges(stocks, **changes):
        metrics = objective_metrics(objectives._replace(**changes), jnp.array(stocks), returns)
        return [float(metrics[f"edge/{name}"]) for name in functionals]

    # A searched stock at either end could lie beyond it; one that is fixed may lie on it.
    assert edges([1.0, -3.0, 1.0, -4.0]) == [1, 1, 0, 1]
    assert edges([0.5, -2.5, -3.0, -3.0]) == [0, 0, 0, 0]
    assert edges([1.0, -3.0, 1.0, -4.0], use_stock=False) == [0, 0, 0, 0]


SCALED = {"kind": "scale", "channel": "env", "factor": 0.05}


@pytest.mark.parametrize(
    ("scale", "channels", "changes", "message"),
    [
        (1.0, {"env": 1.0}, {}, None),
        (20.0, {"env": 1.0}, {"env": SCALED}, None),
        (10.0, {"env": 2.0}, {"env": SCALED}, None),
        (400.0, {"env": 1.0}, {"first": SCALED, "second": SCALED}, None),
        (2.0, {"env": 1.0}, {}, "agent.return_scale=2 does not undo agent.channels.env=1:.*agent.return_scale=1$"),
        (1.0, {"env": 1.0}, {"a": SCALED}, "rewards.a.factor=0.05:.*expected agent.return_scale=20$"),
        (1.0, {"env": -1.0}, {}, "expected factors whose product is above 0"),
        (1.0, {"env": 0.0}, {}, "expected factors whose product is above 0"),
        (1.0, {"env": 1.0, "curiosity": 0.1}, {}, "made of env, curiosity, the stock adds up 'env'.*'env' alone"),
        (1.0, {"cost/x": 1.0}, {}, "made of cost/x, the stock adds up 'env'"),
        (
            1.0,
            {"env": 1.0},
            {"a": {"kind": "clip", "channel": "env"}},
            "rewards.a: kind 'clip' changes the channel 'env'",
        ),
    ],
)
def test_predicted_returns_are_in_the_units_of_the_stock(scale, channels, changes, message):
    agent = {"return_scale": scale, "channels": channels}
    with contextlib.nullcontext() if message is None else pytest.raises(UserError, match=message):
        require_units_of_stock(agent, "env", changes)


def test_a_traced_factor_is_left_to_the_point_of_the_sweep():
    agent = {"return_scale": 1.0, "channels": {"env": 1.0}}

    def traced(factor):
        require_units_of_stock(agent, "env", {"env": SCALED | {"factor": factor}})
        return factor

    jax.eval_shape(traced, 7.0)
    # The factor that a driver was given is concrete, in 32 bits.
    require_units_of_stock(agent | {"return_scale": 20.0}, "env", {"env": SCALED | {"factor": jnp.float32(0.05)}})


def smoke_of_episodes():
    """``eta_gridworld:smoke`` evaluated on episodes, and its environment."""
    config = registry.load("eta_gridworld:smoke").config.copy_and_resolve_references()
    wanted = config.evaluators.exact.objectives.to_dict()
    with config.unlocked():
        config.evaluators = {"objectives": stock_evaluator(wanted, candidates=181, count=4)}
    return config, build_environment(config)


@pytest.fixture(scope="module")
def smoke():
    return smoke_of_episodes()


def evaluators_of(config, source):
    agent = build_parts(config, source.spec).agent
    return build_evaluators(config, source, agent, PureEpisodes(source.pure, agent))


@pytest.mark.parametrize("functional", [{"kind": "target_return", "target": 0.0}, {"kind": "mean"}])
@pytest.mark.parametrize("kind", ["stock_objectives", "exact"])
def test_units_matter_where_a_return_is_added_to_a_stock(functional, kind, smoke):
    """An objective's start stock is searched by the network's predictions, whatever functional was trained for."""
    config, source = smoke
    config = config.copy_and_resolve_references().unlock()
    objectives = {"tau_50": {"kind": "cvar", "level": 0.5}}
    config.agent.functional, config.evaluators.objectives = functional, {"kind": kind, "objectives": objectives}
    evaluators_of(config, source)
    config.rewards.halved = {"kind": "scale", "factor": 0.5}
    with pytest.raises(UserError, match=r"rewards\.halved\.factor=0\.5"):
        evaluators_of(config, source)


def test_an_agent_for_the_mean_may_scale_its_rewards(smoke):
    config, source = smoke
    config = config.copy_and_resolve_references().unlock()
    config.agent.functional, config.evaluators = {"kind": "mean"}, {"episodes": {"kind": "episodes", "count": 4}}
    config.rewards.halved = {"kind": "scale", "factor": 0.5}
    assert evaluators_of(config, source)["episodes"].metrics == ("return", "length")


def metrics_of_zero_returns(config, source):
    """The names that the evaluator promises, and what it finds of an agent whose best action pays 0 everywhere."""
    agent = build_parts(config, source.spec).agent
    state = jax.jit(agent.init)(KEY)
    params = jax.tree.map(jnp.zeros_like, state.params)
    quantiles = config.agent.quantiles
    # Stock 0 with a return of 0 is best where it is the target; elsewhere any action ties, so that all prefer action 0.
    bias = params["online"]["head_advantage"]["bias"]
    params["online"]["head_advantage"]["bias"] = bias.at[quantiles:].set(-100.0)
    run = SimpleNamespace(agent=state._replace(params=params))
    evaluator = evaluators_of(config, source)["objectives"]
    return evaluator.metrics, jax.jit(lambda key: evaluator.evaluate(run, key))(KEY)


def test_an_agent_whose_returns_are_zero_misses_every_target_by_its_size(smoke):
    names, metrics = metrics_of_zero_returns(*smoke)
    assert set(metrics) == set(names)
    for target in range(-5, 6):
        np.testing.assert_allclose(metrics[f"stock/target_{target}"], -target)
        np.testing.assert_allclose(metrics[f"mean/target_{target}"], 0.0)
        np.testing.assert_allclose(metrics[f"objective/target_{target}"], -abs(target))
    np.testing.assert_allclose(metrics["objective"], -30 / 11, rtol=1e-6)


def test_both_drivers_find_the_same_in_an_environment_without_chance(smoke, monkeypatch):
    def host(num_envs, time_limit, **arguments):
        return JaxHost(TimeLimit(ENVIRONMENTS["gridworld"](**arguments), time_limit), num_envs)

    monkeypatch.setitem(ENVIRONMENTS, "gridworld_host", host)
    config = smoke[0].copy_and_resolve_references().unlock()
    objectives = {"target_1": {"kind": "target_return", "target": 1.0}, "tau_50": {"kind": "cvar", "level": 0.5}}
    config.evaluators.objectives = stock_evaluator(objectives, candidates=7, count=3)
    members = [Member(0, "")]
    scan = ScanDriver(config, smoke[1], members)
    expected = scan.evaluate(scan.start())
    config.environment.kind = "gridworld_host"
    driver = HostDriver(config, build_environment(config), members[0])
    found = driver.evaluate(driver.start())
    assert found.keys() == expected.keys() and "stock/tau_50" in found
    # --metric accepts exactly the metrics that exist.
    assert found.keys() == set(evaluation_metrics(config, build_environment(config)))
    kinds = ("objective", "mean", "stock", "edge")
    for name in ("objective", *(f"{kind}/{each}" for kind in kinds for each in OBJECTIVES)):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    driver.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectives": {"x": {"kind": "cvr", "level": 0.1}}}, "in objectives.x, did you mean 'cvar'"),
        ({"objectives": {"x": {"kind": "cvar", "level": 2.0}}}, "objectives.x: level"),
        ({"objectives": {"x": {"kind": "mean"}}}, "expected 'expectation'"),
        (
            {"objectives": {"x": {"kind": "homeostasis", "set_points": (0.0, 0.0)}}},
            "objectives.x: homeostasis.* is for vectors of 2, the return is a number",
        ),
        ({"objectives": {}}, "expected at least one, such as"),
        ({"cut": 5}, "section 'evaluators.objectives': unknown key 'cut'"),
        ({"stock": {"low": 0.0, "high": 1.0, "channels": "cost/x"}}, "the stock adds up 'cost/x'"),
        ({"stock": None}, "the environment has no stock"),
    ],
)
def test_objectives_that_cannot_be_evaluated_are_refused(change, message, smoke):
    config, source = smoke[0].copy_and_resolve_references().unlock(), smoke[1]
    agent = build_parts(config, source.spec).agent
    if "stock" in change:
        config.environment.stock = change["stock"] or {}
        if change["stock"] is None:
            del config.environment["stock"]
    else:
        [(name, value)] = change.items()
        config.evaluators.objectives[name] = value
    with pytest.raises(UserError, match=message):
        build_evaluators(config, source, agent, PureEpisodes(source.pure, agent))
