"""Curiosity on the noisy line, where the least possible error is known: BYOL-Explore's error tends to it, and
BYOL-Hindsight's tends to 0 with a critic that finds as much as a new one would."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.base import DataSpec
from agents.networks.base import Head
from agents.networks.sequence import NetworkConfig, network
from envs.native.noisy_line import least_squared_error, next_state_entropy, noisy_line
from envs.native.tabular import TabularEnvironment
from envs.rollout import start_unroll, unroll
from envs.wrappers import TimeLimit
from rewards.curiosity.latent_prediction import byol_explore, byol_hindsight, unit
from tests.rewards.contract import jit

# With this key, the random target separates the two patterns well.
KEY = jax.random.key(2)
CELLS, PATTERNS, ACTIONS = 2, 2, 3
# Episodes end within unrolls and continue from one to the next.
MODEL = noisy_line(CELLS, 1, noise="at_end", horizon=12)
ENVIRONMENT = TimeLimit(TabularEnvironment(MODEL, "one_hot"), MODEL.horizon)
SPEC, DATA = ENVIRONMENT.spec, DataSpec("unroll", 8, 16)
NOISY = next_state_entropy(MODEL).reshape(CELLS, PATTERNS, ACTIONS)[:, 0] > 0
CONFIG = NetworkConfig(hidden=(16,))
# The target never moves, so that the best prediction is known, and losses are written as they are, so that their size
# is known. The small weight of the error makes Z give up information about the context early.
WEIGHT = 3.0
ARGUMENTS = {
    "network_config": CONFIG,
    "embedding_size": 8,
    "memory_size": 16,
    "hidden_size": 32,
    "latent_size": 4,
    "noise_size": 4,
    "horizon": 1,
    "target_decay": 1.0,
    "normalised": False,
    "reconstruction_weight": WEIGHT,
}
STEPS = 100


def wander(carry, observation, key):
    return jax.random.randint(key, observation.shape[:1], 0, ACTIONS), carry, {}


def places(trajectory):
    """The states, actions and next states of a trajectory, numpy ``[T, B]``."""
    before, after = (np.argmax(x, -1) for x in (trajectory.observation, trajectory.next_observation))
    return before, np.asarray(trajectory.action), after


def by_cell_and_action(trajectory, values):
    """Mean of ``values [T, B]`` over the steps from each cell with each action, ``[cells, actions]``."""
    state, action, _ = places(trajectory)
    where = [[(state // PATTERNS == cell) & (action == each) for each in range(ACTIONS)] for cell in range(CELLS)]
    return np.array([[np.mean(values[part]) for part in row] for row in where])


@pytest.fixture(scope="module")
def walks():
    """Two trajectories ``[24, 512]`` for judging; nothing is learned from them."""

    def walk(key):
        return unroll(ENVIRONMENT, wander, start_unroll(ENVIRONMENT, key, 512, ()), key, length=24, initial_carry=())[1]

    walk = jit(walk)
    return [walk(jax.random.key(seed)) for seed in (7, 8)]


def programs(factory):
    """``start``: a state; ``live(state, environments, key, rate, critic_rate)``: ``STEPS`` updates; ``apply``;
    ``ideal``: the least error by cell and action."""

    def transform(rate=0.0, critic_rate=0.0):
        return factory(SPEC, data=DATA, learning_rate=rate, critic_learning_rate=critic_rate, **ARGUMENTS)

    def live(state, environments, key, rate, critic_rate):
        def step(carry, key):
            state, environments = carry
            environments, trajectory = unroll(
                ENVIRONMENT, wander, environments, key, length=DATA.length, initial_carry=()
            )
            state, metrics = transform(rate, critic_rate).update(state, trajectory, key)
            return (state, environments), metrics

        (state, environments), metrics = jax.lax.scan(step, (state, environments), jax.random.split(key, STEPS))
        return state, environments, jax.tree.map(jnp.mean, metrics)

    start = jit(transform().init)(KEY)
    target = network(SPEC.observation_space, {"embedding": Head(8)}, CONFIG)
    views = unit(target.apply(start.params.target, jnp.eye(MODEL.num_states)[None])[0]["embedding"])[0]
    # The unit vector with the least mean squared distance is the direction of the mean: 2 - 2 |mean|.
    mean = np.sqrt(1 - least_squared_error(MODEL, views))
    ideal = (2 - 2 * mean).reshape(CELLS, PATTERNS, ACTIONS)[:, 0]
    assert (ideal[NOISY] > 0.2).all() and (ideal[~NOISY] < 1e-6).all()
    return SimpleNamespace(start=start, live=jit(live), apply=jit(transform().apply), ideal=ideal)


def lived(made, rounds, state=None, rate=2e-3, critic_rate=1e-2):
    """The state after ``rounds * STEPS`` updates, and the mean metrics of the last ``STEPS``."""
    state, environments = made.start if state is None else state, start_unroll(ENVIRONMENT, KEY, DATA.batch, ())
    for index in range(rounds):
        state, environments, metrics = made.live(state, environments, jax.random.fold_in(KEY, index), rate, critic_rate)
    return state, {name: float(value) for name, value in metrics.items()}


def judged(made, state, trajectory):
    """Rewards in units of the squared error, by cell and action."""
    return by_cell_and_action(trajectory, made.apply(state, trajectory)[0].rewards["curiosity"] / WEIGHT)


def test_the_cross_entropy_of_a_categorical_prediction_tends_to_the_entropy_of_the_noise(walks):
    counts = np.zeros((MODEL.num_states, ACTIONS, MODEL.num_states))
    np.add.at(counts, places(walks[0]), 1)
    state, action, following = places(walks[1])
    surprise = -np.log(counts[state, action, following] / counts.sum(-1)[state, action])
    entropy = next_state_entropy(MODEL).reshape(CELLS, PATTERNS, ACTIONS)[:, 0]
    np.testing.assert_allclose(by_cell_and_action(walks[1], surprise), entropy, rtol=0.02, atol=1e-12)


def test_the_error_of_byol_explore_tends_to_that_of_the_best_prediction(walks):
    made = programs(byol_explore)
    state, _ = lived(made, 3)
    found, ideal = judged(made, state, walks[0]), made.ideal
    np.testing.assert_allclose(found[NOISY], ideal[NOISY], rtol=0.1)
    assert (found[~NOISY] < 0.02 * ideal.max()).all()


@pytest.fixture(scope="module")
def hindsight():
    return programs(byol_hindsight)


def information_by_a_new_critic(made, state):
    """The information that a newly initialised critic finds in the same latents while the model stays fixed."""
    params = state.params._replace(critic=made.start.params.critic)
    fresh = state._replace(params=params, optimiser=made.start.optimiser)
    return lived(made, 3, fresh, rate=0.0)[1]["information"]


def test_the_reward_of_byol_hindsight_tends_to_zero_and_its_critic_is_right(hindsight, walks):
    state, metrics = lived(hindsight, 10)
    found, ideal = judged(hindsight, state, walks[0]), hindsight.ideal
    assert (abs(found) < 0.05 * ideal.max()).all()
    # This is not because Z is empty: the noise is reconstructed, and Z is independent of the context.
    assert metrics["reconstruction"] < 0.03 * ideal.max()
    assert abs(metrics["information"]) < 0.1
    # Nor is it because the critic is blind: a new critic, which only has to learn a fixed model, finds no more.
    assert abs(metrics["information"] - information_by_a_new_critic(hindsight, state)) < 0.05


def test_a_new_critic_exposes_one_that_did_not_learn(hindsight):
    state, metrics = lived(hindsight, 3, critic_rate=0.0)
    assert abs(metrics["information"]) < 0.1 and metrics["reconstruction"] < 0.1 * hindsight.ideal.max()
    assert information_by_a_new_critic(hindsight, state) > metrics["information"] + 0.5
