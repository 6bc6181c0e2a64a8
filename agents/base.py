"""The agent: a named tuple of pure functions, and what it wants to be fed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from envs.base import PyTree
from envs.choices import require_known

Kind = Literal["unroll", "episodes", "replay"]


@dataclass(frozen=True)
class DataSpec:
    """The data an agent learns from; static.

    Attributes:
      kind: ``unroll``: ``length`` steps of ``batch`` auto-resetting environments; ``episodes``: whole episodes of at
        most ``length`` steps, ``batch`` of them in groups of ``group_size`` rollouts of one start state,
        neighbours in the batch axis, masked after the end; ``replay``: unrolls kept in a buffer.
      length: ``T``.
      batch: ``B``.
      group_size: ``N``; 1 where there are no groups.
    """

    kind: Kind
    length: int
    batch: int
    group_size: int = 1

    def __post_init__(self):
        require_known("kind", self.kind, get_args(Kind))
        for name in ("length", "batch", "group_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.batch % self.group_size:
            near = self.group_size * max(1, (2 * self.batch + self.group_size) // (2 * self.group_size))
            raise ValueError(
                f"batch={self.batch} is not a multiple of group_size={self.group_size}: "
                f"the nearest batch that is: {near}"
            )


class Agent(NamedTuple):
    """A pure-functional agent. The factory takes the ``EnvironmentSpec`` and plain keyword arguments.

    Attributes:
      init: ``(key) -> state``; the state has a field ``params``.
      initial_carry: ``(batch) -> carry``, the recurrent state at an episode's start; ``()`` if there is none.
      act: ``(params, carry, observation [B, ...], key, *, greedy=False, action=None) -> (action [B, ...], carry,
        extras)``. A given ``action`` is not drawn but described: ``extras`` are those of having taken it.
      update: ``(state, trajectory [T, B, ...], key) -> (state, metrics)``. With data of kind ``replay`` the trajectory
        is raw, the state has a field ``replay``, and ``relabel=`` is given: the reward chain for sampled data,
        ``trajectory -> trajectory``.
      data: what ``update`` wants to be fed.
    """

    init: Callable[..., PyTree]
    initial_carry: Callable[[int], PyTree]
    act: Callable[..., tuple[PyTree, PyTree, dict[str, Any]]]
    update: Callable[..., tuple[PyTree, dict[str, Any]]]
    data: DataSpec
