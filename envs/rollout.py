"""Rollouts of pure environments: fixed unrolls with auto-reset, and whole episodes in groups.

A rollout takes a *policy function* ``(carry, observation [B, ...], key) -> (action [B, ...], carry, extras)``,
not an agent, and writes the axis ``[B]`` that a pure environment does not have.
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
    """What an unroll hands to the next one; every leaf has the leading axis ``[B]``.

    Attributes:
      environment: the environments' states.
      observation: what the policy sees next.
      carry: the policy's recurrent state.
      episode_start: whether ``observation`` is the first of an episode.
      episode_return, episode_length: of the running episode, before the next step.
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
    """The action the environment gets: Box parts clipped to their bounds, everything else as it is; jax or numpy."""
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
    """Fresh episodes in ``batch`` environments; ``carry`` is the policy's initial one."""
    state, observation = jax.vmap(environment.reset)(jax.random.split(key, batch))
    return UnrollState(
        state, observation, carry, jnp.ones(batch, bool), jnp.zeros(batch, jnp.float32), jnp.zeros(batch, jnp.int32)
    )


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
    """``length`` steps of every environment, auto-resetting.

    Args:
      environment: one pure environment.
      policy: acts on the batch.
      state: from ``start_unroll`` or the previous unroll.
      key: of this unroll.
      length: ``T``.
      initial_carry: the carry at an episode's start, ``[B, ...]``.
      start_states: ``None`` draws a start state for every step of every environment and uses those that are needed:
        right where a reset is cheap. An integer draws that many per environment, and uses
        them in turn (the last one again if an environment ends more episodes than that): right where a reset is
        expensive, as generating a room is.

    Returns:
      The next state and a trajectory ``[T, B]``.
    """
    batch = state.episode_start.shape[0]
    spec = environment.spec
    reset_key, act_key, step_key = (jax.random.fold_in(key, stream) for stream in (RESET, ACT, STEP))
    # All before the first step: one large draw costs less than many small ones.
    if start_states is None:
        reset_keys = jax.vmap(lambda t: jax.random.split(jax.random.fold_in(reset_key, t), batch))(jnp.arange(length))
    else:
        reset_keys = jax.random.split(reset_key, (start_states, batch))
    pool = jax.vmap(jax.vmap(environment.reset))(reset_keys)

    def step(scan_carry, t):
        state, used = scan_carry
        action, carry, extras = policy(state.carry, state.observation, jax.random.fold_in(act_key, t))
        keys = jax.random.split(jax.random.fold_in(step_key, t), batch)
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

    (state, _), trajectory = jax.lax.scan(step, (state, jnp.zeros(batch, jnp.int32)), jnp.arange(length))
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
    """Whole episodes of at most ``length`` steps, ``group_size`` rollouts of each of ``batch / group_size`` starts.

    Rollouts of a group are neighbours in the batch axis. Steps after an episode's end have mask 0, zero
    rewards, and repeat the final observation. An episode that ``length`` cuts is marked truncated.

    Args:
      environment, policy: as in ``unroll``.
      key: of this rollout.
      length, batch, group_size: ``T``, ``B``, ``N``.
      initial_carry: ``[B, ...]``.
      start_keys: ``[B / N]`` typed keys of the start states; drawn from ``key`` where ``None``.

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

    def step(scan_carry, t):
        state, observation, carry, alive, episode_return = scan_carry
        action, next_carry, extras = policy(carry, observation, jax.random.fold_in(act_key, t))
        keys = jax.random.split(jax.random.fold_in(step_key, t), batch)
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
        # A finished environment stands still: what it would do next is nobody's business and might not be finite.
        following = (
            select(still_alive, next_state, state),
            next_observation,
            next_carry,
            still_alive,
            episode_return,
        )
        return following, transition

    start_carry = (state, observation, initial_carry, jnp.ones(batch, bool), jnp.zeros(batch, jnp.float32))
    _, trajectory = jax.lax.scan(step, start_carry, jnp.arange(length))
    return trajectory


def episode_statistics(trajectory: Trajectory) -> dict[str, jax.Array]:
    """Sums over the episodes that ended in ``trajectory``; ``[]`` each.

    ``episodes`` (count), ``return`` (sum of undiscounted ``env`` returns), ``length``, every entry of the environment's
    ``info`` at the last step (``success``, ...) that is one number per step, and ``env_steps`` (real steps, ended or
    not).
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
