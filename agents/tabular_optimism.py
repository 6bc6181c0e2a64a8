"""Optimistic and safe exploration of a small, unknown model with a time limit: UCB value iteration, StepMix, EpsMix.

The agent counts. Before each batch of episodes it works out, from the counts ``n(s, a)`` and the mean rewards, a policy
and bounds on the values of policies, by backward induction over the steps ``h`` of an episode:

    upper_h(s, a) = clip(r(s, a) + sum_s' p(s' | s, a) W(s') + radius(s, a, W), 0, H - h)   with W = max_a upper_{h+1}
    lower_h(s, a) = clip(r(s, a) + sum_s' p(s' | s, a) W(s') - radius(s, a, W), 0, H - h)   with a policy's lower_{h+1}

    radius(s, a, W) = bonus_scale ((max W - min W) sqrt(beta(n) / (2 n)) + sqrt(log(6 S A n (n + 1) / delta) / (2 n)))
    beta(n)         = log(3 S A / delta) + (m - 1) log(e (1 + n / (m - 1)))

``delta`` is the argument ``confidence``, ``m`` the number of things that can follow: the states, and the end of the
episode with ``early_ends``. With probability ``1 - delta``, and for all counts at once, ``n KL(p, P)`` is at most
``beta(n)`` (Jonsson et al., 2020, "Planning in Markov decision processes with gap-dependent sample complexity",
proposition 1), so that by Pinsker's inequality the first part of the radius bounds ``|p W - P W|`` for every ``W``,
also for one that depends on the data. The second part is Hoeffding's for mean rewards. Start states have counts and a
radius of the same kind. Hence, with ``bonus_scale=1`` and rewards from 0 to 1, no policy's value is outside of its
bounds, with this probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from agents.base import Agent, DataSpec
from agents.channels import channel_weights, read_channel
from envs.base import EnvironmentSpec, Trajectory, UnsupportedSpaceError
from envs.choices import require_known

SAFETY = ("none", "step_mix", "eps_mix", "baseline")
# A row of a baseline's probabilities may be written with few digits.
_SUM_TOLERANCE = 1e-2


class Mixture(NamedTuple):
    """What is played: at the start of an episode one of two policies is drawn, for the whole episode.

    Attributes:
      tables: probabilities ``[2, H, S, A]``; the first is the more cautious one.
      share: ``[]``, the probability of the second.
      lower: ``[]``, a lower bound on the value of the mixture, from the start distribution.
      upper: ``[]``, an upper bound on the value of the best policy.
    """

    tables: jax.Array
    share: jax.Array
    lower: jax.Array
    upper: jax.Array


class Counts(NamedTuple):
    """What has been seen.

    Attributes:
      starts: ``int32 [S]``, episodes by start state.
      moves: ``int32 [S, A, S + 1]``, steps by what followed; the last is an end of the episode that no time limit made.
      rewards: ``float32 [S, A]``, means: a sum of many equal numbers would drift by rounding.
    """

    starts: jax.Array
    moves: jax.Array
    rewards: jax.Array


class TabularState(NamedTuple):
    """``params`` holds the ``Mixture`` that is played under the key ``policy``."""

    params: dict[str, Mixture]
    counts: Counts


class _Model(NamedTuple):
    """The estimated model with its radii: ``transition [S, A, S]``, ``reward``, ``move_radius``, ``reward_radius`` and
    ``seen [S, A]``, ``starts [S]``, ``start_radius []``, and whether any episode was ``started []``."""

    transition: jax.Array
    reward: jax.Array
    move_radius: jax.Array
    reward_radius: jax.Array
    seen: jax.Array
    starts: jax.Array
    start_radius: jax.Array
    started: jax.Array


def tabular(
    spec: EnvironmentSpec,
    *,
    data: DataSpec,
    channels: Mapping[str, float] | None = None,
    safety: str = "none",
    baseline: str | Sequence[Any] = "uniform",
    threshold: float | jax.Array | None = None,
    confidence: float | jax.Array = 0.1,
    bonus_scale: float | jax.Array = 1.0,
    reward_noise: bool = True,
    early_ends: bool = True,
) -> Agent:
    """Builds an agent that explores by optimism and, if asked to, never plays a policy below ``threshold``.

    ``o`` is the optimistic policy, which takes in step ``h`` the action of the largest ``upper_h(s, a)``, ``b`` the
    baseline. What is played in an episode is, by ``safety``:

    - ``none``: ``o`` (upper-confidence-bound value iteration; Azar, Osband and Munos, 2017).
    - ``step_mix``: with ``pi_c`` as ``b`` in the steps before ``c`` and ``o`` from ``c`` on, the smallest ``c`` with
      ``lower(pi_c) >= threshold`` is looked for. ``c = 0`` is ``o`` itself; otherwise ``pi_{c-1}`` and ``pi_c`` are
      mixed, such that ``share lower(pi_{c-1}) + (1 - share) lower(pi_c) = threshold``. Where there is no such ``c``,
      ``b`` is played.
    - ``eps_mix``: ``o`` with the largest ``share`` with ``share lower(o) + (1 - share) lower(b) >= threshold``; ``b``
      where that holds for none.
    - ``baseline``: ``b``.

    Which policy of a mixture is played is drawn at the start of an episode. For ``step_mix`` this has the value of
    drawing in step ``c - 1`` alone, as the two differ in no other step. If the value of ``b`` is at least ``threshold``
    and the bounds hold, every episode's policy has a value of at least ``threshold``.

    When to use it: Discrete observations and actions, a time limit, rewards from 0 to 1, and, for the two mixtures, a
    baseline of which it is known that it is good enough. StepMix and EpsMix are from Li, Huang, Shen and Yang (2023),
    "Near-optimal conservative exploration in reinforcement learning under episode-wise constraints" (arXiv 2306.06265).
    The bounds are those of this module's head, which are not the paper's: transitions are the same in every step here,
    and the start is drawn.

    Args:
      spec: with Discrete observations (the state) and actions, and ``max_episode_steps``, which is ``H``.
      data: whole episodes of ``H`` steps; a batch is played by one mixture.
      channels: the reward channels with their weights; their sum should be from 0 to 1 in every step.
      safety: see above.
      baseline: ``uniform``, or probabilities ``[H, S, A]`` or ``[S, A]``, nested or in a row; they are normalised.
      threshold: of an episode's expected total reward; for the two mixtures.
      confidence: the probability with which a bound may fail, in the whole run.
      bonus_scale: of every radius; below 1 the bounds are narrower than what is proved.
      reward_noise: whether a state and action may pay now this and now that. False takes a reward that was seen once as
        known.
      early_ends: whether an episode may end before its time limit. False narrows the radius.

    Raises:
      ValueError: an unknown ``safety``; a baseline of another shape or with negative probabilities; no threshold where
        one is needed, or one above ``H``; no time limit; data that are not whole episodes of ``H`` steps.
      UnsupportedSpaceError: spaces that are not Discrete.
    """
    require_known("safety", safety, SAFETY)
    states, actions, horizon = problem_size(spec)
    if data.kind != "episodes" or data.length != horizon:
        raise ValueError(
            f"data.kind={data.kind!r}, data.length={data.length}: expected 'episodes' of length {horizon}, the "
            "environment's time limit"
        )
    cautious = baseline_table(baseline, horizon, states, actions)
    if safety in ("step_mix", "eps_mix"):
        if threshold is None:
            raise ValueError(f"threshold=None: safety={safety!r} needs the value that no episode may be below")
        if isinstance(threshold, int | float) and threshold > horizon:
            raise ValueError(f"threshold={threshold}: {horizon} steps pay from 0 to {horizon}, expected at most that")
    weights = channel_weights(channels)
    start = int(spec.observation_space.start), int(spec.action_space.start)

    def plan(counts: Counts) -> Mixture:
        model = _estimate(
            counts, confidence=confidence, scale=bonus_scale, reward_noise=reward_noise, early_ends=early_ends
        )
        optimistic, upper = _optimistic(model, horizon, early_ends)
        candidates = _candidates(cautious, optimistic)
        lower = _pessimistic(model, candidates, early_ends)
        first, second, share = _mixed(safety, lower, 0.0 if threshold is None else threshold)
        return Mixture(
            tables=jnp.stack([candidates[first], candidates[second]]),
            share=share,
            lower=share * lower[second] + (1 - share) * lower[first],
            upper=upper,
        )

    def init_fn(key):
        del key
        counts = Counts(
            jnp.zeros(states, jnp.int32),
            jnp.zeros((states, actions, states + 1), jnp.int32),
            jnp.zeros((states, actions), jnp.float32),
        )
        return TabularState({"policy": plan(counts)}, counts)

    def initial_carry_fn(batch):
        return jnp.zeros(batch, jnp.int32), jnp.zeros(batch, bool)

    def probabilities_of(mixture: Mixture, step, second, observation):
        state = observation - start[0]
        return mixture.tables[second.astype(jnp.int32), jnp.minimum(step, horizon - 1), state]

    def act_fn(params, carry, observation, key, *, greedy=False, action=None):
        mixture, (step, second) = params["policy"], carry
        draw_key, action_key = jax.random.split(key)
        drawn = jax.random.uniform(draw_key, step.shape) < (mixture.share >= 0.5 if greedy else mixture.share)
        second = jnp.where(step == 0, drawn, second)
        if action is None:
            chances = probabilities_of(mixture, step, second, observation)
            chosen = jnp.argmax(chances, -1) if greedy else jax.random.categorical(action_key, jnp.log(chances))
            action = chosen.astype(jnp.int32) + start[1]
        return action, (step + 1, second), {}

    def action_probabilities_fn(params, carry, observation, *, greedy=False):
        mixture, (step, second) = params["policy"], carry
        each = [probabilities_of(mixture, step, jnp.full_like(second, flag), observation) for flag in (False, True)]
        share = jnp.where(step == 0, mixture.share, second)
        if greedy:
            share = jnp.where(share >= 0.5, 1.0, 0.0)
            each = [jax.nn.one_hot(jnp.argmax(one, -1), actions) for one in each]
        return (1 - share)[:, None] * each[0] + share[:, None] * each[1]

    def update_fn(state: TabularState, trajectory: Trajectory, key):
        del key
        reward = sum(weight * read_channel(trajectory, name, "agent.channels") for name, weight in weights.items())
        counts = _counted(state.counts, trajectory, jnp.asarray(reward), start)
        mixture = plan(counts)
        outside = trajectory.mask * ((reward < 0) | (reward > 1))
        metrics = {
            "share": mixture.share,
            "lower": mixture.lower,
            "upper": mixture.upper,
            "rewards_outside": jnp.sum(outside) / jnp.maximum(jnp.sum(trajectory.mask), 1),
        }
        return TabularState({"policy": mixture}, counts), metrics

    return Agent(init_fn, initial_carry_fn, act_fn, update_fn, data, action_probabilities_fn)


def problem_size(spec: EnvironmentSpec) -> tuple[int, int, int]:
    """``S``, ``A`` and ``H`` of an environment.

    Raises:
      UnsupportedSpaceError: spaces that are not Discrete.
      ValueError: no time limit.
    """
    for role, space in (("observation", spec.observation_space), ("action", spec.action_space)):
        if not isinstance(space, gymnasium.spaces.Discrete):
            raise UnsupportedSpaceError(f"{role} space is {space}: expected Discrete, as the agent keeps a table")
    if spec.max_episode_steps is None:
        raise ValueError("the environment has no time limit: expected environment.time_limit=H, the length of the plan")
    return int(spec.observation_space.n), int(spec.action_space.n), spec.max_episode_steps


def baseline_table(baseline: str | Sequence[Any], horizon: int, states: int, actions: int) -> np.ndarray:
    """The baseline's probabilities ``float32 [H, S, A]``; arguments as of ``tabular``.

    >>> baseline_table([0.25, 0.75], horizon=2, states=1, actions=2).tolist()
    [[[0.25, 0.75]], [[0.25, 0.75]]]

    Raises:
      ValueError: an unknown name, another shape, or rows that are no probabilities.
    """
    shape = (horizon, states, actions)
    if isinstance(baseline, str):
        require_known("baseline", baseline, ("uniform",))
        return np.full(shape, 1 / actions, np.float32)
    try:
        table = np.asarray(baseline, np.float64)
    except ValueError as error:
        raise ValueError(f"baseline: rows of different lengths, expected {shape} or {shape[1:]}") from error
    fitting = [one for one in (shape, shape[1:]) if table.shape in (one, (math.prod(one),))]
    if not fitting:
        raise ValueError(f"baseline has shape {table.shape}: expected [H, S, A] = {shape} or [S, A] = {shape[1:]}")
    table = table.reshape(fitting[0])
    if not (table >= 0).all():
        raise ValueError(f"baseline: {table[~(table >= 0)][0]} is no probability")
    sums = table.sum(-1, keepdims=True)
    if (abs(sums - 1) > _SUM_TOLERANCE).any():
        raise ValueError(
            f"baseline: the probabilities of a row sum to {sums.flat[abs(sums - 1).argmax()]:g}, expected 1"
        )
    return np.broadcast_to(table / sums, shape).astype(np.float32)


def _counted(counts: Counts, trajectory: Trajectory, reward: jax.Array, start: tuple[int, int]) -> Counts:
    """``counts`` with the steps of ``trajectory`` added."""
    state, action = trajectory.observation - start[0], trajectory.action - start[1]
    ended = counts.moves.shape[-1] - 1
    following = jnp.where(trajectory.terminated, ended, trajectory.next_observation - start[0])
    real = trajectory.mask > 0
    first = real & trajectory.extras["episode_start"]
    moves = counts.moves.at[state, action, following].add(real.astype(jnp.int32))
    surprise = jnp.where(real, reward - counts.rewards[state, action], 0.0)
    change = jnp.zeros_like(counts.rewards).at[state, action].add(surprise)
    return Counts(
        counts.starts.at[state].add(first.astype(jnp.int32)),
        moves,
        counts.rewards + change / jnp.maximum(moves.sum(-1), 1),
    )


def _deviation(count: jax.Array, outcomes: int, log_term: jax.Array) -> jax.Array:
    """``sqrt(beta(n) / (2 n))`` of the head of this module, with ``log_term`` in place of ``log(3 S A / delta)``."""
    freedom = max(outcomes - 1, 1)
    return jnp.sqrt((log_term + freedom * (1 + jnp.log1p(count / freedom))) / (2 * count))


def _estimate(counts: Counts, *, confidence, scale, reward_noise: bool, early_ends: bool) -> _Model:
    states, actions, _ = counts.moves.shape
    steps, episodes = counts.moves.sum(-1), counts.starts.sum()
    visits, started = jnp.maximum(steps, 1).astype(jnp.float32), jnp.maximum(episodes, 1).astype(jnp.float32)
    pairs = jnp.log(3.0 * states * actions / confidence)
    noise = jnp.sqrt((pairs + jnp.log(2 * visits * (visits + 1))) / (2 * visits))
    return _Model(
        transition=counts.moves[..., :states] / visits[..., None],
        reward=counts.rewards,
        move_radius=scale * _deviation(visits, states + early_ends, pairs),
        reward_radius=scale * noise if reward_noise else jnp.zeros_like(noise),
        seen=steps > 0,
        starts=counts.starts / started,
        start_radius=scale * _deviation(started, states, jnp.log(3.0 / confidence)),
        started=episodes > 0,
    )


def _spread(values: jax.Array, early_ends: bool) -> jax.Array:
    """``max - min`` over the last axis, and over the 0 that follows an end."""
    low, high = values.min(-1), values.max(-1)
    return jnp.maximum(high, 0.0) - jnp.minimum(low, 0.0) if early_ends else high - low


def _optimistic(model: _Model, horizon: int, early_ends: bool) -> tuple[jax.Array, jax.Array]:
    """The optimistic policy as probabilities ``[H, S, A]``, and the upper bound ``[]`` from the start."""

    def step(values, remaining):
        radius = model.reward_radius + _spread(values, early_ends) * model.move_radius
        bound = model.reward + model.transition @ values + radius
        # What was never tried comes before all else; among bounds above the largest total, the higher one does.
        action = jnp.argmax(jnp.where(model.seen, bound, jnp.inf), -1)
        clipped = jnp.where(model.seen, jnp.clip(bound, 0.0, remaining), remaining)
        return clipped.max(-1), jax.nn.one_hot(action, bound.shape[-1])

    states = model.starts.shape[0]
    values, policy = jax.lax.scan(step, jnp.zeros(states), jnp.arange(1.0, horizon + 1))
    bound = model.starts @ values + _spread(values, False) * model.start_radius
    return policy[::-1], jnp.where(model.started, jnp.clip(bound, 0.0, horizon), horizon)


def _candidates(cautious: np.ndarray, optimistic: jax.Array) -> jax.Array:
    """``[H + 1, H, S, A]``: candidate ``c`` is ``cautious`` in the steps before ``c`` and ``optimistic`` after."""
    horizon = cautious.shape[0]
    late = np.arange(horizon) >= np.arange(horizon + 1)[:, None]
    return jnp.where(late[..., None, None], optimistic, cautious)


def _pessimistic(model: _Model, policies: jax.Array, early_ends: bool) -> jax.Array:
    """The lower bounds ``[C]`` of ``policies [C, H, S, A]`` from the start."""
    horizon = policies.shape[1]

    def step(values, inputs):
        remaining, policy = inputs
        radius = model.reward_radius + _spread(values, early_ends)[:, None, None] * model.move_radius
        bound = model.reward + jnp.einsum("sat,ct->csa", model.transition, values) - radius
        bound = jnp.where(model.seen, jnp.clip(bound, 0.0, remaining), 0.0)
        return jnp.einsum("csa,csa->cs", policy, bound), None

    start = jnp.zeros((policies.shape[0], policies.shape[2]))
    backwards = jnp.arange(1.0, horizon + 1), policies.swapaxes(0, 1)[::-1]
    values, _ = jax.lax.scan(step, start, backwards)
    bound = values @ model.starts - _spread(values, False) * model.start_radius
    return jnp.where(model.started, jnp.clip(bound, 0.0, horizon), 0.0)


def _mixed(safety: str, lower: jax.Array, threshold: float | jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The two candidates that are mixed, and the share of the second; ``lower [H + 1]`` as of ``_candidates``."""
    last = lower.shape[0] - 1
    optimist, cautious = jnp.int32(0), jnp.int32(last)
    if safety == "none":
        return cautious, optimist, jnp.float32(1)
    if safety == "baseline":
        return cautious, optimist, jnp.float32(0)
    safe = lower >= threshold
    if safety == "eps_mix":
        first, second = cautious, optimist
    else:
        first = jnp.where(safe.any(), jnp.argmax(safe), last).astype(jnp.int32)
        second = jnp.maximum(first - 1, 0)
    # Where the first is safe and the second is not, the difference is positive.
    share = (lower[first] - threshold) / jnp.maximum(lower[first] - lower[second], 1e-9)
    share = jnp.where(safe[first], jnp.clip(share, 0.0, 1.0), 0.0)
    # The optimistic policy may be proved safe where the baseline is not yet.
    share = jnp.where(safe[second], 1.0, share)
    return first, second, share
