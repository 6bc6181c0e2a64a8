"""The replay buffer: its contents after wrapping, the segments it samples, and their frequencies."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from agents.priority_tree import tree_weights
from agents.replay import importance_weights, replay_add, replay_init, replay_prioritise, replay_sample
from envs.base import Transition

KEY = jax.random.key(0)
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
ENVIRONMENTS = 2


def rows(first, length, **extras):
    """Transitions in which every part encodes time and environment: ``100 * environment + time``."""
    mark = first + np.arange(length)[:, None] + 100 * np.arange(ENVIRONMENTS)
    flag = np.zeros(mark.shape, bool)
    return Transition(
        observation={"x": mark[..., None].astype(np.float64)},
        action=mark,
        rewards={"env": mark + 0.5, "learned": mark},
        terminated=flag,
        truncated=flag,
        next_observation={"x": mark[..., None] + 1},
        mask=np.ones(mark.shape),
        extras={"carry": (), **extras},
    )


def empty(capacity=14, **arguments):
    number, flag = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.bool_)
    observation = {"x": jax.ShapeDtypeStruct((1,), jnp.float32)}
    action = jax.ShapeDtypeStruct((), jnp.int32)
    template = Transition(observation, action, {"env": number}, flag, flag, observation, number, {})
    return replay_init(template, capacity=capacity, batch=ENVIRONMENTS, **arguments)


add = jit(replay_add)
sample = jit(replay_sample, static_argnames=("batch", "length"))


def filled(*, unrolls, length=3, **arguments):
    state = empty(**arguments)
    for index in range(unrolls):
        state = add(state, rows(index * length, length))
    return state


def priorities(state):
    return tree_weights(state.priority, jnp.arange(14)).reshape(7, ENVIRONMENTS)


# --- contents ------------------------------------------------------------------------------------------


def test_the_oldest_rows_are_overwritten():
    # Nine rows were written to seven places, so that 7 and 8 replaced 0 and 1.
    state = filled(unrolls=3)
    np.testing.assert_array_equal(state.transitions.action[:, 0], [7, 8, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(state.transitions.action[:, 1], [107, 108, 102, 103, 104, 105, 106])
    np.testing.assert_array_equal(state.transitions.rewards["env"][:, 0], [7.5, 8.5, 2.5, 3.5, 4.5, 5.5, 6.5])
    np.testing.assert_array_equal(state.transitions.next_observation["x"][:, 0, 0], [8, 9, 3, 4, 5, 6, 7])
    assert (state.cursor, state.size) == (2, 7)
    assert (filled(unrolls=2).cursor, filled(unrolls=2).size) == (6, 6)


def test_channels_and_types_of_the_template_are_kept_and_nothing_else():
    transitions = filled(unrolls=1).transitions
    assert transitions.extras == {} and set(transitions.rewards) == {"env"}
    kinds = (transitions.observation["x"].dtype, transitions.action.dtype, transitions.mask.dtype)
    assert kinds == (jnp.float32, jnp.int32, jnp.float32)


def test_environments_that_were_started_anew_truncate_the_newest_row():
    state = filled(unrolls=1)
    going_on = np.zeros((3, ENVIRONMENTS), bool)
    anew = going_on.copy()
    anew[0, 1] = True
    assert not np.any(add(state, rows(3, 3, episode_start=going_on)).transitions.truncated)
    truncated = np.asarray(add(state, rows(3, 3, episode_start=anew)).transitions.truncated)
    assert truncated[2, 1] and truncated.sum() == 1
    # A row that terminated is not truncated as well.
    ended = state._replace(transitions=state.transitions._replace(terminated=jnp.ones((7, ENVIRONMENTS), bool)))
    assert not np.any(add(ended, rows(3, 3, episode_start=anew)).transitions.truncated)


# --- sampling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prioritised", [False, True])
@pytest.mark.parametrize(("unrolls", "newest"), [(1, 2), (2, 5), (3, 8), (5, 14)])
def test_no_segment_crosses_the_write_position(unrolls, newest, prioritised):
    state = filled(unrolls=unrolls, prioritised=prioritised)
    segments, index, probability = sample(state, KEY, batch=512, length=3)
    action = np.asarray(segments.action)
    np.testing.assert_array_equal(np.diff(action, axis=0), 1)
    oldest = max(0, newest - 6)
    np.testing.assert_array_equal(np.unique(action[0] % 100), np.arange(oldest, newest - 1))
    assert set(action[0] // 100) == {0, 1}
    np.testing.assert_array_equal(segments.rewards["env"], action + 0.5)
    np.testing.assert_array_equal(state.transitions.action.reshape(-1)[index], action[0])
    np.testing.assert_allclose(probability, 1 / (2 * (newest - 1 - oldest)), rtol=1e-6)
    assert index.dtype == jnp.int32


@pytest.mark.parametrize("prioritised", [False, True])
def test_segments_are_drawn_uniformly(prioritised):
    _, index, _ = sample(filled(unrolls=3, prioritised=prioritised), KEY, batch=20_000, length=2)
    counts = np.bincount(index, minlength=14)
    # The newest row, 8, is at place 1; neither of its two environments can start a segment of two rows.
    assert list(counts[2:4]) == [0, 0]
    assert stats.chisquare(np.delete(counts, [2, 3])).pvalue > 0.01


def test_priorities_are_frequencies():
    state = filled(unrolls=3, prioritised=True)
    index = jnp.arange(14)
    state = replay_prioritise(state, index, jnp.arange(14.0), exponent=0.5)
    _, drawn, probability = sample(state, KEY, batch=50_000, length=1)
    expected = np.sqrt(np.maximum(np.arange(14.0), 1e-6))
    expected /= expected.sum()
    np.testing.assert_allclose(probability, expected[drawn], rtol=1e-5)
    counts = np.bincount(drawn, minlength=14)[1:]
    assert stats.chisquare(counts, counts.sum() * expected[1:] / expected[1:].sum()).pvalue > 0.01


def test_new_rows_get_the_largest_priority_so_far():
    state = filled(unrolls=2, prioritised=True)
    state = replay_prioritise(state, jnp.array([0, 3]), jnp.array([5.0, 2.0]))
    state = add(state, rows(6, 3))
    np.testing.assert_array_equal(priorities(state), [[5, 5], [5, 5], [1, 1], [1, 1], [1, 1], [1, 1], [5, 5]])
    state = replay_prioritise(state, jnp.array([4, 4, 5]), jnp.array([0.5, 3.0, 0.0]))
    np.testing.assert_allclose(priorities(state)[2], [3.0, 1e-6])
    assert state.largest == 5
    state = replay_prioritise(state, jnp.array([8, 9]), jnp.array([jnp.nan, jnp.inf]))
    np.testing.assert_array_equal(priorities(state)[4], [5, 5])


def test_importance_weights_by_hand():
    # (N P)^-1/2 with N = 4 is 1, 2^-1/2 and 1.25^1/2 ... of which the largest is that of P = 0.05.
    probability = jnp.array([0.25, 0.5, 0.2, 0.05])
    by_hand = np.array([1.0, 1 / np.sqrt(2), np.sqrt(1.25), np.sqrt(5)]) / np.sqrt(5)
    np.testing.assert_allclose(importance_weights(probability, 0.5), by_hand, rtol=1e-6)
    np.testing.assert_array_equal(importance_weights(probability, 0.0), 1)


# --- transformations -----------------------------------------------------------------------------------


def test_the_key_determines_the_sample_and_the_second_call_compiles_nothing():
    step = jit(
        lambda state, trajectory, key: (
            (state := replay_add(state, trajectory)),
            replay_sample(state, key, batch=4, length=2),
        ),
        donate_argnums=0,
    )
    trajectory = jax.tree.map(jnp.asarray, rows(0, 3))
    state, first = step(empty(), trajectory, KEY)
    _, again = step(empty(), trajectory, KEY)
    assert all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(again)))
    state, _ = step(state, trajectory, jax.random.key(1))
    assert step._cache_size() == 1


def test_a_member_of_a_vmap_equals_the_single_buffer():
    def run(key, shift):
        state = empty(prioritised=True)
        for index in range(3):
            trajectory = jax.tree.map(jnp.asarray, rows(3 * index, 3))
            state = replay_add(state, trajectory._replace(action=trajectory.action + shift))
        segments, index, _ = replay_sample(state, key, batch=5, length=2)
        return replay_prioritise(state, index, jnp.arange(5.0)), segments

    keys, shifts = jax.random.split(KEY, 3), jnp.arange(3)
    together = jit(jax.vmap(run))(keys, shifts)
    alone = jit(run)(keys[1], shifts[1])
    for one, many in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(many[1], one, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: empty(capacity=1), "capacity=1: expected at least one row of batch=2"),
        (lambda: replay_add(empty(), rows(0, 8)), "8 rows does not fit a buffer of 7"),
        (
            lambda: replay_add(empty(), rows(0, 2)._replace(rewards={"other": 0})),
            "unknown reward channel 'env' in the replay buffer",
        ),
        (
            lambda: replay_add(empty(), rows(0, 2)._replace(rewards={"env": jnp.zeros(2)})),
            r"channel 'env', read by the replay buffer, has shape \(2,\): expected",
        ),
        (lambda: replay_prioritise(empty(), jnp.arange(2), jnp.ones(2)), "prioritised=True"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
