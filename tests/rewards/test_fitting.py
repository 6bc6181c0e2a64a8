"""Fitting: random minibatches, one optimiser step per draw against a loop by hand, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rewards.fitting import check_fit, fit, random_minibatches, take_items

KEY = jax.random.key(0)


def test_a_pass_takes_every_item_once_and_leaves_out_fewer_than_there_are_minibatches():
    chosen = np.asarray(random_minibatches(KEY, 11, minibatches=3, updates=7))
    assert chosen.shape == (7, 3)
    for first in (0, 3):
        taken = chosen[first : first + 3].ravel()
        assert len(set(taken)) == 9 and set(taken) <= set(range(11))
    # The third pass has only begun; every pass is shuffled anew.
    assert len(set(chosen[6])) == 3
    assert sorted(chosen[:3].ravel()) != list(chosen[:3].ravel())
    assert (chosen[:3] != chosen[3:6]).any()


def test_one_minibatch_holds_all_items_and_no_update_takes_any():
    assert sorted(np.asarray(random_minibatches(KEY, 5, minibatches=1, updates=1))[0]) == [0, 1, 2, 3, 4]
    assert random_minibatches(KEY, 5, minibatches=2, updates=0).shape == (0, 2)


def test_items_are_taken_along_their_axis_and_all_of_them_as_they_are():
    tree = {"a": jnp.arange(6).reshape(2, 3), "b": jnp.arange(12).reshape(2, 3, 2)}
    taken = take_items(tree, jnp.array([2, 0]), axis=1)
    np.testing.assert_array_equal(taken["a"], [[2, 0], [5, 3]])
    np.testing.assert_array_equal(taken["b"][:, 0], tree["b"][:, 2])
    assert take_items(tree, jnp.array([2, 0, 1]), axis=1) is tree


def test_a_fit_is_one_optimiser_step_per_draw_and_its_metrics_are_means():
    data, rate = jnp.array([1.0, 2.0, 4.0, 8.0]), 0.25

    def loss(params, values, key):
        noise = jax.random.normal(key)
        return jnp.mean(jnp.square(params["x"] - values)) + 0.0 * noise, {"seen": jnp.sum(values), "noise": noise}

    draws = jnp.array([[0, 1], [3, 2], [1, 1]]), jax.random.split(KEY, 3)
    optimiser = optax.sgd(rate)
    params = {"x": jnp.zeros(())}
    found = fit(
        loss,
        optimiser,
        params,
        optimiser.init(params),
        draws,
        lambda draw: (take_items(data, draw[0], axis=0), draw[1]),
        after_step=lambda params: {"x": params["x"] + 1.0},
    )
    x = 0.0
    for values in ([1.0, 2.0], [8.0, 4.0], [2.0, 2.0]):
        x = x - rate * 2 * (x - np.mean(values)) + 1.0
    np.testing.assert_allclose(found.params["x"], x, rtol=1e-6)
    np.testing.assert_allclose(found.metrics["seen"], (3.0 + 12.0 + 4.0) / 3)
    expected = np.mean([jax.random.normal(key) for key in draws[1]])
    np.testing.assert_allclose(found.metrics["noise"], expected, rtol=1e-5)


def test_an_adversary_ascends_what_the_others_descend():
    # x * y with the saddle point 0: x goes down the slope, y goes up.
    optimiser = optax.partition(
        {"down": optax.sgd(0.1), "up": optax.chain(optax.scale(-1.0), optax.sgd(0.1))}, {"x": "down", "y": "up"}
    )
    params = {"x": jnp.float32(2.0), "y": jnp.float32(3.0)}
    found = fit(
        lambda params: (params["x"] * params["y"], {}),
        optimiser,
        params,
        optimiser.init(params),
        jnp.zeros((1, 0)),
        lambda draw: (),
    )
    np.testing.assert_allclose([found.params["x"], found.params["y"]], [2.0 - 0.3, 3.0 + 0.2], rtol=1e-6)


def test_without_a_draw_nothing_changes_and_the_metrics_are_zero():
    optimiser = optax.adam(1.0)
    params = jnp.ones(2)
    state = optimiser.init(params)
    found = fit(
        lambda params, item: (jnp.sum(params * item), {"loss": jnp.sum(params)}),
        optimiser,
        params,
        state,
        jnp.zeros((0, 2)),
        lambda draw: (draw,),
    )
    np.testing.assert_array_equal(found.params, params)
    assert found.metrics == {"loss": 0.0}
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), found.optimiser, state))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"updates": -1, "minibatches": 1}, r"rnd: updates=-1: expected at least 0"),
        ({"updates": 1, "minibatches": 0}, r"rnd: minibatches=0: expected from 1 to the 20 steps of an update"),
        ({"updates": 1, "minibatches": 21}, r"rnd: minibatches=21: expected from 1 to the 20 steps of an update"),
    ],
)
def test_counts_that_leave_nothing_to_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_fit("rnd", items=20, unit="steps", **arguments)
