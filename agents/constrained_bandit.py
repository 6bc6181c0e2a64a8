"""Bandits with constraints: optimistic feasible search (OFS), and the two rules that it is compared with.

An arm is an action; observations are ignored. After ``n`` pulls, an arm's mean reward ``r`` and its mean costs ``g_j``,
which are residuals, feasible at 0 and below, have the bounds

    upper(r) = r + radius,   lower(g_j) = g_j - radius
    radius   = bonus_scale sqrt(log(2 A (1 + J) n (n + 1) / confidence) / (2 n))

for ``A`` arms and ``J`` costs. An arm that was never pulled comes before all others. By ``rule`` the next arm is

    ofs          argmax upper(r) among the arms with lower(g_j) <= 0 for all j; without any, argmin max_j lower(g_j)
    ucb          argmax upper(r)
    primal_dual  argmax upper(r) - sum_j multiplier_j lower(g_j), where each step of cost g_j moves its multiplier by
                 multiplier_j <- clip(multiplier_j + multiplier_step g_j, 0, largest_multiplier)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp

from agents.base import Agent, DataSpec
from agents.channels import channel_weights, read_channel
from envs.base import EnvironmentSpec, Trajectory, UnsupportedSpaceError
from envs.choices import require_known

RULES = ("ofs", "ucb", "primal_dual")


class Arms(NamedTuple):
    """The arm that is played, ``chosen int32 []``, and the one that was pulled most often, ``favourite int32 []``."""

    chosen: jax.Array
    favourite: jax.Array


class BanditState(NamedTuple):
    """``params`` holds ``Arms`` under the key ``policy``.

    Attributes:
      pulls: ``int32 [A]``.
      means: ``float32 [1 + J, A]``, of the reward and of each cost.
      multipliers: ``float32 [J]``; 0 but for ``primal_dual``.
    """

    params: dict[str, Arms]
    pulls: jax.Array
    means: jax.Array
    multipliers: jax.Array


def constrained_bandit(
    spec: EnvironmentSpec,
    *,
    data: DataSpec,
    rule: str = "ofs",
    channels: Mapping[str, float] | None = None,
    confidence: float | jax.Array = 0.1,
    bonus_scale: float | jax.Array = 1.0,
    multiplier_step: float | jax.Array = 0.05,
    largest_multiplier: float | jax.Array = 10.0,
) -> Agent:
    """Builds a bandit whose constraints are the costs of the environment, each at most 0 in expectation.

    When to use it: few actions, of which each is best or not whatever is observed, with rewards and costs that are
    revealed for the chosen action alone. The source of ``ofs`` is Du (2025), "Optimistic feasible search for
    closed-loop fair threshold decision-making" (arXiv 2512.22313); its radius has a logarithm that is not spelled out
    here, and its primal-dual baseline may differ from this one in detail.

    With ``bonus_scale=1`` all bounds of arms whose means do not drift hold with probability ``1 - confidence`` where
    rewards and costs each have a range of length 1; for noise with the standard deviation ``sigma``, Gaussian or with
    such tails, ``bonus_scale=2 sigma`` is enough.

    A greedy action is the arm that was pulled most often.

    Args:
      spec: with Discrete actions.
      data: fresh unrolls or episodes; a batch pulls one arm all the time.
      rule: see the head of this module.
      channels: the reward channels with their weights.
      confidence, bonus_scale, multiplier_step, largest_multiplier: see the head of this module.

    Raises:
      ValueError: an unknown rule; ``ofs`` or ``primal_dual`` in an environment without costs; data of another kind.
      UnsupportedSpaceError: actions that are not Discrete.
    """
    require_known("rule", rule, RULES)
    if not isinstance(spec.action_space, gymnasium.spaces.Discrete):
        raise UnsupportedSpaceError(f"action space is {spec.action_space}: expected Discrete, whose actions are arms")
    if data.kind == "replay":
        raise ValueError("a bandit keeps no steps: data.kind='replay', expected 'unroll' or 'episodes'")
    if rule != "ucb" and not spec.costs:
        raise ValueError(f"rule={rule!r}: the environment has no costs to constrain; expected one with costs, or 'ucb'")
    weights, costs = channel_weights(channels), tuple(f"cost/{name}" for name in spec.costs)
    arms, start = int(spec.action_space.n), int(spec.action_space.start)

    def choose(pulls, means, multipliers) -> Arms:
        count = jnp.maximum(pulls, 1).astype(jnp.float32)
        terms = jnp.log(2.0 * arms * (1 + len(costs)) / confidence) + jnp.log(count * (count + 1))
        radius = bonus_scale * jnp.sqrt(terms / (2 * count))
        upper, lower = means[0] + radius, means[1:] - radius
        if rule == "ofs":
            worst = lower.max(0)
            feasible = worst <= 0
            index = jnp.where(feasible.any(), jnp.where(feasible, upper, -jnp.inf), -worst)
        elif rule == "ucb":
            index = upper
        else:
            index = upper - multipliers @ lower
        index = jnp.where(pulls > 0, index, jnp.inf)
        return Arms(jnp.argmax(index).astype(jnp.int32), jnp.argmax(pulls).astype(jnp.int32))

    def init_fn(key):
        del key
        pulls, means = jnp.zeros(arms, jnp.int32), jnp.zeros((1 + len(costs), arms))
        multipliers = jnp.zeros(len(costs))
        return BanditState({"policy": choose(pulls, means, multipliers)}, pulls, means, multipliers)

    def arm_of(params, greedy: bool):
        return params["policy"].favourite if greedy else params["policy"].chosen

    def act_fn(params, carry, observation, key, *, greedy=False, action=None):
        del key
        if action is None:
            batch = jax.tree.leaves(observation)[0].shape[0]
            action = jnp.full(batch, arm_of(params, greedy) + start, jnp.int32)
        return action, carry, {}

    def action_probabilities_fn(params, carry, observation, *, greedy=False):
        del carry
        batch = jax.tree.leaves(observation)[0].shape[0]
        return jnp.broadcast_to(jax.nn.one_hot(arm_of(params, greedy), arms), (batch, arms))

    def update_fn(state: BanditState, trajectory: Trajectory, key):
        del key
        reward = sum(weight * read_channel(trajectory, name, "agent.channels") for name, weight in weights.items())
        found = jnp.stack([jnp.asarray(reward), *(read_channel(trajectory, name, "a constraint") for name in costs)])
        arm, real = trajectory.action - start, trajectory.mask > 0
        pulls = state.pulls.at[arm].add(real.astype(jnp.int32))
        surprise = jnp.where(real, found - state.means[:, arm], 0.0)
        change = jnp.zeros_like(state.means).at[:, arm].add(surprise)
        means = state.means + change / jnp.maximum(pulls, 1)
        multipliers = state.multipliers
        if rule == "primal_dual":
            total = jnp.where(real, found[1:], 0.0).sum((1, 2))
            multipliers = jnp.clip(multipliers + multiplier_step * total, 0.0, largest_multiplier)
        params = {"policy": choose(pulls, means, multipliers)}
        metrics = {"arms_pulled": jnp.mean(pulls > 0)}
        metrics |= {f"multiplier/{name}": each for name, each in zip(spec.costs, multipliers, strict=True)}
        return BanditState(params, pulls, means, multipliers), metrics

    return Agent(init_fn, lambda batch: (), act_fn, update_fn, data, action_probabilities_fn)
