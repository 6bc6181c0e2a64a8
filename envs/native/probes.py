"""Probe environments: tiny environments that each test one ability of a learner and have a known optimal value.

Run them in order to find what is broken in a learner: can it fit a constant, read the observation, discount, prefer
an action, choose an action by the observation, distinguish a time limit from a termination, remember, and handle each
kind of action? Every environment is pure and a step takes microseconds. Its docstring states the value of the best
policy, and ``optimal_value(observation, discount)`` computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from envs.base import EnvironmentSpec, TimeStep


@dataclass(frozen=True)
class ConstantReward:
    """One step, one observation, reward 1. Can the critic fit a constant?

    Observation ``[0]``; action ``Discrete(2)`` without effect. ``V = 1`` for every policy.
    """

    @cached_property
    def spec(self) -> EnvironmentSpec:
        return EnvironmentSpec(_box(0, 1, 1), gymnasium.spaces.Discrete(2), max_episode_steps=1)

    def reset(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        del key
        observation = jnp.zeros(1, jnp.float32)
        return observation, observation

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, TimeStep]:
        del key, action
        return state, _timestep(state, 1.0, terminated=True)

    def optimal_value(self, observation: jax.Array, discount: float) -> jax.Array:
        """``1``."""
        del discount
        return jnp.ones_like(observation[0])


@dataclass(frozen=True)
class ObservedReward:
    """One step, the reward is the observation. Does the critic use the observation?

    Observation ``[-1]`` or ``[1]``, equally likely; action ``Discrete(2)`` without effect.
    ``V(observation) = observation`` for every policy; mean return 0.
    """

    @cached_property
    def spec(self) -> EnvironmentSpec:
        return EnvironmentSpec(_box(-1, 1, 1), gymnasium.spaces.Discrete(2), max_episode_steps=1)

    def reset(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        observation = _sign(key)
        return observation, observation

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, TimeStep]:
        del key, action
        return state, _timestep(state, state[0], terminated=True)

    def optimal_value(self, observation: jax.Array, discount: float) -> jax.Array:
        """``observation``."""
        del discount
        return observation[0]


@dataclass(frozen=True)
class DelayedReward:
    """Two steps, reward 1 for the second. Does the learner discount and bootstrap?

    Observation ``[0]``, then ``[1]``; action ``Discrete(2)`` without effect. ``V([0]) = discount`` and
    ``V([1]) = 1`` for every policy.
    """

    @cached_property
    def spec(self) -> EnvironmentSpec:
        return EnvironmentSpec(_box(0, 1, 1), gymnasium.spaces.Discrete(2), max_episode_steps=2)

    def reset(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        del key
        observation = jnp.zeros(1, jnp.float32)
        return observation, observation

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, TimeStep]:
        del key, action
        second = state[0] == 1
        after = jnp.ones(1, jnp.float32)
        return after, _timestep(after, jnp.where(second, 1.0, 0.0), terminated=second)

    def optimal_value(self, observation: jax.Array, discount: float) -> jax.Array:
        """``discount ** (1 - observation)``."""
        return discount ** (1 - observation[0])


@dataclass(frozen=True)
class ActionReward:
    """One step, action 1 pays 1 and action 0 pays -1. Does the policy move towards the better action?

    Observation ``[0]``; action ``Discrete(2)``. ``V = 1`` for the best policy, 0 for the uniform one.
    """

    @cached_property
    def spec(self) -> EnvironmentSpec:
        return EnvironmentSpec(_box(0, 1, 1), gymnasium.spaces.Discrete(2), max_episode_steps=1)

    def reset(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        del key
        observation = jnp.zeros(1, jnp.float32)
        return observation, observation

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, TimeStep]:
        del key
        return state, _timestep(state, 2.0 * action - 1.0, terminated=True)

    def optimal_value(self, observation: jax.Array, discount: float) -> jax.Array:
        """``1``."""
        del discount
        return jnp.ones_like(observation[0])


@dataclass(frozen=True)
class ObservationActionReward:
    """One step, reward 1 for the action that matches the observation, else -1. Does the policy use the observation?

    Observation ``[-1]`` or ``[1]``, equally likely; the matching action is 0 or 1, respectively; action
    ``Discrete(2)``. ``V = 1`` for the best policy; 0 for every policy that ignores the observation.
    """

    @cached_property
    def spec(self) -> EnvironmentSpec:
        return EnvironmentSpec(_box(-1, 1, 1), gymnasium.spaces.Discrete(2), max_episode_steps=1)

    def reset(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        observation = _sign(key)
        return observation, observation

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, TimeStep]:
        del key
        return state, _timestep(state, state[0] * (2.0 * action - 1.0), terminated=True)

    def optimal_value(self, observation: jax.Array, discount: float) -> jax.Array:
        """``1``."""
        del discount
        return jnp.ones_like(observation[0])


class TruncationState(NamedTuple):
    """State of ``TruncationProbe``: ``int32`` steps since the reset."""

    steps: jax.Array


@dataclass(frozen=True)
class TruncationProbe:
    """A first reward of ``start_reward``, then reward 1 in every step until a time limit truncates the episode.

    Does the learner distinguish a time limit from a termination, and does it bootstrap from the final observation?
    Observation ``[1, 0]`` at the start and ``[0, 1]`` after every step, the last one included; action ``Discrete(2)``
    without effect. The environment never terminates and truncates after ``length`` steps. Let
    ``q = (length - 2) / (length - 1)`` be the share of the steps from ``[0, 1]`` that are not the last. Then the fixed
    point of temporal-difference learning at ``[0, 1]`` is

    * ``V = 1 / (1 - discount)`` for a correct learner;
    * ``V = 1 / (1 - discount * q)`` for one that treats truncation as termination;
    * ``V = (1 + discount * (1 - q) * start_reward) / (1 - discount * q - discount ** 2 * (1 - q))`` for one that
      bootstraps from the observation after the reset instead of the final one,

    and ``V([1, 0]) = start_reward + discount * V`` for each. With the default arguments and discount 0.9 these are 10,
    3.08 and -1.02.

    Raises:
      ValueError: if ``length < 2``: no action would be taken in ``[0, 1]``, so its value would never be learned.
    """

    length: int = 5
    start_reward: float = -5.0

    def __post_init__(self):
        _check_at_least("length", self.length, 2)

    @cached_property
    def spec(self) -> EnvironmentSpec:
        return EnvironmentSpec(_box(0, 1, 2), gymnasium.spaces.Discrete(2), max_episode_steps=self.length)

    def reset(self, key: jax.Array) -> tuple[TruncationState, jax.Array]:
        del key
        return TruncationState(jnp.zeros((), jnp.int32)), jnp.array([1.0, 0.0], jnp.float32)

    def step(self, key: jax.Array, state: TruncationState, action: jax.Array) -> tuple[TruncationState, TimeStep]:
        del key, action
        steps = state.steps + 1
        reward = jnp.where(state.steps == 0, self.start_reward, 1.0)
        timestep = _timestep(jnp.array([0.0, 1.0], jnp.float32), reward, terminated=False)
        return TruncationState(steps), timestep._replace(truncated=steps >= self.length)

    def optimal_value(self, observation: jax.Array, discount: float) -> jax.Array:
        """``1 / (1 - discount)`` at ``[0, 1]``; ``start_reward`` plus its discounted value at ``[1, 0]``."""
        running = 1 / (1 - discount)
        return jnp.where(observation[0] == 1, self.start_reward + discount * running, running)


class ChainRecallState(NamedTuple):
    """State of ``ChainRecall``: the cue to recall and the steps since the reset, both ``int32``."""

    cue: jax.Array
    steps: jax.Array


@dataclass(frozen=True)
class ChainRecall:
    """A cue is shown once and must be repeated ``length - 1`` steps later. Does the policy remember?

    Observation ``[num_cues + 1]``: the cue as a one-hot vector in the first observation and zeros in all others, then
    a flag that is 1 before the step that pays. Action ``Discrete(num_cues)``. The last of ``length`` steps pays 1 if
    the action equals the cue, else 0. The best policy with memory has return 1, the best one without
    ``1 / num_cues``.

    Raises:
      ValueError: if ``length < 2`` or ``num_cues < 2``.
    """

    length: int = 4
    num_cues: int = 2

    def __post_init__(self):
        _check_at_least("length", self.length, 2)
        _check_at_least("num_cues", self.num_cues, 2)

    @cached_property
    def spec(self) -> EnvironmentSpec:
        return EnvironmentSpec(
            _box(0, 1, self.num_cues + 1), gymnasium.spaces.Discrete(self.num_cues), max_episode_steps=self.length
        )

    def reset(self, key: jax.Array) -> tuple[ChainRecallState, jax.Array]:
        state = ChainRecallState(jax.random.randint(key, (), 0, self.num_cues), jnp.zeros((), jnp.int32))
        return state, self._observe(state)

    def step(self, key: jax.Array, state: ChainRecallState, action: jax.Array) -> tuple[ChainRecallState, TimeStep]:
        del key
        last = state.steps == self.length - 1
        after = state._replace(steps=state.steps + 1)
        reward = jnp.where(last & (action == state.cue), 1.0, 0.0)
        return after, _timestep(self._observe(after), reward, terminated=last)

    def optimal_value(self, observation: jax.Array, discount: float) -> jax.Array:
        """``discount ** (length - 1)`` at the start, 1 before the step that pays, and NaN in between.

        The observations in between are zeros at every step, so that they do not determine the value.
        """
        in_between = jnp.where(observation[-1] == 1, 1.0, jnp.nan)
        return jnp.where(jnp.any(observation[:-1] == 1), discount ** (self.length - 1), in_between)

    def _observe(self, state: ChainRecallState) -> jax.Array:
        cue = jax.nn.one_hot(state.cue, self.num_cues, dtype=jnp.float32) * (state.steps == 0)
        return jnp.append(cue, state.steps == self.length - 1)


@dataclass(frozen=True)
class ContinuousTarget:
    """One step, reward ``-(action - observation / 2) ** 2``. Can a continuous policy match an observed target?

    Observation uniform in [-1, 1]; action ``Box(-1, 1, [1])``, not clipped. ``V = 0`` for the best policy
    ``action = observation / 2``; the best one that ignores the observation, action 0, has mean return -1/12.
    """

    @cached_property
    def spec(self) -> EnvironmentSpec:
        return EnvironmentSpec(_box(-1, 1, 1), _box(-1, 1, 1), max_episode_steps=1)

    def reset(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        observation = jax.random.uniform(key, (1,), jnp.float32, minval=-1.0, maxval=1.0)
        return observation, observation

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, TimeStep]:
        del key
        return state, _timestep(state, -((action[0] - state[0] / 2) ** 2), terminated=True)

    def optimal_value(self, observation: jax.Array, discount: float) -> jax.Array:
        """``0``."""
        del discount
        return jnp.zeros_like(observation[0])


@dataclass(frozen=True)
class MultiDiscreteMatch:
    """One step, the reward is the share of the action's components that match the observed ones.

    Observation ``[sum(sizes)]``: one one-hot vector per component, concatenated, each drawn uniformly; action
    ``MultiDiscrete(sizes)``. ``V = 1`` for the best policy, ``mean(1 / sizes)`` for every one that ignores the
    observation.

    Raises:
      ValueError: if ``sizes`` is empty or one of them is below 2.
    """

    sizes: tuple[int, ...] = (3, 2)

    def __post_init__(self):
        if not self.sizes:
            raise ValueError("sizes=(): expected at least one size, such as (3, 2)")
        for index, size in enumerate(self.sizes):
            _check_at_least(f"sizes[{index}]", size, 2)

    @cached_property
    def spec(self) -> EnvironmentSpec:
        return EnvironmentSpec(
            _box(0, 1, sum(self.sizes)), gymnasium.spaces.MultiDiscrete(list(self.sizes)), max_episode_steps=1
        )

    def reset(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        parts = jax.random.randint(key, (len(self.sizes),), 0, jnp.array(self.sizes))
        return parts, self._observe(parts)

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, TimeStep]:
        del key
        return state, _timestep(self._observe(state), jnp.mean(action == state), terminated=True)

    def optimal_value(self, observation: jax.Array, discount: float) -> jax.Array:
        """``1``."""
        del discount
        return jnp.ones_like(observation[0])

    def _observe(self, parts: jax.Array) -> jax.Array:
        hot = [jax.nn.one_hot(parts[index], size, dtype=jnp.float32) for index, size in enumerate(self.sizes)]
        return jnp.concatenate(hot)


def _box(low: float, high: float, size: int) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(low, high, (size,), np.float32)


def _sign(key: jax.Array) -> jax.Array:
    return jnp.where(jax.random.bernoulli(key, shape=(1,)), jnp.float32(1), jnp.float32(-1))


def _timestep(observation: jax.Array, reward: jax.Array | float, *, terminated: jax.Array | bool) -> TimeStep:
    return TimeStep(
        observation=observation,
        reward=jnp.asarray(reward, jnp.float32),
        costs={},
        objectives={},
        terminated=jnp.asarray(terminated, bool),
        truncated=jnp.zeros((), bool),
        final_observation=observation,
        info={},
    )


def _check_at_least(name: str, value: int, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r}: expected an integer, at least {low}")
    if value < low:
        raise ValueError(f"{name}={value}: expected at least {low}")
