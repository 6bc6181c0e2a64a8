"""Equal observations have equal hashes, and others do not."""

import jax
import numpy as np

from agents.observation_hash import observation_hash


def test_observation_hash_is_equal_where_observations_are():
    rng = np.random.default_rng(4)
    observation = {
        "map": rng.integers(0, 2, (40, 20, 3)).astype(np.int32),
        "flag": rng.integers(0, 2, (40, 20)).astype(bool),
        "speed": rng.choice([-0.0, 0.0, 0.5], (40, 20, 1)).astype(np.float32),
    }
    first, second = (np.asarray(x).reshape(-1) for x in jax.jit(observation_hash)(observation))
    flat = np.concatenate([x.reshape(800, -1).astype(np.float64) for x in observation.values()], axis=1)
    same = (flat[:, None] == flat[None]).all(-1)
    assert 800 < same.sum() < 800**2
    np.testing.assert_array_equal((first[:, None] == first) & (second[:, None] == second), same)


def test_observation_hash_tells_positions_and_small_changes_apart():
    rng = np.random.default_rng(5)
    base = rng.normal(size=16).astype(np.float32)
    rows = [base, *(rng.permutation(base) for _ in range(500))]
    for index in range(16):
        changed = base.copy()
        changed[index] = np.nextafter(changed[index], np.inf)
        rows.append(changed)
    rows += list(np.eye(16, dtype=np.float32)) + list(2 * np.eye(16, dtype=np.float32))
    first, second = (np.asarray(x) for x in observation_hash(np.stack(rows)[:, None]))
    distinct = len(np.unique(np.stack(rows), axis=0))
    assert len(set(zip(first[:, 0].tolist(), second[:, 0].tolist(), strict=True))) == distinct
