"""Snapshots are JSON values and plain arrays, there and back, and refuse what they are not."""

import json

import jax
import numpy as np
import pytest

from envs.snapshots import Snapshot, SnapshotError, array_like, generator_from, generator_state, unwrap, wrap


def test_a_wrapped_snapshot_comes_back_in_its_parts():
    inside = Snapshot({"steps": 3}, {"stock": np.arange(3)}, b"pickled")
    whole = wrap(inside, {"clock": 5}, {"stock": np.zeros(2)})
    assert json.loads(json.dumps(whole.values)) == {"inside": {"steps": 3}, "own": {"clock": 5}}
    found, values, arrays = unwrap(whole)
    assert (found.values, found.pickled, values) == (inside.values, b"pickled", {"clock": 5})
    assert list(found.arrays) == list(arrays) == ["stock"]
    assert found.arrays["stock"].tolist() == [0, 1, 2] and arrays["stock"].tolist() == [0.0, 0.0]
    assert unwrap(wrap(None, {}, {})) == (None, {}, {})


@pytest.mark.parametrize("values", [{}, {"own": 3}, {"own": {}, "inside": [1]}])
def test_a_snapshot_that_was_not_wrapped_is_refused(values):
    with pytest.raises(SnapshotError, match="lacks the parts"):
        unwrap(Snapshot(values, {}))


def test_an_array_of_another_shape_or_type_is_refused():
    like = jax.ShapeDtypeStruct((2,), np.float32)
    assert array_like({"a": np.zeros(2, np.float32)}, "a", like).tolist() == [0, 0]
    for arrays, held in (({}, "nothing"), ({"a": np.zeros(2)}, r"float64\[2\]"), ({"a": np.zeros(3)}, r"float64\[3\]")):
        with pytest.raises(SnapshotError, match=rf"holds {held} as 'a', expected float32\[2\]"):
            array_like(arrays, "a", like)


def test_a_generator_goes_on_where_it_was():
    generator = np.random.default_rng(5)
    generator.random(3, np.float32)
    state = json.loads(json.dumps(generator_state(generator)))
    other = generator_from(state)
    assert other.random(9, np.float32).tolist() == generator.random(9, np.float32).tolist()


@pytest.mark.parametrize("state", [None, [], ["x", "1", 0, 0], ["1", "1", 0, "y"], ["f" * 40, "1", 0, 0], [1, 2, 3, 4]])
def test_an_invalid_generator_state_is_refused(state):
    with pytest.raises(SnapshotError, match="no state of a random generator"):
        generator_from(state)
