"""Wrappers: pure environments that change another pure ``Environment``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.base import Action, Demonstrator, Environment, EnvironmentSpec, EnvState, Observation, TimeStep


class TimeLimitState(NamedTuple):
    """State of ``TimeLimit``: the state of the wrapped environment, and ``int32`` steps since its reset."""

    environment: EnvState
    steps: jax.Array


@dataclass(frozen=True)
class TimeLimit:
    """Truncates every episode of ``environment`` after ``max_episode_steps`` steps.

    If the wrapped environment terminates in the very step that reaches the limit, the step is terminated and not
    truncated, and no value is bootstrapped. ``reset`` passes its key on unchanged, so that a key gives the same start
    state with and without the limit.

    Raises:
      TypeError: if ``environment`` is not an ``Environment`` or ``max_episode_steps`` is not an integer.
      ValueError: if ``max_episode_steps < 1``.
    """

    environment: Environment
    max_episode_steps: int

    def __post_init__(self):
        if not isinstance(self.environment, Environment):
            raise TypeError(f"environment={self.environment!r}: expected an Environment (spec, reset, step)")
        if isinstance(self.max_episode_steps, bool) or not isinstance(self.max_episode_steps, int):
            raise TypeError(f"max_episode_steps={self.max_episode_steps!r}: expected an integer")
        if self.max_episode_steps < 1:
            raise ValueError(f"max_episode_steps={self.max_episode_steps}: expected at least 1")

    @cached_property
    def spec(self) -> EnvironmentSpec:
        """The spec of the wrapped environment, with the smaller of the two limits."""
        inside = self.environment.spec
        limits = [self.max_episode_steps]
        if inside.max_episode_steps is not None:
            limits.append(inside.max_episode_steps)
        return replace(inside, max_episode_steps=min(limits))

    def reset(self, key: jax.Array) -> tuple[TimeLimitState, Observation]:
        """Starts the environment and its clock."""
        state, observation = self.environment.reset(key)
        return TimeLimitState(state, jnp.zeros((), jnp.int32)), observation

    def step(self, key: jax.Array, state: TimeLimitState, action: Action) -> tuple[TimeLimitState, TimeStep]:
        """One step, where ``truncated |= (steps >= max_episode_steps) & ~terminated``."""
        inside, timestep = self.environment.step(key, state.environment, action)
        steps = state.steps + 1
        out_of_time = (steps >= self.max_episode_steps) & ~timestep.terminated
        return TimeLimitState(inside, steps), timestep._replace(truncated=timestep.truncated | out_of_time)


@dataclass(frozen=True)
class ReportsStates:
    """``environment`` with the states before and after each step in ``info``, as ``state`` and ``next_state``, so that
    an episode can be drawn once it is over. Not for training: states are no metrics of an episode."""

    environment: Environment

    @property
    def spec(self) -> EnvironmentSpec:
        return self.environment.spec

    def reset(self, key: jax.Array) -> tuple[EnvState, Observation]:
        return self.environment.reset(key)

    def step(self, key: jax.Array, state: EnvState, action: Action) -> tuple[EnvState, TimeStep]:
        following, time_step = self.environment.step(key, state, action)
        return following, time_step._replace(info={"state": state, "next_state": following})


def innermost(environment: Any, state: EnvState = None) -> tuple[Any, EnvState]:
    """The environment inside of all wrappers, and its part of ``state``: a wrapper has an ``environment``, and so has
    its state, where that is not the state inside."""
    while hasattr(environment, "environment"):
        environment, state = environment.environment, getattr(state, "environment", state)
    return environment, state


def demonstrator(environment: Environment | None) -> Demonstrator | None:
    """The environment with an expert that ``environment`` is, or holds within time limits; ``None`` where there is
    none."""
    while isinstance(environment, TimeLimit):
        environment = environment.environment
    return environment if isinstance(environment, Demonstrator) else None
