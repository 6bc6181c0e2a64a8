"""Parts of a state: what is taken out and put back, and arrays that stand in a state twice."""

import doctest
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from agents import state as module
from agents.state import NO_PART, by_name, fields, without_aliases


class State(NamedTuple):
    params: Any
    replay: Any
    steps: Any


@pytest.mark.parametrize(
    ("part", "state", "rest", "taken"),
    [
        (NO_PART, State(1, 2, 3), State(1, 2, 3), ()),
        (fields("replay"), State(1, 2, 3), State(1, (), 3), {"replay": 2}),
        (fields("params", "steps"), State(1, 2, 3), State((), 2, ()), {"params": 1, "steps": 3}),
        (
            by_name({"a": fields("replay"), "b": NO_PART}),
            {"a": State(1, 2, 3), "b": 4},
            {"a": State(1, (), 3), "b": 4},
            {"a": {"replay": 2}, "b": ()},
        ),
        (by_name({}), {}, {}, {}),
    ],
)
def test_a_part_is_taken_out_and_put_back(part, state, rest, taken):
    assert part.split(state) == (rest, taken)
    assert part.join(*part.split(state)) == state


def test_the_part_of_another_state_can_be_put_in():
    part = fields("replay")
    assert part.join(part.split(State(1, 2, 3))[0], part.split(State(4, 5, 6))[1]) == State(1, 5, 3)


@pytest.mark.parametrize("wrap", [jax.jit, lambda function: function])
def test_a_state_without_aliases_can_be_donated(wrap):
    def make(x):
        twice = x + 1.0
        return without_aliases(State({"w": twice}, twice, (x, twice)))

    state = wrap(make)(jnp.arange(3.0))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == 4
    donate = jax.jit(lambda tree: jax.tree.map(jnp.negative, tree), donate_argnums=0)
    found = donate(state)
    assert [leaf.tolist() for leaf in jax.tree.leaves(found)] == [[-1, -2, -3], [-1, -2, -3], [0, -1, -2], [-1, -2, -3]]


def test_the_examples_run():
    found = doctest.testmod(module)
    assert found.failed == 0 and found.attempted > 0
