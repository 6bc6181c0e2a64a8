"""Rollouts of pure environments, compared with plain Python bookkeeping."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from envs.base import EnvironmentSpec, TimeStep, Transition
from envs.rollout import bounded_action, episode_statistics, episodes, select, start_unroll, unroll

BATCH, LENGTH, GROUP_SIZE = 6, 12, 3
KEY = jax.random.key(5)


class CounterState(NamedTuple):
    identity: jax.Array
    steps: jax.Array
    key: jax.Array


@dataclass(frozen=True)
class Counter:
    """Counts its steps. The start decides the episode's length (2 to 4), and whether it is truncated or terminated.

    The observation is ``[identity, steps]``, and beside it the words of the key of the reset. The reward is
    ``identity + 10 steps + action``, with ``info`` and the other channels made of what the step got. A step
    after the end would return NaN.
    """

    endless: bool = False

    @property
    def spec(self) -> EnvironmentSpec:
        observation = spaces.Dict(
            count=spaces.Box(-np.inf, np.inf, (2,), np.float32), key=spaces.Box(0, 2**32 - 1, (2,), np.uint32)
        )
        return EnvironmentSpec(
            observation, spaces.Box(-1, 1, (1,), np.float32), None, ("c",), ("o",), ("key", "last", "steps")
        )

    def observe(self, state):
        return {"count": jnp.stack([state.identity, 1.0 * state.steps]), "key": jax.random.key_data(state.key)}

    def reset(self, key):
        state = CounterState(jax.random.uniform(key), jnp.zeros((), jnp.int32), key)
        return state, self.observe(state)

    def step(self, key, state, action):
        length = 2 + jnp.floor(state.identity * 3).astype(jnp.int32)
        after = state._replace(steps=state.steps + 1)
        ended = (after.steps >= length) & (not self.endless)
        by_clock = jnp.floor(state.identity * 100) % 2 == 0
        reward = state.identity + 10.0 * state.steps + action[0]
        reward = jnp.where((after.steps > length) & (not self.endless), jnp.nan, reward)
        observation = self.observe(after)
        info = {"key": jax.random.key_data(key), "last": ended.astype(jnp.float32), "steps": after.steps}
        return after, TimeStep(
            observation,
            reward,
            {"c": 2 * reward},
            {"o": 3 * reward},
            ended & ~by_clock,
            ended & by_clock,
            observation,
            info,
        )


def policy(carry, observation, key):
    """Draws actions beyond the bounds; its carry counts calls since the episode's start."""
    batch = observation["count"].shape[0]
    action = 3.0 * jax.random.normal(key, (batch, 1))
    seen = {"seen": observation["count"], "key": jnp.broadcast_to(jax.random.key_data(key), (batch, 2))}
    return action, {"calls": carry["calls"] + 1}, seen


INITIAL = {"calls": jnp.zeros(BATCH)}


@partial(jax.jit, static_argnames="start_states")
def run(state, key, *, start_states=None):
    return unroll(Counter(), policy, state, key, length=LENGTH, initial_carry=INITIAL, start_states=start_states)


@pytest.fixture(scope="module")
def started():
    return start_unroll(Counter(), jax.random.key(1), BATCH, INITIAL)


@pytest.fixture(scope="module")
def unrolled(started):
    return run(started, KEY)


@pytest.fixture(scope="module")
def whole():
    return jax.jit(
        partial(episodes, Counter(), policy, length=3, batch=BATCH, group_size=GROUP_SIZE, initial_carry=INITIAL)
    )(KEY)


# --- fixed unrolls -------------------------------------------------------------------------------------


def check_bookkeeping(trajectory, state):
    """Replays every column in Python from the observations and actions of the policy."""
    tr = jax.tree.map(np.asarray, trajectory)
    count, after = tr.observation["count"], tr.next_observation["count"]
    for b in range(BATCH):
        total, steps = 0.0, 0
        for t in range(len(count)):
            assert tr.extras["episode_start"][t, b] == (steps == 0)
            assert count[t, b, 1] == steps and tr.extras["carry"]["calls"][t, b] == steps
            identity = count[t, b, 0]
            reward = identity + 10 * steps + np.clip(tr.action[t, b, 0], -1, 1)
            np.testing.assert_allclose(tr.rewards["env"][t, b], reward, rtol=1e-5)
            total, steps = total + reward, steps + 1
            np.testing.assert_allclose(tr.extras["episode_return"][t, b], total, rtol=1e-5)
            assert tr.extras["episode_length"][t, b] == steps
            # What followed, before any reset.
            np.testing.assert_array_equal(after[t, b], np.float32([identity, steps]))
            ended = steps == 2 + int(identity * 3)
            assert (tr.terminated | tr.truncated)[t, b] == ended
            assert not (tr.terminated & tr.truncated)[t, b]
            assert tr.extras["info"]["last"][t, b] == ended
            if ended:
                assert tr.truncated[t, b] == (int(identity * 100) % 2 == 0)
                total, steps = 0.0, 0
            if t + 1 < len(count):
                assert (count[t + 1, b, 0] == identity) != ended
        assert state.episode_start[b] == (steps == 0)
        assert state.episode_length[b] == steps and state.carry["calls"][b] == steps
        np.testing.assert_allclose(state.episode_return[b], total, rtol=1e-5)
        assert state.observation["count"][b, 1] == steps == state.environment.steps[b]


def test_unroll_records_every_episode(unrolled):
    state, trajectory = unrolled
    check_bookkeeping(trajectory, state)
    assert (trajectory.mask == 1).all()
    # Terminations, truncations and an episode that runs beyond the unroll all occur.
    assert trajectory.terminated.any() and trajectory.truncated.any() and (state.episode_length > 0).any()


def test_an_unroll_goes_on_where_the_last_one_stopped(started):
    middle, first = run(started, jax.random.key(2))
    state, second = run(middle, jax.random.key(3))
    both = jax.tree.map(lambda *x: np.concatenate(x), first, second)
    check_bookkeeping(both, state)


def test_channels_are_named_after_what_the_environment_returns(unrolled):
    rewards = unrolled[1].rewards
    assert set(rewards) == {"env", "cost/c", "objective/o"}
    np.testing.assert_allclose(rewards["cost/c"], 2 * rewards["env"])
    np.testing.assert_allclose(rewards["objective/o"], 3 * rewards["env"])


def test_the_policy_sees_the_observation_and_its_extras_are_kept(unrolled):
    _, trajectory = unrolled
    np.testing.assert_array_equal(trajectory.extras["seen"], trajectory.observation["count"])
    # Actions are kept as the policy drew them, although the environment got them clipped.
    assert np.abs(trajectory.action).max() > 1


def identities_of_starts(started, trajectory, b):
    """The identities of the start states of column b in order, without the first."""
    start = np.asarray(trajectory.extras["episode_start"])[1:, b]
    return np.asarray(trajectory.observation["count"])[1:, b, 0][start].tolist()


def test_without_a_pool_every_episode_starts_afresh(started, unrolled):
    starts = [x for b in range(BATCH) for x in identities_of_starts(started, unrolled[1], b)]
    starts += np.asarray(started.observation["count"])[:, 0].tolist()
    assert len(set(starts)) == len(starts) > 3 * BATCH


@pytest.mark.parametrize("start_states", [1, 2])
def test_a_pool_is_used_in_turn_and_then_its_last_again(started, start_states):
    state, trajectory = run(started, KEY, start_states=start_states)
    check_ends = 0
    pool = []
    for b in range(BATCH):
        starts = identities_of_starts(started, trajectory, b)
        if state.episode_start[b]:
            starts.append(float(state.observation["count"][b, 0]))
        assert len(starts) > start_states
        assert len(set(starts[:start_states])) == start_states
        assert set(starts[start_states:]) == {starts[start_states - 1]}
        pool += starts[:start_states]
        check_ends += len(starts)
    assert check_ends == int((trajectory.terminated | trajectory.truncated).sum())
    # No two environments share a start state.
    assert len(set(pool)) == len(pool)


def keys_of(words):
    return [tuple(word) for word in np.asarray(words).reshape(-1, 2).tolist()]


@pytest.mark.parametrize("start_states", [None, 2])
def test_no_key_of_an_unroll_is_used_twice(started, start_states):
    keys, state = keys_of(started.observation["key"]), started
    for index in range(2):
        state, trajectory = run(state, jax.random.key(index), start_states=start_states)
        start = np.asarray(trajectory.extras["episode_start"]).copy()
        # The start states of row 0 are counted where they were drawn.
        start[0] = False
        keys += keys_of(trajectory.observation["key"][start])
        keys += keys_of(state.observation["key"][state.episode_start])
        keys += keys_of(trajectory.extras["info"]["key"])
        keys += keys_of(trajectory.extras["key"][:, 0])
    assert len(keys) > 2 * LENGTH * BATCH
    if start_states is None:
        assert len(set(keys)) == len(keys)
    else:
        # A pool's last start state is used again by design; no other key is.
        others = keys_of(trajectory.extras["info"]["key"]) + keys_of(trajectory.extras["key"][:, 0])
        assert all(keys.count(key) == 1 for key in others)


# --- whole episodes ------------------------------------------------------------------------------------


def test_episodes_are_masked_after_their_end(whole):
    tr = jax.tree.map(np.asarray, whole)
    assert tr.mask.shape == (3, BATCH)
    for b in range(BATCH):
        identity, total = tr.observation["count"][0, b, 0], 0.0
        natural = 2 + int(identity * 3)
        length = min(natural, 3)
        np.testing.assert_array_equal(tr.mask[:, b], np.arange(3) < length)
        ends = np.arange(3) == length - 1
        by_clock = natural > 3 or int(identity * 100) % 2 == 0
        np.testing.assert_array_equal(tr.truncated[:, b], ends & by_clock)
        np.testing.assert_array_equal(tr.terminated[:, b], ends & (not by_clock))
        for t in range(3):
            reward = identity + 10 * t + np.clip(tr.action[t, b, 0], -1, 1) if t < length else 0.0
            total += reward
            for channel, factor in (("env", 1), ("cost/c", 2), ("objective/o", 3)):
                np.testing.assert_allclose(tr.rewards[channel][t, b], factor * reward, rtol=1e-5)
            np.testing.assert_allclose(tr.extras["episode_return"][t, b], total, rtol=1e-5)
            # Padding repeats the final observation.
            np.testing.assert_array_equal(tr.observation["count"][t, b], np.float32([identity, min(t, length)]))
            np.testing.assert_array_equal(
                tr.next_observation["count"][t, b], np.float32([identity, min(t + 1, length)])
            )
        assert tr.extras["episode_length"][length - 1, b] == length
        # The environment is not stepped beyond its end: its state stays the same in the padding.
        np.testing.assert_array_equal(tr.extras["info"]["steps"][:, b], np.minimum(np.arange(3) + 1, length))
    np.testing.assert_array_equal(tr.extras["episode_start"], np.arange(3)[:, None].repeat(BATCH, 1) == 0)
    # The lengths 2 and 3 both occur; otherwise nothing above would be tested.
    assert len(np.unique(tr.mask.sum(0))) == 2


def test_rollouts_of_a_group_share_their_start_and_nothing_else(whole):
    start = np.asarray(whole.observation["count"])[0, :, 0].reshape(-1, GROUP_SIZE)
    assert (start == start[:, :1]).all() and len(np.unique(start)) == BATCH // GROUP_SIZE
    assert len(np.unique(whole.action[0])) == BATCH


def test_given_start_keys_name_the_start_states():
    start_keys = jax.random.split(jax.random.key(9), 2)
    run_from = jax.jit(
        lambda key, start_keys: episodes(
            Counter(), policy, key, length=2, batch=6, group_size=3, initial_carry=INITIAL, start_keys=start_keys
        )
    )
    expected = [float(Counter().reset(key)[0].identity) for key in start_keys]
    results = [run_from(jax.random.key(seed), start_keys) for seed in (0, 1)]
    for trajectory in results:
        np.testing.assert_allclose(trajectory.observation["count"][0, :, 0], np.repeat(expected, 3))
    assert (results[0].action != results[1].action).all()


def test_a_length_that_cuts_an_episode_truncates_it():
    trajectory = episodes(Counter(endless=True), policy, KEY, length=2, batch=6, group_size=1, initial_carry=INITIAL)
    np.testing.assert_array_equal(trajectory.truncated, [[False] * 6, [True] * 6])
    assert not trajectory.terminated.any() and trajectory.mask.all()


def test_no_key_of_an_episode_rollout_is_used_twice(whole):
    keys = keys_of(whole.observation["key"][0, ::GROUP_SIZE])
    keys += keys_of(whole.extras["info"]["key"]) + keys_of(whole.extras["key"][:, 0])
    assert len(set(keys)) == len(keys) == 2 + 3 * BATCH + 3


# --- parts ---------------------------------------------------------------------------------------------


def test_episode_statistics_by_hand():
    ends = np.array([[0, 1, 0], [1, 0, 0], [0, 1, 0]], bool)
    mask = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1]], np.float32)
    values = np.arange(9, dtype=np.float32).reshape(3, 3)
    extras = {"episode_return": values, "episode_length": values + 1, "info": {"success": values / 2}}
    truncated = ends & np.array([True, False, True])
    trajectory = Transition((), (), {}, ends & ~truncated, truncated, (), mask, extras)
    # Ends at (0, 1), (1, 0) and (2, 1): values 1, 3 and 7.
    expected = {"env_steps": 8, "episodes": 3, "return": 11, "length": 14, "success": 5.5}
    assert {name: float(value) for name, value in episode_statistics(trajectory).items()} == expected


def test_an_end_in_the_padding_is_not_counted():
    ends = np.array([[True], [True]])
    extras = {"episode_return": np.ones((2, 1)), "episode_length": np.ones((2, 1)), "info": {}}
    mask = np.array([[1.0], [0.0]])
    statistics = episode_statistics(Transition((), (), {}, ends, ~ends, (), mask, extras))
    assert statistics["episodes"] == 1 and statistics["return"] == 1


def test_select_takes_leaves_of_any_rank_and_typed_keys():
    condition = jnp.array([True, False])
    keys = jax.random.split(jax.random.key(0), 4)
    first = {"key": keys[:2], "x": jnp.ones(2), "y": jnp.ones((2, 3, 1))}
    second = {"key": keys[2:], "x": jnp.zeros(2), "y": jnp.zeros((2, 3, 1))}
    result = select(condition, first, second)
    assert (jax.random.key_data(result["key"]) == jax.random.key_data(keys[jnp.array([0, 3])])).all()
    np.testing.assert_array_equal(result["x"], [1, 0])
    np.testing.assert_array_equal(result["y"][:, :, 0], [[1] * 3, [0] * 3])


def test_bounded_action_clips_box_parts_only():
    box = spaces.Box(np.float32([-1, 0]), np.float32([1, 2]))
    space = spaces.Dict(a=box, b=spaces.Tuple((spaces.Discrete(9), box)))
    action = {"a": jnp.array([[-3.0, 3.0]]), "b": (jnp.array([7]), jnp.array([[0.5, -1.0]]))}
    result = bounded_action(space, action)
    np.testing.assert_array_equal(result["a"], [[-1, 2]])
    np.testing.assert_array_equal(result["b"][0], [7])
    np.testing.assert_array_equal(result["b"][1], [[0.5, 0]])
    on_host = bounded_action(space, jax.tree.map(np.asarray, action))
    jax.tree.map(np.testing.assert_array_equal, on_host, result)
    assert isinstance(on_host["a"], np.ndarray)
    free = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    np.testing.assert_array_equal(bounded_action(free, jnp.array([[1e9]])), [[1e9]])
