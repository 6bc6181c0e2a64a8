"""A sum tree: draws places with probability proportional to their weight, at a cost that hardly grows with their
number.

The tree (Schaul et al., 2016, appendix B.2.1) has ``LEVELS`` levels, and every node has ``fan = ceil(size^(1/LEVELS))``
children. A level is an array ``[nodes, fan]``; its sums over the last axis are the entries of the next level, and the
last level is a single node. Place ``i`` is child ``i % fan`` of node ``i // fan`` of the first level. Drawing or
setting a place reads ``LEVELS * fan`` numbers. Sums are always recomputed from the children, so that rounding errors do
not accumulate over updates and an index may occur twice in one update.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

# Few wide levels: on a CPU each level costs several calls, whereas summing 20 children costs next to nothing.
LEVELS = 4

PriorityTree = tuple[jax.Array, ...]
"""``LEVELS`` arrays ``float32 [fan^(LEVELS - 1), fan], ..., [1, fan]``; the first holds the weights of the places."""


def tree_init(size: int) -> PriorityTree:
    """A tree of ``size`` places of weight 0, padded to ``fan ** LEVELS`` places; the padding must stay at weight 0."""
    fan = 1
    while fan**LEVELS < size:
        fan += 1
    return tuple(jnp.zeros((fan**height, fan), jnp.float32) for height in reversed(range(LEVELS)))


def tree_weights(tree: PriorityTree, index: jax.Array) -> jax.Array:
    """The weights of the places ``index``, in its shape."""
    fan = tree[0].shape[1]
    return tree[0][index // fan, index % fan]


def tree_set(tree: PriorityTree, index: jax.Array, weight: jax.Array) -> PriorityTree:
    """Sets the weights of the places ``index [n]`` to ``weight [n]``; where a place occurs twice, the larger counts."""
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
      tree: the weights.
      key: a key of ``jax.random``.
      batch: number of places to draw.
      without: ``[m]``, places that have weight 0 for this draw.
      is_without: ``(places) -> bool``, whether places are among ``without``; required together with it.

    Returns:
      The places ``int32 [batch]`` and the probability ``[batch]`` of each; meaningless if all weights are 0.
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
    # Read before the tree is updated: otherwise the compiler copies the whole tree in order to read it later.
    return jax.lax.optimization_barrier((index, probability))


def _summed(tree: PriorityTree, node: jax.Array, weights_below: Callable[[jax.Array], jax.Array]) -> PriorityTree:
    """The tree with new sums above the nodes ``node [n]``, whose places have the weights ``weights_below(node)``."""
    made, fan = [tree[0]], tree[0].shape[1]
    for level in tree[1:]:
        below = weights_below(node) if len(made) == 1 else made[-1][node]
        made.append(level.at[node // fan, node % fan].set(jnp.sum(below, axis=1)))
        node = node // fan
    return tuple(made)


def _child(weight: jax.Array, uniform: jax.Array) -> jax.Array:
    """The first child at which the cumulative ``weight [fan, batch]`` exceeds ``uniform [batch]`` times the total.

    A child of weight 0 is never chosen, unless all have weight 0.
    """
    cumulative = jax.lax.associative_scan(jnp.add, weight, axis=0)
    # A parallel scan rounds differently at each position, so that the sum may grow where the weight is 0.
    cumulative = jnp.where(weight > 0, cumulative, 0.0)
    whole = jnp.max(cumulative, axis=0)
    threshold = jnp.minimum(uniform * whole, jnp.nextafter(whole, 0.0))
    last = weight.shape[0] - 1
    return jnp.min(jnp.where(cumulative > threshold, jnp.arange(last + 1)[:, None], last), axis=0)
