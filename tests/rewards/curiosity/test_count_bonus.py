"""Counts against a dictionary, for every way of identifying states."""

from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from agents.base import DataSpec
from envs.base import EnvironmentSpec, Transition
from rewards.curiosity.count_bonus import count_bonus
from tests.rewards.contract import KEY, jit, obeys_the_contract, random_trajectory, undone

LINE = EnvironmentSpec(spaces.Discrete(5), spaces.Discrete(2))
PICTURE = EnvironmentSpec(
    spaces.Dict({"map": spaces.Box(-1, 1, (2, 1, 1), np.int8), "left": spaces.Discrete(3, start=-1)}),
    spaces.Discrete(2),
)
FLOATS = EnvironmentSpec(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2))
DATA = DataSpec("unroll", 6, 3)


def walk(states, following, starts, mask=None):
    """A trajectory on ``LINE`` from states, next states and where episodes start, ``[T, B]`` each."""
    states, following, starts = jnp.array(states), jnp.array(following), jnp.array(starts, bool)
    ends = jnp.concatenate([starts[1:], jnp.zeros_like(starts[:1])])
    mask = jnp.ones(states.shape) if mask is None else jnp.array(mask, jnp.float32)
    nothing = jnp.zeros_like(ends)
    extras = {"episode_start": starts}
    return Transition(states, states, {"env": mask}, ends, nothing, following, mask, extras)


def bonus(transform, state, trajectory):
    return np.asarray(transform.apply(state, trajectory)[0].rewards["curiosity"])


def test_global_counts_by_hand():
    transform = count_bonus(LINE, data=DataSpec("unroll", 3, 1), weight=2.0)
    # Starts at 0, then 1, 1, ends at 2; the next episode starts at 0 and its first step leads to 1, masked.
    trajectory = walk([[0], [1], [0]], [[1], [2], [1]], [[1], [0], [1]], [[1], [1], [0]])
    state, metrics = transform.update(transform.init(KEY), trajectory, KEY)
    np.testing.assert_array_equal(state.counts, [1, 1, 1, 0, 0])
    np.testing.assert_allclose(metrics["visited"], 3 / 5)
    np.testing.assert_allclose(bonus(transform, state, trajectory), [[2.0], [2.0], [0.0]])
    state, _ = transform.update(state, trajectory._replace(mask=jnp.ones((3, 1))), KEY)
    np.testing.assert_array_equal(state.counts, [3, 3, 2, 0, 0])
    expected = 2 / np.sqrt([[3], [2], [0]], where=[[True], [True], [False]], out=np.ones((3, 1)))
    expected[2] = 0
    np.testing.assert_allclose(bonus(transform, state, trajectory), expected, rtol=1e-6)


def test_an_undone_update_keeps_the_counts_of_the_episodes_and_restores_those_of_the_run():
    # An episode starts in the unroll whose update is undone, and continues in the next unroll.
    unrolls = [
        walk([[0], [1]], [[1], [2]], [[1], [0]]),
        walk([[2], [3]], [[3], [4]], [[0], [1]]),
        walk([[4], [3]], [[3], [4]], [[0], [0]]),
    ]
    for episodic in (True, False):
        transform = count_bonus(LINE, data=DataSpec("unroll", 2, 1), episodic=episodic)
        old, _ = transform.update(transform.init(KEY), unrolls[0], KEY)
        new, _ = transform.update(old, unrolls[1], KEY)
        state, _ = transform.update(undone(transform, old, new), unrolls[2], KEY)
        # The episode has visited 3 and 4 before; the counts of the run know 0, 1 and 2 from the first unroll alone.
        expected = [2, 2] if episodic else [1, 1]
        np.testing.assert_allclose(bonus(transform, state, unrolls[2])[:, 0], 1 / np.sqrt(expected), rtol=1e-6)


def test_episodic_counts_restart_and_are_carried_by_hand():
    transform = count_bonus(LINE, data=DataSpec("unroll", 3, 1), episodic=True)
    first = walk([[0], [1], [0]], [[1], [0], [1]], [[1], [0], [0]])
    state, _ = transform.update(transform.init(KEY), first, KEY)
    # 1 is visited for the first time, 0 for the second after the start, 1 for the second.
    np.testing.assert_allclose(bonus(transform, state, first)[:, 0], 1 / np.sqrt([1, 2, 2]), rtol=1e-6)
    # The episode continues with a third 1 and ends at 4; a new one starts at 1 and stays there.
    second = walk([[1], [1], [1]], [[1], [4], [1]], [[0], [0], [1]])
    state, _ = transform.update(state, second, KEY)
    np.testing.assert_allclose(bonus(transform, state, second)[:, 0], 1 / np.sqrt([3, 1, 2]), rtol=1e-6)
    np.testing.assert_array_equal(state.counts, [[0, 2, 0, 0, 0]])
    # In replayed data, counts begin with every segment, whatever was carried.
    replayed = count_bonus(LINE, data=DataSpec("replay", 3, 1), episodic=True)
    np.testing.assert_allclose(bonus(replayed, state, second)[:, 0], 1 / np.sqrt([1, 1, 2]), rtol=1e-6)


def reference(trajectories, name):
    """Episodic bonuses of the last trajectory, environment by environment, step by step; ``name(observation)`` is
    hashable."""
    batch = trajectories[0].mask.shape[1]
    counts = [Counter() for _ in range(batch)]
    for trajectory in trajectories:
        rewards = np.zeros(trajectory.mask.shape)
        for t, b in np.ndindex(*rewards.shape):
            if trajectory.extras["episode_start"][t, b]:
                counts[b] = Counter([name(trajectory.observation, t, b)])
            after = name(trajectory.next_observation, t, b)
            counts[b][after] += 1
            rewards[t, b] = counts[b][after] ** -0.5
    return rewards


def in_picture(observation, t, b):
    return int(observation["left"][t, b]), *np.asarray(observation["map"])[t, b].ravel().tolist()


@pytest.mark.parametrize("identify", ["exact", "hash"])
def test_episodic_counts_equal_a_dictionary(identify):
    transform = count_bonus(PICTURE, data=DATA, identify=identify, bits=20, episodic=True)
    trajectories = [random_trajectory(PICTURE, seed, 6, 3, ends=0.15) for seed in range(4)]
    _, state, rewards = obeys_the_contract(transform, trajectories)
    np.testing.assert_allclose(rewards, reference(trajectories, in_picture), rtol=1e-6)
    if identify == "exact":
        assert state.counts.shape == (3, 27)


@pytest.mark.parametrize("identify", ["exact", "hash"])
def test_global_counts_equal_a_dictionary(identify):
    transform = count_bonus(PICTURE, data=DATA, identify=identify, bits=20)
    trajectories = [random_trajectory(PICTURE, seed, 6, 3) for seed in range(3)]
    _, _, rewards = obeys_the_contract(transform, trajectories)
    counts = Counter()
    for trajectory in trajectories:
        for t, b in np.ndindex(6, 3):
            counts[in_picture(trajectory.next_observation, t, b)] += 1
            if trajectory.extras["episode_start"][t, b]:
                counts[in_picture(trajectory.observation, t, b)] += 1
    last = trajectories[-1].next_observation
    expected = [[counts[in_picture(last, t, b)] ** -0.5 for b in range(3)] for t in range(6)]
    np.testing.assert_allclose(rewards, expected, rtol=1e-6)


def test_a_projection_counts_observations_of_the_same_direction_together():
    transform = count_bonus(FLOATS, data=DataSpec("unroll", 1, 4), identify="projection", bits=12)
    state = transform.init(KEY)
    point = np.array([0.3, -0.5, 0.8], np.float32)
    # A point, its double, and its opposite twice.
    seen = jnp.asarray(np.stack([point, 2 * point, -point, -point])[None])
    starts = jnp.zeros((1, 4), bool)
    trajectory = Transition(
        seen, starts, {"env": jnp.zeros((1, 4))}, starts, starts, seen, jnp.ones((1, 4)), {"episode_start": starts}
    )
    state, _ = transform.update(state, trajectory, KEY)
    assert sorted(np.asarray(state.counts)[np.asarray(state.counts) > 0]) == [2, 2]
    # Opposites lie on opposite sides of every hyperplane: their buckets are each other's complement.
    assert np.flatnonzero(state.counts).sum() == 2**12 - 1
    np.testing.assert_allclose(bonus(transform, state, trajectory), np.full((1, 4), 2**-0.5), rtol=1e-6)
    trajectories = [random_trajectory(FLOATS, seed, 1, 4) for seed in range(2)]
    obeys_the_contract(transform, trajectories)


def test_counts_in_whole_episodes_leave_out_the_padding():
    transform = count_bonus(LINE, data=DataSpec("episodes", 3, 2), episodic=True)
    mask = [[1, 1], [1, 0], [1, 0]]
    trajectory = walk([[0, 0], [1, 3], [2, 3]], [[1, 3], [2, 3], [1, 3]], [[1, 1], [0, 0], [0, 0]], mask)
    state, _ = jit(transform.update)(transform.init(KEY), trajectory, KEY)
    expected = np.array([[1, 1], [1, 0], [2**-0.5, 0]])
    np.testing.assert_allclose(bonus(transform, state, trajectory), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (LINE, {"identify": "exactly"}, "unknown identify 'exactly' of count_bonus, did you mean 'exact'"),
        (LINE, {"bits": 0}, "bits=0: expected a number from 1 to 24"),
        (LINE, {"bits": 25}, "bits=25"),
        (
            LINE,
            {"identify": "hash", "bits": 23, "episodic": True},
            "8388608 counts for each of the 3 environments.*bits=22",
        ),
        (FLOATS, {}, "bounded integers, the observation has Box.*identify='hash'"),
        (EnvironmentSpec(spaces.MultiBinary(30), spaces.Discrete(2)), {}, r"2 \*\* 30.0 states"),
        (EnvironmentSpec(spaces.Box(-(2**63), 2**63 - 1, (2,), np.int64), spaces.Discrete(2)), {}, r"2 \*\* 128.0"),
    ],
)
def test_count_bonus_refuses(spec, arguments, message):
    with pytest.raises(ValueError, match=message):
        count_bonus(spec, data=DATA, **arguments)
