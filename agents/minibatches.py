"""Epochs of shuffled minibatches over one batch of trajectories."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from agents.permutation import permutation
from envs.base import PyTree

Step = Callable[[PyTree, PyTree, PyTree], tuple[PyTree, dict[str, jax.Array]]]
"""``(state, part, start carry of the part) -> (state, metrics)``."""


def require_minibatches(minibatches: int, items: int) -> None:
    """Refuses a number of ``minibatches`` that cannot cut ``items`` into equal parts.

    Raises:
      ValueError: the number, ``items``, and the nearest number that divides it.
    """
    if items % minibatches:
        near = min((n for n in range(1, items + 1) if items % n == 0), key=lambda n: abs(n - minibatches))
        raise ValueError(f"minibatches={minibatches} does not divide {items}: the nearest that does is {near}")


def minibatch_epochs(
    step: Step,
    state: PyTree,
    batch: PyTree,
    start_carry: PyTree,
    key: jax.Array,
    *,
    epochs: int,
    minibatches: int,
    whole_columns: bool,
) -> tuple[PyTree, dict[str, jax.Array]]:
    """Calls ``step`` on each of ``minibatches`` equal parts of ``batch``, in ``epochs`` passes, each shuffled anew.

    Args:
      step: one optimiser step on a part. A part is ``[T, n, ...]`` with ``whole_columns``, otherwise ``[1, n, ...]``;
        with a single minibatch it is the batch itself, unshuffled.
      state: the state that the steps update.
      batch: a pytree of ``[T, B, ...]``.
      start_carry: a pytree of ``[B, ...]``, the recurrent state before the first row; ``()`` without one.
      key: for shuffling.
      epochs, minibatches: the latter must divide ``B`` (``whole_columns``) or ``T B``.
      whole_columns: shuffle columns, for recurrent networks, instead of steps.

    Returns:
      The last state, and the mean of each metric over all steps.
    """
    length, width = jax.tree.leaves(batch)[0].shape[:2]
    items = width if whole_columns else length * width
    # The rows of a matrix, built once: indexing arrays of more dimensions is several times as slow on the CPU.
    table = batch if whole_columns else jax.tree.map(lambda x: x.reshape(items, -1), batch)

    def pick(rows, like, index):
        if whole_columns:
            return jnp.take(rows, index, axis=1)
        return rows[index].reshape(1, -1, *like.shape[2:])

    def part_step(state, index):
        part = jax.tree.map(lambda rows, like: pick(rows, like, index), table, batch)
        return step(state, part, jax.tree.map(lambda x: jnp.take(x, index, axis=0), start_carry))

    def epoch(state, epoch_key):
        if minibatches == 1:
            return step(state, batch, start_carry)
        # Drawn here and not for all epochs at once: XLA splits one large draw between threads, which costs more.
        order = permutation(epoch_key, items).reshape(minibatches, -1)
        return jax.lax.scan(part_step, state, order)

    state, metrics = jax.lax.scan(epoch, state, jax.random.split(key, epochs))
    return state, jax.tree.map(jnp.mean, metrics)
