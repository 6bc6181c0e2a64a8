"""Optimisers over one vector and leaf by leaf: the same steps, and what their states are shaped like."""

from __future__ import annotations

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agents.base import DataSpec
from agents.credit import Credit, Entry
from agents.estimators import ESTIMATORS
from agents.networks.sequence import NetworkConfig
from agents.optimisers import chained, gradient_norm, learning_rate_schedule
from agents.policy_gradient import policy_gradient
from agents.value_based import value_based
from envs.base import EnvironmentSpec
from rewards.curiosity.icm import icm
from rewards.curiosity.latent_prediction import latent_prediction
from rewards.curiosity.rnd import rnd

SPEC = EnvironmentSpec(gymnasium.spaces.Box(-1, 1, (2,), np.float32), gymnasium.spaces.Discrete(2), max_episode_steps=4)
UNROLL = DataSpec("unroll", 4, 2, 1)
NETWORK = NetworkConfig(hidden=(3,))


def moments(state):
    """The shapes of Adam's first moments, wherever ``state`` has them."""

    def is_adam(node):
        return isinstance(node, optax.ScaleByAdamState)

    return [jax.tree.map(jnp.shape, node.mu) for node in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(node)]


def test_both_forms_take_the_same_steps():
    params = {"weight": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    results = []
    for flatten in (True, False):
        made = chained(optax.clip_by_global_norm(0.5), optax.adam(0.1), flatten=flatten)
        state, now = made.init(params), params
        for step in range(3):
            gradient = jax.tree.map(lambda leaf, step=step: jnp.exp(leaf - step), now)
            updates, state = made.update(gradient, state, now)
            now = optax.apply_updates(now, updates)
        results.append(now)
    for one, other, before in zip(*map(jax.tree.leaves, (*results, params)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
        assert np.max(np.abs(one - before)) > 0.1


def test_the_norm_is_over_all_leaves():
    gradient = {"weight": jnp.asarray([[3.0, 0.0]]), "bias": jnp.asarray([4.0])}
    assert gradient_norm(gradient) == gradient_norm(gradient, flatten=False) == 5.0


def agent_state(flatten):
    credit = Credit({"env": Entry("env", ESTIMATORS["gae"].factory(0.9, 0.9))})
    agent = policy_gradient(SPEC, credit=credit, data=UNROLL, network_config=NETWORK, flatten=flatten)
    return jax.eval_shape(agent.init, jax.random.key(0))


def replaying_state(flatten):
    data = DataSpec("replay", 4, 2, 1)
    sizes = {"capacity": 16, "learning_starts": 8, "batch_size": 2}
    agent = value_based(SPEC, data=data, network_config=NETWORK, head="expected", flatten=flatten, **sizes)
    return jax.eval_shape(agent.init, jax.random.key(0))


def reward_state(factory):
    def state(flatten):
        made = factory(SPEC, data=UNROLL, network_config=NETWORK, flatten=flatten)
        return jax.eval_shape(made.init, jax.random.key(0))

    return state


@pytest.mark.parametrize(
    "state",
    [agent_state, replaying_state, reward_state(icm), reward_state(rnd), reward_state(latent_prediction)],
    ids=["policy_gradient", "value_based", "icm", "rnd", "latent_prediction"],
)
def test_what_learns_has_moments_by_leaf_where_it_is_asked_to(state):
    flat, by_leaf = moments(state(True)), moments(state(False))
    assert flat and len(flat) == len(by_leaf)
    for vector, leaves in zip(flat, by_leaf, strict=True):
        shapes = jax.tree.leaves(leaves, is_leaf=lambda node: isinstance(node, tuple) and not hasattr(node, "_fields"))
        assert vector == (sum(map(np.prod, shapes)),) and len(shapes) > 1


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.2, [0, 1, 2, 2, 2]),
        ("linear", 0.0, [2, 1.8, 1.6, 1.2, 0]),
        ("linear", 0.2, [0, 1, 2, 1.5, 0]),
        ("cosine", 0.2, [0, 1, 2, 1 + np.cos(np.pi / 4), 0]),
        ("exponential", 0.0, [2, 2 * 0.01**0.1, 2 * 0.01**0.2, 2 * 0.01**0.4, 0.02]),
    ],
)
def test_schedules_by_hand(schedule, warmup, expected):
    made = learning_rate_schedule(2.0, schedule=schedule, warmup=warmup, optimiser_steps=10)
    np.testing.assert_allclose([made(step) for step in (0, 1, 2, 4, 10)], expected, rtol=1e-5, atol=1e-7)

    def traced(rate, warmup):
        return learning_rate_schedule(rate, schedule=schedule, warmup=warmup, optimiser_steps=10)(4)

    np.testing.assert_allclose(jax.jit(traced)(2.0, warmup), expected[3], rtol=1e-5)


def test_a_rate_without_a_schedule_stays_a_number_and_unknown_schedules_are_refused():
    assert learning_rate_schedule(0.1, optimiser_steps=10) == 0.1
    with pytest.raises(ValueError, match=r"'liner', did you mean 'linear'"):
        learning_rate_schedule(0.1, schedule="liner", optimiser_steps=10)
