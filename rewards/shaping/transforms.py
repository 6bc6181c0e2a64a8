"""Plain changes of one channel (scale, clip, normalise by running statistics), and which groups to learn from."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from agents.base import DataSpec
from agents.statistics import from_groups, to_groups
from envs.base import Trajectory
from rewards.base import RewardTransform, stateless
from rewards.moments import merge_moments, no_moments


def _channel(trajectory: Trajectory, channel: str) -> jax.Array:
    if channel not in trajectory.rewards:
        raise KeyError(f"no reward channel {channel!r}; the trajectory has {sorted(trajectory.rewards)}")
    return trajectory.rewards[channel]


def _write(trajectory: Trajectory, channel: str, value: jax.Array) -> Trajectory:
    return trajectory._replace(rewards=trajectory.rewards | {channel: value})


def scale(channel: str = "env", *, factor: float) -> RewardTransform:
    """``r <- factor * r``."""
    return stateless(lambda trajectory: _write(trajectory, channel, factor * _channel(trajectory, channel)))


def clip(channel: str = "env", *, low: float = -1.0, high: float = 1.0) -> RewardTransform:
    """``r <- clip(r, low, high)`` (Mnih et al., 2015, methods: rewards to [-1, 1]).

    Raises:
      ValueError: unless ``low < high``.
    """
    if not low < high:
        raise ValueError(f"clip: low={low}, high={high}: expected low < high")
    return stateless(lambda trajectory: _write(trajectory, channel, jnp.clip(_channel(trajectory, channel), low, high)))


def normalise(
    channel: str = "env", *, centred: bool = False, minimum_std: float = 1e-4, limit: float | None = 10.0
) -> RewardTransform:
    """``r <- clip(m (r - mean) / max(std, minimum_std), -limit, limit)`` with running moments of all valid steps seen.

    Without ``centred`` the mean stays: taking it away would pay for longer episodes where it is negative. The floor
    ``minimum_std`` keeps a channel that is nearly 0 everywhere from being blown up to unit scale. Moments are
    merged batch by batch (Chan, Golub and LeVeque, 1979).
    """

    def init_fn(key, **extra):
        del key, extra
        return no_moments()

    def apply_fn(state, trajectory, **extra):
        del extra
        rewards = _channel(trajectory, channel)
        shifted = rewards - state.mean if centred else rewards
        value = shifted / jnp.maximum(state.std, minimum_std) * trajectory.mask
        if limit is not None:
            value = jnp.clip(value, -limit, limit)
        return _write(trajectory, channel, value), {"std": state.std, "mean": state.mean}

    def update_fn(state, trajectory, key, **extra):
        del key, extra
        return merge_moments(state, _channel(trajectory, channel), trajectory.mask), {}

    return RewardTransform(init_fn, apply_fn, update_fn)


def group_filter(
    *, data: DataSpec, channel: str = "env", low: float = 0.2, high: float = 0.8, outcome_threshold: float = 0.0
) -> RewardTransform:
    """Masks every group whose share of positive rollouts is not in ``[low, high]``.

    ``m_it <- m_it [low <= mean_j [R_j > outcome_threshold] <= high]`` with ``R_j`` the return of rollout j of the
    group: the online prompt filter of PRIME (Cui et al., 2025, section 3.4), which leaves out what is too hard and what
    is solved. What stands after it in the chain, and the agent, learn from the kept groups alone. The paper samples
    until a quota is filled; here the batch shrinks, and the steps of the others still count as environment steps.

    Raises:
      ValueError: data without groups, or unless ``0 <= low <= high <= 1``.
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
        returns = jnp.sum(_channel(trajectory, channel) * trajectory.mask, axis=0)
        positive = to_groups((returns > outcome_threshold).astype(jnp.float32), data.group_size)
        share = jnp.mean(positive, axis=-1, keepdims=True)
        # Shares are multiples of 1 / N: the tolerance only keeps rounding from deciding at the bounds.
        keep = ((share >= low - 1e-6) & (share <= high + 1e-6)).astype(jnp.float32)
        mask = trajectory.mask * from_groups(jnp.broadcast_to(keep, positive.shape))
        return trajectory._replace(mask=mask), {"kept_groups": jnp.mean(keep)}

    def update_fn(state, trajectory, key, **extra):
        del trajectory, key, extra
        return state, {}

    return RewardTransform(init_fn, apply_fn, update_fn)
