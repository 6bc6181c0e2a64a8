"""BYOL-Explore and BYOL-Hindsight: horizons and sums by hand, the contrast against known mutual information, the
adversarial updates. ``test_noisy_line.py`` trains both in an environment whose noise is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnasium import spaces

from agents.base import DataSpec
from agents.networks.sequence import NetworkConfig
from envs.base import EnvironmentSpec
from rewards.curiosity.latent_prediction import (
    aggregate,
    byol_explore,
    byol_hindsight,
    contrastive_information,
    valid_horizons,
)
from tests.rewards.contract import KEY, arrays, assert_same, jit, obeys_the_contract, random_trajectory, started

SPEC = EnvironmentSpec(spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Discrete(2))
PICTURE = EnvironmentSpec(
    spaces.Dict({"picture": spaces.Box(0, 255, (3, 3, 1), np.uint8), "room": spaces.Discrete(4)}),
    spaces.Tuple([spaces.Discrete(2, start=1), spaces.Box(-1, 1, (2,), np.float32)]),
)
DATA = DataSpec("unroll", 6, 4)
SIZES = {"embedding_size": 4, "memory_size": 5, "hidden_size": 6, "latent_size": 2, "noise_size": 2, "contrast": 7}
SMALL = {"network_config": NetworkConfig(hidden=(6,)), **SIZES}
# One or two squared distances as they are, against a target that does not move.
RAW = {"horizon": 2, "normalised": False, "target_decay": 1.0, "reconstruction_weight": 1.0, **SMALL}
METHODS = {"explore": byol_explore, "hindsight": byol_hindsight}


# --- horizons ------------------------------------------------------------------------------------------


def test_horizons_stay_within_an_episode_and_the_unroll_by_hand():
    # Column 0: the episode ends at row 1, the unroll at row 3; column 1: padding from row 2 on.
    ends = jnp.array([[0, 0], [1, 1], [0, 0], [0, 0]], bool)
    mask = jnp.array([[1, 1], [1, 1], [1, 0], [1, 0]], jnp.float32)
    valid = np.asarray(valid_horizons(mask, ends, 3)).astype(int)
    np.testing.assert_array_equal(valid[:, :, 0], [[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(valid[:, :, 1], [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])


def test_the_losses_of_all_predictions_of_an_observation_are_summed_by_hand():
    # l(p, q) = 10 p + q for p = 0..3, q = 1..3.
    losses = jnp.array([[[10.0 * p + q] for p in range(4)] for q in (1, 2, 3)])
    # t = 0: l(0,1); t = 1: l(1,1) + l(0,2); t = 2: l(2,1) + l(1,2) + l(0,3); t = 3: l(3,1) + l(2,2) + l(1,3).
    np.testing.assert_array_equal(aggregate(losses)[:, 0], [1, 11 + 2, 21 + 12 + 3, 31 + 22 + 13])


def test_sums_and_horizons_against_the_definition():
    rng = np.random.default_rng(0)
    ends, mask = rng.random((7, 3)) < 0.3, np.ones((7, 3))
    mask[5:, 2] = 0
    losses = rng.random((4, 7, 3)).astype(np.float32)
    expected = np.zeros((7, 3))
    for t, b in np.ndindex(7, 3):
        for q in range(1, 5):
            p = t + 1 - q
            rows = range(p, t + 1)
            if p >= 0 and mask[rows, b].all() and not ends[list(rows)[:-1], b].any():
                expected[t, b] += losses[q - 1, p, b]
    valid = valid_horizons(jnp.asarray(mask), jnp.asarray(ends), 4)
    np.testing.assert_allclose(aggregate(jnp.where(valid, losses, 0.0)), expected, rtol=1e-6)


def test_a_segment_shorter_than_the_horizon_has_fewer_predictions():
    valid = valid_horizons(jnp.ones((2, 1)), jnp.zeros((2, 1), bool), 4)
    np.testing.assert_array_equal(valid[:, :, 0], [[1, 1], [1, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(aggregate(jnp.where(valid, 1.0, 0.0))[:, 0], [1, 2])


# --- contrast ------------------------------------------------------------------------------------------


def test_contrast_by_hand():
    scores = jnp.log(jnp.array([[4.0, 1.0, 9.0], [2.0, 2.0, 9.0], [9.0, 9.0, 9.0]]))
    found = contrastive_information(scores, jnp.array([True, True, False]))
    # log 4 / ((4 + 1) / 2), log 2 / ((2 + 2) / 2), and 0 for the sample that is not valid.
    np.testing.assert_allclose(found, [np.log(1.6), 0.0, 0.0], atol=1e-6)
    everything = contrastive_information(scores, jnp.ones(3, bool))
    np.testing.assert_allclose(everything, [np.log(12 / 14), np.log(6 / 13), 0.0], atol=1e-6)
    assert (contrastive_information(scores, jnp.zeros(3, bool)) == 0).all()


JOINT = np.array([[0.3, 0.05, 0.05], [0.05, 0.05, 0.5]])


def test_the_best_critic_is_the_pointwise_mutual_information():
    information = np.log(JOINT / JOINT.sum(1, keepdims=True) / JOINT.sum(0))
    samples = 128

    def loss(table, key):
        drawn = jax.random.categorical(key, jnp.log(JOINT.ravel()), shape=(16, samples))
        context, latent = drawn // 3, drawn % 3
        estimate = contrastive_information(table[context[:, :, None], latent[:, None]], jnp.ones((16, samples), bool))
        return -jnp.mean(estimate), (estimate, drawn)

    optimiser = optax.adam(0.05)

    def step(carry, key):
        table, state = carry
        (_, seen), gradient = jax.value_and_grad(loss, has_aux=True)(table, key)
        changes, state = optimiser.update(gradient, state)
        return (optax.apply_updates(table, changes), state), seen

    def train(keys):
        return jax.lax.scan(step, (jnp.zeros((2, 3)), optimiser.init(jnp.zeros((2, 3)))), keys)

    (table, _), (estimates, drawn) = jit(train)(jax.random.split(KEY, 400))
    # They are equal up to a function of the context.
    relative = np.asarray(table) - information
    np.testing.assert_allclose(relative - relative.mean(1, keepdims=True), 0.0, atol=0.12)
    estimates, drawn = np.asarray(estimates[200:]).ravel(), np.asarray(drawn[200:]).ravel()
    means = [estimates[drawn == pair].mean() for pair in range(6)]
    np.testing.assert_allclose(means, information.ravel(), atol=0.06)
    np.testing.assert_allclose(estimates.mean(), (JOINT * information).sum(), atol=0.02)


# --- the transform -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_the_contract(name):
    config = NetworkConfig(hidden=(6,), channels=(2,), recurrent_size=3)
    transform = METHODS[name](PICTURE, data=DATA, horizon=3, **(SMALL | {"network_config": config}))
    trajectories = [random_trajectory(PICTURE, seed, 6, 4) for seed in range(3)]
    trajectories = [each._replace(mask=each.mask.at[4:, 0].set(0.0)) for each in trajectories]
    first, state, rewards = obeys_the_contract(transform, trajectories)
    assert (rewards >= 0).all() and (rewards > 0).any()
    changed = [
        any((x != y).any() for x, y in zip(arrays(one), arrays(other), strict=True))
        for one, other in zip(first.params, state.params, strict=True)
    ]
    assert changed == [True, name == "hindsight", True]


@pytest.fixture(scope="module")
def explore():
    """A transform that writes raw losses with a target that never moves, a state, and its compiled functions."""
    transform = byol_explore(SPEC, data=DATA, **RAW)
    return transform, started(transform), jit(transform.update), jit(transform.apply)


def raw(explore, state, trajectory):
    return np.asarray(explore[3](state, trajectory)[0].rewards["curiosity"])


def test_the_loss_is_between_unit_vectors_of_belief_and_final_observation(explore):
    _, start, update, _ = explore
    trajectory = random_trajectory(SPEC, 0, 6, 4)
    state, _ = update(start, trajectory, KEY)
    losses = raw(explore, state, trajectory)
    # One or two squared distances of unit vectors each.
    assert (losses >= 0).all() and (losses <= 8).all()
    # The next observation of a step is that step's target, also where an episode ends: only its own loss changes.
    later = trajectory.next_observation.at[2, 1].add(1.0)
    moved = raw(explore, state, trajectory._replace(next_observation=later)) != losses
    assert moved[2, 1] and moved.sum() == 1


def test_beliefs_depend_on_the_past_of_the_episode_and_on_nothing_else(explore):
    _, start, update, _ = explore
    trajectory = random_trajectory(SPEC, 0, 6, 4, ends=0.0)
    starts = jnp.zeros((6, 4), bool).at[3].set(True)
    ends = jnp.zeros((6, 4), bool).at[2].set(True)
    trajectory = trajectory._replace(truncated=ends, extras={"episode_start": starts})
    state, _ = update(start, trajectory, KEY)
    losses = raw(explore, state, trajectory)
    # An observation or an action in row 1 has an effect from there to the end of its episode, in its column.
    for changed, rows in (
        (trajectory._replace(observation=trajectory.observation.at[1, 0].add(1.0)), {1, 2}),
        (trajectory._replace(action=trajectory.action.at[1, 0].set(1 - trajectory.action[1, 0])), {1, 2}),
        (trajectory._replace(observation=trajectory.observation.at[4, 0].add(1.0)), {4, 5}),
    ):
        moved = np.argwhere(raw(explore, state, changed) != losses)
        assert {int(row) for row, _ in moved} == rows and {int(column) for _, column in moved} == {0}


def test_the_memory_continues_from_one_unroll_to_the_next(explore):
    _, start, update, _ = explore
    whole = random_trajectory(SPEC, 3, 12, 4, ends=0.1)
    first, second = (jax.tree.map(lambda x, part=part: x[part], whole) for part in (slice(0, 6), slice(6, 12)))
    # All rewards are computed with the initial parameters.
    state, _ = update(start, first, KEY)
    state, _ = update(state._replace(params=start.params), second, KEY)
    carried = raw(explore, state, second)
    doubled = byol_explore(SPEC, data=DataSpec("unroll", 12, 4), **RAW)
    together = jit(doubled.apply)(start._replace(scoring=start.params), whole)[0].rewards["curiosity"]
    # The first row of an unroll lacks the prediction made at the row before.
    np.testing.assert_allclose(carried[1:], together[7:], rtol=1e-4)
    forgotten = raw(explore, state._replace(entering=start.entering), second)
    assert not np.allclose(forgotten[1:], carried[1:], rtol=1e-3)


def test_a_batch_of_another_size_begins_without_memory(explore):
    transform, start, update, _ = explore
    trajectory = random_trajectory(SPEC, 0, 6, 4)
    state, _ = update(start, trajectory, KEY)
    state, _ = update(state, trajectory, KEY)
    part = jax.tree.map(lambda x: x[:, :2], trajectory)
    found = np.asarray(transform.apply(state, part)[0].rewards["curiosity"])
    expected = raw(explore, state._replace(entering=start.entering), trajectory)[:, :2]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_rewards_are_computed_with_the_parameters_before_the_update_and_the_target_follows(explore):
    _, start, update, _ = explore
    trajectory = random_trajectory(SPEC, 0, 6, 4)
    state, _ = update(start, trajectory, KEY)
    assert_same(state.scoring, start.params)
    assert_same(state.params.target, start.params.target)
    transform = byol_explore(SPEC, data=DATA, horizon=2, target_decay=0.75, **SMALL)
    moving, _ = jit(transform.update)(start, trajectory, KEY)
    trees = moving.params.target, start.params.target, moving.params.model["encoder"]
    for new, old, online in zip(*map(arrays, trees), strict=True):
        np.testing.assert_allclose(new, 0.75 * old + 0.25 * online, rtol=1e-5, atol=1e-7)


# --- the adversarial updates ---------------------------------------------------------------------------


def test_the_critic_ascends_the_information_that_the_model_descends():
    # Only the information is in the loss, the noise is the same in every step, and one of the two learns at a time.
    trajectory, small = random_trajectory(SPEC, 0, 6, 4), SMALL | {"contrast": 24}

    def update(state, rate, critic_rate):
        transform = byol_hindsight(
            SPEC,
            data=DATA,
            horizon=1,
            reconstruction_weight=0.0,
            target_decay=1.0,
            learning_rate=rate,
            critic_learning_rate=critic_rate,
            **small,
        )
        state, metrics = transform.update(state, trajectory, KEY)
        return state, metrics["information"]

    compiled = jit(update)
    state = start = started(byol_hindsight(SPEC, data=DATA, horizon=1, **small))
    ascended, descended = [], []
    for _ in range(150):
        state, information = compiled(state, 0.0, 1e-2)
        ascended.append(float(information))
    assert_same(state.params.model, start.params.model)
    assert ascended[1] > ascended[0] and ascended[-1] > ascended[0] + 0.1
    critic = state.params.critic
    for _ in range(150):
        state, information = compiled(state, 1e-2, 0.0)
        descended.append(float(information))
    assert_same(state.params.critic, critic)
    assert descended[1] < descended[0] and descended[-1] < descended[0] - 0.1


def test_an_optimiser_step_learns_from_its_minibatch():
    # With two minibatches, the only optimiser step sees two of the four environments: exactly those change the
    # parameters while all others are masked.
    transform = byol_explore(SPEC, data=DATA, horizon=2, minibatches=2, **SMALL)
    update, start = jit(transform.update), started(transform)
    trajectory = random_trajectory(SPEC, 0, 6, 4)
    moved = []
    for environment in range(4):
        after, _ = update(start, trajectory._replace(mask=jnp.zeros((6, 4)).at[:, environment].set(1.0)), KEY)
        pairs = zip(arrays(after.params.model), arrays(start.params.model), strict=True)
        moved.append(any((x != y).any() for x, y in pairs))
    assert sum(moved) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"horizon": 7}, "horizon=7: expected at most data.length=6"),
        ({"horizon": 0}, "horizon=0: expected at least 1"),
        ({"minibatches": 5}, "latent_prediction: minibatches=5: expected from 1 to the 4 environments"),
        ({"contrast": 1}, "contrast=1: expected at least 2"),
        ({"latent_size": 0}, "latent_size=0"),
    ],
)
def test_latent_prediction_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        byol_hindsight(SPEC, data=DATA, **({"horizon": 2} | arguments))
