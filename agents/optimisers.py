"""Optimisers in two forms: over all parameters as one vector, or leaf by leaf."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax.flatten_util import ravel_pytree

PyTree = Any


def chained(*steps: optax.GradientTransformation, flatten: bool = True) -> optax.GradientTransformation:
    """``optax.chain(*steps)``, over one vector or leaf by leaf; both compute the same to rounding.

    >>> params = {"weight": jax.numpy.ones((2, 3)), "bias": jax.numpy.zeros(3)}
    >>> flat, by_leaf = (chained(optax.adam(1e-3), flatten=flatten).init(params)[0][0] for flatten in (True, False))
    >>> flat.mu.shape, {name: moment.shape for name, moment in by_leaf.mu.items()}
    ((9,), {'bias': (3,), 'weight': (2, 3)})

    Args:
      steps: applied in this order.
      flatten: as one vector, which is faster for a network of a dozen small leaves on one device, because its update
        is mostly the overhead of many small operations. The vector copies every gradient, and leaves that are sharded
        would be gathered for it: use False for a large network and for one that is sharded itself.
    """
    chained = optax.chain(*steps)
    return optax.flatten(chained) if flatten else chained


def gradient_norm(gradient: PyTree, *, flatten: bool = True) -> jax.Array:
    """``sqrt(sum_i gradient_i^2)`` over all leaves, ``[]``; ``flatten`` as in ``chained``."""
    return optax.tree.norm(ravel_pytree(gradient)[0] if flatten else gradient)
