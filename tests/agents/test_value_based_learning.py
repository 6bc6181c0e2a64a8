"""The value-based family learns: probe environments whose values are known, and a toy problem whose best CVaR is
known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.base import DataSpec
from agents.functionals import cvar, initial_stock
from agents.networks.sequence import NetworkConfig
from agents.return_networks import return_network, utilities
from agents.value_based import value_based
from envs.native import probes
from envs.native.tabular import TabularEnvironment, one_state
from envs.stock import StockAugmented
from experiments.evaluators.base import PureEpisodes
from experiments.evaluators.episodes import episode_means
from experiments.training.learn import initial_state, run_chunk, start_rollout
from rewards.base import chain

# The runs take a second; nearly all time goes into compiling them.
FAST_COMPILE = {"xla_backend_optimization_level": 0}
DISCOUNT = 0.9
DATA = DataSpec("replay", 8, 8)
COMMON = {"discount": DISCOUNT, "capacity": 2048, "learning_starts": 64, "epsilon_steps": 2000.0, "target_rate": 0.1}
LEARNING = {"learning_rate": 1e-2, "batch_size": 64, "updates": 4, "network_config": NetworkConfig(hidden=(16,))}
HEADS = {
    "dqn": {"head": "expected", "double": True},
    "dueling, n-step, prioritised": {"head": "expected", "dueling": True, "n_step": 3, "prioritised": True},
    "c51": {"head": "categorical", "atoms": 31, "value_low": -5.0, "value_high": 15.0},
    "qr-dqn": {"head": "quantile", "quantiles": 8},
    "iqn": {"head": "implicit_quantile", "quantiles": 8},
}
NETWORK_ARGUMENTS = ("head", "dueling", "quantiles", "atoms", "value_low", "value_high")


def train(environment, iterations, **arguments):
    """``iterations`` of the whole loop in one jit; the agent, its network and the online parameters."""
    arguments = COMMON | LEARNING | arguments
    agent = value_based(environment.spec, data=DATA, **arguments)
    network = return_network(
        environment.spec,
        arguments["network_config"],
        **{name: value for name, value in arguments.items() if name in NETWORK_ARGUMENTS},
    )
    reward = chain()

    @partial(jax.jit, compiler_options=FAST_COMPILE)
    def run(key):
        state = start_rollout(environment, agent, initial_state(agent, reward, key))
        return run_chunk(environment, agent, reward, state, 0, iterations=iterations)

    state, metrics = run(jax.random.key(0))
    assert metrics["sum/rejected"] == 0
    return agent, network, state.agent.params


def greedy_return(environment, agent, params, episodes=256):
    play = partial(
        PureEpisodes(environment, agent).play, count=episodes, length=environment.spec.max_episode_steps, greedy=True
    )
    evaluate = jax.jit(lambda params, key: episode_means(play(params, key)), compiler_options=FAST_COMPILE)
    return float(evaluate(params, jax.random.key(99))["return"])


def values_of(network, params, observation):
    distribution = network.distribution(network.apply(params["online"], jnp.asarray(observation, jnp.float32)))
    return np.asarray(utilities(distribution, observation, None))


@pytest.mark.parametrize(
    ("probe", "observations"),
    [
        (probes.ConstantReward(), [[0]]),
        (probes.ObservedReward(), [[-1], [1]]),
        (probes.DelayedReward(), [[0], [1]]),
    ],
    ids=["constant", "observed", "delayed"],
)
def test_the_known_values_are_learned(probe, observations):
    _, network, params = train(probe, 150, **HEADS["dqn"])
    expected = [float(probe.optimal_value(jnp.array(o, jnp.float32), DISCOUNT)) for o in observations]
    np.testing.assert_allclose(values_of(network, params, observations), np.array([expected] * 2).T, atol=0.05)


@pytest.mark.parametrize("arguments", HEADS.values(), ids=HEADS)
def test_a_time_limit_is_bootstrapped_from_the_final_observation(arguments):
    probe = probes.TruncationProbe(length=5)
    _, network, params = train(probe, 300, **arguments)
    values = values_of(network, params, [[1, 0], [0, 1]])
    # Time limits treated as terminations would give -2.2 and 3.08, observations after the reset -5.9 and -1.02.
    np.testing.assert_allclose(values, [[-5 + 9] * 2, [10] * 2], atol=0.5)


@pytest.mark.parametrize("arguments", HEADS.values(), ids=HEADS)
def test_the_policy_uses_the_observation(arguments):
    probe = probes.ObservationActionReward()
    agent, _, params = train(probe, 80, **arguments)
    assert greedy_return(probe, agent, params) >= 0.99


# --- risk ----------------------------------------------------------------------------------------------

# Per step 1 for certain, or 4 or -1 with equal probability, or 10 or -1 with probabilities 1/5 and 4/5. Over two steps
# the worst quarter of the returns is best with the certain 1 twice, CVaR 2 from the stock -2; the mean is 3 at best.
TOY = TabularEnvironment(one_state([[(1.0, 1.0)], [(4.0, 0.5), (-1.0, 0.5)], [(10.0, 0.2), (-1.0, 0.8)]]), "one_hot")
RISK = {
    "head": "quantile",
    "quantiles": 16,
    "functional": cvar(0.25),
    "discount": 1.0,
    "stock_edits": 3,
    "epsilon_end": 0.5,
    "learning_rate": 2e-3,
    "batch_size": 64,
    "network_config": NetworkConfig(hidden=(64, 64), activation="relu"),
}


def toy(start=None):
    return StockAugmented(TOY, 1.0, -12.0, 0.0, start=start, horizon=2)


def test_the_stock_decides_between_safe_and_risky():
    agent, network, params = train(toy(), 600, **RISK)
    stocks = jnp.linspace(-4, 0, 17)
    _, observation = jax.vmap(toy().reset_at, (None, 0))(jax.random.key(0), stocks)
    distribution = network.distribution(network.apply(params["online"], observation))
    value, index = initial_stock(cvar(0.25), stocks, utilities(distribution, observation, cvar(0.25)).max(-1))
    assert value == pytest.approx(2.0, abs=0.25) and stocks[index] == pytest.approx(-2.0, abs=0.51)
    # From -2 the certain reward twice; from a stock so low that the utility is linear, the action of the best mean.
    safe, risky = (greedy_return(toy(start), agent, params, 512) for start in (-2.0, -12.0))
    assert safe == pytest.approx(2.0, abs=1e-6)
    assert abs(risky - 3.0) < 4 * np.sqrt(2 * 6.25 / 512)
