"""The intrinsic curiosity module: its reward in numpy, what its features learn, and the shares of its losses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from agents.base import DataSpec
from agents.networks.base import Head
from agents.networks.sequence import NetworkConfig, network
from envs.base import EnvironmentSpec, Transition
from rewards.curiosity.icm import icm
from tests.rewards.contract import KEY, arrays, assert_same, jit, obeys_the_contract, random_trajectory, started

SPEC = EnvironmentSpec(spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Discrete(2))
CONTINUOUS = EnvironmentSpec(spaces.Box(0, 255, (3, 3, 1), np.uint8), spaces.Box(-1, 1, (2,), np.float32))
make = partial(icm, data=DataSpec("unroll", 5, 4), network_config=NetworkConfig(hidden=(6,)), embedding_size=4)


@pytest.fixture(scope="module")
def start():
    return started(make(SPEC))


@pytest.fixture(scope="module")
def update():
    """``(state, trajectory, forward_share)`` to the state after 20 optimiser steps."""

    def function(state, trajectory, share):
        return make(SPEC, updates=20, learning_rate=1e-2, forward_share=share).update(state, trajectory, KEY)

    return jit(function)


def test_the_reward_by_numpy(start):
    transform, state = make(SPEC, scale=0.5), start
    trajectory = random_trajectory(SPEC, 0, 5, 4)
    encoder = network(SPEC.observation_space, {"embedding": Head(4)}, NetworkConfig(hidden=(6,)))
    now, later = (
        np.asarray(encoder.apply(state.scoring["encoder"], x)[0]["embedding"])
        for x in (trajectory.observation, trajectory.next_observation)
    )
    inputs = np.concatenate([now, np.eye(2)[np.asarray(trajectory.action)]], axis=-1)
    dense, out = state.scoring["forward"]["dense_0"], state.scoring["forward"]["head_output"]
    hidden = np.tanh(inputs @ dense["kernel"] + dense["bias"])
    predicted = hidden @ out["kernel"] + out["bias"]
    found = transform.apply(state, trajectory)[0].rewards["curiosity"]
    np.testing.assert_allclose(found, 0.25 * np.square(predicted - later).sum(-1), rtol=1e-4)


def steered(seed, length=16, batch=8):
    """Action 0 or 1 moves the first entry by -1 or 1, the second is noise, the third stays 0."""
    rng = np.random.default_rng(seed)
    action = rng.integers(2, size=(length, batch))
    now = np.stack([rng.normal(size=action.shape), rng.normal(size=action.shape), np.zeros(action.shape)], -1)
    later = np.stack([now[..., 0] + 2.0 * action - 1, rng.normal(size=action.shape), np.zeros(action.shape)], -1)
    nothing = jnp.zeros(action.shape, bool)
    return Transition(
        jnp.asarray(now, jnp.float32),
        jnp.asarray(action, jnp.int32),
        {"env": jnp.zeros(action.shape)},
        nothing,
        nothing,
        jnp.asarray(later, jnp.float32),
        jnp.ones(action.shape),
        {},
    )


def test_the_features_reveal_the_action(start, update):
    state, losses = start, []
    for seed in range(20):
        state, metrics = update(state, steered(seed), 0.2)
        losses.append(float(metrics["inverse_loss"]))
    # The loss of a guess is log 2.
    assert losses[-1] < 0.05 < losses[0] < np.log(2) + 0.1


def test_rewards_are_computed_with_the_parameters_before_the_update(start, update):
    after, _ = update(start, steered(0), 0.2)
    assert_same(after.scoring, start.params)


@pytest.mark.parametrize("spec", [SPEC, CONTINUOUS], ids=["discrete", "picture and continuous"])
def test_the_contract(spec):
    config = NetworkConfig(hidden=(6,), channels=(2,), recurrent_size=3)
    trajectories = [random_trajectory(spec, seed, 5, 4) for seed in range(3)]
    masked = [each._replace(mask=each.mask.at[-1, 0].set(0.0)) for each in trajectories]
    obeys_the_contract(make(spec, network_config=config), masked)


def test_the_shares_of_the_losses(start, update):
    def differ(one, other):
        return any((x != y).any() for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))

    for share, learns in ((0.0, {"encoder", "inverse"}), (1.0, {"encoder", "forward"})):
        after, _ = update(start, steered(0), share)
        assert {name for name in start.params if differ(start.params[name], after.params[name])} == learns


def test_an_optimiser_step_learns_from_its_minibatch(start):
    # With four minibatches, the only optimiser step sees 5 of the 20 steps: exactly those change the parameters while
    # all others are masked.
    update = jit(make(SPEC, minibatches=4).update)
    trajectory = steered(0)
    moved = []
    for step in range(20):
        mask = jnp.zeros(20).at[step].set(1.0).reshape(5, 4)
        after, _ = update(start, trajectory._replace(mask=mask), KEY)
        pairs = zip(arrays(after.params), arrays(start.params), strict=True)
        moved.append(any((x != y).any() for x, y in pairs))
    assert sum(moved) == 5


def test_icm_refuses():
    with pytest.raises(ValueError, match="embedding_size=0"):
        make(SPEC, embedding_size=0)
    with pytest.raises(ValueError, match="icm: minibatches=21: expected from 1 to the 20 steps"):
        make(SPEC, minibatches=21)
