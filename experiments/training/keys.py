"""The keys of a run: of a training seed, and of an evaluation."""

from __future__ import annotations

import jax

from experiments.assembly.build import EVALUATION_SEED


def seed_key(seed: int | jax.Array) -> jax.Array:
    """The typed key of a seed."""
    return jax.random.key(seed)


def evaluation_key(seed: int = EVALUATION_SEED) -> jax.Array:
    """The key of an evaluation: of no training seed, so that all are evaluated on the same start states."""
    return jax.random.key(seed)
