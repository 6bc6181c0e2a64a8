"""Weights of many places, kept so that places are drawn by weight at a cost that hardly grows with their number.

A sum tree (Schaul et al., 2016, appendix B.2.1) of ``LEVELS`` levels whose nodes have ``fan = ceil(size^(1/LEVELS))``
children each. A level is an array ``[nodes, fan]`` whose sums over the last axis are the next level, which has a
``fan``-th of the nodes, up to the last with one; so place ``i`` is the child ``i % fan`` of the node ``i // fan``. What
drawing and setting touch is ``LEVELS * fan`` numbers a place. A sum is always taken anew from its children: rounding
does not add up over updates, and an index may occur twice.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

# Few long steps: on a CPU every level costs several calls, and the sums of 20 children nothing.
LEVELS = 4

PriorityTree = tuple[jax.Array, ...]
"""``LEVELS`` arrays ``float32 [fan^(LEVELS - 1), fan], ..., [1, fan]``; the first holds the weights of the places."""


def tree_init(size: int) -> PriorityTree:
    """A tree of ``size`` places without weight (and of what is missing to a power of ``fan``, which never gets any)."""
    fan = 1
    while fan**LEVELS < size:
        fan += 1
    return tuple(jnp.zeros((fan**height, fan), jnp.float32) for height in reversed(range(LEVELS)))


def tree_weights(tree: PriorityTree, index: jax.Array) -> jax.Array:
    """The weights of the places ``index``, in its shape."""
    fan = tree[0].shape[1]
    return tree[0][index // fan, index % fan]


def tree_set(tree: PriorityTree, index: jax.Array, weight: jax.Array) -> PriorityTree:
    """Gives the places ``index [n]`` the weights ``weight [n]``; where one occurs twice, the larger stays."""
    fan = tree[0].shape[1]
    node, child = index // fan, index % fan
    weights = tree[0].at[node, child].set(0.0).at[node, child].max(weight)
    return _summed((weights, *tree[1:]), node, lambda node: weights[node])


def tree_draw(
    tree: PriorityTree,
    key: jax.Array,
    batch: int,
    *,
    without: jax.Array | None = None,
    is_without: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Draws ``batch`` places with replacement, each with ``P(i) = weight_i / sum_j weight_j``.

    Args:
      tree: what to draw from.
      key: a key of ``jax.random``.
      batch: how many.
      without: ``[m]``, places that count as if they had no weight, for this draw alone.
      is_without: whether a place is one of those; given where ``without`` is.

    Returns:
      The places ``int32 [batch]`` and the probability ``[batch]`` of each. Where nothing has weight, they mean nothing.
    """
    fan = tree[0].shape[1]

    def weights_below(node: jax.Array) -> jax.Array:
        weights = tree[0][node]
        if is_without is None:
            return weights
        return jnp.where(is_without(node[:, None] * fan + jnp.arange(fan)), 0.0, weights)

    levels = tree if without is None else _summed(tree, without // fan, weights_below)
    uniform = jax.random.uniform(key, (LEVELS, batch))
    index = jnp.zeros(batch, jnp.int32)
    for height in reversed(range(LEVELS)):
        weights = levels[height][index] if height else weights_below(index)
        index = index * fan + _child(weights.T, uniform[height])
    probability = tree_weights(tree, index) / jnp.sum(levels[-1])
    # Read before anything is written: otherwise the compiler keeps a copy of the whole tree to read it later.
    return jax.lax.optimization_barrier((index, probability))


def _summed(tree: PriorityTree, node: jax.Array, weights_below: Callable[[jax.Array], jax.Array]) -> PriorityTree:
    """The tree with new sums above the nodes ``node [n]`` of the places ``weights_below(node) [n, fan]``."""
    made, fan = [tree[0]], tree[0].shape[1]
    for level in tree[1:]:
        below = weights_below(node) if len(made) == 1 else made[-1][node]
        made.append(level.at[node // fan, node % fan].set(jnp.sum(below, axis=1)))
        node = node // fan
    return tuple(made)


def _child(weight: jax.Array, uniform: jax.Array) -> jax.Array:
    """The first child up to which ``weight [fan, batch]`` sums to more than ``uniform [batch]`` of the whole; never one
    without weight, unless none has any."""
    cumulative = jax.lax.associative_scan(jnp.add, weight, axis=0)
    # Rounding may raise the sum where nothing was added.
    cumulative = jnp.where(weight > 0, cumulative, 0.0)
    whole = jnp.max(cumulative, axis=0)
    threshold = jnp.minimum(uniform * whole, jnp.nextafter(whole, 0.0))
    last = weight.shape[0] - 1
    return jnp.min(jnp.where(cumulative > threshold, jnp.arange(last + 1)[:, None], last), axis=0)
