"""Advantage estimators: from one reward channel ``[T, B]`` to one advantage ``[T, B]``.

Group estimators take trajectories of whole episodes whose batch axis is ``[G, N]`` flattened: G start states, N
rollouts of each. In the docstrings ``i`` is a rollout of a group, ``t`` a step, ``m`` the mask and
``R_i = sum_t m_it r_it`` the outcome of rollout ``i``. ``ESTIMATORS`` lists what a configuration can name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from agents.observation_hash import observation_hash
from agents.returns import generalised_advantage, return_to_go
from agents.statistics import from_groups, masked_mean, masked_std, to_groups, whiten
from envs.base import Array, Trajectory
from envs.choices import require_known
from envs.kinds import Kind
from envs.ranges import SHARE

EPSILON = 1e-6
BASELINES = ("mean", "leave_one_out", "none")
SCALES = ("std", "none")


class Context(NamedTuple):
    """What an estimator may use besides its channel.

    Attributes:
      trajectory: ``[T, B]``.
      group_size: ``N``, rollouts per group; static.
      values, next_values: from the critic head of this entry, ``[T, B]``, or ``None`` without a critic.
    """

    trajectory: Trajectory
    group_size: int
    values: jax.Array | None
    next_values: jax.Array | None

    @property
    def mask(self) -> Array:
        return self.trajectory.mask

    @property
    def ends(self) -> Array:
        return self.trajectory.terminated | self.trajectory.truncated


class Estimate(NamedTuple):
    """``advantage`` ``[T, B]`` and, with a critic, the ``value_target`` ``[T, B]``."""

    advantage: jax.Array
    value_target: jax.Array | None = None


class Estimator(NamedTuple):
    """An advantage estimator.

    Attributes:
      estimate: ``(rewards [T, B], Context) -> Estimate``; rewards are zero where masked.
      critic: whether it needs a value head.
      grouped: whether it needs whole episodes (in groups, where it compares rollouts).
      smallest_group: the fewest rollouts per group it can compare; 1 where it compares none.
    """

    estimate: Callable[[jax.Array, Context], Estimate]
    critic: bool = False
    grouped: bool = False
    smallest_group: int = 1


def _require_choices(estimator: str, **choices: tuple[str, tuple[str, ...]]) -> None:
    for name, (value, known) in choices.items():
        require_known(name, value, known, f"of {estimator}")


def _shift_to_first(x: jax.Array, baseline: str, first: jax.Array) -> jax.Array:
    """``x - first`` with ``first`` the group's first member, unless there is no ``baseline``.

    A baseline that subtracts a mean removes the shift again; after it, a group of equal numbers is exactly 0.
    """
    return x if baseline == "none" else x - first


def _divide_by_std(x: jax.Array, std: jax.Array, magnitude: jax.Array) -> jax.Array:
    """``x / (std + 1e-6)``; 0 where ``std`` is only float32 rounding noise of numbers as large as ``magnitude``."""
    return jnp.where(std > EPSILON * magnitude, x / (std + EPSILON), 0.0)


def _subtract_baseline(x: jax.Array, baseline: str, count: int | jax.Array, mean: jax.Array) -> jax.Array:
    """``x - b`` with ``b`` the ``mean`` of ``count`` members, the mean of the others (``leave_one_out``) or 0.

    For leave-one-out, ``x - mean_others = count / (count - 1) * (x - mean)`` (Kool et al., 2019). A single member has
    no others and keeps ``x``.
    """
    if baseline == "none":
        return x
    if baseline == "mean":
        return x - mean
    return jnp.where(count > 1, count / jnp.maximum(count - 1, 1) * (x - mean), x)


def gae(discount: float = 0.99, gae_lambda: float = 0.95, *, episodic: bool = True) -> Estimator:
    """Generalised advantage estimation with a critic head; see ``agents.returns.generalised_advantage``.

    Use it for unrolls, and wherever a critic can be learned. With ``episodic=False`` neither ``terminated`` nor
    ``truncated`` cuts the recursion, so that value flows from one episode into the next (the non-episodic stream of
    Burda et al., 2019, section 2.3); intrinsic rewards use this. At the last row of an unroll, ``next_values`` stands
    in for the value of the next episode's first observation. For whole episodes, the value after the last step is that
    of the first padding row, and later padding rows add nothing.

    Args:
      discount: in [0, 1].
      gae_lambda: the lambda of Schulman et al. (2016), in [0, 1]: 0 is the one-step error, 1 the return less the value.
      episodic: whether episode ends cut the recursion.
    """

    def estimate(rewards, context):
        trajectory, values, next_values = context.trajectory, context.values, context.next_values
        if episodic:
            flags = trajectory.terminated, context.ends
            advantage = generalised_advantage(rewards, values, next_values, *flags, discount, gae_lambda)
        else:
            next_values = jnp.concatenate([values[1:], next_values[-1:]])
            # A padding row must add nothing to the steps before it.
            delta = jnp.where(context.mask > 0, rewards + discount * next_values - values, 0.0)
            advantage = return_to_go(delta, jnp.zeros_like(trajectory.terminated), discount * gae_lambda)
        advantage = advantage * context.mask
        return Estimate(advantage, advantage + values)

    return Estimator(estimate, critic=True)


def group_outcome(baseline: str = "mean", scale: str = "std") -> Estimator:
    """Every step gets its rollout's outcome relative to its group: ``A_it = (R_i - b_i) / s``.

    | baseline, scale | method |
    |---|---|
    | ``mean``, ``std`` | GRPO (Shao et al., 2024, section 4.1): standard deviation with ``ddof=1``, plus 1e-6 |
    | ``mean``, ``none`` | Dr.GRPO (Liu et al., 2025, section 3.2) |
    | ``leave_one_out``, ``none`` | RLOO (Ahmadian et al., 2024, equation 7) |

    Adding a constant to all outcomes of a group changes nothing, and a group of equal outcomes gets exactly 0. With
    ``baseline="none"`` and ``scale="none"`` a group may hold a single rollout, otherwise it needs at least two.

    Raises:
      ValueError: an unknown ``baseline`` or ``scale``.
    """
    _require_choices("group_outcome", baseline=(baseline, BASELINES), scale=(scale, SCALES))

    def estimate(rewards, context):
        outcome = to_groups(jnp.sum(rewards * context.mask, axis=0), context.group_size)
        shifted = _shift_to_first(outcome, baseline, outcome[..., :1])
        mean = jnp.mean(shifted, axis=-1, keepdims=True)
        advantage = _subtract_baseline(shifted, baseline, context.group_size, mean)
        if scale == "std":
            std = jnp.std(shifted, axis=-1, keepdims=True, ddof=1)
            advantage = _divide_by_std(advantage, std, jnp.max(jnp.abs(outcome), axis=-1, keepdims=True))
        return Estimate(from_groups(advantage) * context.mask)

    return Estimator(estimate, grouped=True, smallest_group=1 if baseline == scale == "none" else 2)


def group_steps(baseline: str = "mean", scale: str = "std", *, first_row_baseline: bool = False) -> Estimator:
    """A step's reward relative to all steps of all rollouts of its group: ``A_it = (r_it - mean) / (std + 1e-6)``.

    The step-level advantage of OPRL / iStar (Liu et al., 2025, "Agentic reinforcement learning with implicit step
    rewards"), with mean and standard deviation over every valid step of the group. ``leave_one_out`` leaves out the
    step itself. A group whose step rewards are all equal gets exactly 0.

    Args:
      baseline: ``mean``, ``leave_one_out`` or ``none``.
      scale: ``std`` or ``none``.
      first_row_baseline: take the statistics over the first step of every rollout only, as the released code does by
        removing duplicate rows. The mean over the steps of a group is then not zero.

    Raises:
      ValueError: an unknown ``baseline`` or ``scale``.
    """
    _require_choices("group_steps", baseline=(baseline, BASELINES), scale=(scale, SCALES))

    def estimate(rewards, context):
        r = to_groups(rewards, context.group_size)
        mask = to_groups(context.mask, context.group_size)
        over = mask.at[1:].set(0.0) if first_row_baseline else mask
        shifted = _shift_to_first(r, baseline, r[:1, :, :1])
        mean = masked_mean(shifted, over, (0, 2), True)
        advantage = _subtract_baseline(shifted, baseline, jnp.sum(over, (0, 2), keepdims=True), mean)
        if scale == "std":
            magnitude = jnp.max(jnp.abs(r) * mask, (0, 2), keepdims=True)
            advantage = _divide_by_std(advantage, masked_std(shifted, over, (0, 2), True), magnitude)
        return Estimate(from_groups(advantage) * context.mask)

    return Estimator(estimate, grouped=True)


def leave_one_out_return_to_go(discount: float = 1.0) -> Estimator:
    """Return-to-go of step rewards less the mean step reward of the group's other rollouts.

        A_it = sum_{s >= t} discount^(s - t) (r_is - mean_{j != i} rbar_j),    rbar_j the mean step reward of rollout j

    (PRIME, Cui et al., 2025, equation 5, read with the per-step mean that its equation 7 writes out.) Use it for
    process rewards, one per step, in groups of at least two rollouts.
    """

    def estimate(rewards, context):
        rbar = to_groups(masked_mean(rewards, context.mask, 0), context.group_size)
        others = (jnp.sum(rbar, -1, keepdims=True) - rbar) / (context.group_size - 1)
        centred = (rewards - from_groups(others)) * context.mask
        return Estimate(return_to_go(centred, context.ends, discount) * context.mask)

    return Estimator(estimate, grouped=True, smallest_group=2)


def whitened_return(discount: float = 1.0) -> Estimator:
    """Return-to-go, whitened over every valid step of the batch (REINFORCE++, Hu, 2025, section 3).

    Nothing is bootstrapped after the last row, so that the data must be whole episodes.
    """

    def estimate(rewards, context):
        returns = return_to_go(rewards * context.mask, context.ends, discount)
        return Estimate(whiten(returns, context.mask))

    return Estimator(estimate, grouped=True)


def plain_return(discount: float = 1.0) -> Estimator:
    """Return-to-go without a baseline (REINFORCE, Williams, 1992); like ``whitened_return``, for whole episodes."""

    def estimate(rewards, context):
        return Estimate(return_to_go(rewards * context.mask, context.ends, discount) * context.mask)

    return Estimator(estimate, grouped=True)


def other_steps() -> Estimator:
    """A control variate: ``A_it = -sum_{s != t} r_is``, to be added to the advantage of an outcome.

    If ``r`` is centred under the behaviour policy, ``E[r_s | history] = 0``, its expected gradient is zero: steps after
    ``t`` vanish by their conditional mean, and steps before ``t`` do not depend on the action at ``t``. The sum
    ``(R_i - b_i) - sum_{s != t} r_is`` is therefore unbiased, and the part of the outcome that ``r`` explains no longer
    adds variance. ``r`` must come from a model fitted on *earlier* data. The sum runs over the whole column, so that
    the data must be whole episodes.
    """

    def estimate(rewards, context):
        rewards = rewards * context.mask
        return Estimate((rewards - jnp.sum(rewards, axis=0, keepdims=True)) * context.mask)

    return Estimator(estimate, grouped=True)


def anchor_group(discount: float = 0.95, scale: str = "none") -> Estimator:
    """Return-to-go relative to the other visits of the same observation in the group (GiGPO, Feng et al., 2025).

    ``A_it = (G_it - mean_anchor G) / std_anchor G`` (equations 6 to 8). The anchor is the set of steps of the group
    with the identical observation, ``G`` the discounted return-to-go. An anchor that is visited once gives 0. Every
    step is compared with every other by a 64-bit hash of the observation: memory is ``[G, (T N)^2]``.

    Raises:
      ValueError: an unknown ``scale``.
    """
    _require_choices("anchor_group", scale=(scale, SCALES))

    def estimate(rewards, context):
        returns = return_to_go(rewards * context.mask, context.ends, discount)
        group_size = context.group_size
        length = returns.shape[0]

        def flatten(x):
            """``[T, B] -> [G, T * N]``."""
            return jnp.moveaxis(to_groups(x, group_size), 1, 0).reshape(-1, length * group_size)

        first, second = (flatten(x) for x in observation_hash(context.trajectory.observation))
        g, mask = flatten(returns), flatten(context.mask)
        same = (first[:, :, None] == first[:, None]) & (second[:, :, None] == second[:, None])
        same = same * mask[:, None, :]
        count = jnp.sum(same, -1)
        # Full float32: with a GPU's reduced-precision products, equal returns would seem to differ from their mean.
        mean = jnp.einsum("gab,gb->ga", same, g, precision="highest") / jnp.maximum(count, 1.0)
        advantage = jnp.where(count > 1, g - mean, 0.0)
        if scale == "std":
            # All members of an anchor share its mean, so that their squared advantages can be summed directly.
            squares = jnp.einsum("gab,gb->ga", same, jnp.square(advantage), precision="highest")
            std = jnp.sqrt(squares / jnp.maximum(count - 1, 1.0))
            advantage = _divide_by_std(advantage, std, jnp.max(jnp.abs(g) * mask, axis=-1, keepdims=True))
        advantage = jnp.moveaxis(advantage.reshape(-1, length, group_size), 0, 1).reshape(length, -1)
        return Estimate(advantage * context.mask)

    return Estimator(estimate, grouped=True)


_DISCOUNT = {"discount": SHARE}
ESTIMATORS: dict[str, Kind] = {
    "gae": Kind(gae, _DISCOUNT | {"gae_lambda": SHARE}),
    "group_outcome": Kind(group_outcome),
    "group_steps": Kind(group_steps),
    "leave_one_out_return_to_go": Kind(leave_one_out_return_to_go, _DISCOUNT),
    "whitened_return": Kind(whitened_return, _DISCOUNT),
    "plain_return": Kind(plain_return, _DISCOUNT),
    "other_steps": Kind(other_steps),
    "anchor_group": Kind(anchor_group, _DISCOUNT),
}
