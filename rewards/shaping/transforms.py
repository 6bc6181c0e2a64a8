"""Changes of one channel (scale, clip, normalise by running statistics), and a filter of the groups to learn from."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from agents.base import DataSpec
from agents.channels import read_channel
from agents.moments import SMALLEST_STD, Moments, merge_moments, no_moments
from agents.state import fields
from agents.statistics import from_groups, to_groups
from envs.base import Trajectory
from rewards.base import RewardTransform, stateless, write_channel
from rewards.moments import discounted_sums, episode_starts


def scale(channel: str = "env", *, factor: float) -> RewardTransform:
    """Multiplies a channel: ``r <- factor * r``, ``[T, B]``.

    Use it to bring a reward to the units of another one; the weight of an entry of the credit scales its advantage
    instead.

    Raises:
      ValueError: when applied, if the trajectory has no such channel.
    """

    def relabel(trajectory: Trajectory) -> Trajectory:
        return write_channel(trajectory, channel, factor * read_channel(trajectory, channel, "scale"))

    return stateless(relabel)


def clip(channel: str = "env", *, low: float = -1.0, high: float = 1.0) -> RewardTransform:
    """Clips a channel: ``r <- clip(r, low, high)``, ``[T, B]`` (Mnih et al., 2015, methods: rewards to [-1, 1]).

    Use it where rewards of very different size should count alike; it changes which policy is optimal.

    Raises:
      ValueError: unless ``low < high``; when applied, if the trajectory has no such channel.
    """
    if not low < high:
        raise ValueError(f"clip: low={low}, high={high}: expected low < high")

    def relabel(trajectory: Trajectory) -> Trajectory:
        return write_channel(trajectory, channel, jnp.clip(read_channel(trajectory, channel, "clip"), low, high))

    return stateless(relabel)


def normalise(
    channel: str = "env", *, centred: bool = False, minimum_std: float = 1e-4, limit: float | None = 10.0
) -> RewardTransform:
    """Divides a channel by its running standard deviation.

        r <- clip(mask * (r - mean) / max(std, minimum_std), -limit, limit)

    ``mean`` and ``std`` are moments of all valid steps seen so far, merged batch by batch (Chan, Golub and LeVeque,
    1979). ``mean`` is subtracted only if ``centred``: subtracting a negative mean would pay for every step and thus for
    longer episodes. Use it for a channel whose size is unknown or drifts, such as a learned reward.

    Args:
      channel: the channel that is rewritten, ``[T, B]``.
      centred: subtract the mean.
      minimum_std: keeps a channel that is nearly 0 everywhere from being scaled up to unit size.
      limit: the largest absolute value, in standard deviations; ``None`` for no limit.

    Raises:
      ValueError: when applied, if the trajectory has no such channel.
    """

    def init_fn(key, **extra):
        del key, extra
        return no_moments()

    def apply_fn(state, trajectory, **extra):
        del extra
        rewards = read_channel(trajectory, channel, "normalise")
        shifted = rewards - state.mean if centred else rewards
        value = shifted / jnp.maximum(state.std, minimum_std) * trajectory.mask
        if limit is not None:
            value = jnp.clip(value, -limit, limit)
        return write_channel(trajectory, channel, value), {"std": state.std, "mean": state.mean}

    def update_fn(state, trajectory, key, **extra):
        del key, extra
        return merge_moments(state, read_channel(trajectory, channel, "normalise"), trajectory.mask), {}

    return RewardTransform(init_fn, apply_fn, update_fn)


class ReturnScaleState(NamedTuple):
    """State of ``normalise_by_return``.

    Attributes:
      returns: moments of the discounted return up to every step seen.
      running: that return of each environment up to its last step, ``[B]``.
    """

    returns: Moments
    running: jax.Array


def normalise_by_return(
    channel: str = "env",
    *,
    data: DataSpec,
    discount: float = 0.99,
    minimum_std: float = SMALLEST_STD,
    limit: float | None = 10.0,
) -> RewardTransform:
    """Divides a channel by the running standard deviation of its discounted return.

        r   <- clip(r / max(std(R), minimum_std), -limit, limit)
        R_t = discount * R_{t-1} + r_t, from 0 in every episode

    ``std`` is that of all ``R_t`` of valid steps seen so far, merged batch by batch (Chan, Golub and LeVeque, 1979). It
    is the reward scaling of the PPO implementations (Engstrom et al., 2020, "Implementation matters in deep policy
    gradients", section 3), which brings the critic's targets to about unit size whatever the rewards are; the sign of a
    reward stays. ``normalise`` divides by the standard deviation of single rewards instead, after which returns are
    larger the longer episodes are.

    Args:
      channel: the channel that is rewritten, ``[T, B]``.
      data: the rollouts, ``[T, B]`` per update.
      discount: of the return, per step; best that of the credit.
      minimum_std: keeps a channel that is nearly 0 everywhere from being scaled up to unit size.
      limit: the largest absolute value of a reward after the division; ``None`` for no limit.

    Raises:
      ValueError: when applied, if the trajectory has no such channel.
    """

    def init_fn(key, **extra):
        del key, extra
        return ReturnScaleState(no_moments(), jnp.zeros(data.batch))

    def apply_fn(state, trajectory, **extra):
        del extra
        std = jnp.maximum(state.returns.std, minimum_std)
        value = read_channel(trajectory, channel, "normalise_by_return") / std * trajectory.mask
        if limit is not None:
            value = jnp.clip(value, -limit, limit)
        return write_channel(trajectory, channel, value), {"return_std": state.returns.std}

    def update_fn(state, trajectory, key, **extra):
        del key, extra
        rewards = read_channel(trajectory, channel, "normalise_by_return")
        sums = discounted_sums(rewards, state.running, trajectory.mask, discount, episode_starts(trajectory))
        return ReturnScaleState(merge_moments(state.returns, sums, trajectory.mask), sums[-1]), {}

    return RewardTransform(init_fn, apply_fn, update_fn, remembered=fields("running"))


def group_filter(
    *, data: DataSpec, channel: str = "env", low: float = 0.2, high: float = 0.8, outcome_threshold: float = 0.0
) -> RewardTransform:
    """Masks every group of rollouts whose share of positive rollouts is not in ``[low, high]``.

        mask <- mask * [low <= mean_j [R_j > outcome_threshold] <= high]

    ``R_j`` is the undiscounted return of rollout ``j`` of the group in ``channel``. This is the online prompt filter of
    PRIME (Cui et al., 2025, section 3.4): groups that are too hard or already solved are left out. The transforms
    after it in the chain and the agent learn from the remaining groups alone. The paper samples until a quota is
    filled; here the batch shrinks, and the masked steps still count as environment steps.

    Use it with group baselines, which learn nothing from a group whose rollouts all have the same outcome.

    Args:
      data: must be episodes in groups.
      channel: the channel that the returns are of.
      low, high: bounds of the share, both inclusive.
      outcome_threshold: a rollout is positive if its return exceeds this.

    Raises:
      ValueError: data without groups, or unless ``0 <= low <= high <= 1``; when applied, if the trajectory has no such
        channel.
    """
    if data.kind != "episodes" or data.group_size < 2:
        raise ValueError(
            f"group_filter compares rollouts of one start state: got data.kind={data.kind!r} with "
            f"group_size={data.group_size}, expected 'episodes' with group_size >= 2"
        )
    if not 0 <= low <= high <= 1:
        raise ValueError(f"group_filter: low={low}, high={high}: expected 0 <= low <= high <= 1")

    def init_fn(key, **extra):
        del key, extra
        return ()

    def apply_fn(state, trajectory, **extra):
        del state, extra
        returns = jnp.sum(read_channel(trajectory, channel, "group_filter") * trajectory.mask, axis=0)
        positive = to_groups((returns > outcome_threshold).astype(jnp.float32), data.group_size)
        share = jnp.mean(positive, axis=-1, keepdims=True)
        # Shares are multiples of 1 / N: the tolerance keeps rounding from deciding about a share at a bound.
        keep = ((share >= low - 1e-6) & (share <= high + 1e-6)).astype(jnp.float32)
        mask = trajectory.mask * from_groups(jnp.broadcast_to(keep, positive.shape))
        return trajectory._replace(mask=mask), {"kept_groups": jnp.mean(keep)}

    def update_fn(state, trajectory, key, **extra):
        del trajectory, key, extra
        return state, {}

    return RewardTransform(init_fn, apply_fn, update_fn)
