"""Masked statistics against NumPy's on the valid entries."""

import jax.numpy as jnp
import numpy as np

from agents.statistics import masked_mean, masked_std, whiten


def test_masked_statistics_are_those_of_the_valid_part():
    rng = np.random.default_rng(0)
    x, mask = rng.normal(3, 2, (6, 4)).astype(np.float32), (rng.random((6, 4)) < 0.6).astype(np.float32)
    valid = x[mask > 0]
    np.testing.assert_allclose(masked_mean(x, mask), valid.mean(), rtol=1e-5)
    np.testing.assert_allclose(masked_std(x, mask), valid.std(ddof=1), rtol=1e-5)
    np.testing.assert_allclose(masked_std(x, mask, ddof=0), valid.std(), rtol=1e-5)
    np.testing.assert_allclose(masked_std(x, mask, 0), [x[mask[:, b] > 0, b].std(ddof=1) for b in range(4)], rtol=1e-5)
    white = np.asarray(whiten(x, mask))
    np.testing.assert_allclose(white[mask > 0], (valid - valid.mean()) / np.sqrt(valid.var() + 1e-8), rtol=1e-4)
    assert not white[mask == 0].any()


def test_masked_statistics_of_nothing_are_zero():
    x, mask = jnp.ones((3, 2)), jnp.zeros((3, 2))
    assert masked_mean(x, mask) == 0 and masked_std(x, mask) == 0 and not whiten(x, mask).any()
