"""Permutations are those of the library, whichever way they are sorted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.permutation import permutation, stable_order


# Of one and of two rounds, and more than fit beside half a key.
@pytest.mark.parametrize("items", [1, 2, 512, 1625, 1626, 8192, 65536, 65537])
def test_a_permutation_is_the_one_of_the_library(items):
    for seed in (0, 1):
        key = jax.random.key(seed)
        ours = permutation(key, items)
        assert ours.dtype == jnp.int32
        np.testing.assert_array_equal(ours, jax.random.permutation(key, items))


def test_permutations_over_a_batch_of_keys_are_those_of_each_key():
    keys = jax.random.split(jax.random.key(2), 3)
    batched = jax.vmap(lambda key: permutation(key, 100))(keys)
    np.testing.assert_array_equal(batched, jnp.stack([jax.random.permutation(key, 100) for key in keys]))


@pytest.mark.parametrize("items", [1000, 70_000])
def test_equal_keys_stay_in_their_order(items):
    # Ties in the lower half, in the upper half and in both, and keys at either end of the range.
    low, high = (np.random.default_rng(seed).integers(0, 5, items, np.uint32) for seed in (0, 1))
    keys = (high * np.uint32(2**16) + low) - np.uint32(2)
    np.testing.assert_array_equal(stable_order(jnp.asarray(keys)), np.argsort(keys, kind="stable"))
