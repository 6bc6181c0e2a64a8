"""A pure ``Environment`` behind the ``VectorHost`` protocol, so that both drivers can run the same environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import Action, Environment, EnvironmentSpec, EnvState, Observation, TimeStep
from envs.keys import seed_key
from envs.snapshots import Snapshot, SnapshotError, array_like
from envs.spaces import check_finite, environment_seeds, must_be_narrowed, narrowed


class JaxHostState(NamedTuple):
    """The whole state of a ``JaxHost``; every leaf has the leading axis ``[B]``.

    Attributes:
      key: the typed key of each environment, never changed after ``reset``.
      episode: ``int32``, number of episodes that each environment has ended.
      step: ``int32``, number of steps since each environment's last reset.
      environment: the state of each environment.
      observation: what the policy sees next.
    """

    key: jax.Array
    episode: jax.Array
    step: jax.Array
    environment: EnvState
    observation: Observation


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(leaf: jax.Array) -> jax.Array:
    """A leaf as plain numbers: of a typed key, its data."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _described(leaves) -> list[str]:
    return [f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves]


def _where(condition, on_true, on_false):
    """Leaf-wise choice by ``condition [B]`` between leaves ``[B, ...]``, typed keys included."""

    def choose(x, y):
        return jnp.where(condition.reshape(-1, *(1,) * (y.ndim - 1)), x if _is_key(y) else x.astype(y.dtype), y)

    return jax.tree.map(choose, on_true, on_false)


class JaxHost:
    """``num_envs`` copies of a pure environment, stepped by one jitted call; resets in the same step.

    Environment i has ``key_i = seed_key(seed + i)``, or ``seed_key(seed[i])`` for a sequence. Its episode e
    (counted from 0) has ``key_ie = fold_in(key_i, e)``, resets with ``fold_in(key_ie, 0)``, and takes its step t
    (counted from 0 in the episode) with ``fold_in(key_ie, t + 1)``. What happens in an environment thus depends on its
    own seed and actions only, whatever the number of environments.

    Resets are computed only in steps in which an episode ended, then for all environments at once: an expensive reset
    does not slow down the other steps.

    Args:
      environment: one pure environment.
      num_envs: ``B``.
      finite: whether to refuse NaN and infinity in observations, rewards and costs.

    Raises:
      TypeError: ``environment`` is not an ``Environment``.
      ValueError: ``num_envs`` is below 1.
    """

    def __init__(self, environment: Environment, num_envs: int, *, finite: bool = True):
        if not isinstance(environment, Environment):
            raise TypeError(f"environment={environment!r}: expected an Environment (spec, reset, step)")
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs}: expected at least 1")
        self._environment, self._num_envs, self._finite = environment, num_envs, finite
        self._narrow = must_be_narrowed(environment.spec.observation_space)
        self._state: JaxHostState | None = None
        self._steps = 0

        def fold_in(keys, data):
            return jax.vmap(jax.random.fold_in)(keys, data)

        def fresh(keys, episode):
            episode_keys = fold_in(keys, episode)
            return jax.vmap(environment.reset)(fold_in(episode_keys, jnp.zeros(num_envs, jnp.int32)))

        def reset(keys):
            episode = jnp.zeros(num_envs, jnp.int32)
            return JaxHostState(keys, episode, jnp.zeros(num_envs, jnp.int32), *fresh(keys, episode))

        def step(state, action):
            step_keys = fold_in(fold_in(state.key, state.episode), state.step + 1)
            following, time_step = jax.vmap(environment.step)(step_keys, state.environment, action)
            ended = time_step.terminated | time_step.truncated
            episode = state.episode + ended
            continued = following, time_step.observation
            following, observation = jax.lax.cond(
                jnp.any(ended),
                lambda: _where(ended, fresh(state.key, episode), continued),
                lambda: continued,
            )
            time_step = time_step._replace(observation=observation, final_observation=time_step.observation)
            steps = jnp.where(ended, 0, state.step + 1)
            return JaxHostState(state.key, episode, steps, following, observation), time_step

        self._reset, self._step = jax.jit(reset), jax.jit(step)

    @property
    def spec(self) -> EnvironmentSpec:
        return self._environment.spec

    @property
    def num_envs(self) -> int:
        return self._num_envs

    def reset(self, seed: int | Sequence[int]) -> Observation:
        """Starts every environment; an integer seeds environment i with ``seed + i``, a sequence seeds each."""
        seeds = environment_seeds(seed, self._num_envs)
        self._state = self._reset(jnp.stack([seed_key(each) for each in seeds]))
        self._steps = 0
        return self._checked(jax.device_get(self._state.observation))

    def step(self, action: Action) -> TimeStep:
        """Steps every environment; arrays ``[B, ...]`` (numpy).

        Raises:
          RuntimeError: before the first ``reset``.
          NonFiniteEnvironmentError: an environment returned NaN or infinity.
          ObservationRangeError: an observation outside of its space, or too large for 32 bits.
        """
        self._state, time_step = self._step(self._started(), action)
        self._steps += 1
        time_step = jax.device_get(time_step)
        return time_step._replace(
            observation=self._checked(time_step.observation, reward=time_step.reward, cost=time_step.costs),
            final_observation=self._checked(time_step.final_observation),
        )

    def snapshot(self) -> Snapshot:
        """The whole state of every environment, with their keys.

        Raises:
          RuntimeError: before the first ``reset``.
        """
        leaves = jax.tree.leaves(self._started())
        arrays = {str(index): np.asarray(_data(leaf)) for index, leaf in enumerate(leaves)}
        return Snapshot({"steps": self._steps, "leaves": _described(leaves)}, arrays)

    def restore(self, snapshot: Snapshot) -> Observation:
        """Continues from ``snapshot``; returns the observation the policy sees next.

        Raises:
          SnapshotError: the snapshot is of another environment or another number of environments.
        """
        # The structure and types come from this host, so that only numbers are read from the snapshot.
        keys = jax.eval_shape(lambda: jax.random.split(seed_key(0), self._num_envs))
        templates, structure = jax.tree.flatten(jax.eval_shape(self._reset, keys))
        steps, found, expected = snapshot.values.get("steps"), snapshot.values.get("leaves"), _described(templates)
        if found != expected or type(steps) is not int:
            raise SnapshotError(
                f"the snapshot is not of {self._num_envs} environments of {self._environment!r}: it holds {found}, "
                f"expected {expected}"
            )
        restored = []
        for index, template in enumerate(templates):
            data = jnp.asarray(array_like(snapshot.arrays, str(index), jax.eval_shape(_data, template)))
            restored.append(jax.random.wrap_key_data(data, dtype=template.dtype) if _is_key(template) else data)
        self._state, self._steps = jax.tree.unflatten(structure, restored), steps
        return jax.device_get(self._state.observation)

    def close(self) -> None:
        """Does nothing: the host holds no resources."""

    def _started(self) -> JaxHostState:
        if self._state is None:
            raise RuntimeError("the environments have not been started: call reset first")
        return self._state

    def _checked(self, observation: Observation, **parts) -> Observation:
        name = repr(self._environment)
        if self._finite:
            check_finite(name, self._steps, observation=observation, **parts)
        return narrowed(name, self._steps, self.spec.observation_space, observation) if self._narrow else observation
