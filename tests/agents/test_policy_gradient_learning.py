"""The policy-gradient family learns: probe environments whose values and best policies are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.base import DataSpec
from agents.credit import Credit, Entry
from agents.estimators import gae, group_outcome, whitened_return
from agents.networks.sequence import NetworkConfig
from agents.policy_gradient import policy_gradient
from envs.native import probes
from experiments.evaluators.base import PureEpisodes
from experiments.evaluators.episodes import episode_means
from experiments.training.learn import initial_state, run_chunk, start_rollout
from rewards.base import chain

# The runs take a tenth of a second; nearly all time goes into compiling them.
FAST_COMPILE = {"xla_backend_optimization_level": 0}
DISCOUNT = 0.9
SMALL = NetworkConfig(hidden=(16,))
PPO = Credit({"env": Entry("env", gae(DISCOUNT, 0.95))}, whiten="minibatch")


def train(probe, iterations, *, credit=PPO, data=None, network_config=SMALL, **arguments):
    """``iterations`` of the whole loop in one jit; the agent and its parameters."""
    arguments = {"learning_rate": 1e-2, "epochs": 2, "entropy_weight": 0.0} | arguments
    data = data or DataSpec("unroll", 8, 16)
    agent = policy_gradient(probe.spec, credit=credit, data=data, network_config=network_config, **arguments)
    reward = chain()

    @partial(jax.jit, compiler_options=FAST_COMPILE)
    def run(key):
        state = start_rollout(probe, agent, initial_state(agent, reward, key))
        return run_chunk(probe, agent, reward, state, 0, iterations=iterations)

    state, metrics = run(jax.random.key(0))
    assert metrics["sum/rejected"] == 0
    return agent, state.agent.params


def value_of(agent, params, observation):
    observation = jnp.asarray(observation, jnp.float32)
    return agent.act(params, agent.initial_carry(len(observation)), observation, jax.random.key(0))[2]["value"]["env"]


def greedy_return(probe, agent, params, episodes=256):
    play = partial(PureEpisodes(probe, agent).play, count=episodes, length=probe.spec.max_episode_steps, greedy=True)
    evaluate = jax.jit(lambda params, key: episode_means(play(params, key)), compiler_options=FAST_COMPILE)
    return float(evaluate(params, jax.random.key(99))["return"])


# --- values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probe", "observations"),
    [(probes.ConstantReward(), [[0]]), (probes.DelayedReward(), [[0], [1]])],
    ids=["constant", "delayed"],
)
def test_the_critic_learns_the_known_values(probe, observations):
    agent, params = train(probe, 300)
    expected = [float(probe.optimal_value(jnp.array(o, jnp.float32), DISCOUNT)) for o in observations]
    np.testing.assert_allclose(value_of(agent, params, observations), expected, atol=0.05)


@pytest.mark.parametrize("data", [DataSpec("unroll", 12, 8), DataSpec("episodes", 5, 24)], ids=["unroll", "episodes"])
def test_a_time_limit_is_bootstrapped_from_the_final_observation(data):
    probe = probes.TruncationProbe(length=5)
    agent, params = train(
        probe, 400, data=data, network_config=NetworkConfig(hidden=()), learning_rate=0.05, epochs=4, value_weight=1.0
    )
    start, running = value_of(agent, params, [[1, 0], [0, 1]])
    # A time limit treated as a termination would give 3.08, the observation after the reset -1.02.
    np.testing.assert_allclose(running, 1 / (1 - DISCOUNT), atol=0.3)
    np.testing.assert_allclose(start, -5 + DISCOUNT / (1 - DISCOUNT), atol=0.3)


# --- policies ------------------------------------------------------------------------------------------

POLICIES = {
    "action": (probes.ActionReward(), {}, 0.99),
    "observation and action": (probes.ObservationActionReward(), {}, 0.99),
    "multi-discrete": (probes.MultiDiscreteMatch(), {"shared_critic": True, "minibatches": 2}, 0.99),
    # The best policy that ignores the observation has -1/12.
    "gaussian": (probes.ContinuousTarget(), {}, -0.01),
    "tanh gaussian": (probes.ContinuousTarget(), {"continuous": "tanh_gaussian"}, -0.01),
}


@pytest.mark.parametrize(("probe", "arguments", "threshold"), POLICIES.values(), ids=POLICIES)
def test_the_policy_solves_the_probe(probe, arguments, threshold):
    agent, params = train(probe, 150, **arguments)
    assert greedy_return(probe, agent, params) >= threshold


FAMILY = {
    "grpo": {"credit": Credit({"env": Entry("env", group_outcome())})},
    "rloo, plain surrogate": {
        "credit": Credit({"env": Entry("env", group_outcome("leave_one_out", "none"))}),
        "surrogate": "plain",
        "epochs": 1,
    },
    "reinforce++": {"credit": Credit({"env": Entry("env", whitened_return())}), "minibatches": 2},
}


@pytest.mark.parametrize("arguments", FAMILY.values(), ids=FAMILY)
def test_every_member_of_the_family_learns_from_whole_episodes(arguments):
    probe = probes.ObservationActionReward()
    agent, params = train(probe, 150, data=DataSpec("episodes", 1, 128, 8), **arguments)
    assert greedy_return(probe, agent, params) >= 0.99


# --- memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recurrent_size", [0, 16])
def test_only_a_recurrent_policy_recalls_a_cue(recurrent_size):
    probe = probes.ChainRecall(length=3)
    config = NetworkConfig(hidden=(), recurrent_size=recurrent_size)
    data = DataSpec("unroll", 9, 32)
    agent, params = train(probe, 200, data=data, network_config=config, learning_rate=2e-2)
    result = greedy_return(probe, agent, params)
    if recurrent_size:
        assert result >= 0.99
    else:
        # Without memory half of the answers are right; within four standard errors of 256 episodes.
        assert abs(result - 0.5) < 4 * 0.5 / 16
