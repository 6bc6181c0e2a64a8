"""The value-based family: DQN, double, dueling, n-step, C51, QR-DQN, IQN and the stock-augmented eta-network.

What differs between these methods is the head that predicts the return, its loss, and what the greedy action is greedy
for; replay, targets and exploration are one mechanism.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from agents.base import Agent, DataSpec
from agents.channels import credit_weights, read_channel
from agents.functionals import Functional, require
from agents.networks import NetworkConfig
from agents.replay import ReplayState, importance_weights, replay_add, replay_init, replay_prioritise, replay_sample
from agents.return_networks import HEADS, best_actions, return_network, utilities
from agents.statistics import masked_mean
from agents.value_losses import (
    categorical_cross_entropy,
    categorical_projection,
    huber_loss,
    midpoints,
    quantile_huber_loss,
)
from envs.base import EnvironmentSpec, PyTree, Trajectory, Transition
from envs.stock import is_augmented, with_start


class ValueBasedState(NamedTuple):
    """``params`` has the keys ``online`` (the network's parameters) and ``steps`` (environment steps so far)."""

    params: dict[str, PyTree]
    target: PyTree
    optimiser: PyTree
    gradient_steps: jax.Array
    replay: ReplayState


class Segment(NamedTuple):
    """What an n-step segment comes to, ``[B]`` each: the discounted reward up to its first end or last row, what
    multiplies the value behind it (0 where it terminated), that row's index, and whether all of it is real."""

    reward: jax.Array
    discount: jax.Array
    last: jax.Array
    weight: jax.Array


def n_step_return(
    rewards: jax.Array, terminated: jax.Array, truncated: jax.Array, mask: jax.Array, discount: float | jax.Array
) -> Segment:
    """Sums ``[n, B]`` rows up to the first end: ``sum_k discount^k r_k`` and ``discount^(last + 1) (1 - terminated)``.

    A truncated episode is cut, too, but what follows its last row is bootstrapped.
    """
    ends = (terminated | truncated).astype(jnp.int32)
    # A row counts while no row before it ended the episode.
    counts = (jnp.cumsum(ends, axis=0) - ends) == 0
    last = jnp.sum(counts, axis=0) - 1
    powers = jnp.asarray(discount) ** jnp.arange(rewards.shape[0] + 1)
    total = jnp.sum(jnp.where(counts, powers[:-1, None] * rewards, 0.0), axis=0)
    stopped = jnp.any(counts & terminated, axis=0)
    weight = jnp.min(jnp.where(counts, mask, 1.0), axis=0)
    return Segment(total, jnp.where(stopped, 0.0, powers[last + 1]), last, weight)


def value_based(
    spec: EnvironmentSpec,
    *,
    data: DataSpec,
    network_config: NetworkConfig = NetworkConfig(),  # noqa: B008  (frozen)
    head: str = "expected",
    channels: Mapping[str, float] | None = None,
    functional: Functional | None = None,
    return_scale: float = 1.0,
    use_stock: bool = True,
    stock_features: int = 0,
    stock_edits: int = 0,
    discount: float = 0.99,
    n_step: int = 1,
    double: bool = False,
    dueling: bool = False,
    quantiles: int = 32,
    atoms: int = 51,
    value_low: float = -10.0,
    value_high: float = 10.0,
    huber: float = 1.0,
    capacity: int = 100_000,
    batch_size: int = 32,
    updates: int = 1,
    learning_starts: int = 1_000,
    prioritised: bool = False,
    priority_exponent: float = 0.6,
    importance_exponent: float = 0.4,
    target_rate: float = 0.005,
    target_period: int | None = None,
    epsilon_start: float = 1.0,
    epsilon_end: float = 0.05,
    epsilon_steps: float = 10_000.0,
    learning_rate: float | optax.Schedule = 1e-3,
    adam_epsilon: float = 1e-5,
    max_gradient_norm: float | None = 10.0,
) -> Agent:
    """Builds a value-based agent.

    ``update(state, trajectory, key, *, relabel=None)`` stores the raw unroll and then takes ``updates`` gradient steps,
    each on ``batch_size`` segments of ``n_step`` rows. With G_n the reward of a segment up to the first end in it,

        target = G_n + discount^n (1 - terminated) Z_target(s_n, a*),    a* greedy at s_n,

    is regressed on by the loss of the head, averaged over the segments. ``relabel(trajectory) -> trajectory`` is
    applied to every sampled batch, so that reward transforms are those of now. Of a stock that the network sees, the
    metric ``stock_outside`` is the share of the unroll's steps at which it was outside the range of start stocks: there
    the network has to go on from what it learnt at the edge.

    Args:
      spec: the environment.
      data: of kind ``replay``: ``length`` rows of ``batch`` environments per update.
      network_config: the network; feed-forward.
      head: ``expected`` (DQN: Mnih et al., 2015), ``categorical`` (C51: Bellemare et al., 2017), ``quantile`` (QR-DQN:
        Dabney et al., 2018a) or ``implicit_quantile`` (IQN: Dabney et al., 2018b).
      channels: the weights of the channels that make up the reward, by name; ``{"env": 1.0}`` where ``None``.
      functional: what the greedy action is greedy for, of stock plus return; ``None`` is the mean (Pires et al., 2025:
        an environment from ``envs.stock``). With it, actions that tie are all taken, with equal probability: their
        distributions are mixed in the target. Without it, a target takes the first of the best.
      return_scale: a return of the network times this is in units of the stock: the inverse of a factor that scales
        the rewards.
      use_stock: without it the network sees no stock and the greedy rule asks the functional of the return to come
        alone, as if the episode began at every step: a comparison, which optimises no functional but the mean.
      stock_features: so many hat functions of the stock in the network's input, see ``return_networks.stock_hats``; 0
        for the bare number.
      stock_edits: so many copies of each sampled segment get another start stock, uniform over the environment's range.
      discount: in [0, 1]; that of the stock where there is one.
      n_step: rows per segment.
      double: the online network chooses ``a*``, the target network says what it is worth (van Hasselt et al., 2016).
      dueling: value and advantage as two heads (Wang et al., 2016).
      quantiles: ``N`` of both quantile heads.
      atoms, value_low, value_high: the categorical head's.
      huber: where the loss turns linear, ``delta`` of the expected head (above 0) and ``kappa`` of the quantile heads
        (0: the plain quantile loss).
      capacity: of the buffer, in transitions, each with both of its observations.
      batch_size, updates: segments per gradient step and gradient steps per update.
      learning_starts: stored transitions before the first gradient step.
      prioritised, priority_exponent, importance_exponent: prioritised replay, its alpha and beta (Schaul et al., 2016).
        The priority is the absolute error of the expected head, else the loss. Beta stays what it is, where the paper
        lets it grow to 1 over the training.
      target_rate: ``target <- target + target_rate (online - target)`` after every gradient step.
      target_period: the target becomes the online network every so many gradient steps; ``None`` for never. It comes
        on top of ``target_rate``, which is 0 for copies alone.
      epsilon_start, epsilon_end, epsilon_steps: share of random actions, linear over so many environment steps.
      learning_rate: a number or an optax schedule over gradient steps.
      adam_epsilon, max_gradient_norm: optimiser; ``None`` for no clipping of the global gradient norm.

    Raises:
      ValueError: see ``return_network``; data of another kind; counts out of range; a buffer too small to learn from;
        a functional that greedy steps do not optimise, or that this head or environment cannot tell; an expected head
        with ``huber`` 0.
      UnsupportedSpaceError: actions that are not Discrete, or an observation without encoder.
    """
    returns = return_network(
        spec,
        network_config,
        head=head,
        dueling=dueling,
        quantiles=quantiles,
        atoms=atoms,
        value_low=value_low,
        value_high=value_high,
        use_stock=use_stock,
        stock_features=stock_features,
    )
    _validate_data(data, capacity, learning_starts, n_step, batch_size, updates, target_period)
    _validate_functional(functional, spec, head, discount, use_stock, stock_edits)
    if head == "expected" and not isinstance(huber, jax.core.Tracer) and huber == 0:
        raise ValueError("huber=0: head='expected' would lose nothing, whatever it predicts: expected above 0")
    weights = {"env": 1.0} if channels is None else dict(channels)
    steps = [] if max_gradient_norm is None else [optax.clip_by_global_norm(max_gradient_norm)]
    optimiser = optax.flatten(optax.chain(*steps, optax.adam(learning_rate, eps=adam_epsilon)))
    actions = int(spec.action_space.n)
    stocked = is_augmented(spec.observation_space) and use_stock

    def init_fn(key):
        online = returns.init(key)
        template = _transition_template(spec)
        return ValueBasedState(
            params={"online": online, "steps": jnp.zeros((), jnp.int32)},
            # A copy: two leaves of one buffer cannot both be donated.
            target=jax.tree.map(jnp.copy, online),
            optimiser=optimiser.init(online),
            gradient_steps=jnp.zeros((), jnp.int32),
            replay=replay_init(template, capacity=capacity, batch=data.batch, prioritised=prioritised),
        )

    def initial_carry(batch):
        del batch
        return ()

    def epsilon_at(environment_steps):
        done = jnp.clip(environment_steps / jnp.maximum(epsilon_steps, 1.0), 0.0, 1.0)
        return epsilon_start + (epsilon_end - epsilon_start) * done

    def greedy_policy(outputs, observation):
        distribution = returns.distribution(outputs)
        return best_actions(
            utilities(distribution, observation, functional, return_scale=return_scale, use_stock=use_stock)
        )

    def act_fn(params, carry, observation, key, *, greedy=False, action=None):
        if action is None:
            best = greedy_policy(returns.apply(params["online"], observation), observation)
            epsilon = 0.0 if greedy else epsilon_at(params["steps"])
            probabilities = (1 - epsilon) * best + epsilon / actions
            action = jax.random.categorical(key, jnp.log(probabilities)).astype(jnp.int32)
        return action, carry, {}

    def target_distribution(key, target_outputs, chooser_outputs, observation):
        """The distribution at ``a*``, by outputs ``[B, A, N]``: particles and probabilities ``[B, N]``.

        Where actions tie, as they do wherever a functional is flat, it is that of their uniform mixture: itself for the
        heads whose actions share their particles, and in expectation, by drawing one, for quantiles. Their loss is
        linear in the target's distribution, and the particles of all actions would cost as many times the pairs.
        """
        policy = greedy_policy(chooser_outputs, observation)
        if functional is None:
            policy = jax.nn.one_hot(jnp.argmax(policy, axis=-1), actions)
        elif head not in ("expected", "categorical"):
            policy = jax.nn.one_hot(jax.random.categorical(key, jnp.log(policy)), actions)
        distribution = returns.distribution(target_outputs)
        if head == "categorical":
            return distribution.particles[:, 0], jnp.sum(policy[..., None] * distribution.weights, axis=1)
        particles = jnp.sum(policy[..., None] * distribution.particles, axis=1)
        return particles, jnp.broadcast_to(distribution.weights, particles.shape)

    def targets_of(key, target, online, following, segment, fractions):
        """The target of each segment, in the shape that the head's loss takes, and its mean ``[B]``."""
        target_outputs = chooser_outputs = returns.apply(target, following, fractions)
        if double or fractions is not None:
            # Never chosen by the fractions that were sampled for the target: a maximum over noise is biased upwards.
            chooser_outputs = returns.apply(online if double else target, following)
        particles, probabilities = target_distribution(key, target_outputs, chooser_outputs, following)
        if head == "expected":
            value = segment.reward + segment.discount * particles[:, 0]
            return value, value
        if head == "categorical":
            projected = categorical_projection(returns.atoms, segment.reward, segment.discount, probabilities)
            return projected, jnp.sum(returns.atoms * projected, axis=-1)
        shifted = segment.reward[:, None] + segment.discount[:, None] * particles
        return shifted, jnp.mean(shifted, axis=-1)

    def losses_of(outputs, target, fractions):
        """Loss and priority ``[B]`` of the taken actions' outputs ``[B, N]``."""
        if head == "expected":
            error = target - outputs[:, 0]
            return huber_loss(error, huber), jnp.abs(error)
        if head == "categorical":
            loss = categorical_cross_entropy(outputs, target)
        else:
            fractions = midpoints(quantiles) if fractions is None else fractions
            loss = quantile_huber_loss(outputs, fractions, target, kappa=huber)
        return loss, loss

    def edited(observation, start):
        return with_start(observation, start, discount)

    def with_edits(key, observation, following):
        """Both observations ``[B, ...]``, followed by ``stock_edits`` copies of each from other start stocks."""
        space = spec.observation_space["start_stock"]
        batch = observation["stock"].shape[0]
        drawn = jax.random.uniform(key, (stock_edits * batch, *space.shape))
        start = space.low + (space.high - space.low) * drawn
        copies = [jax.tree.map(lambda x: jnp.concatenate([x] * stock_edits), each) for each in (observation, following)]
        return (
            jax.tree.map(lambda x, y: jnp.concatenate([x, y]), each, edited(copy, start))
            for each, copy in zip((observation, following), copies, strict=True)
        )

    def sample(replay, key):
        """The segments of one gradient step, their indices and their probabilities."""
        return replay_sample(replay, jax.random.split(key, 4)[0], batch=batch_size, length=n_step)

    def gradient_step(replay, relabel, carry, inputs):
        params, target, optimiser_state, count, priority, largest = carry
        key, sampled = inputs
        _, edit_key, fraction_key, tie_key = jax.random.split(key, 4)
        replay = replay._replace(priority=priority, largest=largest)
        rows, index, probability = sample(replay, key) if sampled is None else sampled
        rows = rows if relabel is None else relabel(rows)
        segment = n_step_return(weighted_reward(rows, weights), rows.terminated, rows.truncated, rows.mask, discount)
        columns = jnp.arange(batch_size)
        observation = jax.tree.map(lambda x: x[0], rows.observation)
        following = jax.tree.map(lambda x: x[segment.last, columns], rows.next_observation)
        action, importance = rows.action[0], jnp.ones(batch_size)
        if prioritised:
            importance = importance_weights(probability, importance_exponent)
        if stock_edits:
            observation, following = with_edits(edit_key, observation, following)
            action, importance = (jnp.tile(x, 1 + stock_edits) for x in (action, importance))
            segment = jax.tree.map(lambda x: jnp.tile(x, 1 + stock_edits), segment)
        fractions = target_fractions = None
        if head == "implicit_quantile":
            fractions, target_fractions = jax.random.uniform(fraction_key, (2, action.shape[0], quantiles))
        goal, goal_mean = targets_of(tie_key, target, params, following, segment, target_fractions)
        valid = segment.weight

        def loss_fn(params):
            outputs = returns.apply(params, observation, fractions)
            # A masked sum, not a gather: the gradient of a gather is a scatter, which is slow on every device.
            chosen = jax.nn.one_hot(action, actions)[..., None]
            outputs = jnp.sum(chosen * outputs, axis=1)
            loss, surprise = losses_of(outputs, goal, fractions)
            value = utilities(returns.distribution(outputs[:, None]), observation, None)[:, 0]
            total = jnp.sum(valid * importance * loss) / jnp.maximum(jnp.sum(valid), 1.0)
            return total, (surprise, masked_mean(value, valid))

        (loss, (surprise, value)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        change, optimiser_state = optimiser.update(gradient, optimiser_state, params)
        params = optax.apply_updates(params, change)
        count = count + 1
        target = jax.tree.map(lambda old, new: old + target_rate * (new - old), target, params)
        if target_period is not None:
            copies = count % target_period == 0
            target = jax.tree.map(lambda old, new: jnp.where(copies, new, old), target, params)
        if prioritised:
            replay = replay_prioritise(replay, index, surprise[:batch_size], exponent=priority_exponent)
        metrics = {
            "loss": loss,
            "value": value,
            "target": masked_mean(goal_mean, valid),
            "gradient_norm": optax.tree.norm(ravel_pytree(gradient)[0]),
        }
        return (params, target, optimiser_state, count, replay.priority, replay.largest), metrics

    def update_fn(state, trajectory: Trajectory, key, *, relabel=None):
        replay = replay_add(state.replay, trajectory)
        stored = replay.size * data.batch
        environment_steps = state.params["steps"] + jnp.sum(trajectory.mask).astype(jnp.int32)
        learner = (
            state.params["online"],
            state.target,
            state.optimiser,
            state.gradient_steps,
            replay.priority,
            replay.largest,
        )

        def learn(learner):
            keys = jax.random.split(key, updates)
            # Without priorities no gradient step changes what the next one samples: all is taken in one go.
            sampled = None if prioritised else jax.vmap(partial(sample, replay))(keys)
            learner, metrics = jax.lax.scan(
                lambda carry, each: gradient_step(replay, relabel, carry, each), learner, (keys, sampled)
            )
            # Typed: where 64 bits are enabled, both branches must still agree.
            return learner, {name: jnp.mean(each).astype(jnp.float32) for name, each in metrics.items()}

        def wait(learner):
            return learner, {name: jnp.float32(0) for name in ("loss", "value", "target", "gradient_norm")}

        ready = (stored >= learning_starts) & (replay.size >= n_step)
        (online, target, optimiser_state, count, priority, largest), metrics = jax.lax.cond(ready, learn, wait, learner)
        metrics |= {"epsilon": epsilon_at(environment_steps), "stored": stored.astype(jnp.float32)}
        if stocked:
            metrics["stock_outside"] = masked_mean(
                outside_start(spec, trajectory.observation["stock"]), trajectory.mask
            )
        state = ValueBasedState(
            params={"online": online, "steps": environment_steps},
            target=target,
            optimiser=optimiser_state,
            gradient_steps=count,
            replay=replay._replace(priority=priority, largest=largest),
        )
        return state, metrics

    return Agent(init_fn, initial_carry, act_fn, update_fn, data)


def outside_start(spec: EnvironmentSpec, stock: jax.Array) -> jax.Array:
    """Whether a stock is outside the range that start stocks are drawn from, any component of a vector; ``[...]``."""
    space = spec.observation_space["start_stock"]
    outside = (stock < space.low) | (stock > space.high)
    return jnp.any(outside.reshape(*outside.shape[: outside.ndim - len(space.shape)], -1), axis=-1)


def weighted_reward(trajectory: Trajectory, weights: Mapping[str, float]) -> jax.Array:
    """``sum_c weights_c * credit_weight_c * rewards_c`` over the channels in ``weights``, ``[T, B]``.

    ``credit_weight_c`` is 1 unless a reward transform wrote ``extras["credit_weight"]``: the value-based family has one
    credit entry per channel, of the channel's name.

    Raises:
      ValueError: at trace time, a channel that is missing or not ``[T, B]``, or a credit weight of no channel.
    """
    learned = credit_weights(trajectory, weights)
    parts = (
        weight * learned.get(name, 1.0) * read_channel(trajectory, name, "agent.channels")
        for name, weight in weights.items()
    )
    return sum(parts, jnp.zeros_like(trajectory.mask))


def _transition_template(spec):
    """One stored transition as a pytree of shapes: the raw channels of the environment and no extras."""
    names = ["env", *(f"cost/{name}" for name in spec.costs), *(f"objective/{name}" for name in spec.objectives)]
    observation = spec.observation_template()
    number, flag = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.bool_)
    return Transition(
        observation=observation,
        action=jax.ShapeDtypeStruct((), jnp.int32),
        rewards=dict.fromkeys(names, number),
        terminated=flag,
        truncated=flag,
        next_observation=observation,
        mask=number,
        extras={},
    )


def _validate_data(data, capacity, learning_starts, n_step, batch_size, updates, target_period):
    if data.kind != "replay":
        raise ValueError(f"value_based learns from a buffer: data.kind={data.kind!r}, expected 'replay'")
    counts = {"n_step": n_step, "batch_size": batch_size, "updates": updates}
    counts |= {} if target_period is None else {"target_period": target_period}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")
    rows = capacity // data.batch
    longest = max(data.length, n_step)
    if rows < longest:
        raise ValueError(
            f"capacity={capacity} holds {rows} rows of batch={data.batch}: expected at least {longest} rows, "
            f"capacity={longest * data.batch}"
        )
    if learning_starts > rows * data.batch:
        raise ValueError(
            f"learning_starts={learning_starts}: the buffer never holds more than {rows * data.batch} transitions"
        )


def _validate_functional(functional, spec, head, discount, use_stock, stock_edits):
    stocked = is_augmented(spec.observation_space) and use_stock
    if stock_edits < 0 or (stock_edits and not stocked):
        raise ValueError(
            f"stock_edits={stock_edits}: expected 0 but for a stock-augmented environment (envs.stock) whose stock "
            f"is used"
        )
    if functional is None:
        return
    if head == "expected":
        raise ValueError(f"{functional.name}: head='expected' predicts no distribution, expected one of {HEADS[1:]}")
    if not use_stock:
        # Greedy steps that ignore the stock optimise nothing: they are what the stock is compared with.
        if functional.dimension not in (None, 0):
            raise ValueError(f"{functional.name} is for vectors of {functional.dimension}, the return is a number")
        return
    # A traced discount is a sweep's, whose points were checked one by one.
    known = 1.0 if isinstance(discount, jax.core.Tracer) else float(discount)
    infinite = known < 1 and spec.max_episode_steps is None
    require(functional, discount=known, dimension=0, stock=stocked, infinite=infinite)
    if stocked and spec.observation_space["stock"].shape != ():
        raise ValueError(f"{functional.name}: the stock is a vector and the return a number: expected a scalar stock")
