"""Random keys, from seeds."""

from __future__ import annotations

import jax

# Pinned: JAX_DEFAULT_PRNG_IMPL would change every number of a run, and under vmap other generators give a seed numbers
# that depend on its neighbours.
GENERATOR = "threefry2x32"


def seed_key(seed: int | jax.Array) -> jax.Array:
    """The typed key of a seed, of the same generator whatever JAX's default is."""
    return jax.random.key(seed, impl=GENERATOR)
