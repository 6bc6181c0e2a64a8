"""What a network is: pure functions over plain parameter pytrees, called time-major."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax

from envs.base import PyTree


@dataclass(frozen=True)
class Head:
    """A linear output.

    Attributes:
      size: numbers per step.
      scale: gain of the initial weights.
      num_free: how many of the last numbers are free parameters, which do not depend on the observation.
    """

    size: int
    scale: float = 1.0
    num_free: int = 0


class Network(NamedTuple):
    """A network as pure functions.

    Attributes:
      init: ``(key) -> params``.
      apply: ``(params, observation [T, B, ...], carry [B, ...], episode_start [T, B] or None)
        -> (outputs, carry)`` with ``outputs`` a dictionary of ``[T, B, size]`` by head. The carry is set to
        its initial value before every step whose ``episode_start`` is set.
      initial_carry: ``(batch) -> carry``; ``()`` for a feed-forward network.
      recurrent: whether there is a carry.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[..., tuple[dict[str, jax.Array], PyTree]]
    initial_carry: Callable[[int], PyTree]
    recurrent: bool
