"""Actions that an observation rules out, in both families and in reward models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from agents.action_masks import action_mask_of
from agents.base import DataSpec
from agents.credit import Credit, Entry
from agents.estimators import gae
from agents.networks.base import Head
from agents.networks.sequence import NetworkConfig, network
from agents.policy_gradient import policy_gradient
from agents.return_networks import best_actions
from agents.value_based import value_based
from envs.base import EnvironmentSpec, Transition
from rewards.process.implicit_prm import implicit_prm

KEY = jax.random.key(0)
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SPACE = spaces.Dict(observation=spaces.Box(-1, 1, (2,), np.float32), action_mask=spaces.MultiBinary(3))
SPEC = EnvironmentSpec(SPACE, spaces.Discrete(3), max_episode_steps=4)
SMALL = NetworkConfig(hidden=(4,))
UNROLL = DataSpec("unroll", 5, 4)


def observations(masks):
    masks = jnp.asarray(masks)
    numbers = jax.random.normal(KEY, (*masks.shape[:-1], 2))
    return {"observation": numbers, "action_mask": masks.astype(jnp.int8)}


def policy_agent(**arguments):
    credit = Credit({"env": Entry("env", gae(0.9, 0.9))})
    return policy_gradient(SPEC, credit=credit, data=UNROLL, network_config=SMALL, **arguments)


MASKS = [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]
# Where nothing is allowed, everything is.
ALLOWED = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 1, 1]], bool)


def test_a_policy_is_a_softmax_over_what_is_allowed():
    agent = policy_agent()
    state, observation = agent.init(KEY), observations(MASKS)
    probabilities = agent.action_probabilities(state.params, agent.initial_carry(4), observation)
    policy = network(SPACE, {"policy": Head(3)}, SMALL)
    logits = policy.apply(state.params["policy"], jax.tree.map(lambda x: x[None], observation))[0]["policy"][0]
    weights = np.exp(logits) * ALLOWED
    expected = weights / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    assert (np.asarray(probabilities)[~ALLOWED] == 0).all()
    action, _, extras = agent.act(state.params, agent.initial_carry(4), observation, KEY)
    np.testing.assert_allclose(np.exp(extras["log_prob"]), expected[np.arange(4), action], rtol=1e-5)
    draws = jax.vmap(lambda key: agent.act(state.params, agent.initial_carry(4), observation, key)[0])(
        jax.random.split(KEY, 200)
    )
    for row, allowed in zip(draws.T, ALLOWED, strict=True):
        assert set(row.tolist()) == set(np.flatnonzero(allowed))


def trajectory_of(rng, extras):
    masks = rng.random((5, 4, 3)) < 0.5
    masks[..., 0] |= ~masks.any(-1)
    observation = observations(masks)
    action = np.argmax(rng.random((5, 4, 3)) * masks, -1).astype(np.int32)
    flags = jnp.zeros((5, 4), bool)
    rewards = {"env": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)}
    return Transition(observation, jnp.asarray(action), rewards, flags, flags, observation, jnp.ones((5, 4)), extras)


def acted(agent, params, trajectory):
    """The trajectory with what the policy records of its actions."""
    flat = jax.tree.map(lambda x: x.reshape(20, *x.shape[2:]), (trajectory.observation, trajectory.action))
    _, _, extras = agent.act(params, agent.initial_carry(20), flat[0], KEY, action=flat[1])
    extras = jax.tree.map(lambda x: x.reshape(5, 4, *x.shape[1:]), extras)
    return trajectory._replace(extras=trajectory.extras | extras)


def test_a_policy_learns_from_masked_steps():
    agent = policy_agent(epochs=1, entropy_weight=0.01)
    state = agent.init(KEY)
    trajectory = trajectory_of(np.random.default_rng(0), {"episode_start": jnp.zeros((5, 4), bool)})
    after, metrics = jit(agent.update)(state, acted(agent, state.params, trajectory), KEY)
    assert np.isfinite(metrics["loss"]) and 0 < metrics["gradient_norm"] < 100
    np.testing.assert_allclose(metrics["approximate_kl"], 0.0, atol=1e-6)
    assert 0 < metrics["entropy"] < np.log(3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))


def test_the_best_action_is_one_that_is_allowed():
    utility = jnp.array([[3.0, 1.0, 2.0], [3.0, 1.0, 1.0], [1.0, 2.0, 3.0], [-5.0, -9.0, -7.0]])
    allowed = jnp.array([[0, 1, 1], [0, 1, 1], [1, 0, 0], [0, 1, 0]], bool)
    np.testing.assert_allclose(best_actions(utility, allowed), [[0, 0, 1], [0, 0.5, 0.5], [1, 0, 0], [0, 1, 0]])


def value_agent(**arguments):
    return value_based(
        SPEC,
        data=DataSpec("replay", 5, 4),
        network_config=SMALL,
        capacity=20,
        batch_size=16,
        learning_starts=1,
        discount=0.9,
        **arguments,
    )


def test_a_value_based_agent_explores_and_bootstraps_within_the_mask():
    agent = value_agent(epsilon_start=0.6, epsilon_end=0.6)
    state, observation = agent.init(KEY), observations(MASKS)
    greedy = agent.action_probabilities(state.params, (), observation, greedy=True)
    assert (np.asarray(greedy)[~ALLOWED] == 0).all()
    explored = agent.action_probabilities(state.params, (), observation)
    uniform = ALLOWED / ALLOWED.sum(-1, keepdims=True)
    np.testing.assert_allclose(explored, 0.4 * np.asarray(greedy) + 0.6 * uniform, rtol=1e-5)
    # With heads that start at constants, the target is the reward and the discounted value of an allowed action.
    online = jax.tree.map(jnp.zeros_like, state.target)
    online["head_advantage"]["bias"] = jnp.array([100.0, 1.0, 0.0])
    rng = np.random.default_rng(1)
    trajectory = trajectory_of(rng, {})
    masks = jnp.broadcast_to(jnp.array([0, 1, 1], jnp.int8), (5, 4, 3))
    trajectory = trajectory._replace(
        next_observation=trajectory.next_observation | {"action_mask": masks}, rewards={"env": jnp.zeros((5, 4))}
    )
    state = state._replace(params=state.params | {"online": online}, target=online)
    _, metrics = jit(agent.update)(state, trajectory, KEY)
    np.testing.assert_allclose(metrics["target"], 0.9, rtol=1e-5)
    # On a fresh unroll the values of the rows follow as well, whose masks are the same here.
    trajectory = trajectory._replace(observation=trajectory.observation | {"action_mask": masks})
    for decay, expected in ((0.0, 0.9), (1.0, np.mean([0.9**n for n in range(1, 6)]))):
        fresh = value_based(SPEC, data=UNROLL, network_config=SMALL, discount=0.9, trace_decay=decay)
        start = fresh.init(KEY)
        start = start._replace(params=start.params | {"online": online})
        _, metrics = jit(fresh.update)(start, trajectory, KEY)
        np.testing.assert_allclose(metrics["target"], expected, rtol=1e-5)


def test_a_reward_model_that_starts_as_the_policy_starts_at_0():
    data = DataSpec("episodes", 5, 4, 2)
    agent = policy_gradient(SPEC, credit=Credit({"env": Entry("env", gae(0.9, 0.9))}), data=data, network_config=SMALL)
    params = agent.init(KEY).params
    transform = implicit_prm(SPEC, data=data, network_config=SMALL, tolerance=0.0)
    trajectory = acted(agent, params, trajectory_of(np.random.default_rng(2), {}))
    state = transform.init(KEY, policy_params=params["policy"])
    rewards = transform.apply(state, trajectory)[0].rewards["implicit_prm"]
    np.testing.assert_allclose(rewards, 0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("mask", "action"), [(spaces.MultiBinary(2), spaces.Discrete(3)), (spaces.MultiBinary(3), spaces.Box(-1, 1, (3,)))]
)
def test_a_mask_that_does_not_fit_the_actions_is_refused(mask, action):
    space = spaces.Dict(observation=spaces.Discrete(4), action_mask=mask)
    with pytest.raises(ValueError, match=r"'action_mask' has the shape \[\d\] .*expected one entry for each of the"):
        action_mask_of(EnvironmentSpec(space, action))
    assert action_mask_of(EnvironmentSpec(spaces.Discrete(4), spaces.Discrete(3))) is None
