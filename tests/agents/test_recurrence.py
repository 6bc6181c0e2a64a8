"""The recurrent cell against its formula."""

import jax
import numpy as np

from agents.recurrence import gated_recurrence

KEY = jax.random.key(0)


def test_a_gated_recurrence_equals_its_formula():
    cell = gated_recurrence(3, 4)
    params = jax.tree.map(lambda x: x + 0.1, cell.init(KEY))
    carry, inputs = jax.random.normal(jax.random.key(1), (2, 4)), jax.random.normal(jax.random.key(2), (2, 3))
    found = cell.step(params, carry, cell.project(params, inputs))
    # The same numbers in flax's cell, which keeps its six matrices separately.
    reset, update, candidate = np.split(np.asarray(inputs @ params["input"] + params["input_bias"]), 3, axis=-1)
    h_reset, h_update, h_candidate = np.split(np.asarray(carry @ params["recurrent"]), 3, axis=-1)
    reset, update = 1 / (1 + np.exp(-reset - h_reset)), 1 / (1 + np.exp(-update - h_update))
    candidate = np.tanh(candidate + reset * (h_candidate + 0.1))
    np.testing.assert_allclose(found, (1 - update) * candidate + update * np.asarray(carry), rtol=1e-5)
    for gate in np.split(np.asarray(cell.init(KEY)["recurrent"]), 3, axis=-1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(4), atol=1e-4)
