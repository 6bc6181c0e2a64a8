"""Credit: how reward channels become one advantage.

``Credit`` names, per entry, a channel, an estimator and a weight. The advantage of a step is

    A = sum_k weight_k * credit_weight_k * A_k(channel_k),        optionally whitened over the batch,

where ``credit_weight_k`` is 1 unless a transform or a learned multiplier wrote one into the trajectory's
``extras["credit_weight"]`` under the name of entry ``k``. Two entries may read the same channel (GiGPO does).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from agents.channels import credit_weights, read_channel, require_step_shape
from agents.estimators import Context, Estimator
from agents.statistics import whiten
from envs.base import Trajectory

WHITENINGS = ("none", "batch", "minibatch", "entries")


class Entry(NamedTuple):
    """One line of a ``Credit``: which channel, which estimator, which weight."""

    channel: str
    estimator: Estimator
    weight: float | jax.Array = 1.0


class Credit(NamedTuple):
    """How channels become one advantage.

    Attributes:
      entries: by name. An entry whose estimator needs a critic gets a value head of its name, and
        ``extras["credit_weight"]`` names the entries that it weighs.
      whiten: ``none``, ``batch`` (the mixed advantage gets masked mean 0 and standard deviation 1 over the batch),
        ``minibatch`` (the learner does the same over every minibatch), or ``entries`` (every ``A_k`` gets them over the
        batch before it is mixed, so that weights and multipliers have no units; Moskovitz et al., 2024, section 4).
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
    """Turns the channels of ``trajectory`` into one advantage, by the equation at the head of this module.

    Args:
      credit: the entries.
      trajectory: ``[T, B]``; ``extras["credit_weight"]`` may hold a weight ``[T, B]`` by name of an entry.
      group_size: ``N``, rollouts per group; ``B`` is a multiple of it.
      values: by critic head, ``[T, B]``: the value of each observation.
      next_values: by critic head, ``[T, B]``: the value of the observation that followed, before any reset.

    Raises:
      ValueError: at trace time: an entry reads a channel that the trajectory does not carry; a channel, an estimator's
        advantage or a credit weight is not ``[T, B]``; a credit weight names no entry; groups are too small.
    """
    require_groups(credit, group_size)
    mixed, targets, parts = jnp.zeros_like(trajectory.mask), {}, {}
    learned = credit_weights(trajectory, credit.entries)
    for name, entry in credit.entries.items():
        rewards = read_channel(trajectory, entry.channel, f"credit {name!r}")
        context = Context(trajectory, group_size, values.get(name), next_values.get(name))
        estimate = entry.estimator.estimate(rewards, context)
        require_step_shape(f"the advantage of credit {name!r}", estimate.advantage, trajectory)
        advantage = estimate.advantage
        parts[name] = whiten(advantage, trajectory.mask) if credit.whiten == "entries" else advantage
        mixed += entry.weight * learned.get(name, 1.0) * parts[name]
        if estimate.value_target is not None:
            targets[name] = estimate.value_target
    if credit.whiten == "batch":
        mixed = whiten(mixed, trajectory.mask)
    return Assigned(mixed, targets, parts)
