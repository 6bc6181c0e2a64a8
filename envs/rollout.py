"""Rollouts of pure environments: unrolls of fixed length with auto-reset, and whole episodes in groups.

A rollout takes a *policy function* ``(carry, observation [B, ...], key) -> (action [B, ...], carry, extras)``
instead of an agent, and adds the axis ``[B]``, which a pure environment does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp

from envs.base import Environment, EnvState, Observation, PyTree, TimeStep, Trajectory, Transition

Policy = Callable[[PyTree, Observation, jax.Array], tuple[PyTree, PyTree, dict[str, Any]]]

# Key streams inside a rollout.
RESET, ACT, STEP = range(3)


class UnrollState(NamedTuple):
    """What an unroll passes on to the next one; every leaf has the leading axis ``[B]``.

    Attributes:
      environment: the states of the environments.
      observation: what the policy sees next.
      carry: the policy's recurrent state.
      episode_start: whether ``observation`` is the first of an episode.
      episode_return, episode_length: return and length of the running episode so far.
    """

    environment: EnvState
    observation: Observation
    carry: PyTree
    episode_start: jax.Array
    episode_return: jax.Array
    episode_length: jax.Array


def select(condition: jax.Array, on_true: PyTree, on_false: PyTree) -> PyTree:
    """Leaf-wise ``where`` with ``condition [B]`` over leaves ``[B, ...]``, typed keys included."""

    def choose(x, y):
        return jnp.where(condition.reshape(-1, *(1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(choose, on_true, on_false)


def bounded_action(space: gymnasium.Space, action: PyTree) -> PyTree:
    """The action that the environment receives: Box parts are clipped to their bounds; jax or numpy arrays."""
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Box):
        return action.clip(space.low, space.high)
    if isinstance(space, spaces.Dict):
        return {name: bounded_action(part, action[name]) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(bounded_action(part, piece) for part, piece in zip(space.spaces, action, strict=True))
    return action


def channels(time_step: TimeStep) -> dict[str, jax.Array]:
    """The reward channels an environment writes: ``env``, ``cost/NAME``, ``objective/NAME``."""
    rewards = {"env": time_step.reward}
    rewards |= {f"cost/{name}": value for name, value in time_step.costs.items()}
    return rewards | {f"objective/{name}": value for name, value in time_step.objectives.items()}


def start_unroll(environment: Environment, key: jax.Array, batch: int, carry: PyTree) -> UnrollState:
    """Starts episodes in ``batch`` environments; ``carry`` is the policy's initial carry, ``[B, ...]``."""
    state, observation = jax.vmap(environment.reset)(jax.random.split(key, batch))
    return UnrollState(
        state, observation, carry, jnp.ones(batch, bool), jnp.zeros(batch, jnp.float32), jnp.zeros(batch, jnp.int32)
    )


def keys_of_steps(act_key: jax.Array, step_key: jax.Array, length: int, batch: int) -> tuple[jax.Array, jax.Array]:
    """The keys ``[T]`` for acting and ``[T, B]`` for the environments, by step of a rollout.

    They are made before the first step: one large draw costs less than many small ones.
    """
    steps = jnp.arange(length)
    act_keys = jax.vmap(lambda t: jax.random.fold_in(act_key, t))(steps)
    return act_keys, jax.vmap(lambda t: jax.random.split(jax.random.fold_in(step_key, t), batch))(steps)


def unroll(
    environment: Environment,
    policy: Policy,
    state: UnrollState,
    key: jax.Array,
    *,
    length: int,
    initial_carry: PyTree,
    start_states: int | None = None,
) -> tuple[UnrollState, Trajectory]:
    """Steps every environment ``length`` times; an environment whose episode ended starts the next one.

    Args:
      environment: one pure environment.
      policy: chooses the actions of the whole batch.
      state: from ``start_unroll`` or the previous unroll.
      key: the random key of this unroll.
      length: ``T``.
      initial_carry: the policy's carry at the start of an episode, ``[B, ...]``.
      start_states: how many start states to draw. ``None`` draws one for every step of every environment and uses
        those that are needed: best where a reset is cheap. An integer draws that many per environment and uses them
        in turn, and the last one again if an environment ends more episodes than that: best where a reset is
        expensive, such as one that generates a room.

    Returns:
      The state for the next unroll and a trajectory ``[T, B]``.
    """
    batch = state.episode_start.shape[0]
    spec = environment.spec
    reset_key, act_key, step_key = (jax.random.fold_in(key, stream) for stream in (RESET, ACT, STEP))
    # All start states are drawn before the first step: one large draw costs less than many small ones.
    if start_states is None:
        reset_keys = jax.vmap(lambda t: jax.random.split(jax.random.fold_in(reset_key, t), batch))(jnp.arange(length))
    else:
        reset_keys = jax.random.split(reset_key, (start_states, batch))
    pool = jax.vmap(jax.vmap(environment.reset))(reset_keys)
    act_keys, step_keys = keys_of_steps(act_key, step_key, length, batch)

    def step(scan_carry, inputs):
        t, act_key, keys = inputs
        state, used = scan_carry
        action, carry, extras = policy(state.carry, state.observation, act_key)
        environment_state, time_step = jax.vmap(environment.step)(
            keys, state.environment, bounded_action(spec.action_space, action)
        )
        ended = time_step.terminated | time_step.truncated
        index = t if start_states is None else (jnp.minimum(used, start_states - 1), jnp.arange(batch))
        start_state, start_observation = jax.tree.map(lambda x: x[index], pool)
        episode_return = state.episode_return + time_step.reward
        episode_length = state.episode_length + 1
        transition = Transition(
            observation=state.observation,
            action=action,
            rewards=channels(time_step),
            terminated=time_step.terminated,
            truncated=time_step.truncated,
            next_observation=time_step.observation,
            mask=jnp.ones(batch, jnp.float32),
            extras=extras
            | {
                "carry": state.carry,
                "episode_start": state.episode_start,
                "episode_return": episode_return,
                "episode_length": episode_length,
                "info": time_step.info,
            },
        )
        following = UnrollState(
            environment=select(ended, start_state, environment_state),
            observation=select(ended, start_observation, time_step.observation),
            carry=select(ended, initial_carry, carry),
            episode_start=ended,
            episode_return=jnp.where(ended, 0.0, episode_return),
            episode_length=jnp.where(ended, 0, episode_length),
        )
        return (following, used + ended), transition

    inputs = jnp.arange(length), act_keys, step_keys
    (state, _), trajectory = jax.lax.scan(step, (state, jnp.zeros(batch, jnp.int32)), inputs)
    return state, trajectory


def episodes(
    environment: Environment,
    policy: Policy,
    key: jax.Array,
    *,
    length: int,
    batch: int,
    group_size: int,
    initial_carry: PyTree,
    start_keys: jax.Array | None = None,
) -> Trajectory:
    """Whole episodes of at most ``length`` steps: ``group_size`` rollouts from each of ``batch / group_size`` starts.

    The rollouts of a group are neighbours on the batch axis. Steps after the end of an episode have mask 0, reward 0
    and the final observation. An episode that is still running after ``length`` steps is marked truncated.

    Args:
      environment, policy: as in ``unroll``.
      key: the random key of this rollout.
      length, batch, group_size: ``T``, ``B``, ``N``.
      initial_carry: the policy's carry at the start, ``[B, ...]``.
      start_keys: ``[B / N]`` typed keys of the start states; drawn from ``key`` if ``None``.

    Returns:
      A trajectory ``[T, B]``.
    """
    spec = environment.spec
    reset_key, act_key, step_key = (jax.random.fold_in(key, stream) for stream in (RESET, ACT, STEP))
    if start_keys is None:
        start_keys = jax.random.split(reset_key, batch // group_size)
    start = jax.vmap(environment.reset)(start_keys)
    # One reset per group, repeated: a start state may be expensive to generate.
    state, observation = jax.tree.map(lambda x: jnp.repeat(x, group_size, axis=0), start)

    act_keys, step_keys = keys_of_steps(act_key, step_key, length, batch)

    def step(scan_carry, inputs):
        t, act_key, keys = inputs
        state, observation, carry, alive, episode_return = scan_carry
        action, next_carry, extras = policy(carry, observation, act_key)
        next_state, time_step = jax.vmap(environment.step)(keys, state, bounded_action(spec.action_space, action))
        terminated = time_step.terminated & alive
        truncated = ((time_step.truncated & alive) | (alive & (t == length - 1))) & ~terminated
        episode_return = episode_return + jnp.where(alive, time_step.reward, 0.0)
        next_observation = select(alive, time_step.observation, observation)
        transition = Transition(
            observation=observation,
            action=action,
            rewards={name: jnp.where(alive, reward, 0.0) for name, reward in channels(time_step).items()},
            terminated=terminated,
            truncated=truncated,
            next_observation=next_observation,
            mask=alive.astype(jnp.float32),
            extras=extras
            | {
                "carry": carry,
                "episode_start": jnp.full(batch, t == 0),
                "episode_return": episode_return,
                "episode_length": jnp.full(batch, t + 1, jnp.int32),
                "info": time_step.info,
            },
        )
        still_alive = alive & ~(terminated | truncated)
        # The state of a finished environment is kept: steps beyond the end might produce numbers that are not finite.
        following = (
            select(still_alive, next_state, state),
            next_observation,
            next_carry,
            still_alive,
            episode_return,
        )
        return following, transition

    start_carry = (state, observation, initial_carry, jnp.ones(batch, bool), jnp.zeros(batch, jnp.float32))
    _, trajectory = jax.lax.scan(step, start_carry, (jnp.arange(length), act_keys, step_keys))
    return trajectory


def episode_statistics(trajectory: Trajectory) -> dict[str, jax.Array]:
    """Sums over the episodes that ended in ``trajectory``, each a scalar ``[]``.

    ``episodes`` is their number, ``return`` the sum of their undiscounted ``env`` returns and ``length`` of their
    lengths. Every entry of the environment's ``info`` that is one number per step (``success``, ...) is summed over
    their last steps. ``env_steps`` counts all real steps, also those of episodes that did not end.
    """
    ended = ((trajectory.terminated | trajectory.truncated) & (trajectory.mask > 0)).astype(jnp.float32)
    sums = {
        "env_steps": jnp.sum(trajectory.mask.astype(jnp.int32)),
        "episodes": jnp.sum(ended),
        "return": jnp.sum(ended * trajectory.extras["episode_return"]),
        "length": jnp.sum(ended * trajectory.extras["episode_length"]),
    }
    numbers = {name: value for name, value in trajectory.extras["info"].items() if value.ndim == ended.ndim}
    return sums | {name: jnp.sum(ended * value) for name, value in numbers.items()}
