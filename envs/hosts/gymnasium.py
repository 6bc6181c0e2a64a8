"""Any registered gymnasium environment as a ``VectorHost``.

gymnasium's own vector environments run the environments; this adapter turns what they return into ``TimeStep``.
The default is ``SyncVectorEnv``: environments one after the other in this process. A ``vector_entry_point`` is not
used: those that gymnasium 1.4 registers (CartPole) reset in the *next* step only, spend a step of the environment on
it, and draw all environments from one random stream.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import EzPickle
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from envs.base import Action, Array, EnvironmentSpec, Observation, ObservationRangeError, PyTree, TimeStep
from envs.choices import nearest
from envs.hosts.gymnasium_single import drawn, make_environment, objective_weights, trial_step
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

_SUCCESS_KEYS = ("is_success", "success")


class _Report(gymnasium.Wrapper):
    """Keeps only the requested entries of ``info``, as floats, makes one number of a vector of rewards, and copies
    observations if asked to.

    gymnasium stacks every entry of every environment's ``info`` in Python, with the type of the first environment's
    entry. That is slow where there are many, and a cost of 0.5 beside an integer 0 would be stored as 0.

    Args:
      env: one environment.
      keys: from an entry of ``info`` to the name under which it is reported.
      own: whether to return copies of the observations, made by ``_owned``.
      objectives: weights of the rewards by the name under which each is reported; empty for a reward of one number.
    """

    def __init__(self, env: gymnasium.Env, keys: Sequence[tuple[str, str]], own: bool, objectives: Mapping[str, float]):
        super().__init__(env)
        self._keys, self._own = tuple(keys), own
        self._objectives, self._weights = tuple(objectives), np.asarray([*objectives.values()], np.float64)

    def reset(self, *, seed=None, options=None):
        observation, _ = self.env.reset(seed=seed, options=options)
        return _owned(self.observation_space, observation) if self._own else observation, {}

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        reported = {name: float(info.get(key, 0.0)) for key, name in self._keys} if self._keys else {}
        if self._objectives:
            reported |= {name: float(value) for name, value in zip(self._objectives, reward, strict=True)}
            reward = float(self._weights @ reward)
        observation = _owned(self.observation_space, observation) if self._own else observation
        return observation, reward, terminated, truncated, reported


class _SyncVectorEnv(SyncVectorEnv):
    """gymnasium's ``SyncVectorEnv``, except that a final observation is copied: the reset may write over it."""

    def _add_info(self, vector_infos, env_info, env_num):
        if "final_obs" in env_info:
            env_info = env_info | {"final_obs": _copied(env_info["final_obs"])}
        return super()._add_info(vector_infos, env_info, env_num)


def _owned(space: gymnasium.Space, observation: Observation, path: str = "") -> Observation:
    """A copy of one environment's observation in the types of ``space``.

    Raises:
      ObservationRangeError: another structure, shape or kind of numbers than those of ``space``, or an integer that its
        type cannot hold; numpy would wrap it around.
    """
    if isinstance(space, gymnasium.spaces.Dict):
        parts = space.spaces.items()
        if not isinstance(observation, Mapping) or observation.keys() != space.spaces.keys():
            found = sorted(observation) if isinstance(observation, Mapping) else type(observation).__name__
            raise ObservationRangeError(f"observation{path} is {found}, and its space has {sorted(space.spaces)}")
        return {key: _owned(part, observation[key], f"{path}[{key!r}]") for key, part in parts}
    if isinstance(space, gymnasium.spaces.Tuple):
        if not isinstance(observation, Sequence) or len(observation) != len(space.spaces):
            raise ObservationRangeError(f"observation{path} is no tuple of {len(space.spaces)} parts like its space")
        pairs = enumerate(zip(space.spaces, observation, strict=True))
        return tuple(_owned(part, value, f"{path}[{index}]") for index, (part, value) in pairs)
    array = np.array(observation)
    if array.shape != space.shape:
        raise ObservationRangeError(
            f"observation{path} has the shape {list(array.shape)}, and that of its space is {list(space.shape or ())}"
        )
    if array.dtype == space.dtype:
        return array
    if not np.can_cast(array.dtype, space.dtype, "same_kind") and array.dtype.kind not in "iu":
        raise ObservationRangeError(f"observation{path} has the type {array.dtype}, and its space {space.dtype}")
    if array.dtype.kind not in "iu":
        return array
    converted = array.astype(space.dtype)
    if (converted != array).any():
        position = np.argwhere(converted != array)[0]
        inner = f"[{', '.join(map(str, position))}]" if len(position) else ""
        raise ObservationRangeError(
            f"observation{path}{inner} is {array[tuple(position)]}, which the type of its space {space} cannot hold; "
            "declare a larger dtype"
        )
    return converted


class _StateLostError(Exception):
    """An object would be restored from a pickle without its state."""


def _emulator(kind: type, arguments: tuple, options: dict, attributes: dict, state: Any) -> Any:
    """Makes a new emulator and sets it to a saved state."""
    environment = kind(*arguments, **options)
    vars(environment).update(attributes)
    environment.restore_state(state)
    return environment


class _StatePickler(pickle.Pickler):
    """Refuses objects that pickle their constructor arguments instead of their state (Box2D, MuJoCo).

    Atari environments do so, too, but their emulator can save its state, random generators included.
    """

    def reducer_override(self, obj):
        if isinstance(obj, EzPickle) and hasattr(obj, "clone_state") and hasattr(obj, "restore_state"):
            hidden = ("ale", "_ezpickle_args", "_ezpickle_kwargs")
            attributes = {name: value for name, value in vars(obj).items() if name not in hidden}
            state = obj.clone_state(include_rng=True)
            return _emulator, (type(obj), obj._ezpickle_args, obj._ezpickle_kwargs, attributes, state)
        if isinstance(obj, EzPickle) and type(obj).__getstate__ is EzPickle.__getstate__:
            raise _StateLostError(type(obj).__name__)
        return NotImplemented


def _pickled_with_state(obj: Any) -> bytes | None:
    buffer = io.BytesIO()
    try:
        _StatePickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(obj)
    # Another library's ``__reduce__`` may raise any exception; in every case the object cannot be saved.
    except Exception:
        return None
    return buffer.getvalue()


def _copied(tree: PyTree) -> PyTree:
    if isinstance(tree, dict):
        return {key: _copied(part) for key, part in tree.items()}
    return tuple(map(_copied, tree)) if isinstance(tree, tuple) else np.array(tree)


def _set_row(batch: PyTree, index: int, row: PyTree) -> None:
    """Writes one environment's ``row`` into the arrays ``[B, ...]`` of ``batch``."""
    if isinstance(batch, dict):
        for key, part in batch.items():
            _set_row(part, index, row[key])
    elif isinstance(batch, tuple):
        for part, value in zip(batch, row, strict=True):
            _set_row(part, index, value)
    else:
        batch[index] = row


class GymnasiumHost:
    """``num_envs`` environments of one gymnasium identifier, in numpy; resets in the same step.

    Observations are pytrees with the structure of the observation space: an array for Box, Discrete, MultiDiscrete and
    MultiBinary, a dictionary for Dict, a tuple for Tuple; every array has a leading axis ``[B]``. Actions follow the
    action space in the same way. Discrete actions count from 0 whatever the ``start`` of the space is; Box actions are
    not clipped.

    ``TimeStep.final_observation`` is the observation before a reset, read from gymnasium's ``final_obs``; in a step in
    which no episode ended it is the array ``observation`` itself.

    Args:
      environment_id: a registered identifier, or ``module:identifier`` to import the module that registers it.
      num_envs: ``B``.
      asynchronous: whether to run each environment in a process of its own. This pays only if a step takes several
        milliseconds; for CartPole it is an order of magnitude slower. ``snapshot`` cannot save such environments.
      make_kwargs: keyword arguments of ``gymnasium.make``.
      wrappers: functions from environment to environment, applied in this order.
      info_keys: from an entry of the environment's ``info`` to its name in ``TimeStep.info``, where it is 0 in steps
        that do not report it. ``None`` looks for ``is_success`` and ``success`` in the first step of a trial
        environment; an environment that reports either only at the end of an episode needs
        ``info_keys={"success": "success"}``.
      cost_keys: from an entry of the environment's ``info`` to its name in ``TimeStep.costs``.
      objectives: for an environment whose reward is a vector, as in MO-Gymnasium: the names of its entries in
        ``TimeStep.objectives``, in order, and how much each counts in the reward ``env``, which is their weighted sum.
        ``None`` names them ``0``, ``1``, ... with a weight of 1 each.
      finite: whether to refuse NaN and infinity in observations, rewards and costs.
      render: ``rgb_array`` or ``ansi`` to keep a picture of every environment after each reset and step, for
        ``frames``; ``None`` draws nothing.

    Raises:
      ValueError: the identifier is unknown, ``num_envs`` is below 1, a wrapper refuses the environment, or the
        environment does not report a cost, or another number of objectives, or cannot be drawn so.
      ImportError: a package that the environment needs is missing.
      UnsupportedSpaceError: a space has a part that is not an array of fixed shape.
    """

    def __init__(
        self,
        environment_id: str,
        num_envs: int,
        *,
        asynchronous: bool = False,
        make_kwargs: Mapping[str, Any] | None = None,
        wrappers: Sequence[Callable[[gymnasium.Env], gymnasium.Env]] = (),
        info_keys: Mapping[str, str] | None = None,
        cost_keys: Mapping[str, str] | None = None,
        objectives: Mapping[str, float] | None = None,
        finite: bool = True,
        render: str | None = None,
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs}: expected at least 1")
        make_kwargs, cost_keys = dict(make_kwargs or {}), dict(cost_keys or {})
        if render is not None:
            make_kwargs, wrappers = drawn(environment_id, make_kwargs, wrappers, render)
        trial = make_environment(environment_id, make_kwargs, wrappers)
        try:
            validate_supported(trial.observation_space, "observation")
            validate_supported(trial.action_space, "action")
            try:
                observation, reward, info = trial_step(trial)
            except Exception as error:
                # What a missing screen or library makes an environment raise may be anything.
                if render is None:
                    raise
                why = f"{type(error).__name__}: {error}"
                if type(error).__module__.startswith("mujoco"):
                    why += "; without a screen, MUJOCO_GL=egl or MUJOCO_GL=osmesa may draw"
                raise ValueError(f"render={render!r}: {environment_id} cannot be drawn here ({why})") from error
            objectives = objective_weights(environment_id, reward, objectives)
            for key in cost_keys:
                if key not in info:
                    raise ValueError(f"{environment_id} reports no cost {key!r} in info{nearest(key, info)}")
            if info_keys is None:
                info_keys = {key: "success" for key in [key for key in _SUCCESS_KEYS if key in info][:1]}
            self._spec = EnvironmentSpec(
                observation_space=trial.observation_space,
                action_space=trial.action_space,
                max_episode_steps=None if trial.spec is None else trial.spec.max_episode_steps,
                costs=tuple(cost_keys.values()),
                objectives=tuple(objectives),
                info=tuple(info_keys.values()),
            )
        finally:
            trial.close()
        # Environments in other processes do not pass through _SyncVectorEnv, so they copy every observation themselves.
        own = asynchronous or _may_wrap(self._spec.observation_space, observation)
        keys = [(key, f"cost/{name}") for key, name in cost_keys.items()] + list(info_keys.items())
        weights = {f"objective/{name}": float(weight) for name, weight in objectives.items()}

        def make_one() -> gymnasium.Env:
            environment = make_environment(environment_id, make_kwargs, wrappers)
            reports = keys or info or own or weights
            return _Report(environment, keys, own, weights) if reports else environment

        self._id, self._num_envs, self._finite = environment_id, num_envs, finite
        self._narrow = must_be_narrowed(self._spec.observation_space)
        self._steps = 0
        self._observation: Observation | None = None
        makers = [make_one] * num_envs
        # Forking a process that runs XLA's threads may deadlock; the fork server has no such threads.
        self._vector = (
            AsyncVectorEnv(makers, context="forkserver", autoreset_mode=AutoresetMode.SAME_STEP)
            if asynchronous
            else _SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
        )

    @property
    def spec(self) -> EnvironmentSpec:
        return self._spec

    @property
    def num_envs(self) -> int:
        return self._num_envs

    def reset(self, seed: int | Sequence[int]) -> Observation:
        """Starts every environment; an integer seeds environment i with ``seed + i``, a sequence seeds each."""
        seeds: list[int | None] = [*environment_seeds(seed, self._num_envs)]
        observation, _ = self._vector.reset(seed=seeds)
        self._steps = 0
        observation = self._narrowed(observation)
        if self._finite:
            check_finite(self._id, 0, observation=observation)
        self._observation = observation
        return observation

    def _refuse_observations(self) -> None:
        """Says which environment returned an observation that is not like its space, after gymnasium failed to make a
        batch of them.

        Raises:
          ObservationRangeError: if one did; otherwise the failure has another cause.
        """
        # Before the first reset is over, there are environments without an observation.
        known = getattr(self._vector, "_env_obs", ()) if self._observation is not None else ()
        for index, observation in enumerate(known):
            try:
                _owned(self._spec.observation_space, observation)
            except ObservationRangeError as error:
                where = f"{self._id}, environment {index}, step {self._steps + 1}"
                raise ObservationRangeError(f"{where}: {error}") from error

    def _narrowed(self, observation: Observation) -> Observation:
        if not self._narrow:
            return observation
        return narrowed(self._id, self._steps, self._spec.observation_space, observation)

    def step(self, action: Action) -> TimeStep:
        """Steps every environment; arrays ``[B, ...]``.

        Raises:
          ValueError: an action of another shape.
          NonFiniteEnvironmentError: an environment returned NaN or infinity.
          ObservationRangeError: an observation outside of its space, or too large for 32 bits.
        """
        space = self._spec.action_space
        action = from_indices(space, as_batch(space, action, self._num_envs))
        try:
            observation, reward, terminated, truncated, info = self._vector.step(action)
        except (IndexError, KeyError, TypeError, ValueError):
            self._refuse_observations()
            raise
        self._steps += 1
        reward = reward.astype(np.float32)
        if "final_obs" in info:
            final_observation = _copied(observation)
            for index in np.flatnonzero(info["_final_obs"]):
                _set_row(final_observation, int(index), info["final_obs"][index])
            final_observation, observation = self._narrowed(final_observation), self._narrowed(observation)
        else:
            final_observation = observation = self._narrowed(observation)
        costs: dict[str, Array] = {name: self._reported(info, f"cost/{name}") for name in self._spec.costs}
        objectives: dict[str, Array] = {
            name: self._reported(info, f"objective/{name}") for name in self._spec.objectives
        }
        if self._finite:
            check_finite(self._id, self._steps, observation=observation, reward=reward)
            if costs:
                check_finite(self._id, self._steps, cost=costs)
            if objectives:
                check_finite(self._id, self._steps, objective=objectives)
            if final_observation is not observation:
                check_finite(self._id, self._steps, final_observation=final_observation)
        self._observation = observation
        return TimeStep(
            observation=observation,
            reward=reward,
            costs=costs,
            objectives=objectives,
            terminated=terminated,
            truncated=truncated,
            final_observation=final_observation,
            info={name: self._reported(info, name) for name in self._spec.info},
        )

    def _reported(self, info: dict[str, Any], name: str) -> np.ndarray:
        """One entry of ``_Report`` as ``float32 [B]``; an ended environment's is under ``final_info``."""
        values = info[name].astype(np.float32) if name in info else np.zeros(self._num_envs, np.float32)
        final_info = info.get("final_info")
        if final_info:
            ended = final_info[f"_{name}"]
            values[ended] = final_info[name][ended]
        return values

    def snapshot(self) -> Snapshot | None:
        """The whole state of every environment, random generators and time limits included.

        Returns ``None`` if an environment cannot be saved: it runs in another process, cannot be pickled, or pickles
        only its constructor arguments (Box2D, MuJoCo).

        Raises:
          RuntimeError: before the first ``reset``.
        """
        if self._observation is None:
            raise RuntimeError("snapshot before the first reset: there is no state to save")
        if not isinstance(self._vector, SyncVectorEnv):
            return None
        pickled = _pickled_with_state((self._vector.envs, self._observation, self._steps))
        described = {"environment_id": self._id, "num_envs": self._num_envs}
        return None if pickled is None else Snapshot(described, {}, pickled)

    def restore(self, snapshot: Snapshot) -> Observation:
        """Continues from ``snapshot``; returns the observation the policy sees next.

        The environments are somebody else's objects, which nothing but pickle can save. Unpickling runs code: restore
        only what your own runs saved.

        Raises:
          SnapshotError: the snapshot is of another environment or another number of environments, has no pickle, or one
            that cannot be read, such as that of a class that was moved since.
        """
        if not isinstance(self._vector, SyncVectorEnv):
            raise SnapshotError(f"{self._id}: asynchronous environments cannot be restored")
        environment_id, num_envs = (snapshot.values.get(name) for name in ("environment_id", "num_envs"))
        if (environment_id, num_envs) != (self._id, self._num_envs):
            raise SnapshotError(
                f"the snapshot is of {num_envs} environments of {environment_id}, expected {self._num_envs} of "
                f"{self._id}"
            )
        if snapshot.pickled is None:
            raise SnapshotError(f"{self._id}: the snapshot has no pickle, which these environments need")
        try:
            environments, observation, steps = pickle.loads(snapshot.pickled)
        # A foreign object's own reconstruction may raise anything; whichever it is, the object cannot be restored.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise SnapshotError(f"{self._id}: the saved environments cannot be read ({reason})") from error
        replaced = self._vector.envs
        self._vector.envs, self._observation, self._steps = environments, observation, steps
        for environment in replaced:
            environment.close()
        return observation

    def frames(self) -> list[list[Any]]:
        """The pictures of each environment since the last call, where ``render`` says how: text, or
        ``uint8 [H, W, 3]``. An environment whose episode ended is drawn again after its reset."""
        return [list(pictures) for pictures in self._vector.render()]

    def close(self) -> None:
        self._vector.close()


def _may_wrap(space: gymnasium.Space, observation: Observation) -> bool:
    """Whether an array of ``observation`` has an integer type that the type of its space cannot represent."""
    if isinstance(space, gymnasium.spaces.Dict):
        return any(_may_wrap(part, observation[key]) for key, part in space.spaces.items())
    if isinstance(space, gymnasium.spaces.Tuple):
        return any(_may_wrap(part, value) for part, value in zip(space.spaces, observation, strict=True))
    found = np.asarray(observation).dtype
    return found.kind in "iu" and not np.can_cast(found, space.dtype)
