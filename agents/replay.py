"""A replay buffer in device memory: a ring of time rows ``[rows, B]``, as an explicit state and pure functions.

Consecutive rows of the ring are consecutive time steps of each environment, so that a segment of several rows is a
piece of one environment's history. A segment may contain the end of an episode, where the learner cuts it, but never
the write position, where the newest row is next to the oldest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agents.channels import read_channel
from agents.priority_tree import PriorityTree, tree_draw, tree_init, tree_set
from envs.base import Trajectory

# Priorities are at least this, so that a transition with error 0 can still be drawn.
SMALLEST_PRIORITY = 1e-6


class ReplayState(NamedTuple):
    """The buffer.

    Attributes:
      transitions: ``[rows, B, ...]``, without extras.
      cursor: ``int32``, the row to write next.
      size: ``int32``, the number of filled rows.
      priority: ``p ^ alpha`` of the segment that starts at each transition, which has the place ``row * B +
        environment`` in the tree; ``None`` for uniform sampling.
      largest: ``[]``, the largest ``p ^ alpha`` so far, which new rows get; ``None`` for uniform sampling.
    """

    transitions: Trajectory
    cursor: jax.Array
    size: jax.Array
    priority: PriorityTree | None
    largest: jax.Array | None


def replay_init(template: Trajectory, *, capacity: int, batch: int, prioritised: bool = False) -> ReplayState:
    """An empty buffer of ``capacity // batch`` rows.

    Args:
      template: one transition without leading axes (arrays or ``jax.ShapeDtypeStruct``); its extras are not kept.
      capacity: transitions of all environments together, rounded down to whole rows.
      batch: ``B``.
      prioritised: whether to keep priorities.

    Raises:
      ValueError: ``capacity`` is below one row, or too large for 32-bit indices.
    """
    if not batch <= capacity < 2**31:
        raise ValueError(f"capacity={capacity}: expected at least one row of batch={batch} and below 2 ** 31")
    rows = capacity // batch
    transitions = jax.tree.map(lambda x: jnp.zeros((rows, batch, *x.shape), x.dtype), template._replace(extras={}))
    priority = tree_init(rows * batch) if prioritised else None
    largest = jnp.ones((), jnp.float32) if prioritised else None
    return ReplayState(transitions, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), priority, largest)


def replay_add(state: ReplayState, trajectory: Trajectory) -> ReplayState:
    """Writes ``trajectory [T, B]`` over the oldest rows.

    Channels and extras that the template lacks are not kept. After a resume, environments may have been started anew
    although the newest stored row ended no episode; ``extras["episode_start"]`` is then set in the first new row, and
    the newest stored row is marked truncated, because what follows it now is another episode.

    Raises:
      ValueError: the trajectory is longer than the buffer, or lacks a channel or carries it in another shape than
        ``[T, B]``.
    """
    old: Any = state.transitions
    rows, length = old.mask.shape[0], trajectory.mask.shape[0]
    if length > rows:
        raise ValueError(f"a trajectory of {length} rows does not fit a buffer of {rows}: expected a larger capacity")
    rewards = {name: read_channel(trajectory, name, "the replay buffer") for name in old.rewards}
    start = trajectory.extras.get("episode_start")
    if start is not None:
        newest = (state.cursor - 1) % rows
        cut = old.truncated[newest] | (jnp.asarray(start)[0] & ~old.terminated[newest])
        old = old._replace(truncated=old.truncated.at[newest].set(cut))
    kept = trajectory._replace(rewards=rewards, extras={})
    at = (state.cursor + jnp.arange(length)) % rows
    transitions = jax.tree.map(
        lambda buffer, new: buffer.at[at].set(jnp.asarray(new, buffer.dtype), unique_indices=True), old, kept
    )
    priority = state.priority
    if priority is not None:
        index = _places(at, old.mask.shape[1])
        priority = tree_set(priority, index, jnp.broadcast_to(jnp.asarray(state.largest), index.shape))
    return ReplayState(
        transitions, (state.cursor + length) % rows, jnp.minimum(state.size + length, rows), priority, state.largest
    )


def replay_sample(
    state: ReplayState, key: jax.Array, *, batch: int, length: int
) -> tuple[Trajectory, jax.Array, jax.Array]:
    """Draws ``batch`` segments of ``length`` consecutive rows of one environment each, with replacement.

    A segment may start at any filled row except the newest ``length - 1``. The start is uniform or, in a buffer with
    priorities, ``P(i) = p_i^alpha / sum_j p_j^alpha`` (Schaul et al., 2016, equation 1). The buffer must hold at least
    ``length`` rows; until then the result is meaningless.

    Returns:
      The segments ``[length, batch]``, the index ``int32 [batch]`` of each (for ``replay_prioritise``) and its
      probability ``[batch]``.
    """
    rows, environments = state.transitions.mask.shape
    if state.priority is None:
        # Starts are counted from the oldest row.
        starts, oldest = jnp.maximum(state.size - length + 1, 1), state.cursor - state.size
        row_key, environment_key = jax.random.split(key)
        age = jax.random.randint(row_key, (batch,), 0, starts)
        first = (oldest + age) % rows
        environment = jax.random.randint(environment_key, (batch,), 0, environments)
        probability = jnp.full(batch, 1.0) / (starts * environments)
    else:
        # Rows that were never written have no weight.
        newest = (state.cursor - 1 - jnp.arange(length - 1)) % rows
        index, probability = tree_draw(
            state.priority,
            key,
            batch,
            without=_places(newest, environments),
            is_without=lambda place: (state.cursor - 1 - place // environments) % rows < length - 1,
        )
        first, environment = index // environments, index % environments
    picked = (first + jnp.arange(length)[:, None]) % rows
    segments = jax.tree.map(lambda x: x[picked, environment[None]], state.transitions)
    return segments, first * environments + environment, probability


def replay_prioritise(
    state: ReplayState, index: jax.Array, priority: jax.Array, *, exponent: float | jax.Array = 1.0
) -> ReplayState:
    """Sets the priorities of the segments ``index [batch]`` to ``priority [batch]``, raised to ``exponent`` (alpha).

    Where an index occurs twice, the larger priority counts. A priority that is not finite belongs to an update that
    will be undone; it becomes the largest so far.

    Raises:
      ValueError: if the buffer keeps no priorities.
    """
    if state.priority is None or state.largest is None:
        raise ValueError("the buffer keeps no priorities: expected one made with prioritised=True")
    power = jnp.maximum(priority, SMALLEST_PRIORITY) ** exponent
    # With 64 bits enabled the loss may be float64, but the type of the state must not change.
    power = jnp.where(jnp.isfinite(power), power, state.largest).astype(jnp.float32)
    updated = tree_set(state.priority, index, power)
    return state._replace(priority=updated, largest=jnp.maximum(state.largest, jnp.max(power)))


def _places(row: jax.Array, environments: int) -> jax.Array:
    """The indices of all environments' transitions in the rows ``row [n]``, ``[n * environments]``."""
    return (row[:, None] * environments + jnp.arange(environments)).reshape(-1)


def importance_weights(probability: jax.Array, exponent: float | jax.Array) -> jax.Array:
    """``w_i = (N P(i))^-beta / max_j (N P(j))^-beta`` over the batch (Schaul et al., 2016, section 3.4); N cancels.

    Args:
      probability: ``[batch]``.
      exponent: ``beta``; 1 corrects the bias in full.

    Returns:
      ``[batch]``, at most 1.
    """
    return (jnp.min(probability) / probability) ** exponent
