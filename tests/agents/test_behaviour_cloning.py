"""Behaviour cloning recovers an expert."""

from functools import partial

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from agents.behaviour_cloning import Demonstrations, behaviour_cloning
from agents.distributions import distribution_for
from agents.networks.base import Head
from agents.networks.sequence import NetworkConfig, network

KEY = jax.random.key(0)
# These programs run for milliseconds; nearly all time goes into compiling them.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
OBSERVATION = spaces.Discrete(6)
EXPERT = np.array([2, 0, 1, 1, 2, 0], np.int32)


def parts(action_space: gymnasium.Space, **config):
    distribution = distribution_for(action_space)
    head = Head(distribution.num_parameters, scale=0.01, num_free=distribution.num_free)
    net = network(OBSERVATION, {"policy": head}, NetworkConfig(**({"hidden": (16,)} | config)))
    return net, distribution, jit(net.init)(KEY)


def policy_of(net, params):
    """The policy's parameters for every observation, ``[6, P]``."""
    return net.apply(params, jnp.arange(6)[None], net.initial_carry(6), None)[0]["policy"][0]


@pytest.mark.parametrize("recurrent_size", [0, 8])
def test_a_deterministic_expert_is_recovered(recurrent_size):
    net, distribution, params = parts(spaces.Discrete(3), recurrent_size=recurrent_size)
    demonstrations = Demonstrations(jnp.arange(6), jnp.asarray(EXPERT))
    fit = jit(behaviour_cloning(net, distribution, learning_rate=1e-2, steps=150, batch=32))
    fitted, metrics = fit(params, demonstrations, jax.random.key(1))
    parameters = policy_of(net, fitted)
    np.testing.assert_array_equal(distribution.mode(parameters), EXPERT)
    before = -np.mean(distribution.log_prob(policy_of(net, params), EXPERT))
    after = -np.mean(distribution.log_prob(parameters, EXPERT))
    np.testing.assert_allclose(before, np.log(3), atol=0.05)
    assert after < 0.1 and metrics["cloning_loss"] < 0.1


def test_the_action_frequencies_of_a_random_expert_are_recovered():
    # Maximum likelihood: the policy is the relative frequency, here 3/4 and 1/4 for every observation.
    net, distribution, params = parts(spaces.Discrete(2), hidden=())
    observation, action = np.repeat(np.arange(6), 4), np.tile([0, 0, 0, 1], 6)
    fit = jit(behaviour_cloning(net, distribution, learning_rate=1e-2, steps=300, batch=256))
    fitted, _ = fit(params, Demonstrations(jnp.asarray(observation), jnp.asarray(action)), KEY)
    share = jax.nn.softmax(policy_of(net, fitted))[:, 1]
    np.testing.assert_allclose(share, 0.25, atol=0.06)


def test_pytrees_of_actions_are_cloned():
    space = spaces.Dict(turn=spaces.Discrete(3), speed=spaces.Box(-1, 1, (1,), np.float32))
    net, distribution, params = parts(space)
    target = {"turn": jnp.asarray(EXPERT), "speed": jnp.linspace(-1, 1, 6)[:, None]}
    fit = jit(behaviour_cloning(net, distribution, learning_rate=2e-2, steps=200, batch=32))
    fitted, _ = fit(params, Demonstrations(jnp.arange(6), target), KEY)
    mode = distribution.mode(policy_of(net, fitted))
    np.testing.assert_array_equal(mode["turn"], EXPERT)
    np.testing.assert_allclose(mode["speed"], target["speed"], atol=0.15)


@pytest.mark.parametrize("arguments", [{"steps": 0}, {"steps": 1, "batch": 0}])
def test_bad_arguments_are_refused(arguments):
    net, distribution, _ = parts(spaces.Discrete(3))
    with pytest.raises(ValueError, match=r"behaviour_cloning: steps=\d, batch=\d+: expected at least 1"):
        behaviour_cloning(net, distribution, learning_rate=1e-3, **arguments)


def test_no_demonstrations_are_refused():
    net, distribution, params = parts(spaces.Discrete(3))
    fit = behaviour_cloning(net, distribution, learning_rate=1e-3, steps=1)
    with pytest.raises(ValueError, match="0 demonstrations"):
        fit(params, Demonstrations(jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32)), KEY)
