"""The types that all environments share: one step, one transition, and the two environment protocols.

Two conventions hold everywhere in sagax:

* ``terminated`` means that the environment ended the episode, ``truncated`` that a time limit did. They are never
  merged: values are bootstrapped with the mask ``1 - terminated``.
* A pure ``Environment`` is written for *one* environment, without a batch axis; rollouts add the axis ``[B]``
  with ``jax.vmap``. A ``VectorHost`` is a batch of environments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import gymnasium
import jax
import numpy as np

from envs.snapshots import Snapshot

PyTree = Any
Array: TypeAlias = jax.Array | np.ndarray
EnvState = PyTree
Observation = PyTree
Action = PyTree


# Networks compute in 32 bits: 64-bit observations are converted to these types.
NARROW = {"int64": np.dtype(np.int32), "uint64": np.dtype(np.uint32), "float64": np.dtype(np.float32)}


class TimeStep(NamedTuple):
    """What one step of an environment returns. Arrays have no leading axis in an ``Environment``, ``[B]`` in a host.

    Attributes:
      observation: what the policy sees next; where an auto-resetting rollout or host ended an episode,
        the first observation of the next one.
      reward: ``float32``, becomes the reward channel ``env``.
      costs: ``float32`` by name, become the channels ``cost/NAME``; ``{}`` if there are none.
      objectives: ``float32`` by name, become the channels ``objective/NAME``; ``{}`` if there are none.
      terminated: ``bool``, the environment ended the episode.
      truncated: ``bool``, a time limit ended the episode.
      final_observation: the observation before any reset; equals ``observation`` where no episode ended.
      info: arrays by name, the same names in every step; evaluations report those with one number per step, such as
        ``success`` (``float32``).
    """

    observation: Observation
    reward: Array
    costs: dict[str, Array]
    objectives: dict[str, Array]
    terminated: Array
    truncated: Array
    final_observation: Observation
    info: dict[str, Array]


class Transition(NamedTuple):
    """One transition; a ``Trajectory`` is the same with leading axes ``[T, B]`` (time, batch).

    Attributes:
      observation: what the policy saw.
      action: the action that the policy chose.
      rewards: reward channels by name, each ``[T, B]``. The environment writes ``env``, ``cost/NAME`` and
        ``objective/NAME``; reward transforms add or rewrite channels.
      terminated, truncated: how the step ended, see ``TimeStep``.
      next_observation: the observation that followed, *before* any reset.
      mask: ``float32``, 1 for a real step, 0 for padding after an episode's end.
      extras: further data for the learner, each ``[T, B, ...]``: ``log_prob`` and ``distribution`` (parameters
        of the behaviour policy), ``value`` (by critic head), ``carry`` (recurrent state before the step),
        ``episode_start``, and ``info`` of the environment's step.
    """

    observation: Observation
    action: Action
    rewards: dict[str, Array]
    terminated: Array
    truncated: Array
    next_observation: Observation
    mask: Array
    extras: dict[str, Any]


Trajectory = Transition


@dataclass(frozen=True, eq=False)
class EnvironmentSpec:
    """What a learner must know about an environment before the first step. Static; compared and hashed by identity.

    Attributes:
      observation_space, action_space: gymnasium spaces of one environment (no batch axis).
      max_episode_steps: an upper bound on the length of an episode, or ``None`` if there is none.
      costs, objectives, info: names of the entries of ``TimeStep.costs``, ``objectives`` and ``info``.
      message_length: bytes of ``TimeStep.info["message"]``; 0 for an environment without messages.
    """

    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    max_episode_steps: int | None = None
    costs: tuple[str, ...] = ()
    objectives: tuple[str, ...] = ()
    info: tuple[str, ...] = ()
    message_length: int = 0

    def observation_template(self) -> PyTree:
        """One observation as a pytree of ``jax.ShapeDtypeStruct``."""
        return observation_template(self.observation_space)


def observation_template(space: gymnasium.Space) -> PyTree:
    """One observation of ``space`` as a pytree of ``jax.ShapeDtypeStruct``."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {name: observation_template(part) for name, part in space.spaces.items()}
    if isinstance(space, gymnasium.spaces.Tuple):
        return tuple(observation_template(part) for part in space.spaces)
    dtype = np.dtype(space.dtype)
    return jax.ShapeDtypeStruct(space.shape, NARROW.get(dtype.name, dtype))


@runtime_checkable
class Environment(Protocol):
    """A pure environment, which can be stepped inside jit. Implementations are frozen dataclasses.

    ``reset`` depends on ``key`` alone, so that N resets with the same key give N rollouts the same start state.
    ``step`` never resets the environment; the rollout does.
    """

    @property
    def spec(self) -> EnvironmentSpec: ...

    def reset(self, key: jax.Array) -> tuple[EnvState, Observation]: ...

    def step(self, key: jax.Array, state: EnvState, action: Action) -> tuple[EnvState, TimeStep]: ...


@runtime_checkable
class Demonstrator(Protocol):
    """An ``Environment`` with a known expert implements this too, so that a policy can be cloned from the expert.

    ``envs.wrappers.demonstrator`` finds such an environment inside time limits.
    """

    def demonstrations(self, keys: jax.Array) -> tuple[Array, Array]:
        """An expert's transitions from the start states of the typed ``keys [N]``: observations ``[M, ...]`` and
        actions ``int32 [M]``, episode after episode."""


@runtime_checkable
class DrawnAsText(Protocol):
    """An ``Environment`` that can be shown in a terminal implements this, too. Called outside of jit."""

    def draw_text(self, state: EnvState) -> str:
        """``state`` in a few lines of characters."""


@runtime_checkable
class DrawnAsImage(Protocol):
    """An ``Environment`` that can be shown in a film implements this, too. Called outside of jit."""

    def draw_image(self, state: EnvState) -> np.ndarray:
        """``state`` as an image, ``uint8 [H, W, 3]``."""


@runtime_checkable
class VectorHost(Protocol):
    """A stateful batch of ``num_envs`` environments in numpy; a step that ends an episode also resets it."""

    @property
    def spec(self) -> EnvironmentSpec: ...

    @property
    def num_envs(self) -> int: ...

    def reset(self, seed: int | Sequence[int]) -> Observation:
        """Starts every environment; an integer seeds environment i with ``seed + i``, a sequence seeds each.

        The seed determines the start and the random numbers of the steps after it: environments with the same seed,
        such as the rollouts of a group, stay identical as long as their actions are.
        """

    def step(self, action: Action) -> TimeStep:
        """Steps every environment; arrays ``[B]`` (numpy)."""

    def snapshot(self) -> Snapshot | None:
        """The whole state of the batch, or ``None`` where the environments cannot be saved."""

    def restore(self, snapshot: Snapshot) -> Observation:
        """Continues from ``snapshot``; returns the observation the policy sees next.

        Raises:
          SnapshotError: it is of other environments, damaged, or lacks the pickle that these environments need.
        """

    def close(self) -> None: ...


class UnsupportedSpaceError(TypeError):
    """No encoder or distribution of sagax supports a space."""


class NonFiniteEnvironmentError(FloatingPointError):
    """An environment returned NaN or infinity."""


# The entry of a Dict observation that says which of the Discrete actions are allowed, see ``agents.action_masks``.
ACTION_MASK = "action_mask"


class ObservationRangeError(ValueError):
    """An environment returned an observation outside of its space, or too large for 32 bits."""
