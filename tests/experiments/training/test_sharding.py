"""One program over members: with the axis of the members, and for a single one without it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from experiments.training.sharding import over_members


@pytest.mark.parametrize("members", [1, 3])
def test_members_get_what_vmap_gives_them(members):
    keys = jax.random.split(jax.random.key(0), members)
    tree = {"numbers": jnp.arange(2.0 * members).reshape(members, 2)}

    def function(key, tree, shared):
        return {"key": jax.random.fold_in(key, 1), "sum": tree["numbers"].sum() + shared, "constant": 7}

    axes = (0, 0, None)
    computed = over_members(function, axes)(keys, tree, 10.0)
    assert computed["sum"].tolist() == [10.0 + sum(range(2 * i, 2 * i + 2)) for i in range(members)]
    expected = jax.vmap(function, in_axes=axes)(keys, tree, 10.0)
    assert jax.tree.map(jnp.shape, computed) == jax.tree.map(jnp.shape, expected)
    assert (jax.random.key_data(computed["key"]) == jax.random.key_data(expected["key"])).all()
    assert computed["constant"].tolist() == [7] * members


def test_a_single_member_is_compiled_without_an_axis_of_its_own():
    product = over_members(lambda x: x @ x.T, (0,))

    def ranks(members):
        equations = jax.make_jaxpr(product)(jnp.ones((members, 2, 3))).eqns
        return [x.aval.ndim for each in equations if each.primitive.name == "dot_general" for x in each.invars]

    assert ranks(1) == [2, 2]
    assert ranks(4) == [3, 3]
