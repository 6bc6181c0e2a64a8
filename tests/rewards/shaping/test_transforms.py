"""Scale, clip, both normalisations and the group filter, compared with numpy."""

import jax
import numpy as np
import pytest

from agents.base import DataSpec
from rewards.base import chain
from rewards.shaping.transforms import clip, group_filter, normalise, normalise_by_return, scale

KEY = jax.random.key(0)


def apply(transform, trajectory, state=None):
    state = transform.init(KEY) if state is None else state
    return np.asarray(transform.apply(state, trajectory)[0].rewards["env"])


def test_scale_and_clip_by_hand(make_trajectory):
    trajectory = make_trajectory(env=[[-3.0, 0.5], [2.0, 1.0]], other=[[5.0, 5.0], [5.0, 5.0]])
    np.testing.assert_array_equal(apply(scale(factor=-2.0), trajectory), [[6, -1], [-4, -2]])
    np.testing.assert_array_equal(apply(clip(), trajectory), [[-1, 0.5], [1, 1]])
    np.testing.assert_array_equal(apply(clip(low=0.0, high=0.75), trajectory), [[0, 0.5], [0.75, 0.75]])
    # A transform of another channel leaves this one unchanged.
    other = scale("other", factor=3.0)
    relabelled, metrics = other.apply(other.init(KEY), trajectory)
    np.testing.assert_array_equal(relabelled.rewards["other"], np.full((2, 2), 15.0))
    np.testing.assert_array_equal(relabelled.rewards["env"], trajectory.rewards["env"])
    assert metrics == {}


@pytest.fixture(scope="module")
def batches(make_trajectory):
    rng = np.random.default_rng(0)
    made = []
    for size in range(4):
        mask = rng.random((5, 3)) < 0.7
        rewards = np.where(mask, rng.normal(10.0 + size, 2.0, (5, 3)), 1e6).astype(np.float32)
        made.append((make_trajectory(mask, env=rewards), rewards, mask))
    return made


@pytest.mark.parametrize("centred", [False, True])
def test_normalise_uses_the_moments_of_all_valid_steps_seen(batches, centred):
    transform = normalise(centred=centred, limit=None)
    update = jax.jit(transform.update)
    state, seen = transform.init(KEY), np.zeros(0)
    for trajectory, rewards, mask in batches:
        state, _ = update(state, trajectory, KEY)
        seen = np.concatenate([seen, rewards[mask]])
        np.testing.assert_allclose(state.count, seen.size)
        np.testing.assert_allclose(state.mean, seen.mean(), rtol=1e-5)
        np.testing.assert_allclose(np.sqrt(state.squares / state.count), seen.std(), rtol=1e-3)
        expected = np.where(mask, (rewards - (seen.mean() if centred else 0)) / seen.std(), 0)
        np.testing.assert_allclose(apply(transform, trajectory, state), expected, rtol=2e-3, atol=2e-3)
    metrics = transform.apply(state, batches[0][0])[1]
    np.testing.assert_allclose([metrics["mean"], metrics["std"]], [seen.mean(), seen.std()], rtol=1e-3)


def test_normalise_of_a_batch_without_a_valid_step_learns_nothing(make_trajectory):
    transform = normalise()
    state, _ = transform.update(transform.init(KEY), make_trajectory(env=[[1.0, 3.0]]), KEY)
    again, _ = transform.update(state, make_trajectory([[0, 0]], env=[[5.0, 9.0]]), KEY)
    assert again == state and state.count == 2


def test_normalise_is_limited_and_divides_by_at_least_the_minimum(make_trajectory):
    trajectory = make_trajectory(env=[[0.0, 0.0, 0.0, 100.0]])
    wide, tight = normalise(limit=None), normalise(limit=1.5)
    state, _ = wide.update(wide.init(KEY), trajectory, KEY)
    # The mean is 25, the standard deviation sqrt(1875).
    np.testing.assert_allclose(apply(wide, trajectory, state), [[0, 0, 0, 100 / np.sqrt(1875)]], rtol=1e-5)
    np.testing.assert_allclose(apply(tight, trajectory, state), [[0, 0, 0, 1.5]])
    noise = make_trajectory(env=[[1e-6, -1e-6]])
    floored = normalise(minimum_std=0.1)
    state, _ = floored.update(floored.init(KEY), noise, KEY)
    np.testing.assert_allclose(apply(floored, noise, state), [[1e-5, -1e-5]], rtol=1e-4)


def test_normalise_learns_from_what_earlier_transforms_wrote(make_trajectory):
    trajectory = make_trajectory(env=[[1.0, 3.0]])
    whole = chain(scale=scale(factor=10.0), normalise=normalise(limit=None))
    state, _ = whole.update(whole.init(KEY), trajectory, KEY)
    assert state["normalise"].mean == 20.0
    np.testing.assert_allclose(apply(whole, trajectory, state), [[1.0, 3.0]], rtol=1e-6)


def test_rewards_are_divided_by_the_deviation_of_their_discounted_return(make_trajectory):
    data, rng = DataSpec("unroll", 6, 3), np.random.default_rng(1)
    transform = normalise_by_return(data=data, discount=0.8, limit=None)
    update = jax.jit(transform.update)
    state, running, seen = transform.init(KEY), np.zeros(3), []
    for _ in range(3):
        rewards, mask = rng.normal(5.0, 3.0, (6, 3)).astype(np.float32), rng.random((6, 3)) < 0.8
        starts = rng.random((6, 3)) < 0.3
        trajectory = make_trajectory(mask, env=rewards)
        trajectory = trajectory._replace(extras={"episode_start": starts})
        state, _ = update(state, trajectory, KEY)
        for reward, valid, start in zip(rewards, mask, starts, strict=True):
            running = np.where(valid, 0.8 * np.where(start, 0.0, running) + reward, running)
            seen.append(running[valid])
        std = np.concatenate(seen).std()
        np.testing.assert_allclose(apply(transform, trajectory, state), np.where(mask, rewards / std, 0), rtol=1e-4)
    np.testing.assert_allclose(state.running, running, rtol=1e-5)
    np.testing.assert_allclose(transform.apply(state, trajectory)[1]["return_std"], std, rtol=1e-4)


def test_rewards_divided_by_a_return_are_limited_and_by_at_least_the_minimum(make_trajectory):
    data = DataSpec("unroll", 1, 4)
    trajectory = make_trajectory(env=[[0.0, 0.0, 0.0, 100.0]])
    tight = normalise_by_return(data=data, limit=1.5)
    state, _ = tight.update(tight.init(KEY), trajectory, KEY)
    np.testing.assert_allclose(apply(tight, trajectory, state), [[0, 0, 0, 1.5]])
    constant = make_trajectory(env=[[2e-3, 2e-3, 2e-3, 2e-3]])
    floored = normalise_by_return(data=data, minimum_std=0.1)
    state, _ = floored.update(floored.init(KEY), constant, KEY)
    np.testing.assert_allclose(apply(floored, constant, state), [[0.02] * 4], rtol=1e-5)


LOST = [
    scale("envy", factor=1.0),
    clip("envy"),
    normalise("envy"),
    normalise_by_return("envy", data=DataSpec("unroll", 1, 1)),
]


@pytest.mark.parametrize("transform", LOST)
def test_a_missing_channel_is_refused_with_the_known_ones(make_trajectory, transform):
    with pytest.raises(ValueError, match=r"unknown reward channel 'envy' in (scale|clip|normalise\w*).*'env'"):
        transform.apply(transform.init(KEY), make_trajectory(other=[[1.0]], env=[[1.0]]))


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0)])
def test_clip_refuses_an_empty_range(low, high):
    with pytest.raises(ValueError, match=f"clip: low={low}, high={high}: expected low < high"):
        clip(low=low, high=high)


FOUR_ROLLOUTS = DataSpec("episodes", 2, 8, 4)


def test_the_filter_keeps_groups_of_medium_success(make_trajectory):
    # Two groups of four: one has 1 positive rollout, the other has 4. The reward in a padded row does not count.
    mask = [[1] * 8, [1, 1, 1, 0, 1, 1, 1, 1]]
    rewards = [[0.0] * 8, [1, 0, 0, 9, 1, 1, 1, 1]]
    trajectory = make_trajectory(mask, env=rewards)
    for bounds, kept in {(0.2, 0.8): (1, 0), (0.25, 0.25): (1, 0), (0.3, 1.0): (0, 1), (0.0, 1.0): (1, 1)}.items():
        transform = group_filter(data=FOUR_ROLLOUTS, low=bounds[0], high=bounds[1])
        filtered, metrics = transform.apply(transform.init(KEY), trajectory)
        np.testing.assert_array_equal(filtered.mask, np.asarray(mask) * np.repeat(kept, 4))
        np.testing.assert_array_equal(filtered.rewards["env"], trajectory.rewards["env"])
        assert metrics["kept_groups"] == np.mean(kept)


def test_the_filter_counts_returns_above_its_threshold(make_trajectory):
    trajectory = make_trajectory(np.ones((2, 8)), env=np.tile([0.5, 1.0, 1.5, 2.0], (2, 2)))
    transform = group_filter(data=FOUR_ROLLOUTS, low=0.5, high=0.5, outcome_threshold=2.0)
    assert transform.apply((), trajectory)[1]["kept_groups"] == 1.0
    transform = group_filter(data=FOUR_ROLLOUTS, low=0.5, high=0.5, outcome_threshold=3.0)
    assert transform.apply((), trajectory)[1]["kept_groups"] == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": DataSpec("unroll", 4, 8)}, "kind='unroll'"),
        ({"data": DataSpec("episodes", 4, 8, 1)}, "group_size=1"),
        ({"data": FOUR_ROLLOUTS, "low": 0.9}, "low=0.9, high=0.8"),
        ({"data": FOUR_ROLLOUTS, "high": 1.5}, "high=1.5"),
    ],
)
def test_the_filter_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        group_filter(**arguments)
