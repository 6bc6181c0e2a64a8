"""envpool's compiled environments as a ``VectorHost`` (extra ``fast``), and Boxoban's levels of Sokoban.

envpool resets an environment whose episode ended in its *next* step, and ignores the action of that step. Here such
an environment is reset in the same step, by a second call for these environments alone, so that no step is spent on a
reset and both the final observation and the first one of the next episode are known.

The wheel of envpool 1.2 contains Boxoban's 1000 ``unfiltered/test`` levels (10x10, four boxes, Apache-2.0), so that
they are available offline. By default envpool looks for them in another folder, does not find them, and plays one
small built-in level instead; ``boxoban_host`` gives it the right folder.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import jax
import numpy as np

from envs.base import Action, EnvironmentSpec, Observation, TimeStep, UnsupportedSpaceError
from envs.choices import nearest
from envs.snapshots import Snapshot, SnapshotError
from envs.spaces import (
    as_batch,
    check_finite,
    environment_seeds,
    from_indices,
    must_be_narrowed,
    narrowed,
    validate_supported,
)

_INT_MAX = 2**31 - 1
_LEVELS = Path("jumanji", "assets", "boxoban", "unfiltered-test.npy")
_WALL, _TARGET, _PLAYER, _BOX = 1, 2, 3, 4
# Our up, down, left, right in the order of envpool: up, right, down, left.
_MOVES = np.array([0, 2, 3, 1])


def _envpool() -> ModuleType:
    try:
        return importlib.import_module("envpool")
    except ImportError as error:
        raise ImportError(
            f"envpool is missing ({error}); it comes with the extra 'fast': pip install -e '.[fast]'"
        ) from error


class EnvPoolHost:
    """``num_envs`` environments of one envpool identifier, in numpy; resets in the same step.

    envpool counts the time limit itself and reports ``truncated`` for every episode that ends in the last step before
    the limit, whatever ended it. ``terminal_keys`` restores ``terminated`` for environments that report their end in
    ``info``; in all others, an episode that the environment ends in exactly that step counts as truncated.

    Args:
      environment_id: an identifier of ``envpool.list_all_envs()``.
      num_envs: ``B``.
      make_kwargs: keyword arguments of ``envpool.make``: ``num_threads``, ``max_episode_steps``, ...
      info_keys: from an entry of the environment's ``info`` to its name in ``TimeStep.info``, where it is ``float32``.
      cost_keys: from an entry of the environment's ``info`` to its name in ``TimeStep.costs``.
      terminal_keys: entries of ``info`` that are true where the environment ended the episode.
      observe: converts envpool's batch of observations to the policy's; ``None`` leaves them unchanged.
      observation_space: the space of one environment's observations after ``observe``.
      act: converts the policy's batch of actions to envpool's; ``None`` leaves them unchanged.
      finite: whether to refuse NaN and infinity in observations, rewards and costs.

    Raises:
      ImportError: envpool is missing.
      ValueError: the identifier or an entry of ``info`` is unknown, or ``num_envs`` is below 1.
      UnsupportedSpaceError: a space has a part that is not an array of fixed shape, or there are several action arrays.
    """

    def __init__(
        self,
        environment_id: str,
        num_envs: int,
        *,
        make_kwargs: Mapping[str, Any] | None = None,
        info_keys: Mapping[str, str] | None = None,
        cost_keys: Mapping[str, str] | None = None,
        terminal_keys: Sequence[str] = (),
        observe: Callable[[Any], Observation] | None = None,
        observation_space: gymnasium.Space | None = None,
        act: Callable[[Action], Action] | None = None,
        finite: bool = True,
    ):
        envpool = _envpool()
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs}: expected at least 1")
        known = envpool.list_all_envs()
        if environment_id not in known:
            raise ValueError(f"unknown envpool environment {environment_id!r}{nearest(environment_id, known)}")
        self._id, self._num_envs, self._finite = environment_id, num_envs, finite
        self._make_kwargs = dict(make_kwargs or {})
        self._info_keys, self._cost_keys = dict(info_keys or {}), dict(cost_keys or {})
        self._terminal_keys = tuple(terminal_keys)
        self._observe, self._act = observe or (lambda batch: batch), act or (lambda batch: batch)
        # envpool takes the seeds when it makes the environments, so ``reset`` makes them.
        self._pool: Any = None
        self._steps = 0

        spec = envpool.make_spec(environment_id, num_envs=num_envs, **self._make_kwargs)
        reported = [key.removeprefix("info:") for key in spec.state_array_spec if key.startswith("info:")]
        for key in (*self._info_keys, *self._cost_keys, *self._terminal_keys):
            if key not in reported:
                raise ValueError(f"{environment_id} has no {key!r} in info{nearest(key, reported)}")
        limit = spec.config.max_episode_steps
        self._spec = EnvironmentSpec(
            observation_space=observation_space or spec.gymnasium_observation_space,
            action_space=spec.gymnasium_action_space,
            max_episode_steps=None if limit >= _INT_MAX else limit,
            costs=tuple(self._cost_keys.values()),
            info=tuple(self._info_keys.values()),
        )
        validate_supported(self._spec.observation_space, "observation")
        validate_supported(self._spec.action_space, "action")
        self._narrow = must_be_narrowed(self._spec.observation_space)
        if isinstance(self._spec.action_space, gymnasium.spaces.Dict):
            raise UnsupportedSpaceError(
                f"{environment_id}: several action arrays, expected one: {self._spec.action_space}"
            )

    @property
    def spec(self) -> EnvironmentSpec:
        return self._spec

    @property
    def num_envs(self) -> int:
        return self._num_envs

    def reset(self, seed: int | Sequence[int]) -> Observation:
        """Makes every environment anew; an integer seeds environment i with ``seed + i``, a sequence seeds each.

        envpool's seeds are below ``2**31 - 1``: larger ones are taken modulo that number.
        """
        seeds = [each % _INT_MAX for each in environment_seeds(seed, self._num_envs)]
        self.close()
        self._pool = _envpool().make(
            self._id, env_type="gymnasium", num_envs=self._num_envs, env_seed=seeds, **self._make_kwargs
        )
        self._steps = 0
        observation = self._observed(self._pool.reset()[0])
        if self._finite:
            check_finite(self._id, 0, observation=observation)
        return observation

    def _observed(self, batch: Any) -> Observation:
        observation = self._observe(batch)
        if not self._narrow:
            return observation
        return narrowed(self._id, self._steps, self._spec.observation_space, observation)

    def step(self, action: Action) -> TimeStep:
        """Steps every environment; arrays ``[B, ...]``.

        Raises:
          RuntimeError: before the first ``reset``.
          ValueError: an action of another shape.
          NonFiniteEnvironmentError: an environment returned NaN or infinity.
          ObservationRangeError: an observation outside of its space, or too large for 32 bits.
        """
        if self._pool is None:
            raise RuntimeError("the environments have not been started: call reset first")
        space = self._spec.action_space
        indices = as_batch(space, action, self._num_envs)
        actions = self._act(from_indices(space, indices))
        batch, reward, terminated, truncated, info = self._pool.step(actions)
        self._steps += 1
        for key in self._terminal_keys:
            terminated = terminated | (info[key] > 0)
        truncated = truncated & ~terminated
        ended = np.flatnonzero(terminated | truncated).astype(np.int32)
        if ended.size:
            # The reset may write into the arrays that the step returned.
            batch = jax.tree.map(np.array, batch)
        final_observation = observation = self._observed(batch)
        if ended.size:
            # Whatever the action, a step resets what has ended. ``reset`` would start a new game where only a life is
            # lost (``episodic_life``), so that no later life was ever played.
            fresh, *_, fresh_info = self._pool.step(np.asarray(actions)[ended], ended)
            observation = self._observed(_with_rows(batch, fresh_info["env_id"], fresh))
        reward = reward.astype(np.float32)
        costs = {name: info[key].astype(np.float32) for key, name in self._cost_keys.items()}
        if self._finite:
            check_finite(self._id, self._steps, observation=observation, reward=reward, cost=costs)
            if final_observation is not observation:
                check_finite(self._id, self._steps, final_observation=final_observation)
        return TimeStep(
            observation=observation,
            reward=reward,
            costs=costs,
            objectives={},
            terminated=terminated,
            truncated=truncated,
            final_observation=final_observation,
            info={name: info[key].astype(np.float32) for key, name in self._info_keys.items()},
        )

    def snapshot(self) -> None:
        """``None``: envpool cannot save its environments."""
        return None

    def restore(self, snapshot: Snapshot) -> Observation:
        """Refused: there are no snapshots.

        Raises:
          SnapshotError: always.
        """
        raise SnapshotError(f"{self._id}: envpool cannot restore its environments")

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def _with_rows(batch: Any, indices: np.ndarray, rows: Any) -> Any:
    """A copy of the arrays ``[B, ...]`` with ``rows`` at ``indices``."""
    if isinstance(batch, dict):
        return {key: _with_rows(part, indices, rows[key]) for key, part in batch.items()}
    batch = batch.copy()
    batch[indices] = rows
    return batch


def symbolic_observation(grid: np.ndarray) -> np.ndarray:
    """Planes wall, target, box, player, ``uint8 [..., H, W, 4]``, from envpool's grid ``[..., H, W, 2]``.

    envpool's grid has what moves (player 3, box 4) in entry 0 of the last axis and what stays (wall 1, target 2)
    in entry 1, so that a box on a target is in both.
    """
    moving, fixed = grid[..., 0], grid[..., 1]
    return np.stack([fixed == _WALL, fixed == _TARGET, moving == _BOX, moving == _PLAYER], axis=-1).astype(np.uint8)


def _levels_root() -> Path:
    root = Path(str(_envpool().__file__)).parent
    if not (root / _LEVELS).exists():
        raise FileNotFoundError(
            f"this envpool holds no Boxoban levels: {root / _LEVELS} is missing, expected envpool 1.2"
        )
    return root


def boxoban_levels() -> np.ndarray:
    """The 1000 levels as planes wall, target, box, player: ``uint8 [1000, 10, 10, 4]``.

    Raises:
      ImportError: envpool is missing.
      FileNotFoundError: another version of envpool, without the levels.
    """
    # The file has what stays first.
    return symbolic_observation(np.load(_levels_root() / _LEVELS)[..., ::-1])


def boxoban_host(
    num_envs: int, *, level: int | None = None, max_episode_steps: int = 120, num_threads: int = 0
) -> EnvPoolHost:
    """Boxoban's levels with the observations and actions of ``envs.native.sokoban``, for policies trained there.

    Observations ``uint8 [B, 10, 10, 4]``, actions up, down, left, right. The reward is envpool's: -0.1 per step, +1
    for a box pushed onto a target, -1 for one pushed off, +10 for solving; ``info["success"]`` is 1 in the step that
    solves the level.

    Args:
      num_envs: ``B``.
      level: 0 to 999, the same in every environment; ``None`` draws one for every episode.
      max_episode_steps: time limit.
      num_threads: number of envpool's threads; 0 lets it choose.

    Raises:
      ImportError: envpool is missing.
      FileNotFoundError: another version of envpool, without the levels.
      ValueError: ``level`` does not exist.
    """
    if level is not None and not 0 <= level < 1000:
        raise ValueError(f"level={level}: expected 0 to 999; the nearest: {min(max(level, 0), 999)}")
    return EnvPoolHost(
        "Sokoban-v0",
        num_envs,
        make_kwargs={
            "base_path": str(_levels_root()),
            "sokoban_level_index": -1 if level is None else level,
            "max_episode_steps": max_episode_steps,
            "num_threads": num_threads,
        },
        info_keys={"solved": "success"},
        terminal_keys=("solved",),
        observe=lambda batch: symbolic_observation(batch["grid"]),
        observation_space=gymnasium.spaces.Box(0, 1, (10, 10, 4), np.uint8),
        act=lambda action: _MOVES[action],
    )
