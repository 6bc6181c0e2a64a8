"""Random network distillation against numpy: whitening, the running return of each environment, what each step learns
from."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from agents.base import DataSpec
from agents.moments import merge_moments, no_moments
from agents.networks.base import Head
from agents.networks.sequence import NetworkConfig, network
from envs.base import EnvironmentSpec
from rewards.curiosity.rnd import rnd
from tests.rewards.contract import KEY, arrays, assert_same, jit, obeys_the_contract, random_trajectory, started

SPEC = EnvironmentSpec(spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Discrete(2))
MIXED = EnvironmentSpec(
    spaces.Dict({"picture": spaces.Box(0, 255, (3, 3, 1), np.uint8), "room": spaces.Discrete(4)}), spaces.Discrete(2)
)
DATA = DataSpec("unroll", 5, 4)
SMALL = NetworkConfig(hidden=(6,))
make = partial(rnd, data=DATA, network_config=SMALL, embedding_size=4, predictor_layers=1)


@pytest.fixture(scope="module")
def run():
    """A transform whose predictor learns nothing, trajectories, and the state before them and after each."""
    transform = make(SPEC, updates=0, discount=0.9)
    update = jit(transform.update)
    trajectories = [random_trajectory(SPEC, seed, 5, 4) for seed in range(3)]
    states = [started(transform)]
    for trajectory in trajectories:
        states.append(update(states[-1], trajectory, KEY)[0])
    return transform, trajectories, states


def embedded(params, inputs, hidden):
    made = network(SPEC.observation_space, {"embedding": Head(4)}, NetworkConfig(hidden=hidden))
    return np.asarray(made.apply(params, jnp.asarray(inputs, jnp.float32))[0]["embedding"])


def reference(trajectories, states, discount=0.9):
    """Unscaled rewards of every trajectory, from the moments of everything seen up to its end."""
    seen, raw = [], []
    for trajectory, state in zip(trajectories, states[1:], strict=True):
        x = np.asarray(trajectory.next_observation, np.float64)
        seen.append(x.reshape(-1, 3))
        everything = np.concatenate(seen)
        x = np.clip((x - everything.mean(0)) / everything.std(0), -5, 5)
        difference = embedded(state.predictor, x, (6, 4)) - embedded(state.target, x, (6,))
        raw.append(np.square(difference).mean(-1))
    return raw


def test_the_reward_is_the_error_over_the_standard_deviation_of_the_running_return(run):
    transform, trajectories, states = run
    raw = reference(trajectories, states)
    # One sum per environment along time, across unrolls and the ends of episodes.
    running, returns = np.zeros(4), []
    for row in np.concatenate(raw):
        running = 0.9 * running + row
        returns.append(running)
    assert any(np.asarray(trajectory.terminated).any() for trajectory in trajectories)
    found = np.asarray(transform.apply(states[-1], trajectories[-1])[0].rewards["curiosity"])
    np.testing.assert_allclose(found, raw[-1] / np.std(returns), rtol=2e-3)
    np.testing.assert_allclose(states[-1].running, running, rtol=1e-3)
    # Sums across environments, or sums that restart with every unroll, have another standard deviation.
    across, sums = [], 0.0
    for reward in np.concatenate(raw).ravel():
        sums = 0.9 * sums + reward
        across.append(sums)
    restarted = []
    for part in raw:
        running = np.zeros(4)
        for row in part:
            running = 0.9 * running + row
            restarted.append(running)
    for wrong in (across, restarted):
        assert abs(np.std(wrong) / np.std(returns) - 1) > 0.02


def test_observations_are_clipped(run):
    # An entry that was constant so far is clipped to 5 when it changes.
    transform, trajectories, states = run
    trajectory = trajectories[0]
    still = trajectory.next_observation.at[..., 0].set(7.0)
    state = states[1]._replace(observations=(merge_moments(no_moments((3,)), still, trajectory.mask),))
    apply = jit(transform.apply)

    def reward(x):
        moved = trajectory._replace(next_observation=still.at[..., 0].set(x))
        return np.asarray(apply(state, moved)[0].rewards["curiosity"])

    np.testing.assert_array_equal(reward(8.0), reward(1e6))
    assert (reward(8.0) != reward(7.0)).any()


@pytest.mark.parametrize("spec", [SPEC, MIXED], ids=["vector", "picture and number"])
def test_the_contract(spec):
    config = NetworkConfig(hidden=(6,), channels=(2,), recurrent_size=3)
    transform = make(spec, network_config=config)
    trajectories = [random_trajectory(spec, seed, 5, 4) for seed in range(3)]
    first, state, _ = obeys_the_contract(transform, trajectories)
    assert_same(state.target, first.target)
    assert len(state.observations) == 1


def test_the_predictor_learns_and_rewards_are_computed_with_the_one_before_the_update(run):
    _, trajectories, states = run
    transform = make(SPEC, updates=400, learning_rate=3e-3)
    update = jit(transform.update)
    first, _ = update(states[0], trajectories[0], KEY)
    assert_same(first.scoring, states[0].predictor)
    second, _ = update(first, trajectories[0], KEY)
    assert_same(second.scoring, first.predictor)
    errors = [float(transform.apply(state, trajectories[0])[1]["error"]) for state in (first, second)]
    assert errors[1] < 0.2 * errors[0]


def test_an_optimiser_step_learns_from_its_minibatch(run):
    # One optimiser step on one of four minibatches: five of the twenty steps change the predictor, each on its own.
    _, trajectories, states = run
    update = jit(make(SPEC, updates=1).update)
    moved = []
    for step in range(20):
        mask = jnp.zeros(20).at[step].set(1.0).reshape(5, 4)
        after, _ = update(states[1], trajectories[0]._replace(mask=mask), KEY)
        pairs = zip(arrays(after.predictor), arrays(states[1].predictor), strict=True)
        moved.append(any((x != y).any() for x, y in pairs))
    assert sum(moved) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"minibatches": 21}, "rnd: minibatches=21: expected from 1 to the 20 steps"),
        ({"embedding_size": 0}, "embedding_size=0"),
    ],
)
def test_rnd_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(SPEC, **arguments)
