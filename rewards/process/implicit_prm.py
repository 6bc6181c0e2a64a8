"""Implicit process rewards: step rewards from a policy that is trained on the outcomes of whole rollouts.

The model is a policy ``pi_phi``, and ``pi_ref`` is a reference policy. The step reward is their log-ratio

    r_t = beta * [ log pi_phi(a_t | o_t) - log pi_ref(a_t | o_t) ]                                         (1)

The model learns from outcome labels alone, through the score of a whole rollout, which is the sum or the mean of its
step rewards (Yuan et al., 2024, "Free process rewards without process labels"; Cui et al., 2025, PRIME; Liu et al.,
2025, OPRL / iStar, equations 1 and 2). For every ``phi`` and every environment,
``E_{tau ~ pi_ref} exp(sum_t r_t / beta) = 1``, so that raw step rewards are negative on average and need a baseline.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import optax

from agents.action_masks import action_mask_of, masked_logits
from agents.base import DataSpec
from agents.distributions import distribution_for
from agents.networks.base import Head, NetworkBuilder
from agents.networks.sequence import NetworkConfig
from agents.permutation import permutation
from agents.returns import return_to_go
from agents.state import fields
from agents.statistics import from_groups, masked_mean, to_groups
from envs.base import EnvironmentSpec, PyTree, Trajectory
from envs.choices import require_known
from rewards.base import RewardTransform, write_channel
from rewards.fitting import fit
from rewards.preference.losses import outcome_cross_entropy, pairwise_preference

FORMS = ("policy", "residual", "centred")
LOSSES = ("preference", "cross_entropy", "squared_error")
REFERENCES = ("rolling", "frozen")
REDUCTIONS = ("sum", "mean")
SCORES = ("after", "before")
SCALES = ("none", "max", "return")


class Rollouts(NamedTuple):
    """What the model learns from.

    Attributes:
      observation, action: ``[T, B, ...]``.
      mask: ``[T, B]``.
      log_prob: of the action under the behaviour policy, ``[T, B]``.
      distribution: the behaviour policy's distribution parameters, ``[T, B, parameters]``.
      outcome: 1 for a positive rollout and 0 for another, ``float32 [B]``.
    """

    observation: PyTree
    action: PyTree
    mask: jax.Array
    log_prob: jax.Array
    distribution: jax.Array
    outcome: jax.Array


class ImplicitPRMState(NamedTuple):
    """State of ``implicit_prm``.

    Attributes:
      params: the model's parameters.
      scoring: with ``score="before"``, the parameters before the last update, which rewards are computed with; ``()``
        otherwise.
      reference: parameters of a frozen reference, ``()`` for a rolling one.
      optimiser: the optimiser's state.
      replay: ``Rollouts`` with a leading axis of past iterations, ``()`` without replay. Where an update is undone, the
        next one overwrites the same place, which ``seen`` tells, before it reads the buffer.
      seen: how many iterations were seen, ``int32 []``.
      accuracy: smoothed pairwise accuracy on fresh rollouts, before the update, ``[]``.
    """

    params: PyTree
    scoring: PyTree
    reference: PyTree
    optimiser: PyTree
    replay: PyTree
    seen: jax.Array
    accuracy: jax.Array


def implicit_prm(
    spec: EnvironmentSpec,
    *,
    data: DataSpec,
    network_config: NetworkBuilder = NetworkConfig(),  # noqa: B008  (frozen)
    continuous: str = "gaussian",
    initial_std: float | jax.Array = 1.0,
    form: str = "policy",
    reference: str = "rolling",
    loss: str = "preference",
    reduction: str = "sum",
    beta: float = 0.05,
    learning_rate: float = 1e-3,
    max_gradient_norm: float = 10.0,
    weight_decay: float = 0.0,
    updates: int = 1,
    replay: int = 0,
    groups_per_update: int = 0,
    score: str = "after",
    scale: str = "none",
    calibrated: bool = False,
    calibration_smoothing: float = 0.0,
    fading: float = 0.0,
    outcome_threshold: float = 0.0,
    tolerance: float = 1e-5,
    channel: str = "implicit_prm",
    credit_entry: str | None = None,
) -> RewardTransform:
    """Writes the step rewards of equation (1), learned from the outcomes of the channel ``env``.

    A rollout is positive if its undiscounted ``env`` return exceeds ``outcome_threshold``. Its score is the sum or mean
    of (1) over its steps. The losses are

    * ``preference``: ``-log sigmoid(score_+ - score_-)``, the mean over all pairs of a positive and a negative rollout
      of one group, over all groups (``pairwise_preference``; OPRL);
    * ``cross_entropy``: the cross-entropy of ``sigmoid(score)`` and the outcome (``outcome_cross_entropy``; PRIME);
    * ``squared_error``: ``(score - (outcome - mean of the group's outcomes))^2``.

    Use it where only the outcome of an episode is rewarded and episodes are long: its channel distributes the outcome
    over the steps. Add it to the outcome's own credit rather than replacing that.

    Args:
      spec: the environment.
      data: the rollouts; must be episodes in groups.
      network_config: what builds the model, of any kind. With form ``policy`` it must equal the policy's own where the
        model starts from the policy's parameters (``policy_params`` at ``init``).
      continuous, initial_std: the agent's distribution over Box actions, see ``agents.distributions.distribution_for``.
      form: ``policy``: ``pi_phi`` is a policy network of its own. ``residual``: the network's output is added to the
        distribution parameters of the behaviour policy, which for a categorical policy is ``pi_phi ~ pi_old exp(g)``;
        the rolling reference is then exact, and rewards start at 0. ``centred``:
        ``r_t = beta * (g(o_t, a_t) - E_{a ~ pi_old} g(o_t, a))`` for Discrete actions.
      reference: ``rolling``: the behaviour policy of the rollout, as recorded; ``frozen``: the policy at ``init``.
      loss: see above.
      reduction: whether the score sums or averages over steps. The papers sum; the released iStar code averages.
      beta: the scale of (1).
      learning_rate, max_gradient_norm, weight_decay: AdamW's for the model, with the gradient's global norm clipped.
      updates: optimiser steps per call of ``update``.
      replay: how many past iterations are kept to learn from, each with its own behaviour policy; 0 learns from the
        fresh rollouts alone.
      groups_per_update: groups per optimiser step, drawn uniformly; 0 takes as many as are fresh.
      score: ``after``: rewards of the updated model (the OPRL paper); ``before``: rewards of the model before its
        update (the single forward pass of PRIME and of the released iStar code).
      scale: ``max`` divides all rewards by the largest absolute reward of the batch (released iStar code), ``return``
        by the largest absolute return-to-go (released PRIME code), so that process and outcome rewards are of one size.
      calibrated: multiply the ``credit_weight`` of ``credit_entry`` by ``clip(2 * accuracy - 1, 0, 1)`` with the
        pairwise accuracy on fresh rollouts before the update.
      calibration_smoothing: weight of the past in the running accuracy, in [0, 1).
      fading: multiply that ``credit_weight`` by ``(1 - success rate of the batch) ** fading`` as well: a reward model
        that guides a policy early on distracts it once it succeeds on its own; 0 for no fading.
      outcome_threshold: see above, in units of the ``env`` return.
      tolerance: if no log-ratio of the batch exceeds it in absolute value, all rewards are set to 0, so that a
        normaliser after this transform does not scale rounding errors up to unit size.
      channel: the channel that is written, ``[T, B]``.
      credit_entry: the entry of the agent's credit whose advantages ``calibrated`` and ``fading`` scale; ``None`` for
        the entry that has the channel's name.

    Raises:
      ValueError: an unknown choice, a negative count, data without groups, more groups than there are, ``residual`` or
        ``centred`` with a frozen reference, or ``centred`` on actions that are not Discrete.
    """
    known = {"form": FORMS, "reference": REFERENCES, "loss": LOSSES, "reduction": REDUCTIONS}
    given = {"form": form, "reference": reference, "loss": loss, "reduction": reduction}
    known |= {"score": SCORES, "scale": SCALES}
    given |= {"score": score, "scale": scale}
    for name, choice in given.items():
        require_known(name, choice, known[name], "of implicit_prm")
    if data.kind != "episodes" or data.group_size < 2:
        raise ValueError(
            f"implicit_prm compares rollouts of one start state: got data.kind={data.kind!r} with "
            f"group_size={data.group_size}, expected 'episodes' with group_size >= 2"
        )
    if form != "policy" and reference == "frozen":
        raise ValueError(
            f"implicit_prm: form={form!r} is written on the behaviour policy: expected reference 'rolling'"
        )
    if form == "centred" and not isinstance(spec.action_space, gymnasium.spaces.Discrete):
        raise ValueError(f"implicit_prm: form='centred' needs Discrete actions, got {spec.action_space}")
    for name, value in {"updates": updates, "replay": replay, "groups_per_update": groups_per_update}.items():
        if value < 0:
            raise ValueError(f"implicit_prm: {name}={value}: expected at least 0")
    fresh_groups = data.batch // data.group_size
    drawn = groups_per_update or fresh_groups
    if replay == 0 and drawn > fresh_groups:
        raise ValueError(f"implicit_prm: groups_per_update={drawn}: expected at most the {fresh_groups} fresh groups")
    subset = replay > 0 or drawn < fresh_groups
    entry = channel if credit_entry is None else credit_entry
    # A weight that is always 1 is not written: it would demand an entry of this name.
    weighs = calibrated or isinstance(fading, jax.core.Tracer) or fading != 0

    distribution = distribution_for(spec.action_space, continuous=continuous, initial_std=initial_std)
    # A residual starts at exactly 0; a policy starts as every policy does.
    head = Head(distribution.num_parameters, scale=0.01, num_free=distribution.num_free)
    if form != "policy":
        head = Head(distribution.num_parameters, scale=0.0)
    model = network_config(spec.observation_space, {"policy": head})
    optimiser = optax.chain(
        optax.clip_by_global_norm(max_gradient_norm),
        optax.adamw(learning_rate, weight_decay=weight_decay, mask=model.learned),
    )

    allowed = action_mask_of(spec) if form == "policy" else None

    def outputs(params, rollouts):
        carry = model.initial_carry(rollouts.mask.shape[1])
        parameters = model.apply(params, rollouts.observation, carry, None)[0]["policy"]
        # A policy rules out what the policy of the agent rules out; the other forms are written on that one.
        return parameters if allowed is None else masked_logits(parameters, allowed(rollouts.observation))

    def log_ratio(params, reference_params, rollouts):
        """``[T, B]``, zero where masked."""
        own = outputs(params, rollouts)
        if form == "policy":
            ratio = distribution.log_prob(own, rollouts.action)
            if reference == "rolling":
                ratio -= rollouts.log_prob
            else:
                ratio -= distribution.log_prob(outputs(reference_params, rollouts), rollouts.action)
        elif form == "residual":
            behaviour = rollouts.distribution
            ratio = distribution.log_prob(behaviour + own, rollouts.action)
            ratio -= distribution.log_prob(behaviour, rollouts.action)
        else:
            chosen = jax.nn.one_hot(rollouts.action, distribution.num_parameters, dtype=own.dtype)
            ratio = jnp.sum((chosen - jax.nn.softmax(rollouts.distribution)) * own, axis=-1)
        return jnp.where(rollouts.mask > 0, ratio, 0.0)

    def rollout_scores(params, reference_params, rollouts):
        steps = beta * log_ratio(params, reference_params, rollouts)
        total = jnp.sum(steps, axis=0) if reduction == "sum" else masked_mean(steps, rollouts.mask, 0)
        return to_groups(total, data.group_size)

    def loss_fn(params, reference_params, rollouts):
        scores = rollout_scores(params, reference_params, rollouts)
        outcome = to_groups(rollouts.outcome, data.group_size)
        if loss == "preference":
            value = pairwise_preference(scores, outcome > 0.5)[0]
            return value, {"loss": value}
        # Nothing is learned from a rollout that an earlier transform masked.
        kept = to_groups(jnp.any(rollouts.mask > 0, axis=0), data.group_size)
        if loss == "cross_entropy":
            losses = outcome_cross_entropy(scores, outcome)
        else:
            losses = jnp.square(scores - (outcome - jnp.mean(outcome, -1, keepdims=True)))
        value = masked_mean(losses, kept)
        return value, {"loss": value}

    def rollouts_of(trajectory: Trajectory) -> Rollouts:
        returns = jnp.sum(trajectory.rewards["env"] * trajectory.mask, axis=0)
        return Rollouts(
            trajectory.observation,
            trajectory.action,
            trajectory.mask,
            trajectory.extras["log_prob"],
            trajectory.extras["distribution"],
            (returns > outcome_threshold).astype(jnp.float32),
        )

    def empty_replay():
        lead = (replay, data.length, data.batch)
        action = jax.eval_shape(distribution.mode, jax.ShapeDtypeStruct((distribution.num_parameters,), jnp.float32))

        def zeros(leaf):
            return jnp.zeros((*lead, *leaf.shape), leaf.dtype)

        return Rollouts(
            jax.tree.map(zeros, spec.observation_template()),
            jax.tree.map(zeros, action),
            jnp.zeros(lead),
            jnp.zeros(lead),
            jnp.zeros((*lead, distribution.num_parameters)),
            jnp.zeros((replay, data.batch)),
        )

    def init_fn(key, *, policy_params: PyTree | None = None, **extra: Any):
        del extra
        params = model.init(key)
        if form == "policy" and policy_params is not None:
            params = {name: policy_params[name] for name in params}
        return ImplicitPRMState(
            params=params,
            scoring=params if score == "before" else (),
            reference=params if reference == "frozen" else (),
            optimiser=optimiser.init(params),
            replay=empty_replay() if replay else (),
            seen=jnp.zeros((), jnp.int32),
            # With its type: a weakly typed leaf would make the second call of a learner compile again.
            accuracy=jnp.full((), 0.5, jnp.float32),
        )

    def apply_fn(state, trajectory, **extra):
        del extra
        params = state.scoring if score == "before" else state.params
        ratio = log_ratio(params, state.reference, rollouts_of(trajectory))
        # The comparison is written so that a NaN stays one: a learner must see it.
        ratio = jnp.where(jnp.max(jnp.abs(ratio)) <= tolerance, 0.0, ratio)
        step_rewards = beta * ratio
        largest = jnp.max(jnp.abs(step_rewards))
        if scale == "max":
            step_rewards = step_rewards / jnp.maximum(largest, 1e-12)
        elif scale == "return":
            ends = trajectory.terminated | trajectory.truncated
            returns = return_to_go(step_rewards, ends, 1.0)
            step_rewards = step_rewards / jnp.maximum(jnp.max(jnp.abs(returns)), 1e-12)
        metrics = {
            "reward_mean": masked_mean(step_rewards, trajectory.mask),
            "reward_max": largest,
        }
        extras = trajectory.extras
        outcome = rollouts_of(trajectory).outcome
        weight = (1.0 - masked_mean(outcome, jnp.any(trajectory.mask > 0, axis=0))) ** fading
        if calibrated:
            weight *= jnp.clip(2.0 * state.accuracy - 1.0, 0.0, 1.0)
        if weighs:
            own = {entry: jnp.broadcast_to(weight, trajectory.mask.shape)}
            extras = extras | {"credit_weight": extras.get("credit_weight", {}) | own}
        metrics["credit_weight"] = weight
        return write_channel(trajectory._replace(extras=extras), channel, step_rewards), metrics

    def update_fn(state, trajectory, key, **extra):
        del extra
        fresh = rollouts_of(trajectory)
        outcome = to_groups(fresh.outcome, data.group_size)
        scores = rollout_scores(state.params, state.reference, fresh)
        _, accuracy = pairwise_preference(scores, outcome > 0.5)
        mixed = jnp.any((outcome > 0.5), -1) & jnp.any(outcome <= 0.5, -1)
        smoothed = calibration_smoothing * state.accuracy + (1 - calibration_smoothing) * accuracy
        # Without a pair there is nothing to measure, and the last accuracy stays.
        running = jnp.where(jnp.any(mixed), smoothed, state.accuracy)
        store = state.replay
        if replay:
            slot = state.seen % replay
            store = jax.tree.map(lambda kept, new: kept.at[slot].set(new), store, fresh)
        filled = jnp.minimum(state.seen + 1, max(replay, 1))

        def minibatch(key):
            if not subset:
                return state.reference, fresh
            if not replay:
                group = permutation(key, fresh_groups)[:drawn]
                return state.reference, _take_groups(fresh, group, data.group_size)
            pick = jax.random.randint(key, (drawn,), 0, filled * fresh_groups)
            return state.reference, _take_kept_groups(store, pick // fresh_groups, pick % fresh_groups, data.group_size)

        keys = jax.random.split(key, updates)
        fitted = fit(loss_fn, optimiser, state.params, state.optimiser, keys, minibatch)
        params = fitted.params
        if reference == "rolling":
            # Beside a frozen reference the model keeps its statistics, too: the ratio of both is to start at 1.
            params = model.observe(params, fresh.observation, fresh.mask)
        new_state = ImplicitPRMState(
            params=params,
            scoring=state.params if score == "before" else (),
            reference=state.reference,
            optimiser=fitted.optimiser,
            replay=store,
            seen=state.seen + 1,
            accuracy=running,
        )
        metrics = {"accuracy": accuracy, "mixed_groups": jnp.mean(mixed.astype(jnp.float32))}
        return new_state, fitted.metrics | metrics

    return RewardTransform(init_fn, apply_fn, update_fn, stored=fields("replay"))


def _take_groups(rollouts: Rollouts, group: jax.Array, group_size: int) -> Rollouts:
    """The groups with the indices ``group [K]`` of ``rollouts [T, B]``, as rollouts ``[T, K * N]``."""
    columns = from_groups(group[:, None] * group_size + jnp.arange(group_size))
    taken = jax.tree.map(lambda x: jnp.take(x, columns, axis=1), rollouts._replace(outcome=()))
    return taken._replace(outcome=rollouts.outcome[columns])


def _take_kept_groups(store: Rollouts, slot: jax.Array, group: jax.Array, group_size: int) -> Rollouts:
    """For every ``k``, group ``group[k]`` of past iteration ``slot[k]`` in ``store``, as rollouts ``[T, K * N]``."""
    columns = group[:, None] * group_size + jnp.arange(group_size)
    slots = jnp.broadcast_to(slot[:, None], columns.shape)
    slots, columns = from_groups(slots), from_groups(columns)
    taken = jax.tree.map(lambda x: jnp.moveaxis(x[slots, :, columns], 0, 1), store._replace(outcome=()))
    return taken._replace(outcome=store.outcome[slots, columns])
