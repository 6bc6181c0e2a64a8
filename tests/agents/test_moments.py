"""Running moments, compared with numpy."""

import jax.numpy as jnp
import numpy as np

from agents.moments import merge_moments, no_moments


def test_merged_moments_equal_those_of_all_valid_entries():
    rng = np.random.default_rng(0)
    moments, seen = no_moments((2, 3)), []
    for _ in range(3):
        values, mask = rng.normal(5.0, 2.0, (4, 5, 2, 3)).astype(np.float32), rng.random((4, 5)) < 0.6
        moments = merge_moments(moments, jnp.asarray(np.where(mask[..., None, None], values, 1e6)), jnp.asarray(mask))
        seen.append(values[mask])
    seen = np.concatenate(seen)
    assert moments.count == len(seen)
    np.testing.assert_allclose(moments.mean, seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.std, seen.std(0), rtol=1e-4)
