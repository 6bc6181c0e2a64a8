"""Parts of the data: every item once per pass, equal parts, what is refused."""

import jax
import numpy as np
import pytest

from rewards.fitting import check_fit, random_parts


def test_a_pass_takes_every_item_once_and_leaves_over_fewer_than_there_are_parts():
    chosen = np.asarray(random_parts(jax.random.key(0), 11, parts=3, updates=7))
    assert chosen.shape == (7, 3)
    for first in (0, 3):
        taken = chosen[first : first + 3].ravel()
        assert len(set(taken)) == 9 and set(taken) <= set(range(11))
    # The third pass was begun only; each is shuffled anew.
    assert len(set(chosen[6])) == 3
    assert sorted(chosen[:3].ravel()) != list(chosen[:3].ravel())
    assert (chosen[:3] != chosen[3:6]).any()


def test_one_part_is_all_and_no_update_takes_nothing():
    assert sorted(np.asarray(random_parts(jax.random.key(1), 5, parts=1, updates=1))[0]) == [0, 1, 2, 3, 4]
    assert random_parts(jax.random.key(1), 5, parts=2, updates=0).shape == (0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"updates": -1, "parts": 1}, r"rnd: updates=-1: expected at least 0"),
        ({"updates": 1, "parts": 0}, r"rnd: parts=0: expected from 1 to the 20 steps of an update"),
        ({"updates": 1, "parts": 21}, r"rnd: parts=21: expected from 1 to the 20 steps of an update"),
    ],
)
def test_a_fit_that_cannot_be_made_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_fit("rnd", items=20, unit="steps", **arguments)
