"""Credit: how reward channels become one advantage.

``Credit`` names, per entry, a channel, an estimator and a weight. The advantage of a step is

    A = sum_k weight_k * credit_weight_k * A_k(channel_k),        optionally whitened over the batch,

where ``credit_weight_k`` is 1 unless a transform or a learned multiplier wrote one into the trajectory's
``extras["credit_weight"]``. Two entries may read the same channel (GiGPO does).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from agents.estimators import Context, Estimator
from agents.statistics import whiten
from envs.types import Trajectory

WHITENINGS = ("none", "batch", "minibatch")


class Entry(NamedTuple):
    """One line of a ``Credit``: which channel, which estimator, which weight."""

    channel: str
    estimator: Estimator
    weight: float | jax.Array = 1.0


class Credit(NamedTuple):
    """How channels become one advantage.

    Attributes:
      entries: by name; an entry's critic head has its name.
      whiten: ``none``, ``batch`` (masked mean 0 and deviation 1 over the batch, after mixing) or
        ``minibatch`` (the same, left to the learner).
    """

    entries: Mapping[str, Entry]
    whiten: str = "none"

    @property
    def critics(self) -> tuple[str, ...]:
        return tuple(name for name, entry in self.entries.items() if entry.estimator.critic)

    @property
    def grouped(self) -> bool:
        return any(entry.estimator.grouped for entry in self.entries.values())


def require_groups(credit: Credit, group_size: int) -> None:
    """Refuses groups that are too small for an entry's estimator to compare rollouts.

    Raises:
      ValueError: the entry, ``group_size``, and the smallest size that it needs.
    """
    for name, entry in credit.entries.items():
        least = entry.estimator.smallest_group
        if group_size < least:
            raise ValueError(
                f"credit {name!r} compares the rollouts of a group: group_size={group_size}, expected at least {least}"
            )


class Assigned(NamedTuple):
    """The mixed ``advantage`` ``[T, B]``, value targets by critic head, and each entry's own advantage."""

    advantage: jax.Array
    value_targets: dict[str, jax.Array]
    parts: dict[str, jax.Array]


def assign(
    credit: Credit,
    trajectory: Trajectory,
    group_size: int,
    values: Mapping[str, jax.Array],
    next_values: Mapping[str, jax.Array],
) -> Assigned:
    """Turns the channels of ``trajectory`` into one advantage.

    Args:
      credit: the entries.
      trajectory: ``[T, B]``.
      group_size: ``N``.
      values, next_values: by critic head, ``[T, B]``.

    Raises:
      KeyError: at trace time, if an entry names a channel that the trajectory does not carry.
      ValueError: at trace time, see ``require_groups``.
    """
    require_groups(credit, group_size)
    mixed, targets, parts = jnp.zeros_like(trajectory.mask), {}, {}
    learned = trajectory.extras.get("credit_weight", {})
    for name, entry in credit.entries.items():
        if entry.channel not in trajectory.rewards:
            raise KeyError(
                f"credit {name!r} reads the channel {entry.channel!r}; the trajectory has {sorted(trajectory.rewards)}"
            )
        context = Context(trajectory, group_size, values.get(name), next_values.get(name))
        estimate = entry.estimator.estimate(trajectory.rewards[entry.channel], context)
        parts[name] = estimate.advantage
        mixed += entry.weight * learned.get(entry.channel, 1.0) * estimate.advantage
        if estimate.value_target is not None:
            targets[name] = estimate.value_target
    if credit.whiten == "batch":
        mixed = whiten(mixed, trajectory.mask)
    return Assigned(mixed, targets, parts)
