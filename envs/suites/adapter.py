"""What the adapters of JAX-native suites share: the state, types and ends of an episode by the rules of sagax.

A suite's environment is described by a ``Game``: how it starts, how it steps, and its spaces. ``Suite`` makes an
``Environment`` of it. The adapters (``gymnax``, ``jumanji``, ``navix``, ``playground``, ``xminigrid``) say in their
docstrings what their suite merges and what of it is recovered.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from envs.base import Action, Array, Environment, EnvironmentSpec, EnvState, Observation, TimeStep
from envs.choices import nearest
from envs.spaces import from_indices, validate_supported
from envs.wrappers import TimeLimit

# A limit that no episode reaches, which stands for a suite's own where ``TimeLimit`` ends the episodes.
NO_LIMIT = 2**30
# The default of an adapter's ``time_limit``: the limit that the suite gives the environment.
OWN_LIMIT = 0
# What draws a state outside of jit: ``(state) -> uint8 [H, W, 3]``.
Drawing = Callable[[EnvState], np.ndarray]
# What has a picture, for messages.
DRAWN = "MinAtar and classic control of gymnax, Craftax, Jumanji or XLand-MiniGrid"


class Step(NamedTuple):
    """What ``Game.step`` returns: ``state`` and ``observation`` after the step, never those of a reset."""

    state: EnvState
    observation: Observation
    reward: Array
    terminated: Array
    truncated: Array


@dataclass(frozen=True, eq=False)
class Game:
    """One environment of a suite.

    Attributes:
      name: for messages, such as ``gymnax: Breakout-MinAtar``.
      start: ``(key) -> (state, observation)``.
      step: ``(key, state, action) -> Step``; never resets.
      observation_space, action_space: gymnasium spaces.
      max_episode_steps: where ``step`` truncates, or ``None``.
      draw: a picture of a state; ``None`` where there is none.
    """

    name: str
    start: Callable[[jax.Array], tuple[EnvState, Observation]]
    step: Callable[[jax.Array, EnvState, Action], Step]
    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    max_episode_steps: int | None = None
    draw: Drawing | None = None


@dataclass(frozen=True, eq=False)
class Suite:
    """A ``Game`` as an ``Environment``. It is equal only to itself, as a suite's environments are.

    Observations are converted to the types of their space. The state keeps the types that it starts with: some suites
    start with Python numbers, and a scan needs one type for all steps.

    Raises:
      UnsupportedSpaceError: a space has a part that is not an array of fixed shape.
    """

    game: Game

    def __post_init__(self):
        validate_supported(self.game.observation_space, "observation")
        validate_supported(self.game.action_space, "action")

    def __repr__(self) -> str:
        return f"Suite({self.game.name})"

    @cached_property
    def spec(self) -> EnvironmentSpec:
        """The spaces; there are no costs, objectives or info."""
        game = self.game
        return EnvironmentSpec(game.observation_space, game.action_space, max_episode_steps=game.max_episode_steps)

    def reset(self, key: jax.Array) -> tuple[EnvState, Observation]:
        """Draws a start state."""
        state, observation = self.game.start(key)
        state = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), state)
        return state, self._observed(observation)

    def step(self, key: jax.Array, state: EnvState, action: Action) -> tuple[EnvState, TimeStep]:
        """One transition; never resets."""
        step = self.game.step(key, state, from_indices(self.game.action_space, action))
        following = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), step.state, state)
        observation = self._observed(step.observation)
        return following, TimeStep(
            observation=observation,
            reward=jnp.asarray(step.reward, jnp.float32),
            costs={},
            objectives={},
            terminated=jnp.asarray(step.terminated, bool),
            truncated=jnp.asarray(step.truncated, bool),
            final_observation=observation,
            info={},
        )

    def draw_image(self, state: EnvState) -> np.ndarray:
        """``Game.draw`` of ``state``.

        Raises:
          NotImplementedError: the game has no picture.
        """
        if self.game.draw is None:
            raise NotImplementedError(f"{self.game.name} has no picture: expected {DRAWN}")
        return self.game.draw(state)

    def _observed(self, observation: Observation) -> Observation:
        return jax.tree.map(
            lambda leaf, template: jnp.asarray(leaf, template.dtype), observation, self.spec.observation_template()
        )


def limited(game: Game, own: int | None, time_limit: int | None) -> Environment:
    """``game`` as an environment whose episodes are truncated after ``time_limit`` steps; after ``own`` where that is
    ``OWN_LIMIT``, and never where the limit is ``None``."""
    environment, limit = _suite(game), own if time_limit == OWN_LIMIT else time_limit
    return environment if limit is None else TimeLimit(environment, limit)


# Cached, because an environment is equal only to itself: with a new object, jitted functions would compile again.
_suite = lru_cache(Suite)


def suite_module(name: str, extra: str, what: str) -> ModuleType:
    """The module ``name`` of a suite.

    Raises:
      ImportError: it is not installed; the message names the ``extra`` that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{what} is missing ({error}); it comes with the extra {extra!r}: pip install -e '.[{extra}]'"
        ) from error


def require_parameters(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses a parameter that the environment ``name`` does not have.

    Raises:
      TypeError: with the nearest of the ``known``.
    """
    known = sorted(known)
    for parameter in sorted(set(given) - set(known)):
        raise TypeError(f"{name} has no parameter {parameter!r}{nearest(parameter, known)} (known: {', '.join(known)})")


def arguments_of(factory: Callable) -> set[str]:
    """The names of the arguments of a function, or of a class's constructor."""
    return set(inspect.signature(factory).parameters)


@contextmanager
def suite_errors(name: str) -> Iterator[None]:
    """Turns what a suite raises while its environment ``name`` is made into a ``ValueError`` that names it.

    A suite refuses arguments by ``TypeError`` and ``ValueError``, which pass. Anything else is a failure of its own,
    such as a download without a network, and can be of any type.
    """
    try:
        yield
    except (ImportError, TypeError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"{name} cannot be made by its suite ({type(error).__name__}: {error})") from error


def box(low: Any, high: Any, shape: tuple[int, ...], dtype: Any) -> gymnasium.spaces.Box:
    """A ``Box`` of a suite's bounds, numbers or arrays; booleans become ``uint8``, bounds those of the type at most."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return gymnasium.spaces.Box(0, 1, shape, np.uint8)
    bounds = [np.broadcast_to(np.asarray(bound, np.float64), shape) for bound in (low, high)]
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        bounds = [np.clip(bound, limits.min, limits.max) for bound in bounds]
        # The largest integers of 64 bits are no floats, and converting the nearest float back overflows.
        bounds = [np.where(bound >= limits.max, limits.max, bound.astype(dtype)).astype(dtype) for bound in bounds]
    return gymnasium.spaces.Box(bounds[0].astype(dtype), bounds[1].astype(dtype), dtype=dtype.type)
