"""Rollouts of host environments: the same trajectories as ``envs.rollout``, collected step by step in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from envs.base import PyTree, Trajectory, Transition, VectorHost
from envs.rollout import ACT, UnrollState, bounded_action, channels

# ``(params, carry, observation, key, t) -> (action, carry, extras)``, jitted; draws from ``fold_in(key, t)``.
HostPolicy = Callable[..., tuple[PyTree, PyTree, dict[str, Any]]]


def act_key(key: jax.Array) -> jax.Array:
    """The key of a rollout's actions, as ``envs.rollout`` derives it."""
    return jax.random.fold_in(key, ACT)


def _select(condition: np.ndarray, on_true: PyTree, on_false: PyTree) -> PyTree:
    def choose(x, y):
        return np.where(condition.reshape(-1, *(1,) * (np.ndim(x) - 1)), x, y)

    return jax.tree.map(choose, on_true, on_false)


class _Rows:
    """Collects one pytree of numpy arrays per time step in arrays ``[length, ...]``.

    A row is copied when it is added, because a host may write over its arrays in the next step.
    """

    def __init__(self, length: int):
        self._length, self._count = length, 0
        self._arrays: list[np.ndarray] = []
        self._structure: Any = None

    def append(self, row: PyTree) -> None:
        """Copies ``row``, which must have the structure, shapes and types of the first row."""
        leaves, structure = jax.tree.flatten(row)
        if self._structure is None:
            self._structure = structure
            self._arrays = [np.empty((self._length, *np.shape(leaf)), np.asarray(leaf).dtype) for leaf in leaves]
        for array, leaf in zip(self._arrays, leaves, strict=True):
            array[self._count] = leaf
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def stacked(self) -> PyTree:
        """The rows as one pytree of arrays ``[rows, ...]``."""
        return jax.tree.unflatten(self._structure, [array[: self._count] for array in self._arrays])


def _trajectory(seen: _Rows, followed: _Rows) -> Trajectory:
    """Joins the observations before each step with the rest of each transition."""
    return followed.stacked()._replace(observation=seen.stacked())


def start_host(host: VectorHost, seed: int, carry: PyTree) -> UnrollState:
    """Starts every environment of ``host``; ``carry`` is the policy's initial carry, ``[B, ...]``."""
    observation = host.reset(seed)
    batch = host.num_envs
    return UnrollState(
        (), observation, carry, np.ones(batch, bool), np.zeros(batch, np.float32), np.zeros(batch, np.int32)
    )


def unroll_host(
    host: VectorHost,
    policy: HostPolicy,
    params: PyTree,
    state: UnrollState,
    key: jax.Array,
    *,
    length: int,
    initial_carry: PyTree,
) -> tuple[UnrollState, Trajectory]:
    """Steps every environment ``length`` times; see ``envs.rollout.unroll``."""
    space, key = host.spec.action_space, act_key(key)
    recurrent = bool(jax.tree.leaves(initial_carry))
    seen, followed = _Rows(length), _Rows(length)
    mask = np.ones(host.num_envs, np.float32)
    observation, carry, start, episode_return, episode_length = state[1:]
    for t in range(length):
        seen.append(observation)
        action, next_carry, extras = policy(params, carry, observation, key, t)
        action, extras = jax.tree.map(np.asarray, (action, extras))
        time_step = host.step(bounded_action(space, action))
        ended = time_step.terminated | time_step.truncated
        episode_return = episode_return + time_step.reward
        episode_length = episode_length + 1
        extras = extras | {
            "carry": jax.device_get(carry) if recurrent else carry,
            "episode_start": start,
            "episode_return": episode_return,
            "episode_length": episode_length,
            "info": time_step.info,
        }
        followed.append(
            Transition(
                (),
                action,
                channels(time_step),
                time_step.terminated,
                time_step.truncated,
                time_step.final_observation,
                mask,
                extras,
            )
        )
        observation, start = time_step.observation, ended
        carry = _select(ended, initial_carry, next_carry) if recurrent else next_carry
        episode_return = np.where(ended, np.float32(0), episode_return)
        episode_length = np.where(ended, np.int32(0), episode_length)
    return UnrollState((), observation, carry, start, episode_return, episode_length), _trajectory(seen, followed)


def episodes_host(
    host: VectorHost,
    policy: HostPolicy,
    params: PyTree,
    key: jax.Array,
    *,
    seeds: Sequence[int],
    group_size: int,
    length: int,
    initial_carry: PyTree,
    observations: bool = True,
) -> Trajectory:
    """Whole episodes of at most ``length`` steps, ``group_size`` rollouts from each of ``seeds``.

    The trajectory is as that of ``envs.rollout.episodes``. Stepping stops when every environment has ended its
    episode, and padding fills the rest of ``length``.

    Rollouts of the same seed also share the random numbers of the environment's steps (see ``VectorHost.reset``). The
    baseline of a group stays unbiased, but the rollouts of a nearly deterministic policy differ less than in a pure
    environment.

    Without ``observations`` the trajectory has ``()`` in place of observations, actions and carries. That is enough
    for statistics, and saves keeping thousands of steps of images.
    """
    space, key = host.spec.action_space, act_key(key)
    batch = host.num_envs
    observation = host.reset([seed for seed in seeds for _ in range(group_size)])
    carry, alive = initial_carry, np.ones(batch, bool)
    recurrent = bool(jax.tree.leaves(initial_carry))
    episode_return = np.zeros(batch, np.float32)
    seen, followed = _Rows(length), _Rows(length)
    for t in range(length):
        if not alive.any():
            break
        seen.append(observation if observations else ())
        action, next_carry, extras = policy(params, carry, observation, key, t)
        action, extras = jax.tree.map(np.asarray, (action, extras))
        time_step = host.step(bounded_action(space, action))
        terminated = time_step.terminated & alive
        truncated = ((time_step.truncated & alive) | (alive & (t == length - 1))) & ~terminated
        episode_return = episode_return + np.where(alive, time_step.reward, 0).astype(np.float32)
        next_observation = _select(alive, time_step.final_observation, observation)
        extras = extras | {
            "carry": (jax.device_get(carry) if recurrent else carry) if observations else (),
            "episode_start": np.full(batch, t == 0),
            "episode_return": episode_return,
            "episode_length": np.full(batch, t + 1, np.int32),
            "info": time_step.info,
        }
        rewards = {name: np.where(alive, value, 0).astype(np.float32) for name, value in channels(time_step).items()}
        mask = alive.astype(np.float32)
        done, after = (action, next_observation) if observations else ((), ())
        followed.append(Transition((), done, rewards, terminated, truncated, after, mask, extras))
        alive = alive & ~(terminated | truncated)
        observation, carry = next_observation, next_carry
    stacked, missing = _trajectory(seen, followed), length - len(followed)
    padded = jax.tree.map(lambda x: _pad(x, x[-1:], missing), stacked._replace(observation=()))
    # The padding's observation is the one that followed the last step.
    shown = jax.tree.map(lambda x, after: _pad(x, after[-1:], missing), stacked.observation, stacked.next_observation)
    alive_rows = (np.arange(length) < len(followed))[:, None]
    rewards = {name: value * alive_rows for name, value in padded.rewards.items()}
    return padded._replace(observation=shown, mask=padded.mask * alive_rows, rewards=rewards)


def _pad(x: np.ndarray, row: np.ndarray, missing: int) -> np.ndarray:
    """Appends ``row`` to ``x`` ``missing`` times, but ``False`` to booleans: no episode ends in the padding."""
    row = np.zeros_like(row) if x.dtype == bool else row
    return np.concatenate([x, np.repeat(row, missing, axis=0)]) if missing else x
