"""Credit: how reward channels become one advantage.

``Credit`` names, per entry, a channel, an estimator and a weight; the advantage of a step is

    A = sum_k weight_k * credit_weight_k * A_k(channel_k),        optionally whitened over the batch,

where ``credit_weight_k`` is 1 unless a transform or a learned multiplier wrote one into the trajectory's
``extras["credit_weight"]``. Two entries may read the same channel (GiGPO does). Group estimators take
trajectories of whole episodes whose batch axis is ``[G, N]`` flattened: G start states, N rollouts of each.

Notation in the docstrings: ``i`` a rollout of a group, ``t`` a step, ``m`` the mask, ``R_i = sum_t m r_it`` the
rollout's outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agents.returns import generalised_advantage, return_to_go
from envs.choices import require_known
from envs.types import Array, Trajectory

EPSILON = 1e-6
BASELINES = ("mean", "leave_one_out", "none")
WHITENINGS = ("none", "batch", "minibatch")
SCALES = ("std", "none")


class Context(NamedTuple):
    """What an estimator may look at besides its channel.

    Attributes:
      trajectory: ``[T, B]``.
      group_size: ``N``; static.
      values, next_values: of this entry's critic head, ``[T, B]``, or ``None`` without a critic.
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
    """

    estimate: Callable[[jax.Array, Context], Estimate]
    critic: bool = False
    grouped: bool = False


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


# --- masked statistics ---------------------------------------------------------------------------------


def masked_mean(x: jax.Array, mask: jax.Array, axis=None, keepdims: bool = False) -> jax.Array:
    """``sum(m x) / max(sum(m), 1)``."""
    return jnp.sum(x * mask, axis, keepdims=keepdims) / jnp.maximum(jnp.sum(mask, axis, keepdims=keepdims), 1.0)


def masked_std(x: jax.Array, mask: jax.Array, axis=None, keepdims: bool = False, ddof: int = 1) -> jax.Array:
    """Masked standard deviation with ``ddof`` degrees of freedom taken off; 0 where too few are left."""
    mean = masked_mean(x, mask, axis, True)
    count = jnp.sum(mask, axis, keepdims=keepdims)
    squares = jnp.sum(jnp.square(x - mean) * mask, axis, keepdims=keepdims)
    return jnp.sqrt(squares / jnp.maximum(count - ddof, 1.0))


def whiten(x: jax.Array, mask: jax.Array) -> jax.Array:
    """``m (x - mean) / sqrt(var + 1e-8)`` over every valid step of the batch."""
    return mask * (x - masked_mean(x, mask)) * jax.lax.rsqrt(jnp.square(masked_std(x, mask, ddof=0)) + 1e-8)


def to_groups(x: jax.Array, group_size: int) -> jax.Array:
    """``[..., B] -> [..., G, N]``."""
    return x.reshape(*x.shape[:-1], -1, group_size)


def from_groups(x: jax.Array) -> jax.Array:
    """``[..., G, N] -> [..., B]``."""
    return x.reshape(*x.shape[:-2], -1)


def _known(where: str, **choices: tuple[str, tuple[str, ...]]) -> None:
    for name, (value, known) in choices.items():
        require_known(name, value, known, f"of {where}")


def relative(x: jax.Array, baseline: str, first: jax.Array) -> jax.Array:
    """``x`` less the group's ``first`` member: the same up to rounding for every estimator that takes a mean away, and
    exactly 0 in a group of equals."""
    return x if baseline == "none" else x - first


def standardise(x: jax.Array, deviation: jax.Array, size: jax.Array) -> jax.Array:
    """``x / (deviation + 1e-6)``; 0 where ``deviation`` is rounding noise of numbers as large as ``size`` (float32)."""
    return jnp.where(deviation > EPSILON * size, x / (deviation + EPSILON), 0.0)


def centre(x: jax.Array, baseline: str, count: int | jax.Array, mean: jax.Array) -> jax.Array:
    """``x - b`` with ``b`` the ``mean``, the mean of the others (``leave_one_out``) or nothing (``none``).

    Leaving one out of ``count``: ``x - mean_{others} = count / (count - 1) * (x - mean)`` (Kool et al.,
    2019). A single member has no others: it keeps ``x``.
    """
    if baseline == "none":
        return x
    if baseline == "mean":
        return x - mean
    return jnp.where(count > 1, count / jnp.maximum(count - 1, 1) * (x - mean), x)


# --- estimators ----------------------------------------------------------------------------------------


def gae(discount: float = 0.99, gae_lambda: float = 0.95, *, episodic: bool = True) -> Estimator:
    """Generalised advantage estimation with a critic head, see ``agents.returns.generalised_advantage``.

    With ``episodic=False`` the value flows through episode ends (the non-episodic stream of Burda et al.,
    2019, section 2.3): neither ``terminated`` nor ``truncated`` cuts it. At the last step of an unroll that ends
    an episode the value of the final observation stands in for that of the next episode's first; at the end of a whole
    episode, too, where that is the value of the row behind it, and what comes after in the padding counts for nothing.
    """

    def estimate(rewards, context):
        trajectory, values, next_values = context.trajectory, context.values, context.next_values
        if episodic:
            flags = trajectory.terminated, context.ends
            advantage = generalised_advantage(rewards, values, next_values, *flags, discount, gae_lambda)
        else:
            # The same without ends; a step of the padding adds nothing to those before it.
            next_values = jnp.concatenate([values[1:], next_values[-1:]])
            delta = jnp.where(context.mask > 0, rewards + discount * next_values - values, 0.0)
            advantage = return_to_go(delta, jnp.zeros_like(trajectory.terminated), discount * gae_lambda)
        advantage = advantage * context.mask
        return Estimate(advantage, advantage + values)

    return Estimator(estimate, critic=True)


def group_outcome(baseline: str = "mean", scale: str = "std") -> Estimator:
    """Every step gets its rollout's outcome against its group: ``A_it = (R_i - b_i) / s``.

    | baseline, scale | method |
    |---|---|
    | ``mean``, ``std`` | GRPO (Shao et al., 2024, section 4.1): deviation with one degree of freedom off, plus 1e-6 |
    | ``mean``, ``none`` | Dr.GRPO (Liu et al., 2025, section 3.2) |
    | ``leave_one_out``, ``none`` | RLOO (Ahmadian et al., 2024, equation 7) |

    Adding a constant to every outcome of a group changes nothing. A group of equal outcomes gets exactly 0. A
    group of one has nothing to compare with: it keeps ``R_i``.

    Raises:
      ValueError: an unknown ``baseline`` or ``scale``.
    """
    _known("group_outcome", baseline=(baseline, BASELINES), scale=(scale, SCALES))

    def estimate(rewards, context):
        outcome = to_groups(jnp.sum(rewards * context.mask, axis=0), context.group_size)
        if context.group_size == 1:
            return Estimate(from_groups(outcome) * context.mask)
        shifted = relative(outcome, baseline, outcome[..., :1])
        advantage = centre(shifted, baseline, context.group_size, jnp.mean(shifted, axis=-1, keepdims=True))
        if scale == "std":
            deviation = jnp.std(shifted, axis=-1, keepdims=True, ddof=1)
            advantage = standardise(advantage, deviation, jnp.max(jnp.abs(outcome), axis=-1, keepdims=True))
        return Estimate(from_groups(advantage) * context.mask)

    return Estimator(estimate, grouped=True)


def group_steps(baseline: str = "mean", scale: str = "std", *, first_row_baseline: bool = False) -> Estimator:
    """A step's reward against all steps of all rollouts of its group: ``A_it = (r_it - mean) / (std + 1e-6)``.

    The step-level advantage of OPRL / iStar (Liu et al., 2025, "Agentic reinforcement learning with
    implicit step rewards"), mean and deviation over every valid step of the group. ``leave_one_out`` leaves
    the step itself out. A group whose step rewards are all equal gets 0: the deviation has a floor, so that
    rounding noise is not blown up to unit scale.

    Args:
      first_row_baseline: take the statistics over the first step of every rollout only, as the released
        code does by de-duplicating rows; its mean over the steps of a group is then not zero.

    Raises:
      ValueError: an unknown ``baseline`` or ``scale``.
    """
    _known("group_steps", baseline=(baseline, BASELINES), scale=(scale, SCALES))

    def estimate(rewards, context):
        r = to_groups(rewards, context.group_size)
        mask = to_groups(context.mask, context.group_size)
        over = mask.at[1:].set(0.0) if first_row_baseline else mask
        shifted = relative(r, baseline, r[:1, :, :1])
        mean = masked_mean(shifted, over, (0, 2), True)
        advantage = centre(shifted, baseline, jnp.sum(over, (0, 2), keepdims=True), mean)
        if scale == "std":
            size = jnp.max(jnp.abs(r) * mask, (0, 2), keepdims=True)
            advantage = standardise(advantage, masked_std(shifted, over, (0, 2), True), size)
        return Estimate(from_groups(advantage) * context.mask)

    return Estimator(estimate, grouped=True)


def leave_one_out_return_to_go(discount: float = 1.0) -> Estimator:
    """Return-to-go of step rewards less the others' mean step reward (PRIME, Cui et al., 2025, equation 5).

    ``A_it = sum_{s >= t} discount^{s-t} (r_is - mean_{j != i} rbar_j)`` with ``rbar_j`` the mean step reward of
    rollout j: equation 5 read with the per-step mean that its equation 7 writes out.
    """

    def estimate(rewards, context):
        rbar = to_groups(masked_mean(rewards, context.mask, 0), context.group_size)
        others = (jnp.sum(rbar, -1, keepdims=True) - rbar) / max(context.group_size - 1, 1)
        centred = (rewards - from_groups(others)) * context.mask
        return Estimate(return_to_go(centred, context.ends, discount) * context.mask)

    return Estimator(estimate, grouped=True)


def whitened_return(discount: float = 1.0) -> Estimator:
    """Return-to-go whitened over every valid step of the batch (REINFORCE++, Hu, 2025, section 3).

    Nothing stands in for what follows the last row, so that the data must be whole episodes.
    """

    def estimate(rewards, context):
        returns = return_to_go(rewards * context.mask, context.ends, discount)
        return Estimate(whiten(returns, context.mask))

    return Estimator(estimate, grouped=True)


def plain_return(discount: float = 1.0) -> Estimator:
    """Return-to-go without a baseline (REINFORCE, Williams, 1992), of whole episodes as ``whitened_return``."""

    def estimate(rewards, context):
        return Estimate(return_to_go(rewards * context.mask, context.ends, discount) * context.mask)

    return Estimator(estimate, grouped=True)


def other_steps() -> Estimator:
    """A control variate: ``A_it = -sum_{s != t} r_is``, to be added to an outcome's advantage.

    If ``r`` is centred under the behaviour policy, ``E[r_s | history] = 0``, this has expected gradient zero
    (steps after ``t`` by their conditional mean, steps before because they do not depend on the action), so
    ``(R_i - b_i) - sum_{s != t} r_is`` stays unbiased while what ``r`` explains of the outcome no longer
    adds variance. ``r`` must come from a model fitted on *earlier* data. The sum runs over the whole column, so
    that the data must be whole episodes.
    """

    def estimate(rewards, context):
        rewards = rewards * context.mask
        return Estimate((rewards - jnp.sum(rewards, axis=0, keepdims=True)) * context.mask)

    return Estimator(estimate, grouped=True)


def anchor_group(discount: float = 0.95, scale: str = "none") -> Estimator:
    """Return-to-go against the other visits of the same observation in the group (GiGPO, Feng et al., 2025).

    ``A_it = (G_it - mean_anchor G) / std_anchor G`` (equations 6 to 8), where the anchor is the set of steps of the
    group with the identical observation and ``G`` the discounted return-to-go; an anchor visited once
    gives 0. Observations are compared by a 64-bit hash, each with each: memory is ``[G, (T N)^2]``.

    Raises:
      ValueError: an unknown ``scale``.
    """
    _known("anchor_group", scale=(scale, SCALES))

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
        # In full: what a GPU's short products leave of equal returns would pass for a deviation.
        mean = jnp.einsum("gab,gb->ga", same, g, precision="highest") / jnp.maximum(count, 1.0)
        advantage = jnp.where(count > 1, g - mean, 0.0)
        if scale == "std":
            # All members of an anchor share its mean, so the deviations can be summed as they are.
            squares = jnp.einsum("gab,gb->ga", same, jnp.square(advantage), precision="highest")
            deviation = jnp.sqrt(squares / jnp.maximum(count - 1, 1.0))
            advantage = standardise(advantage, deviation, jnp.max(jnp.abs(g) * mask, axis=-1, keepdims=True))
        advantage = jnp.moveaxis(advantage.reshape(-1, length, group_size), 0, 1).reshape(length, -1)
        return Estimate(advantage * context.mask)

    return Estimator(estimate, grouped=True)


def observation_hash(observation: Any) -> tuple[jax.Array, jax.Array]:
    """Two 32-bit hashes of every observation, sums of its words mixed by position, ``uint32 [T, B]`` each."""

    def words(leaf):
        flat = leaf.reshape(*leaf.shape[:2], -1)
        if jnp.issubdtype(flat.dtype, jnp.floating):
            # -0.0 and 0.0 are one observation. Adding 0.0 would do, but the compiler takes it away.
            flat = jnp.where(flat == 0, 0.0, flat).astype(jnp.float32)
            flat = jax.lax.bitcast_convert_type(flat, jnp.uint32)
        return flat.astype(jnp.uint32)

    flat = jnp.concatenate([words(leaf) for leaf in jax.tree.leaves(observation)], axis=-1)
    index = jnp.arange(flat.shape[-1], dtype=jnp.uint32)

    def mix(x):
        x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
        return x ^ (x >> 16)

    return tuple(
        jnp.sum(mix(flat + mix(index + jnp.uint32(salt))), axis=-1, dtype=jnp.uint32)
        for salt in (0x9E3779B9, 0x85EBCA6B)
    )


ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "gae": gae,
    "group_outcome": group_outcome,
    "group_steps": group_steps,
    "leave_one_out_return_to_go": leave_one_out_return_to_go,
    "whitened_return": whitened_return,
    "plain_return": plain_return,
    "other_steps": other_steps,
    "anchor_group": anchor_group,
}


# --- mixing --------------------------------------------------------------------------------------------


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
    """
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
