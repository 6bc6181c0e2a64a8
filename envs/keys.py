"""Random keys, from seeds."""

from __future__ import annotations

import jax

# Pinned: another JAX_DEFAULT_PRNG_IMPL would change every number of a run. With other generators the numbers of a seed
# also depend on its neighbours under vmap.
GENERATOR = "threefry2x32"


def seed_key(seed: int | jax.Array) -> jax.Array:
    """The typed key of a seed. It belongs to the same generator whatever JAX's default is."""
    return jax.random.key(seed, impl=GENERATOR)
