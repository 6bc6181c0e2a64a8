"""The values after each step, put together from the next rows and a critic that is a table."""

import jax.numpy as jnp
import numpy as np
import pytest

from agents.bootstrap import boundaries, next_values, rows_at_a_time


@pytest.mark.parametrize(
    ("length", "limit", "whole_episodes", "rows"),
    [
        (20, None, True, 1),
        (20, None, False, 20),
        (20, 100, False, 2),  # the limit at one row at most, and the last row
        (20, 10, False, 3),
        (20, 19, False, 3),
        (20, 20, False, 2),
        (3, 1, False, 3),  # never more than there are
    ],
)
def test_how_many_boundaries_a_column_may_have(length, limit, whole_episodes, rows):
    assert rows_at_a_time(length, limit, whole_episodes=whole_episodes) == rows


def test_boundaries_are_truncations_and_the_last_row_of_an_unroll(make_trajectory):
    trajectory = make_trajectory([[1, 1, 1], [1, 1]], truncated=[1])
    np.testing.assert_array_equal(boundaries(trajectory, whole_episodes=True), [[0, 0], [0, 1], [0, 0]])
    np.testing.assert_array_equal(boundaries(trajectory, whole_episodes=False), [[0, 0], [0, 1], [1, 1]])


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_next_values_are_the_next_row_inside_and_evaluated_at_boundaries(rows):
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(size=(5, 4)).astype(np.float32), "b": rng.normal(size=(5, 4)).astype(np.float32)}
    # Columns with one, two, three and five boundaries.
    boundary = np.array([[0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]], bool)
    followed = {name: np.where(boundary, rng.normal(size=(5, 4)), np.nan).astype(np.float32) for name in values}

    def evaluate(index):
        tables = {name: jnp.asarray(table) for name, table in followed.items()}
        return tables if index is None else {n: jnp.take_along_axis(t, index, 0) for n, t in tables.items()}

    found = next_values(values, jnp.asarray(boundary), evaluate, rows=rows)
    for name, value in values.items():
        inside = np.concatenate([value[1:], value[:1]])
        np.testing.assert_array_equal(found[name], np.where(boundary, followed[name], inside))
