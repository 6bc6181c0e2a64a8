"""What a step of an epoch gets to see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.minibatches import minibatch_epochs

KEY = jax.random.key(0)
LENGTH, WIDTH = 3, 4
BATCH = {
    "id": jnp.arange(LENGTH * WIDTH).reshape(LENGTH, WIDTH),
    "pair": jnp.stack([jnp.arange(LENGTH * WIDTH).reshape(LENGTH, WIDTH)] * 2, axis=-1),
}


def count(shape):
    """A step that counts how often it saw each item, checks its part's shape, and reports the part's first item."""

    def step(counts, part, carry):
        assert part["id"].shape == shape and part["pair"].shape == (*shape, 2)
        # The parts of a pytree stay together, and a column keeps its carry.
        split = jnp.any(part["pair"] != part["id"][..., None])
        if not isinstance(carry, tuple):
            split |= jnp.any(part["id"][0] != carry)
        return counts.at[part["id"]].add(1), {"first": part["id"][0, 0], "split": split}

    return step


@pytest.mark.parametrize(("whole_columns", "shape"), [(False, (1, 6)), (True, (3, 2))])
def test_every_epoch_takes_every_item_into_one_minibatch(whole_columns, shape):
    carry = jnp.arange(WIDTH) if whole_columns else ()
    arguments = {"epochs": 5, "minibatches": 2, "whole_columns": whole_columns}
    counts, metrics = minibatch_epochs(count(shape), jnp.zeros(12, int), BATCH, carry, KEY, **arguments)
    np.testing.assert_array_equal(counts, 5)
    assert not metrics["split"]
    # Shuffled: another key brings other items to the front.
    _, other = minibatch_epochs(count(shape), jnp.zeros(12, int), BATCH, carry, jax.random.key(1), **arguments)
    assert metrics["first"] != other["first"]


def test_one_minibatch_is_the_batch_as_it_is():
    def step(state, part, carry):
        assert carry == ()
        same = jnp.all(part["id"] == BATCH["id"])
        return state + 1, {"same": same, "state": state}

    state, metrics = minibatch_epochs(step, 0, BATCH, (), KEY, epochs=3, minibatches=1, whole_columns=False)
    assert state == 3 and metrics["same"] == 1
    # Metrics are means over all steps: 0, 1 and 2.
    assert metrics["state"] == 1
