"""Hand-written trajectories for the tests of estimators and agents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.base import Transition


@pytest.fixture(scope="session")
def make_trajectory():
    """A factory: columns of rewards of unequal length, padded to ``[T, B]``; every column ends at its last step."""

    def make(columns, *, padding=0.0, truncated=(), observation=None, extras=None, **channels):
        length, batch = max(len(column) for column in columns), len(columns)
        mask, ends = np.zeros((length, batch), np.float32), np.zeros((length, batch), bool)
        for b, column in enumerate(columns):
            mask[: len(column), b] = 1
            ends[len(column) - 1, b] = True
        was_truncated = ends & np.isin(np.arange(batch), truncated)

        def fill(parts):
            values = np.full((length, batch), padding, np.float32)
            for b, part in enumerate(parts):
                values[: len(part), b] = part
            return jnp.asarray(values)

        observation = jnp.zeros((length, batch, 1)) if observation is None else observation
        return Transition(
            observation=observation,
            action=jnp.zeros((length, batch), jnp.int32),
            rewards={"env": fill(columns)} | {name: fill(parts) for name, parts in channels.items()},
            terminated=jnp.asarray(ends & ~was_truncated),
            truncated=jnp.asarray(was_truncated),
            next_observation=observation,
            mask=jnp.asarray(mask),
            extras=extras or {},
        )

    return make


@pytest.fixture(scope="session")
def products():
    """``products(function, *arguments)`` counts its matrix products, and those of them in full float32 precision."""

    def count(function, *arguments):
        lines = str(jax.jit(function).lower(*arguments).as_text()).splitlines()
        found = [line for line in lines if "dot_general" in line]
        return len(found), sum("precision = [HIGHEST, HIGHEST]" in line for line in found)

    return count
