"""Stock augmentation: the observation also shows a stock, which accumulates the rewards of the episode.

The stock follows ``C_{t+1} = (C_t + R_{t+1}) / discount``. Stock and future return then satisfy, at every step t,

    C_0 + G_0 = discount^t (C_t + G_t),

so that a policy that sees the current stock can optimise a functional of ``C_0 + G_0`` (Pires et al., 2025,
"Optimizing return distributions with distributional dynamic programming", JMLR 26(185)).

The observation becomes a Dict: ``observation`` (of the environment inside), ``stock``, ``time`` (steps over the limit;
only where there is one) and, for a learner that rewrites stocks but not for its network (``HIDDEN``), ``start_stock``
and ``steps``. Adding ``discount^-t (c_0' - c_0)`` to the stock of a transition at step t turns it into the transition
of an episode that started with the stock ``c_0'``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from envs.base import Action, Array, Environment, EnvironmentSpec, EnvState, Observation, TimeStep, VectorHost
from envs.choices import require_known
from envs.rollout import channels as reward_channels
from envs.snapshots import Snapshot, SnapshotError, array_like, generator_from, generator_state, unwrap, wrap
from envs.spaces import environment_seeds

# Parts of the observation that no network sees.
HIDDEN = ("start_stock", "steps")
# Stocks grow by a factor of 1 / discount per step. Beyond this size no return changes a stock; it must stay finite.
LARGEST_STOCK = 1e30
# The stream of a reset's key that draws the stock; the wrapped environment gets the key unchanged.
_STOCK = 0x570C


def visible(observation: Any) -> Any:
    """``observation`` (or a Dict space) of a stock-augmented environment without the parts that no network sees."""
    if isinstance(observation, spaces.Dict):
        return spaces.Dict({name: part for name, part in observation.spaces.items() if name not in HIDDEN})
    return {name: part for name, part in observation.items() if name not in HIDDEN}


def is_augmented(space: gymnasium.Space) -> bool:
    """Whether ``space`` is the observation space of a stock-augmented environment."""
    return isinstance(space, spaces.Dict) and {"stock", *HIDDEN} <= set(space.spaces)


def with_start(observation: dict[str, Array], start: Array, discount: float | jax.Array) -> dict[str, Array]:
    """The observation that would have been made had the episode begun with the stock ``start``.

    ``c_t' = c_t + discount^-t (start - c_0)``: exact, because the actions and rewards so far stay as they were.

    Args:
      observation: a stock-augmented observation with any leading axes ``[...]``.
      start: ``[...]``, or ``[..., m]`` for a vector stock.
      discount: the discount of the stock-augmented environment.
    """
    steps = observation["steps"].astype(jnp.float32)
    change = start - observation["start_stock"]
    growth = jnp.minimum(jnp.asarray(discount) ** -steps, LARGEST_STOCK)
    growth = growth.reshape(*growth.shape, *(1,) * (change.ndim - growth.ndim))
    stock = jnp.clip(observation["stock"] + growth * change, -LARGEST_STOCK, LARGEST_STOCK)
    return observation | {"stock": stock, "start_stock": start}


def next_stock(stock: Any, reward: Any, discount: float | jax.Array) -> Any:
    """``(stock + reward) / discount``, so that ``C_0 + G_0 = discount ** t (C_t + G_t)`` at every step ``t``, up to
    ``LARGEST_STOCK`` in size.

    >>> next_stock(np.array([3.0, -1.0]), reward=1.0, discount=0.5).tolist()
    [8.0, 0.0]
    """
    return ((stock + reward) / discount).clip(-LARGEST_STOCK, LARGEST_STOCK)


@dataclass(frozen=True)
class _Augmentation:
    """Checks the arguments and makes the spec and the observations of both ``StockAugmented`` and ``StockHost``.

    ``start`` and the bounds are numbers. For a vector stock they may also be tuples with one number per channel.
    """

    discount: float
    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    start: float | tuple[float, ...] | None
    horizon: int | None
    channels: str | tuple[str, ...]

    def checked(self, inside: EnvironmentSpec) -> _Augmentation:
        """Returns ``self`` after checking its arguments against ``inside``, the spec of the wrapped environment.

        Raises:
          ValueError: an argument is out of its range, or the environment does not write a channel.
        """
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount={self.discount}: expected above 0 and at most 1")
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"horizon={self.horizon}: expected at least 1, or None")
        known = ["env", *(f"cost/{name}" for name in inside.costs), *(f"objective/{n}" for n in inside.objectives)]
        for name in self.names:
            require_known("channel", name, known, "of the environment")
        if not self.names:
            raise ValueError("channels=(): expected a name, or a tuple of at least one")
        for name in ("low", "high", "start"):
            value = getattr(self, name)
            if value is not None and np.shape(value) not in ((), self.shape):
                raise ValueError(f"{name}={value!r}: expected a number or one for each of the channels {self.names}")
        if not np.all(np.isfinite(self.low) & np.isfinite(self.high) & (np.asarray(self.low) <= np.asarray(self.high))):
            raise ValueError(f"low={self.low}, high={self.high}: expected finite numbers with low <= high")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return (self.channels,) if isinstance(self.channels, str) else tuple(self.channels)

    @property
    def shape(self) -> tuple[int, ...]:
        return () if isinstance(self.channels, str) else (len(self.channels),)

    def full(self, value) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, np.float32), self.shape)

    def limit(self, inside: EnvironmentSpec) -> int | None:
        limits = [each for each in (self.horizon, inside.max_episode_steps) if each is not None]
        return min(limits) if limits else None

    def spec(self, inside: EnvironmentSpec) -> EnvironmentSpec:
        limit = self.limit(inside)
        parts: dict[str, gymnasium.Space] = {
            "observation": inside.observation_space,
            "stock": spaces.Box(-np.inf, np.inf, self.shape, np.float32),
            "start_stock": spaces.Box(self.full(self.low), self.full(self.high), self.shape, np.float32),
            "steps": spaces.Box(0, 2**31 - 1 if limit is None else limit, (), np.int32),
        }
        if limit is not None:
            parts["time"] = spaces.Box(0, 1, (), np.float32)
        return replace(inside, observation_space=spaces.Dict(parts), max_episode_steps=limit)

    def paid(self, time_step: TimeStep, xp) -> Any:
        """The reward that is added to the stock, ``[...]`` or ``[..., m]``."""
        rewards = reward_channels(time_step)
        if isinstance(self.channels, str):
            return rewards[self.channels]
        return xp.stack([rewards[name] for name in self.names], axis=-1)

    def observe(self, observation, stock, start, steps, limit) -> dict[str, Any]:
        parts = {"observation": observation, "stock": stock, "start_stock": start, "steps": steps}
        if limit is not None:
            parts["time"] = steps.astype(np.float32) / np.float32(limit)
        return parts


class StockState(NamedTuple):
    """State of ``StockAugmented``: the wrapped environment's state, the stock now and at the start, ``int32`` steps."""

    environment: EnvState
    stock: jax.Array
    start: jax.Array
    steps: jax.Array


@dataclass(frozen=True)
class StockAugmented:
    """Adds a stock to the observation of ``environment``.

    A reset draws ``c_0`` uniformly between ``low`` and ``high`` (or takes ``start``) and passes its key on unchanged,
    so that a key gives the same start state with and without the stock. A step sets ``c <- (c + r) / discount``.

    Attributes:
      environment: a pure environment.
      discount: the discount of the return to optimise; above 0, at most 1.
      low, high: bounds of the start stock.
      start: a fixed start stock, for acting once the best one has been found.
      horizon: the length of an episode where it is part of the problem: a step that reaches it is terminated, so that
        nothing is bootstrapped beyond it. A discount of 1 needs one. The wrapped environment's time limit still
        truncates.
      channels: the reward channel that the stock accumulates, or a tuple of channels for a vector of stocks.

    Raises:
      TypeError: ``environment`` is not an ``Environment``.
      ValueError: a number is out of range, the horizon is beyond the wrapped environment's time limit, or the
        environment does not write a channel.
    """

    environment: Environment
    discount: float
    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    start: float | tuple[float, ...] | None = None
    horizon: int | None = None
    channels: str | tuple[str, ...] = "env"

    def __post_init__(self):
        if not isinstance(self.environment, Environment):
            raise TypeError(f"environment={self.environment!r}: expected an Environment (spec, reset, step)")
        self._augmentation.checked(self.environment.spec)
        limit = self.environment.spec.max_episode_steps
        # A time limit before the horizon would bootstrap, and with discount 1 such values have no fixed point.
        if limit is not None and self.horizon is not None and self.horizon > limit:
            raise ValueError(
                f"horizon={self.horizon}: the environment inside is cut after {limit} steps: expected that at most, "
                f"or None"
            )

    @cached_property
    def _augmentation(self) -> _Augmentation:
        return _Augmentation(self.discount, self.low, self.high, self.start, self.horizon, self.channels)

    @cached_property
    def spec(self) -> EnvironmentSpec:
        """The wrapped environment's spec with the augmented observation and the smaller of the two limits."""
        return self._augmentation.spec(self.environment.spec)

    def reset(self, key: jax.Array) -> tuple[StockState, Observation]:
        """Starts the environment with a stock that is drawn, or with ``start``."""
        augmentation = self._augmentation
        if self.start is not None:
            return self.reset_at(key, augmentation.full(self.start))
        drawn = jax.random.uniform(jax.random.fold_in(key, _STOCK), augmentation.shape)
        low, high = augmentation.full(self.low), augmentation.full(self.high)
        return self.reset_at(key, low + (high - low) * drawn)

    def reset_at(self, key: jax.Array, stock: Array) -> tuple[StockState, Observation]:
        """Starts the environment from ``key`` with this stock, which may be traced."""
        inside, observation = self.environment.reset(key)
        start = jnp.broadcast_to(jnp.asarray(stock, jnp.float32), self._augmentation.shape)
        state = StockState(inside, start, start, jnp.zeros((), jnp.int32))
        return state, self.observe(observation, state)

    def step(self, key: jax.Array, state: StockState, action: Action) -> tuple[StockState, TimeStep]:
        """One step; the observation carries the stock after it."""
        inside, time_step = self.environment.step(key, state.environment, action)
        steps = state.steps + 1
        stock = next_stock(state.stock, self._augmentation.paid(time_step, jnp), self.discount)
        state = StockState(inside, stock, state.start, steps)
        observation = self.observe(time_step.observation, state)
        terminated, truncated = time_step.terminated, time_step.truncated
        if self.horizon is not None:
            terminated = terminated | (steps >= self.horizon)
            truncated = truncated & ~terminated
        return state, time_step._replace(
            observation=observation, final_observation=observation, terminated=terminated, truncated=truncated
        )

    def observe(self, observation: Observation, state: StockState) -> Observation:
        """The augmented observation in ``state``, given the wrapped environment's ``observation``."""
        limit = self._augmentation.limit(self.environment.spec)
        return self._augmentation.observe(observation, state.stock, state.start, state.steps, limit)


@dataclass(frozen=True, eq=False)
class StartingAt:
    """``environment`` where every episode starts with ``stock``, which may be traced; equal only to itself."""

    environment: StockAugmented
    stock: Array

    @property
    def spec(self) -> EnvironmentSpec:
        return self.environment.spec

    def reset(self, key: jax.Array) -> tuple[StockState, Observation]:
        """See ``StockAugmented.reset_at``."""
        return self.environment.reset_at(key, self.stock)

    def step(self, key: jax.Array, state: StockState, action: Action) -> tuple[StockState, TimeStep]:
        """See ``StockAugmented.step``."""
        return self.environment.step(key, state, action)


class StockHost:
    """``StockAugmented`` for a host, with the same arguments.

    A host resets itself at its own time limit, so that a ``horizon`` must equal that limit; its truncations then become
    terminations. ``final_observation`` holds the stock after the step; ``observation`` holds the stock of the new
    episode if one began. Environment i draws its start stocks from a generator of its own, seeded with the
    environment's seed.

    Raises:
      ValueError: as ``StockAugmented``; also if the horizon is not the host's time limit.
    """

    def __init__(
        self,
        host: VectorHost,
        discount: float,
        low: float | tuple[float, ...],
        high: float | tuple[float, ...],
        start: float | tuple[float, ...] | None = None,
        horizon: int | None = None,
        channels: str | tuple[str, ...] = "env",
    ):
        self._host = host
        self._augmentation = _Augmentation(discount, low, high, start, horizon, channels).checked(host.spec)
        if horizon not in (None, host.spec.max_episode_steps):
            raise ValueError(
                f"horizon={horizon}: expected the host's time limit {host.spec.max_episode_steps}, or None"
            )
        self._limit = self._augmentation.limit(host.spec)
        self._spec = self._augmentation.spec(host.spec)
        self._generators: list[np.random.Generator] = []
        shape = (host.num_envs, *self._augmentation.shape)
        self._stock, self._start = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self._steps = np.zeros(host.num_envs, np.int32)

    @property
    def spec(self) -> EnvironmentSpec:
        return self._spec

    @property
    def num_envs(self) -> int:
        return self._host.num_envs

    def reset(self, seed: int | Sequence[int]) -> Observation:
        """Starts every environment with a stock; see ``VectorHost``."""
        seeds = environment_seeds(seed, self.num_envs)
        self._generators = [np.random.default_rng([each, _STOCK]) for each in seeds]
        observation = self._host.reset(seed)
        self._begin(np.ones(self.num_envs, bool))
        return self._observe(observation)

    @property
    def start(self) -> float | tuple[float, ...] | None:
        """The stock that every episode starts with; ``None`` if start stocks are drawn."""
        return self._augmentation.start

    def start_at(self, stock: float | tuple[float, ...] | None) -> None:
        """From the next reset on, every episode starts with this stock; ``None`` draws start stocks."""
        self._augmentation = replace(self._augmentation, start=stock)

    def step(self, action: Action) -> TimeStep:
        """Steps every environment.

        Raises:
          RuntimeError: ``reset`` has not been called.
        """
        if not self._generators:
            raise RuntimeError("the environments have not been started: call reset first")
        time_step = self._host.step(action)
        paid = np.asarray(self._augmentation.paid(time_step, np), np.float32)
        self._stock = next_stock(self._stock, paid, np.float32(self._augmentation.discount))
        self._steps = self._steps + 1
        final = self._observe(time_step.final_observation)
        terminated, truncated = time_step.terminated, time_step.truncated
        if self._augmentation.horizon is not None:
            terminated = terminated | (self._steps >= self._augmentation.horizon)
            truncated = truncated & ~terminated
        self._begin(np.asarray(terminated | truncated))
        return time_step._replace(
            observation=self._observe(time_step.observation),
            final_observation=final,
            terminated=terminated,
            truncated=truncated,
        )

    def snapshot(self) -> Snapshot | None:
        """The host's snapshot with the stocks and their generators; ``None`` if the host has no snapshot."""
        inside = self._host.snapshot()
        if inside is None:
            return None
        generators = {"generators": [generator_state(each) for each in self._generators]}
        return wrap(inside, generators, {"stock": self._stock, "start": self._start, "steps": self._steps})

    def restore(self, snapshot: Snapshot) -> Observation:
        """Continues from ``snapshot``; returns the observation the policy sees next.

        Raises:
          SnapshotError: it is not of these environments.
        """
        inside, own, arrays = unwrap(snapshot)
        states = own.get("generators")
        if inside is None or not isinstance(states, list) or len(states) != self.num_envs:
            raise SnapshotError(f"the snapshot is not of {self.num_envs} environments with a stock")
        generators = [generator_from(state) for state in states]
        kept = {"stock": self._stock, "start": self._start, "steps": self._steps}
        stock, start, steps = (array_like(arrays, name, array) for name, array in kept.items())
        observation = self._host.restore(inside)
        self._generators, self._stock, self._start, self._steps = generators, stock, start, steps
        return self._observe(observation)

    def frames(self) -> list[list[Any]]:
        """The pictures of the host inside, see ``GymnasiumHost.frames``."""
        host: Any = self._host
        return host.frames()

    def close(self) -> None:
        self._host.close()

    def _begin(self, where: np.ndarray) -> None:
        """Sets new start stocks for the environments ``where [B]``; arrays returned earlier are not changed."""
        augmentation = self._augmentation
        start, stock = self._start.copy(), self._stock.copy()
        low, high = augmentation.full(augmentation.low), augmentation.full(augmentation.high)
        for environment in np.flatnonzero(where):
            if augmentation.start is None:
                drawn = self._generators[environment].random(augmentation.shape, np.float32)
                start[environment] = low + (high - low) * drawn
            else:
                start[environment] = augmentation.full(augmentation.start)
            stock[environment] = start[environment]
        self._start, self._stock = start, stock
        self._steps = np.where(where, np.int32(0), self._steps)

    def _observe(self, observation):
        return self._augmentation.observe(observation, self._stock, self._start, self._steps, self._limit)
