"""Which data an agent may declare that it learns from."""

import pytest

from agents.base import DataSpec


@pytest.mark.parametrize("name", ["length", "batch", "group_size"])
def test_a_size_below_one_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0: expected at least 1"):
        DataSpec(**({"kind": "episodes", "length": 2, "batch": 2, "group_size": 1} | {name: 0}))


def test_an_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown kind 'episode', did you mean 'episodes'"):
        DataSpec("episode", 2, 2)


@pytest.mark.parametrize(("batch", "nearest"), [(15, 16), (17, 16), (3, 8), (12, 16), (11, 8)])
def test_a_batch_that_cannot_be_cut_into_groups_is_refused_with_the_nearest(batch, nearest):
    with pytest.raises(ValueError, match=f"batch={batch} is not a multiple of group_size=8: .*: {nearest}$"):
        DataSpec("episodes", 2, batch, 8)
