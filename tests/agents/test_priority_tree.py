"""agents.priority_tree: weights, sums, frequencies and probabilities against a plain array of weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from agents.priority_tree import LEVELS, tree_draw, tree_init, tree_set, tree_weights

KEY = jax.random.key(0)


def weighted(weight):
    return tree_set(tree_init(len(weight)), jnp.arange(len(weight)), jnp.asarray(weight))


def sums(tree):
    """The sums that the levels above the places must hold."""
    for below, level in itertools.pairwise(tree):
        yield level.reshape(-1), np.asarray(below).sum(axis=1)


@pytest.mark.parametrize("size", [1, 2, 16, 17, 81, 300, 5000])
def test_every_place_has_its_weight_and_every_node_its_sum(size):
    weight = np.random.default_rng(size).uniform(0.1, 1.0, size)
    tree = weighted(weight)
    fan = tree[0].shape[1]
    assert fan**LEVELS >= size and (fan - 1) ** LEVELS < size
    assert len(tree) == LEVELS and tree[-1].shape == (1, fan)
    np.testing.assert_allclose(tree_weights(tree, jnp.arange(size)), weight, rtol=1e-6)
    for level, expected in sums(tree):
        np.testing.assert_allclose(level, expected, rtol=1e-6)
    np.testing.assert_allclose(tree[-1].sum(), weight.sum(), rtol=1e-5)


def test_where_a_place_gets_two_weights_the_larger_counts():
    tree = tree_set(weighted(np.full(40, 7.0)), jnp.array([5, 5, 6, 5]), jnp.array([1.0, 3.0, 4.0, 2.0]))
    np.testing.assert_array_equal(tree_weights(tree, jnp.arange(4, 8)), [7, 3, 4, 7])
    np.testing.assert_array_equal(tree[-1].sum(), 38 * 7 + 3 + 4)


def test_rounding_errors_do_not_accumulate():
    # Weights from 1e-6 to 1e6 at the same places: sums updated by differences would keep the rounding errors of 1e6.
    size = 300
    step = jax.jit(tree_set)
    tree = weighted(np.full(size, 1e6))
    weight = np.full(size, 1e6, np.float32)
    source = np.random.default_rng(1)
    for _ in range(200):
        index = source.choice(size, 32, replace=False)
        weight[index] = 10 ** source.uniform(-6, 6, 32)
        tree = step(tree, jnp.asarray(index), jnp.asarray(weight[index]))
    tree = step(tree, jnp.arange(size), jnp.full(size, 1e-6))
    np.testing.assert_allclose(tree[-1].sum(), size * 1e-6, rtol=1e-5)
    for level, expected in sums(tree):
        np.testing.assert_allclose(level, expected, rtol=1e-5)


@pytest.mark.parametrize("size", [3, 90])
def test_places_are_drawn_by_weight(size):
    weight = np.random.default_rng(size).uniform(0.1, 1.0, size)
    weight[1] = 0.0
    index, probability = jax.jit(tree_draw, static_argnums=2)(weighted(weight), KEY, 50_000)
    expected = weight / weight.sum()
    np.testing.assert_allclose(probability, expected[index], rtol=1e-5)
    counts = np.bincount(index, minlength=size)
    assert counts[1] == 0 and len(counts) == size
    assert stats.chisquare(np.delete(counts, 1), 50_000 * np.delete(expected, 1)).pvalue > 0.01


def test_places_excluded_from_one_draw_are_back_in_the_next():
    weight = np.random.default_rng(2).uniform(0.1, 1.0, 30)
    tree = weighted(weight)
    index, probability = tree_draw(
        tree, KEY, 50_000, without=jnp.arange(10, 15), is_without=lambda place: (place >= 10) & (place < 15)
    )
    left = weight.copy()
    left[10:15] = 0.0
    expected = left / left.sum()
    np.testing.assert_allclose(probability, expected[index], rtol=1e-5)
    counts = np.bincount(index, minlength=30)
    assert not counts[10:15].any()
    here = left > 0
    assert stats.chisquare(counts[here], 50_000 * expected[here]).pvalue > 0.01
    again, _ = tree_draw(tree, KEY, 50_000)
    assert np.bincount(again, minlength=30)[10:15].all()


def test_places_without_weight_are_never_drawn():
    # A single place in 100,000 has a weight, and a tiny one: it is drawn whatever the uniform numbers are.
    tree = tree_set(tree_init(100_000), jnp.array([77_777]), jnp.array([1e-30]))
    index, probability = tree_draw(tree, KEY, 1000)
    np.testing.assert_array_equal(index, 77_777)
    np.testing.assert_array_equal(probability, 1.0)


def test_a_member_of_a_vmap_equals_the_single_tree():
    def run(key):
        tree = weighted(np.arange(1.0, 41.0))
        index, probability = tree_draw(tree, key, 6)
        return tree_set(tree, index, probability), index

    keys = jax.random.split(KEY, 3)
    together, alone = jax.jit(jax.vmap(run))(keys), jax.jit(run)(keys[1])
    for one, many in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(many[1], one, rtol=1e-6)
