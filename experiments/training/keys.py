"""The keys of evaluations."""

from __future__ import annotations

import jax

from envs.keys import seed_key
from experiments.assembly.build import EVALUATION_SEED


def evaluation_key(seed: int | jax.Array, stream: int = EVALUATION_SEED) -> jax.Array:
    """The key of the evaluations of a training seed: ``fold_in(key(stream), seed)``.

    It is in a stream of its own, so that no evaluation draws what training draws, whatever is changed in either. Every
    seed is evaluated on episodes of its own: an interval over the seeds covers the draw of the episodes as well, where
    episodes that all seeds share would move every seed's figure in one direction. All evaluations of one seed use the
    same episodes, so that its curve shows what was learnt and not what was drawn.

    Args:
      seed: of the training.
      stream: ``EVALUATION_SEED``, which chooses the best checkpoint, or ``TEST_SEED``, which judges it.
    """
    return jax.random.fold_in(seed_key(stream), seed)
