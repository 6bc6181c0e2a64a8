"""A hash of observations, by which equal observations are found inside jit."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from envs.base import PyTree


def observation_hash(observation: PyTree) -> tuple[jax.Array, jax.Array]:
    """Two independent 32-bit hashes of every observation ``[T, B, ...]``, ``uint32 [T, B]`` each.

    Each hash is the sum, modulo ``2^32``, of the observation's 32-bit words, mixed with their position by a
    multiply-xorshift finaliser. Equal observations have equal hashes; 0.0 and -0.0 count as equal. Use both hashes
    together (64 bits) to compare observations, and one of them to index a table of counts.
    """

    def words(leaf):
        flat = leaf.reshape(*leaf.shape[:2], -1)
        if jnp.issubdtype(flat.dtype, jnp.floating):
            # Adding 0.0 would also turn -0.0 into 0.0, but the compiler removes that addition.
            flat = jnp.where(flat == 0, 0.0, flat).astype(jnp.float32)
            flat = jax.lax.bitcast_convert_type(flat, jnp.uint32)
        return flat.astype(jnp.uint32)

    flat = jnp.concatenate([words(leaf) for leaf in jax.tree.leaves(observation)], axis=-1)
    index = jnp.arange(flat.shape[-1], dtype=jnp.uint32)

    def mix(x):
        x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
        return x ^ (x >> 16)

    return tuple(
        jnp.sum(mix(flat + mix(index + jnp.uint32(salt))), axis=-1, dtype=jnp.uint32)
        for salt in (0x9E3779B9, 0x85EBCA6B)
    )
