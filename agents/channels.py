"""Reading named reward channels and credit weights from a trajectory, checked while a program is traced.

Without these checks an array ``[B]`` would broadcast against ``[T, B]`` and train on wrong numbers without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

from envs.base import Trajectory
from envs.choices import unknown


class ChannelError(ValueError):
    """An array that should hold one number per step of a trajectory, ``[T, B]``, and has another shape."""


def require_step_shape(what: str, array: jax.Array, trajectory: Trajectory) -> None:
    """Refuses an ``array`` that does not hold one number per step of ``trajectory``, ``[T, B]``.

    Raises:
      ChannelError: ``what`` (a description of the array), its shape, and the shape expected.
    """
    if jnp.shape(array) != trajectory.mask.shape:
        raise ChannelError(f"{what} has shape {jnp.shape(array)}: expected [T, B] = {trajectory.mask.shape}")


def channel_weights(channels: Mapping[str, float] | None) -> dict[str, float]:
    """The weight of each channel in a reward that sums ``channels``; the environment's alone where it is ``None``.

    >>> channel_weights(None)
    {'env': 1.0}
    >>> channel_weights({"env": 1.0, "cost/energy": -0.1})
    {'env': 1.0, 'cost/energy': -0.1}
    """
    return {"env": 1.0} if channels is None else dict(channels)


def read_channel(trajectory: Trajectory, channel: str, reader: str) -> jax.Array:
    """The rewards ``[T, B]`` of ``channel``; ``reader``, such as ``"credit 'env'"``, is named in errors.

    Raises:
      ValueError: the trajectory does not carry the channel, or carries it in another shape than ``[T, B]``.
    """
    if channel not in trajectory.rewards:
        raise ValueError(unknown("reward channel", channel, sorted(trajectory.rewards), f"in {reader}"))
    rewards = trajectory.rewards[channel]
    require_step_shape(f"the reward channel {channel!r}, read by {reader},", rewards, trajectory)
    return rewards


def credit_weights(trajectory: Trajectory, entries: Iterable[str]) -> dict[str, jax.Array]:
    """The learned weights ``[T, B]`` in ``extras["credit_weight"]``, by the name of the entry that they multiply.

    An entry without one has weight 1. Reward transforms and multipliers write these weights.

    Raises:
      ValueError: a weight whose name is not in ``entries``, or whose shape is not ``[T, B]``.
    """
    weights = trajectory.extras.get("credit_weight", {})
    known = tuple(entries)
    for name, weight in weights.items():
        if name not in known:
            raise ValueError(unknown("credit entry", name, known, 'in extras["credit_weight"]'))
        require_step_shape(f"the credit weight of {name!r}", weight, trajectory)
    return weights


def violations(trajectory: Trajectory, entry: str) -> jax.Array:
    """How far the total of a credit entry's channel is above its limit, per step of an episode, ``[]``.

    ``extras["violation"]`` holds it by the name of the entry, the same number in every step.

    Raises:
      ValueError: the trajectory does not carry it, or in another shape than ``[T, B]``.
    """
    found = trajectory.extras.get("violation", {})
    if entry not in found:
        raise ValueError(unknown("violation", entry, found, "of a constraint 'at_most'"))
    require_step_shape(f"the violation of {entry!r}", found[entry], trajectory)
    return found[entry][0, 0]
