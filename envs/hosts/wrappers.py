"""The wrappers of gymnasium environments that a configuration can name as ``environment.wrappers.NAME.kind``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import wrappers

from envs.base import ACTION_MASK, ObservationRangeError
from envs.choices import nearest
from envs.kinds import Kind
from envs.ranges import ONE_UP, POSITIVE, SHARE, ZERO_UP

Wrapper = Callable[..., gymnasium.Env]


class ActionMask(gymnasium.Wrapper):
    """Adds the actions that the environment allows to its observations, as the entry ``action_mask``.

    The agents give other actions a probability of 0, see ``agents.action_masks``. An observation that is a dictionary
    gets the entry, any other becomes ``{"action_mask": mask, "observation": observation}``.

    Args:
      env: an environment with Discrete actions.
      key: of the entry of ``info`` with one number per action, above 0 where it is allowed.

    Raises:
      ValueError: actions that are not Discrete, or observations with an entry ``action_mask`` of their own.
      ObservationRangeError: from ``reset`` and ``step``, a mask that is missing, of another length, or without an
        allowed action while the episode goes on.
    """

    def __init__(self, env: gymnasium.Env, key: str = ACTION_MASK):
        super().__init__(env)
        if not isinstance(env.action_space, gymnasium.spaces.Discrete):
            raise ValueError(f"actions are {env.action_space}, expected a Discrete space")
        inside = env.observation_space
        self._key, self._size = key, int(env.action_space.n)
        self._is_dict = isinstance(inside, gymnasium.spaces.Dict)
        parts = dict(inside.spaces) if isinstance(inside, gymnasium.spaces.Dict) else {"observation": inside}
        if ACTION_MASK in parts:
            raise ValueError(f"observations have an entry {ACTION_MASK!r} already, which is read without a wrapper")
        self.observation_space = gymnasium.spaces.Dict(parts | {ACTION_MASK: gymnasium.spaces.MultiBinary(self._size)})

    def _observation(self, observation: Any, info: Mapping[str, Any], ended: bool) -> dict[str, Any]:
        if self._key not in info:
            raise ObservationRangeError(
                f"{self.env}: info has no {self._key!r}{nearest(self._key, info)}: expected one in every step"
            )
        mask = np.asarray(info[self._key]) > 0
        if mask.shape != (self._size,):
            raise ObservationRangeError(
                f"{self.env}: the action mask {self._key!r} has the shape {list(mask.shape)}, expected one entry for "
                f"each of {self._size} actions"
            )
        if not (mask.any() or ended):
            raise ObservationRangeError(
                f"{self.env}: the action mask {self._key!r} allows no action, and the episode has not ended"
            )
        parts = dict(observation) if self._is_dict else {"observation": observation}
        return parts | {ACTION_MASK: mask.astype(np.int8)}

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed, options=options)
        return self._observation(observation, info, False), info

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._observation(observation, info, terminated or truncated), reward, terminated, truncated, info


class SpeedLimit(gymnasium.Wrapper):
    """Reports a cost of 1 in every step in which a robot is faster than ``limit``, as ``info["cost"]``.

    With one component the speed is that entry of ``info``, so that moving backwards costs nothing; with several it is
    their Euclidean norm. On gymnasium's robots these are the velocity tasks of Safety-Gymnasium (Ji et al., 2023, arXiv
    2310.12567), which takes ``x_velocity`` alone but for Ant and Humanoid.

    Args:
      env: an environment that reports its velocity, such as those of MuJoCo.
      limit: above 0, in the units of the velocity, which are metres per second in MuJoCo.
      components: the entries of ``info``.

    Raises:
      ValueError: ``limit`` is not above 0, or there are no components; from ``step``, ``info`` lacks one.
    """

    def __init__(self, env: gymnasium.Env, limit: float, components: Sequence[str] = ("x_velocity",)):
        super().__init__(env)
        if not limit > 0:
            raise ValueError(f"limit={limit}: expected a speed above 0")
        if not components:
            raise ValueError("components is empty: expected entries of info, such as x_velocity")
        self._limit, self._components = limit, tuple(components)

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        for name in self._components:
            if name not in info:
                raise ValueError(f"{self.env} reports no {name!r} in info{nearest(name, info)}")
        parts = [info[name] for name in self._components]
        speed = parts[0] if len(parts) == 1 else np.linalg.norm(parts)
        return observation, reward, terminated, truncated, info | {"cost": float(speed > self._limit)}


# By kind: a factory whose first argument is the environment, and whose others are the keys of the section.
WRAPPERS: dict[str, Kind | Wrapper] = {
    # Observations.
    "frame_stack": Kind(wrappers.FrameStackObservation, ranges={"stack_size": ONE_UP}),
    "max_and_skip": Kind(wrappers.MaxAndSkipObservation, ranges={"skip": ONE_UP}),
    "grayscale": wrappers.GrayscaleObservation,
    "resize": wrappers.ResizeObservation,
    "rescale_observation": wrappers.RescaleObservation,
    "reshape": wrappers.ReshapeObservation,
    "flatten": wrappers.FlattenObservation,
    "filter": wrappers.FilterObservation,
    "delay": Kind(wrappers.DelayObservation, ranges={"delay": ZERO_UP}),
    "time_aware": wrappers.TimeAwareObservation,
    "atari_preprocessing": wrappers.AtariPreprocessing,
    "action_mask": ActionMask,
    # Actions.
    "repeat_action": Kind(wrappers.RepeatAction, ranges={"num_repeats": ONE_UP}),
    "sticky_action": Kind(wrappers.StickyAction, ranges={"repeat_action_probability": SHARE}),
    "clip_action": wrappers.ClipAction,
    "rescale_action": wrappers.RescaleAction,
    "discretise_action": wrappers.DiscretizeAction,
    # Rewards and ends.
    "clip_reward": wrappers.ClipReward,
    "time_limit": Kind(wrappers.TimeLimit, ranges={"max_episode_steps": ONE_UP}),
    # Costs.
    "speed_limit": Kind(SpeedLimit, ranges={"limit": POSITIVE}),
}

# Wrappers whose running statistics would be those of one environment, and would go on changing in evaluation.
_INSTEAD = {
    wrappers.NormalizeObservation: "network.normalise_observations=True",
    wrappers.NormalizeReward: "a reward transform of kind normalise_by_return",
}


def wrapper(name: str, factory: Wrapper, arguments: Mapping[str, Any]) -> Callable[[gymnasium.Env], gymnasium.Env]:
    """A function from an environment to the wrapped environment, whose refusals say which wrapper refused.

    Args:
      name: of the wrapper, for the message.
      factory: takes the environment and ``arguments``.
      arguments: keyword arguments.

    Raises:
      ValueError: for a wrapper that normalises by statistics of its own; from the function, for an environment or
        arguments that the wrapper does not take.
    """
    if factory in _INSTEAD:
        raise ValueError(
            f"{factory.__name__} keeps statistics of its own in every environment: expected {_INSTEAD[factory]}"
        )

    def wrapped(environment: gymnasium.Env) -> gymnasium.Env:
        try:
            made = factory(environment, **arguments)
        except (AssertionError, AttributeError, TypeError, ValueError, gymnasium.error.Error) as error:
            given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            raise ValueError(f"wrapper {name!r}: {factory.__name__}({given}) refuses {environment}: {error}") from error
        if not isinstance(made, gymnasium.Env):
            found = type(made).__name__
            raise ValueError(f"wrapper {name!r}: {factory.__name__} returned {found}, expected a gymnasium.Env")
        return made

    return wrapped
