"""Space helpers on hand-written structures."""

import numpy as np
import pytest
from gymnasium import spaces

from envs.base import NonFiniteEnvironmentError, UnsupportedSpaceError
from envs.spaces import as_batch, check_finite, environment_seeds, from_indices, leaves, validate_supported

NESTED = spaces.Dict(
    {
        "map": spaces.Box(0, 255, (3, 2), np.uint8),
        "pair": spaces.Tuple((spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(5))),
    }
)


class Unheard(spaces.Space):
    """A kind of space that gymnasium does not define."""


def test_leaves_names_every_part_with_its_path():
    assert [(path, type(leaf).__name__) for path, leaf in leaves(NESTED)] == [
        ("['map']", "Box"),
        ("['pair'][0]", "Discrete"),
        ("['pair'][1]", "MultiDiscrete"),
        ("['pair'][2]", "MultiBinary"),
    ]
    assert leaves(spaces.Discrete(2)) == [("", spaces.Discrete(2))]


@pytest.mark.parametrize(
    "part",
    [
        spaces.Text(3),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Graph(spaces.Box(0, 1, (2,)), None),
        spaces.OneOf((spaces.Discrete(2), spaces.Discrete(3))),
    ],
    ids=lambda part: type(part).__name__,
)
def test_unsupported_part_is_named_with_its_path(part):
    with pytest.raises(UnsupportedSpaceError, match=rf"action space\['x'\]\[1\] is {type(part).__name__}: supported"):
        validate_supported(spaces.Dict({"x": spaces.Tuple((spaces.Discrete(2), part))}), "action")


@pytest.mark.parametrize(
    ("space", "nearest"),
    [(spaces.Text(3), r"Box\(0, 255"), (spaces.Sequence(spaces.Discrete(2)), "Box with room"), (Unheard(), None)],
    ids=["text", "sequence", "unknown"],
)
def test_a_refusal_names_the_nearest_space(space, nearest):
    with pytest.raises(UnsupportedSpaceError) as refused:
        validate_supported(space, "observation")
    assert ("; the nearest: " in str(refused.value)) == (nearest is not None)
    assert refused.match(nearest or "is Unheard: supported are Box, Discrete")


def test_supported_spaces_pass():
    validate_supported(NESTED, "observation")


def test_as_batch_has_the_types_of_the_space_and_refuses_other_shapes():
    space = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Tuple((spaces.Box(-1, 1, (2,), np.float32),))})
    batch = as_batch(space, {"a": [0, 2], "b": (np.zeros((2, 2), np.float64),)}, 2)
    assert batch["a"].dtype == np.int64 and batch["b"][0].dtype == np.float32
    with pytest.raises(ValueError, match=r"action has shape \(2, 3\), expected \(2, 2\) for Box"):
        as_batch(space, {"a": [0, 2], "b": (np.zeros((2, 3)),)}, 2)


def test_from_indices_adds_the_start_of_discrete_parts_only():
    space = spaces.Dict(
        {
            "a": spaces.Discrete(3, start=5),
            "b": spaces.Tuple((spaces.MultiDiscrete([2, 2], start=[1, -1]), spaces.Box(-1, 1, (1,)))),
        }
    )
    action = {"a": np.array([0, 2]), "b": (np.array([[0, 0], [1, 1]]), np.array([[0.5], [-0.5]], np.float32))}
    converted = from_indices(space, action)
    np.testing.assert_array_equal(converted["a"], [5, 7])
    np.testing.assert_array_equal(converted["b"][0], [[1, -1], [2, 0]])
    assert converted["b"][1] is action["b"][1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_check_finite_names_environment_step_part_and_value(value):
    batch = {"position": np.zeros((4, 3), np.float32), "count": np.zeros(4, np.int64)}
    check_finite("Environment-v0", 9, observation=batch, reward=np.zeros(4, np.float32))
    batch["position"][2, 1] = value
    with pytest.raises(
        NonFiniteEnvironmentError,
        match=rf"Environment-v0: environment 2, step 9: observation\['position'\]\[1\] is {value}",
    ):
        check_finite("Environment-v0", 9, observation=batch)


def test_environment_seeds():
    assert environment_seeds(7, 3) == [7, 8, 9]
    assert environment_seeds(np.int64(7), 2) == [7, 8]
    assert environment_seeds((4, 1), 2) == [4, 1]
    with pytest.raises(ValueError, match="got 3 seeds, expected 2"):
        environment_seeds([1, 2, 3], 2)
