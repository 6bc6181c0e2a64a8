"""The value-based family: DQN, double, dueling, n-step, C51, QR-DQN, IQN, PQN, Munchausen and the stock-augmented
eta-network.

These methods differ in the head that predicts the return, in its loss, in the objective of greedy actions, and in
whether they learn from a replay buffer or from fresh unrolls; targets and exploration are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from agents.action_masks import action_mask_of
from agents.base import Agent, DataSpec
from agents.channels import channel_weights
from agents.functionals import Functional, require
from agents.minibatches import require_minibatches
from agents.networks.base import NetworkBuilder
from agents.networks.sequence import NetworkConfig
from agents.optimisers import OPTIMISERS, chained
from agents.replay import ReplayState, replay_add, replay_init
from agents.return_networks import HEADS, return_network
from agents.state import NO_PART, fields
from agents.statistics import masked_mean
from agents.value_learning import (
    Learner,
    LearningRule,
    gradient_steps,
    greedy_policy,
    no_metrics,
    saturating_sum,
    unroll_steps,
)
from envs.base import EnvironmentSpec, PyTree, Trajectory, Transition
from envs.choices import require_known
from envs.stock import is_augmented


class ValueBasedState(NamedTuple):
    """The state of a value-based agent. With data of kind ``unroll``, ``target``, ``gradient_steps`` and ``replay`` are
    ``()``: there is neither a target network nor stored data.

    Attributes:
      params: ``online`` (the network's parameters) and ``steps`` (environment steps so far; the count stays at the
        largest number of its 32 bits, so that exploration does not begin anew).
      target: parameters of the target network.
      optimiser: of ``online``.
      gradient_steps: so far, with a ``target_period`` since its last multiple.
      replay: the buffer.
    """

    params: dict[str, PyTree]
    target: PyTree
    optimiser: PyTree
    gradient_steps: jax.Array | tuple[()]
    replay: ReplayState | tuple[()]


def value_based(
    spec: EnvironmentSpec,
    *,
    data: DataSpec,
    network_config: NetworkBuilder = NetworkConfig(),  # noqa: B008  (frozen)
    head: str = "expected",
    channels: Mapping[str, float] | None = None,
    functional: Functional | None = None,
    return_scale: float = 1.0,
    use_stock: bool = True,
    stock_features: int = 0,
    stock_edits: int = 0,
    discount: float = 0.99,
    n_step: int = 1,
    trace_decay: float | None = None,
    trace_cut: bool = False,
    double: bool = False,
    dueling: bool = False,
    munchausen: float = 0.0,
    temperature: float | None = None,
    log_policy_floor: float = -1.0,
    quantiles: int = 32,
    atoms: int = 51,
    value_low: float = -10.0,
    value_high: float = 10.0,
    huber: float = 1.0,
    capacity: int = 100_000,
    batch_size: int = 32,
    updates: int = 1,
    epochs: int = 1,
    minibatches: int = 1,
    learning_starts: int = 1_000,
    prioritised: bool = False,
    priority_exponent: float = 0.6,
    importance_exponent: float = 0.4,
    target_rate: float = 0.005,
    target_period: int | None = None,
    epsilon_start: float = 1.0,
    epsilon_end: float = 0.05,
    epsilon_steps: float = 10_000.0,
    optimiser: str = "adam",
    learning_rate: float | optax.Schedule = 1e-3,
    adam_epsilon: float = 1e-5,
    max_gradient_norm: float | None = 10.0,
    flatten: bool = True,
) -> Agent:
    """Builds a value-based agent, which learns from a replay buffer or, without one, from fresh unrolls.

    **Data of kind ``replay``.** ``update(state, trajectory, key, *, relabel=None)`` stores the raw unroll in the replay
    buffer and then takes ``updates`` gradient steps, each on ``batch_size`` segments of ``n_step`` rows. With ``G`` the
    discounted reward of a segment up to the first end in it and ``Z`` the return that the target network predicts, the
    loss of the head moves the prediction at the segment's first action towards

        G + discount^n (1 - terminated) Z(s_n, a*),    a* greedy at s_n.

    With ``trace_decay`` it is the target network's Q(lambda) over the rows of the segment, as below, whose first action
    alone is learned from; ``trace_decay`` 1 is the n-step target again. Neither it nor the n-step return corrects for
    the actions of old policies; ``trace_cut`` ends the return at the first that is not greedy now.

    ``relabel(trajectory) -> trajectory`` is applied to every sampled batch, so that stored data is learned from
    with the rewards of the present reward transforms.

    **Data of kind ``unroll``** is for many environments side by side, whose steps are cheap (PQN: Gallici et al., 2024,
    "Simplifying deep temporal difference learning"). There is no buffer and no target network, so that the network
    should have ``layer_norm``, which keeps the values from diverging. ``update(state, trajectory, key)`` works out the
    target of every step of the unroll by the network as it is, and then takes ``epochs * minibatches`` gradient steps
    towards these targets. With ``trace_decay``, they are Peng's Q(lambda) over the unroll,

        G_t = r_t + discount (1 - terminated_t) ((1 - l_t) max_a Q(s_{t + 1}, a) + l_t G_{t + 1}),

    with ``l_t = trace_decay`` inside an episode, and 0 at its end and at the last row, where the value of the final
    observation is bootstrapped unless the episode terminated (``agents.value_targets.trace_return``). Without
    ``trace_decay`` they are those of one step, for every head.

    Where the network sees a stock, the metric ``stock_outside`` is
    the share of the unroll's steps whose stock was outside the range of start stocks, where the network has to
    extrapolate.

    Args:
      spec: the environment.
      data: of kind ``replay`` or ``unroll``: ``length`` rows of ``batch`` environments per update.
      network_config: what builds the network: feed-forward, of any kind; the head ``implicit_quantile`` takes a
        ``NetworkConfig`` alone.
      head: ``expected`` (DQN: Mnih et al., 2015), ``categorical`` (C51: Bellemare et al., 2017), ``quantile`` (QR-DQN:
        Dabney et al., 2018a) or ``implicit_quantile`` (IQN: Dabney et al., 2018b).
      channels: the weights of the channels that make up the reward, by name; ``{"env": 1.0}`` where ``None``. A learned
        ``extras["credit_weight"]`` of a channel's name multiplies its weight.
      functional: the objective that greedy actions maximise, a functional of stock plus return (Pires et al., 2025;
        environments from ``envs.stock``); ``None`` is the mean. With a functional, tied actions are all taken with
        equal probability, and their distributions are mixed in the target. Without one, a target takes the first of the
        best actions.
      return_scale: what a predicted return is multiplied by to be in units of the stock: the inverse of a factor that
        scales the rewards.
      use_stock: without it the network does not see the stock, and greedy actions maximise the functional of the
        future return alone, as if the episode began at every step. This is a comparison: it optimises no functional
        but the mean.
      stock_features: number of hat functions of the stock in the network's input, see ``return_networks.stock_hats``; 0
        for the bare number.
      stock_edits: number of copies of each sampled segment that get another start stock, drawn uniformly from the
        environment's range.
      discount: in [0, 1]; that of the stock where there is one.
      n_step: rows per replayed segment; 1 with data of kind ``unroll``.
      trace_decay: lambda of Q(lambda); ``None`` for targets that bootstrap after ``n_step`` rows. It takes the head
        ``expected``: a mixture of return distributions of every length would need more particles with every step.
      trace_cut: cut the trace at actions that are not greedy (Watkins, 1989).
      double: the online network chooses ``a*`` and the target network evaluates it (van Hasselt et al., 2016); not
        with data of kind ``unroll``, where there is one network.
      dueling: value and advantage as two heads (Wang et al., 2016).
      temperature: tau of a soft target: the next action is not greedy but drawn from ``pi = softmax(Q / temperature)``,
        and ``-temperature log pi``, the entropy of ``pi``, is added to its value; ``None`` for greedy targets, to which
        it converges as it falls to 0. Acting is greedy with exploration in either case. Targets are of one step.
      munchausen: alpha of Munchausen (Vieillard et al., 2020): ``alpha clip(temperature log pi(a | s),
        log_policy_floor, 0)`` is added to the reward of the action taken, which rewards what is likely to be chosen; 0
        for soft Q-learning. The paper has 0.9, a temperature of 0.03 and rewards clipped to [-1, 1]: both are in units
        of the reward. See ``agents.value_learning.soft_target``.
      log_policy_floor: ``l_0``, at most 0.
      quantiles: ``N`` of both quantile heads.
      atoms, value_low, value_high: support of the categorical head.
      huber: error beyond which the loss is linear: ``delta`` of the expected head (above 0; beyond every error, the
        loss is half the squared error) and ``kappa`` of the quantile heads (0: the plain quantile loss).
      capacity: of the buffer, in transitions; each is stored with both of its observations.
      batch_size, updates: replayed segments per gradient step and gradient steps per update.
      epochs, minibatches: passes over a fresh unroll and parts per pass.
      learning_starts: stored transitions before the first gradient step.
      prioritised, priority_exponent, importance_exponent: prioritised replay with its alpha and beta (Schaul et al.,
        2016). The priority is the absolute error of the expected head, otherwise the loss. Beta is constant here; the
        paper increases it to 1 during training.
      target_rate: ``target <- target + target_rate (online - target)`` after every gradient step.
      target_period: gradient steps between copies of the online network into the target network, in addition to
        ``target_rate`` (0 for copies alone); ``None`` for no copies.
      epsilon_start, epsilon_end, epsilon_steps: share of random actions, linear over ``epsilon_steps`` environment
        steps.
      optimiser: ``adam`` or ``radam`` (that of PQN), see ``agents.optimisers.OPTIMISERS``.
      learning_rate: a number or an optax schedule over gradient steps.
      adam_epsilon, max_gradient_norm: optimiser; ``None`` for no clipping of the global gradient norm.
      flatten: update all parameters as one vector, see ``agents.optimisers``; False for large or sharded networks.

    Raises:
      ValueError: see ``return_networks.return_network``; data of another kind, or settings that are for the other kind;
        counts out of range; an unroll that cannot be cut into ``minibatches`` equal parts; a buffer too small to learn
        from; an unknown optimiser; a trace of another head than ``expected`` or with edited stocks, or a cut without a
        trace; a temperature with a categorical head, a functional, ``double`` or targets of more than one step, or
        ``munchausen`` without a temperature; a functional that greedy steps do not optimise, or that this head or
        environment does not support; an expected head with ``huber`` 0.
      UnsupportedSpaceError: actions that are not Discrete, or an observation space that cannot be encoded.
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
    counts = {"n_step": n_step, "batch_size": batch_size, "updates": updates, "epochs": epochs}
    counts |= {"minibatches": minibatches} | ({} if target_period is None else {"target_period": target_period})
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")
    if data.kind == "unroll":
        _validate_unroll(data, minibatches, n_step=n_step, updates=updates, double=double, prioritised=prioritised)
    else:
        _validate_replay(data, capacity, learning_starts, n_step, epochs=epochs, minibatches=minibatches)
    _validate_trace(head, trace_decay, trace_cut, stock_edits)
    _validate_soft(head, functional, munchausen, temperature, n_step=n_step, trace_decay=trace_decay, double=double)
    require_known("optimiser", optimiser, OPTIMISERS)
    _validate_functional(functional, spec, head, discount, use_stock, stock_edits)
    if head == "expected" and not isinstance(huber, jax.core.Tracer) and huber == 0:
        raise ValueError("huber=0: the loss of head='expected' would be 0 for every prediction: expected above 0")
    steps = [] if max_gradient_norm is None else [optax.clip_by_global_norm(max_gradient_norm)]
    rule = LearningRule(
        returns=returns,
        optimiser=chained(*steps, OPTIMISERS[optimiser](learning_rate, eps=adam_epsilon), flatten=flatten),
        flatten=flatten,
        actions=int(spec.action_space.n),
        allowed=action_mask_of(spec),
        channels=channel_weights(channels),
        functional=functional,
        return_scale=return_scale,
        use_stock=use_stock,
        start_stocks=spec.observation_space["start_stock"] if stock_edits else None,
        max_episode_steps=spec.max_episode_steps,
        stock_edits=stock_edits,
        discount=discount,
        n_step=n_step,
        trace_decay=trace_decay,
        trace_cut=trace_cut,
        batch_size=batch_size,
        epochs=epochs,
        minibatches=minibatches,
        double=double,
        munchausen=munchausen,
        temperature=temperature,
        log_policy_floor=log_policy_floor,
        quantiles=quantiles,
        huber=huber,
        prioritised=prioritised,
        priority_exponent=priority_exponent,
        importance_exponent=importance_exponent,
        target_rate=target_rate,
        target_period=target_period,
    )
    sees_stock = is_augmented(spec.observation_space) and use_stock
    epsilon_at = partial(linear_epsilon, start=epsilon_start, end=epsilon_end, steps=epsilon_steps)

    replays = data.kind == "replay"

    def init_fn(key):
        online = returns.init(key)
        state = ValueBasedState(
            params={"online": online, "steps": jnp.zeros((), jnp.int32)},
            target=(),
            optimiser=rule.optimiser.init(online),
            gradient_steps=(),
            replay=(),
        )
        if not replays:
            return state
        replay = replay_init(_transition_template(spec), capacity=capacity, batch=data.batch, prioritised=prioritised)
        return state._replace(target=online, gradient_steps=jnp.zeros((), jnp.int32), replay=replay)

    def action_probabilities(params, carry, observation, *, greedy=False):
        del carry
        best = greedy_policy(rule, returns.apply(params["online"], observation), observation)
        epsilon = 0.0 if greedy else epsilon_at(params["steps"])
        if rule.allowed is None:
            return (1 - epsilon) * best + epsilon / rule.actions
        allowed = rule.allowed(observation)
        return (1 - epsilon) * best + epsilon * allowed / jnp.sum(allowed, axis=-1, keepdims=True)

    def return_distribution(params, observation):
        distribution = returns.distribution(returns.apply(params["online"], observation))
        return distribution._replace(particles=return_scale * distribution.particles)

    def act_fn(params, carry, observation, key, *, greedy=False, action=None):
        if action is None:
            probabilities = action_probabilities(params, carry, observation, greedy=greedy)
            action = jax.random.categorical(key, jnp.log(probabilities)).astype(jnp.int32)
        return action, carry, {}

    def learn_from_unroll(state, trajectory, key):
        online, optimiser, metrics = unroll_steps(rule, key, trajectory, state.params["online"], state.optimiser)
        return state._replace(params=state.params | {"online": online}, optimiser=optimiser), metrics

    def learn_from_replay(state, trajectory, key, relabel):
        replay = replay_add(state.replay, trajectory)
        stored = replay.size * data.batch
        learner = Learner(
            state.params["online"],
            state.target,
            state.optimiser,
            state.gradient_steps,
            replay.priority,
            replay.largest,
        )
        ready = (stored >= learning_starts) & (replay.size >= n_step)
        keys = jax.random.split(key, updates)
        learner, metrics = jax.lax.cond(
            ready,
            partial(gradient_steps, rule, replay, relabel, keys),
            lambda learner: (learner, no_metrics()),
            learner,
        )
        state = ValueBasedState(
            params=state.params | {"online": learner.online},
            target=learner.target,
            optimiser=learner.optimiser,
            gradient_steps=learner.gradient_steps,
            replay=replay._replace(priority=learner.priority, largest=learner.largest),
        )
        return state, metrics | {"stored": stored.astype(jnp.float32)}

    def update_fn(state, trajectory: Trajectory, key, *, relabel=None):
        environment_steps = saturating_sum(state.params["steps"], jnp.sum(trajectory.mask).astype(jnp.int32))
        if replays:
            state, metrics = learn_from_replay(state, trajectory, key, relabel)
        else:
            state, metrics = learn_from_unroll(state, trajectory, key)
        metrics |= {"epsilon": epsilon_at(environment_steps)}
        if sees_stock:
            outside = outside_start(spec, trajectory.observation["stock"])
            metrics["stock_outside"] = masked_mean(outside, trajectory.mask)
        # Both networks see the same trajectories, and so keep the same statistics of observations.
        online, target = (
            returns.observe(params, trajectory.observation, trajectory.mask) if params else params
            for params in (state.params["online"], state.target)
        )
        return state._replace(params={"online": online, "steps": environment_steps}, target=target), metrics

    return Agent(
        init_fn,
        lambda batch: (),
        act_fn,
        update_fn,
        data,
        action_probabilities,
        return_distribution,
        fields("replay") if replays else NO_PART,
    )


def linear_epsilon(
    environment_steps: jax.Array, *, start: float | jax.Array, end: float | jax.Array, steps: float | jax.Array
) -> jax.Array:
    """The share of random actions: linear from ``start`` to ``end`` over ``steps`` environment steps, then constant."""
    done = jnp.clip(environment_steps / jnp.maximum(steps, 1.0), 0.0, 1.0)
    return start + (end - start) * done


def outside_start(spec: EnvironmentSpec, stock: jax.Array) -> jax.Array:
    """Whether a stock, or any of its components, is outside the range of start stocks; ``[...]`` bool."""
    space = spec.observation_space["start_stock"]
    outside = (stock < space.low) | (stock > space.high)
    return jnp.any(outside.reshape(*outside.shape[: outside.ndim - len(space.shape)], -1), axis=-1)


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


def _validate_replay(data, capacity, learning_starts, n_step, *, epochs, minibatches):
    if data.kind != "replay":
        raise ValueError(f"value_based plays no groups of episodes: data.kind={data.kind!r}, expected replay or unroll")
    for name, value in (("epochs", epochs), ("minibatches", minibatches)):
        if value != 1:
            raise ValueError(
                f"{name}={value} is for data.kind='unroll': expected 1, and updates for the number of steps"
            )
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


def _validate_unroll(data, minibatches, *, n_step, updates, double, prioritised):
    if updates != 1:
        raise ValueError(
            f"updates={updates} is for data.kind='replay': expected 1, and epochs and minibatches, whose product is "
            "the number of gradient steps on an unroll"
        )
    if n_step != 1:
        raise ValueError(f"n_step={n_step} is for data.kind='replay': expected 1, and trace_decay for longer returns")
    if double or prioritised:
        name, lacks = ("double", "target network") if double else ("prioritised", "replay buffer")
        raise ValueError(f"{name}=True: data.kind='unroll' has no {lacks}, expected False")
    require_minibatches(minibatches, data.batch * data.length)


def _validate_trace(head, trace_decay, trace_cut, stock_edits):
    if trace_decay is None:
        if trace_cut:
            raise ValueError("trace_cut=True: without trace_decay there is no trace to cut, expected False")
    elif head != "expected":
        raise ValueError(f"trace_decay={trace_decay}: expected head='expected', got {head!r}, or trace_decay=None")
    elif stock_edits:
        raise ValueError(f"stock_edits={stock_edits}: the rows of a trace keep their stocks, expected 0")


def _validate_soft(head, functional, munchausen, temperature, *, n_step, trace_decay, double):
    if temperature is None:
        if not isinstance(munchausen, jax.core.Tracer) and munchausen != 0:
            raise ValueError(f"munchausen={munchausen}: without temperature there is no policy, expected 0")
        return
    soft = f"temperature={temperature}: "
    if head == "categorical":
        raise ValueError(f"{soft}every action would shift the atoms differently, expected head other than {head!r}")
    if functional is not None:
        raise ValueError(f"{soft}a soft policy maximises the mean return and its entropy, not {functional.name}")
    if n_step != 1 or trace_decay is not None:
        given = f"n_step={n_step}" if n_step != 1 else f"trace_decay={trace_decay}"
        raise ValueError(f"{soft}its targets are of one step, got {given}, expected n_step=1 and trace_decay=None")
    if double:
        raise ValueError(f"{soft}double=True: a soft target chooses no action, expected False")


def _validate_functional(functional, spec, head, discount, use_stock, stock_edits):
    stocked = is_augmented(spec.observation_space) and use_stock
    if stock_edits < 0 or (stock_edits and not stocked):
        raise ValueError(
            f"stock_edits={stock_edits}: expected 0, because the environment has no stock (see envs.stock) or "
            "use_stock=False"
        )
    if functional is None:
        return
    if head == "expected":
        raise ValueError(f"{functional.name}: head='expected' predicts no distribution: expected one of {HEADS[1:]}")
    if not use_stock:
        # Greedy steps that ignore the stock optimise no functional; they serve as a comparison for those that use it.
        if functional.dimension not in (None, 0):
            raise ValueError(f"{functional.name} is for vectors of {functional.dimension}, the return is a number")
        return
    # A traced discount belongs to a sweep whose points were checked one by one.
    known = 1.0 if isinstance(discount, jax.core.Tracer) else float(discount)
    infinite = known < 1 and spec.max_episode_steps is None
    require(functional, discount=known, dimension=0, stock=stocked, infinite=infinite)
    if stocked and spec.observation_space["stock"].shape != ():
        raise ValueError(f"{functional.name}: the stock is a vector and the return a number: expected a scalar stock")
