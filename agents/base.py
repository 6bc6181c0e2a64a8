"""The agent: a named tuple of pure functions, and the data it learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from agents.state import NO_PART, Part
from envs.base import PyTree
from envs.choices import require_known

Kind = Literal["unroll", "episodes", "replay"]


@dataclass(frozen=True)
class DataSpec:
    """The data an agent learns from; static.

    Attributes:
      kind: ``unroll``: ``length`` steps of ``batch`` environments that reset themselves; ``episodes``: ``batch`` whole
        episodes of at most ``length`` steps, masked after their end, in groups of ``group_size`` rollouts of one start
        state, which are neighbours in the batch axis; ``replay``: unrolls that the agent keeps in a buffer.
      length: ``T``, steps.
      batch: ``B``, environments or episodes.
      group_size: ``N``, rollouts per start state; 1 where there are no groups.

    Raises:
      ValueError: an unknown kind, a number below 1, or a ``batch`` that is not a multiple of ``group_size``.
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
    """A pure-functional agent. A factory takes an ``EnvironmentSpec`` and plain keyword arguments and returns one.

    Attributes:
      init: ``(key) -> state``; the state has a field ``params``.
      initial_carry: ``(batch) -> carry``, the recurrent state at the start of an episode; ``()`` if there is none.
      act: ``(params, carry, observation [B, ...], key, *, greedy=False, action=None) -> (action [B, ...], carry,
        extras)``. Where an ``action`` is given, none is drawn, and carry and extras are those of taking it.
      update: ``(state, trajectory [T, B, ...], key) -> (state, metrics)``. The metrics ``loss`` and ``gradient_norm``
        say whether the update was finite: the learn step undoes one that was not. With data of kind ``replay`` the
        trajectory holds raw rewards, and ``update`` also takes ``relabel=``, the reward chain as
        ``trajectory -> trajectory``, for sampled data.
      data: what ``update`` is to be called with.
      action_probabilities: ``(params, carry, observation [B, ...], *, greedy=False) -> [B, A]``, the distribution that
        ``act`` draws from, for whoever evaluates a policy exactly; ``None`` where actions are not Discrete.
      return_distribution: ``(params, observation [B, ...]) -> ReturnDistribution`` with particles ``[B, A, N]``, the
        predicted distribution of the return by action, in units of the environment's reward; ``None`` for an agent that
        predicts none.
      stored: the part of the state that is stored data, such as a replay buffer. A learner neither checks it for finite
        numbers nor copies it: where a step is undone, it keeps the new data.
    """

    init: Callable[..., PyTree]
    initial_carry: Callable[[int], PyTree]
    act: Callable[..., tuple[PyTree, PyTree, dict[str, Any]]]
    update: Callable[..., tuple[PyTree, dict[str, Any]]]
    data: DataSpec
    action_probabilities: Callable[..., Any] | None = None
    return_distribution: Callable[..., Any] | None = None
    stored: Part = NO_PART
