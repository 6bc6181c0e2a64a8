"""Results ``[T, B]`` as columns of unequal length, without their padding."""

import numpy as np


def columns_of(result, like):
    """The valid part of every column; everything else must be exactly 0."""
    result = np.asarray(result)
    for b, column in enumerate(like):
        assert not result[len(column) :, b].any()
    return [result[: len(column), b] for b, column in enumerate(like)]


def assert_columns(result, expected, rtol=1e-5):
    for got, column in zip(columns_of(result, expected), expected, strict=True):
        np.testing.assert_allclose(got, column, rtol=rtol, atol=1e-7)
