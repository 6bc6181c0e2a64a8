"""What the reward models that learn by gradient share: which part of the data each optimiser step takes."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def check_fit(name: str, *, updates: int, parts: int, items: int, unit: str) -> None:
    """Refuses a fit that cannot be made.

    Args:
      name: of the transform, for the message.
      updates, parts: as in ``random_parts``.
      items: how many ``unit`` there are.

    Raises:
      ValueError: fewer than 0 updates, or parts that are not from 1 to ``items``.
    """
    if updates < 0:
        raise ValueError(f"{name}: updates={updates}: expected at least 0")
    if not 1 <= parts <= items:
        raise ValueError(f"{name}: parts={parts}: expected from 1 to the {items} {unit} of an update")


def random_parts(key: jax.Array, items: int, *, parts: int, updates: int) -> jax.Array:
    """The items of every optimiser step, ``int32 [updates, items // parts]``.

    In each pass the items are shuffled and cut into ``parts`` equal parts, so that none is taken twice; at most
    ``parts - 1`` are left over.
    """
    size = items // parts

    def one_pass(key):
        return jax.random.permutation(key, items)[: parts * size].reshape(parts, size)

    if updates == 0:
        return jnp.zeros((0, size), jnp.int32)
    passes = -(-updates // parts)
    return jax.vmap(one_pass)(jax.random.split(key, passes)).reshape(-1, size)[:updates]
