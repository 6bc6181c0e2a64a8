"""Masked statistics of arrays ``[T, B]``, and the batch axis ``[B]`` seen as groups ``[G, N]``.

``m`` is a mask of zeros and ones in the shape of ``x``; a masked entry may hold any finite number.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def masked_mean(x: jax.Array, mask: jax.Array, axis=None, keepdims: bool = False) -> jax.Array:
    """``sum(m x) / max(sum(m), 1)`` over ``axis``; 0 where everything is masked.

    >>> float(masked_mean(jnp.array([1.0, 3.0, 9.0]), jnp.array([1.0, 1.0, 0.0])))
    2.0
    """
    return jnp.sum(x * mask, axis, keepdims=keepdims) / jnp.maximum(jnp.sum(mask, axis, keepdims=keepdims), 1.0)


def masked_std(x: jax.Array, mask: jax.Array, axis=None, keepdims: bool = False, ddof: int = 1) -> jax.Array:
    """``sqrt(sum(m (x - mean)^2) / max(sum(m) - ddof, 1))`` over ``axis``, the masked standard deviation.

    ``ddof`` is the number of degrees of freedom to subtract, as in NumPy. With at most one valid entry the result is 0.
    """
    mean = masked_mean(x, mask, axis, True)
    count = jnp.sum(mask, axis, keepdims=keepdims)
    squares = jnp.sum(jnp.square(x - mean) * mask, axis, keepdims=keepdims)
    return jnp.sqrt(squares / jnp.maximum(count - ddof, 1.0))


def whiten(x: jax.Array, mask: jax.Array) -> jax.Array:
    """``m (x - mean) / sqrt(variance + 1e-8)`` with mean and variance over all valid entries; the shape of ``x``."""
    return mask * (x - masked_mean(x, mask)) * jax.lax.rsqrt(jnp.square(masked_std(x, mask, ddof=0)) + 1e-8)


def to_groups(x: jax.Array, group_size: int) -> jax.Array:
    """Splits the batch axis into groups of neighbours: ``[..., B] -> [..., G, N]`` with ``N = group_size``.

    >>> to_groups(jnp.arange(6), 3).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    return x.reshape(*x.shape[:-1], -1, group_size)


def from_groups(x: jax.Array) -> jax.Array:
    """The inverse of ``to_groups``: ``[..., G, N] -> [..., B]``."""
    return x.reshape(*x.shape[:-2], -1)
