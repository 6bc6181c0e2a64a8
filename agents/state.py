"""Parts of a state: what a learner has to know of a state whose fields it does not know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.base import PyTree


class Part(NamedTuple):
    """A part of a state that can be taken out and put back: ``join(*split(state)) == state``.

    Whoever owns a state declares its parts by these two functions, so that a learner that keeps, checks or undoes
    states looks for no field by its name.

    Attributes:
      split: ``(state) -> (rest, part)``; ``rest`` is the state with nothing in the place of the part.
      join: ``(rest, part) -> state``.
    """

    split: Callable[[PyTree], tuple[PyTree, PyTree]]
    join: Callable[[PyTree, PyTree], PyTree]


NO_PART = Part(lambda state: (state, ()), lambda rest, part: rest)
"""The part of a state that has no such part."""


def fields(*names: str) -> Part:
    """The fields ``names`` of a state that is a NamedTuple.

    >>> class State(NamedTuple):
    ...     params: Any
    ...     replay: Any
    >>> fields("replay").split(State(1, 2))
    (State(params=1, replay=()), {'replay': 2})
    """

    def split(state: Any) -> tuple[PyTree, PyTree]:
        return state._replace(**dict.fromkeys(names, ())), {name: getattr(state, name) for name in names}

    def join(rest: Any, part: Any) -> PyTree:
        return rest._replace(**part)

    return Part(split, join)


def by_name(parts: Mapping[str, Part]) -> Part:
    """The parts of a state that is a dictionary with the same keys as ``parts``, as one part."""

    def split(state: PyTree) -> tuple[PyTree, PyTree]:
        pairs = {name: part.split(state[name]) for name, part in parts.items()}
        return {name: rest for name, (rest, _) in pairs.items()}, {name: own for name, (_, own) in pairs.items()}

    def join(rest: PyTree, own: PyTree) -> PyTree:
        return {name: part.join(rest[name], own[name]) for name, part in parts.items()}

    return Part(split, join)


def without_aliases(state: PyTree) -> PyTree:
    """``state`` with a copy of every array that stands in it a second time.

    A learner donates its whole state to a compiled step, and one buffer cannot be donated twice. States may therefore
    begin with the same array in two places (a target network that starts as the online network), and whoever makes
    the first state of a run calls this once.
    """
    seen: set[int] = set()

    def once(leaf: Any) -> Any:
        if id(leaf) in seen:
            return jnp.copy(leaf)
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(once, state)
