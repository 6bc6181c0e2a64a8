"""``next_values``: the value of the observation that followed each step, before any reset.

Inside an episode the observation after step ``t`` is that of row ``t + 1``, whose value was computed when acting. At a
boundary (a truncated step, and the last row of an unroll) row ``t + 1`` is missing or belongs to another episode, and
the critic has to be evaluated on ``next_observation``. Boundaries are rare, so that a few rows per column are evaluated
at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from agents.actor_critic import ActorCritic
from envs.base import PyTree, Trajectory

EvaluateRows = Callable[[jax.Array | None], dict[str, jax.Array]]
"""``(row index [K, B], or None for all rows) -> values [K, B] by head`` of the observations that followed."""


def boundaries(trajectory: Trajectory, *, whole_episodes: bool) -> jax.Array:
    """``bool [T, B]``: truncated steps and, unless the trajectory holds ``whole_episodes``, its last row."""
    truncated = jnp.asarray(trajectory.truncated)
    return truncated if whole_episodes else truncated.at[-1].set(True)


def rows_at_a_time(length: int, max_episode_steps: int | None, *, whole_episodes: bool) -> int:
    """How many boundaries per column to evaluate in one call of the critic; at most ``length``, which means all rows.

    A whole episode is truncated once at most. In an unroll of ``length`` rows a time limit of ``max_episode_steps``
    truncates ``(length - 1) // max_episode_steps + 1`` times at most, and the last row is a boundary as well, so that
    one call is enough where only the time limit truncates. Without a time limit every row may be truncated.
    """
    if whole_episodes:
        return 1
    return length if max_episode_steps is None else min(length, (length - 1) // max_episode_steps + 2)


def critic_on_rows(model: ActorCritic, params: PyTree, trajectory: Trajectory) -> EvaluateRows:
    """Evaluates the value heads on ``next_observation`` at chosen rows of ``trajectory``.

    A recurrent model starts from the recorded carry of the row and sees the row's own observation first.
    """

    def evaluate(index):
        pick = row_picker(index)
        observations = jax.tree.map(
            lambda now, later: jnp.stack([pick(now), pick(later)]).reshape(2, -1, *now.shape[2:]),
            trajectory.observation,
            trajectory.next_observation,
        )
        if model.recurrent:
            carry = jax.tree.map(lambda x: pick(x).reshape(-1, *x.shape[2:]), trajectory.extras["carry"])
        else:
            carry = model.initial_carry(1)
            observations = jax.tree.map(lambda x: x[1:], observations)
        _, values, _ = model.forward(params, observations, carry, None)
        return {name: value[-1].reshape(-1, trajectory.mask.shape[1]) for name, value in values.items()}

    return evaluate


def next_values(
    values: Mapping[str, jax.Array], boundary: jax.Array, evaluate: EvaluateRows, *, rows: int
) -> dict[str, jax.Array]:
    """The value of the observation that followed each step, by head, ``[T, B]``.

        next_value_t = evaluated_t    at a boundary and at the last row,    value_{t + 1}    elsewhere

    In whole episodes the last row need not be a boundary: the episode has terminated or was padding by then, and the
    number there is meaningless and never used.

    Args:
      values: by head, ``[T, B]``.
      boundary: ``bool [T, B]``, see ``boundaries``.
      evaluate: the critic, see ``critic_on_rows``.
      rows: boundaries per column to evaluate in one call, see ``rows_at_a_time``; ``T`` evaluates all rows at once.
    """
    length, batch = boundary.shape
    if rows == length:
        evaluated = evaluate(None)
    else:
        # The rank of each boundary in its column. Counting is faster than sorting on every device.
        rank = jnp.cumsum(boundary, axis=0)
        most = jnp.max(rank[-1])
        columns = jnp.arange(batch)[None]

        def evaluate_some(state):
            done, evaluated = state
            wanted = done + 1 + jnp.arange(rows)
            index = jnp.argmax(boundary & (rank == wanted[:, None, None]), axis=1)
            some = evaluate(index)
            return done + rows, {name: evaluated[name].at[index, columns].set(some[name]) for name in values}

        start = (0, {name: jnp.zeros_like(value) for name, value in values.items()})
        _, evaluated = jax.lax.while_loop(lambda state: state[0] < most, evaluate_some, start)
    return {
        name: jnp.where(boundary, evaluated[name], jnp.concatenate([value[1:], evaluated[name][-1:]]))
        for name, value in values.items()
    }


def row_picker(index: jax.Array | None) -> Callable[[jax.Array], jax.Array]:
    """``pick(x [T, B, ...]) -> [K, B, ...]`` takes the rows ``index [K, B]`` of every column, or all where ``None``."""
    if index is None:
        return lambda x: x

    def pick(x):
        return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=0)

    return pick
