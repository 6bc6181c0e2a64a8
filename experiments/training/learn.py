"""The learn step, written once, and the pure half of a run around it.

Key streams: everything random in a run derives from the seed's key by ``fold_in`` with one of the names below
and then the iteration, so that no state of a generator is carried and a resumed run draws what the uninterrupted
one would have drawn. Evaluation draws from a stream of its own (``experiments.training.keys``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agents.base import Agent
from agents.state import without_aliases
from envs.base import Environment, PyTree, Trajectory
from envs.rollout import episode_statistics, episodes, start_unroll, unroll
from experiments.evaluators.base import acting_policy
from rewards.base import NON_FINITE as REWARD_FLAG
from rewards.base import RewardTransform

# Streams of a seed's key.
AGENT_INIT, REWARD_INIT, WARM_START, ENVIRONMENT_INIT, ROLLOUT, REWARD_UPDATE, AGENT_UPDATE = range(7)

# As many non-finite updates in a row end the learning of a member.
REJECTED_LIMIT = 3

# See ``all_finite``.
LARGE_LEAF = 2**16

# Metrics that are sums or maxima over a chunk; every other metric is a mean over its iterations.
SUM_PREFIX, MAX_PREFIX = "sum/", "max/"
# The iteration in which something was not finite, the last one of a chunk; -1 where all was. Behind the prefix stands
# what it was: ``channel/TRANSFORM/CHANNEL``, ``state/TRANSFORM`` or ``agent``.
NON_FINITE = MAX_PREFIX + "non_finite/"


class RunState(NamedTuple):
    """All that a run is, and the only thing that is checkpointed.

    Attributes:
      agent, reward: states of the agent and of the reward chain.
      rollout: the unrolling environments, ``()`` for whole episodes and for host environments.
      key: the seed's key; constant.
      rejected: consecutive non-finite updates, ``int32``; at ``REJECTED_LIMIT`` it stays and nothing is learned.
    """

    agent: PyTree
    reward: PyTree
    rollout: PyTree
    key: jax.Array
    rejected: jax.Array


def stream(key: jax.Array, name: int, index: int | jax.Array = 0) -> jax.Array:
    """The key of stream ``name`` at ``index``."""
    return jax.random.fold_in(jax.random.fold_in(key, name), index)


def all_finite(tree: PyTree) -> jax.Array:
    """Whether every floating-point number of ``tree`` is finite; ``[]`` bool.

    Leaves of at most ``LARGE_LEAF`` numbers are concatenated and checked at once: a check of each leaf is a quarter of
    what there is to compile. A larger leaf is checked where it is, so that one that is sharded over devices is neither
    copied nor gathered.
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    # XLA's CPU compiler makes a reduction over many axes slow. The first two, over which data are sharded, stay.
    parts = [leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves if leaf.size > LARGE_LEAF]
    small = [leaf.reshape(-1) for leaf in leaves if leaf.size <= LARGE_LEAF]
    parts += [jnp.concatenate(small)] if small else []
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(part)) for part in parts])) if parts else jnp.bool_(True)


def choose(condition: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """The tree ``new`` where ``condition []`` holds, else ``old``."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), new, old)


def keep_agent_if(condition: jax.Array, agent: Agent, new: PyTree, old: PyTree) -> PyTree:
    """The agent's state ``new`` where ``condition`` holds, else ``old`` with the data that ``new`` stores.

    Stored data are neither chosen nor copied: the agent learns from them later.
    """
    learned, data = agent.stored.split(new)
    return agent.stored.join(choose(condition, learned, agent.stored.split(old)[0]), data)


def keep_reward_if(condition: jax.Array, reward: RewardTransform, new: PyTree, old: PyTree) -> PyTree:
    """The reward chain's state ``new`` where ``condition`` holds, else ``old`` with what ``new`` remembers of the
    environments, which went on, as long as that is finite. The data that ``new`` stores are kept in any case."""
    learned, data = reward.stored.split(new)
    rest, before = reward.remembered.split(reward.stored.split(old)[0])
    after = reward.remembered.split(learned)[1]
    undone = reward.remembered.join(rest, choose(all_finite(after), after, before))
    return reward.stored.join(choose(condition, learned, undone), data)


def initial_state(
    agent: Agent, reward: RewardTransform, key: jax.Array, *, warm_start: Callable[..., Any] | None = None
) -> RunState:
    """The state before the first iteration, without the environments.

    ``warm_start(params, key) -> params`` changes the agent's parameters before the reward chain sees the policy.
    """
    agent_state = agent.init(stream(key, AGENT_INIT))
    if warm_start is not None:
        agent_state = agent_state._replace(params=warm_start(agent_state.params, stream(key, WARM_START)))
    policy_params = agent_state.params["policy"] if "policy" in agent_state.params else None
    reward_state = reward.init(stream(key, REWARD_INIT), policy_params=policy_params)
    return without_aliases(RunState(agent_state, reward_state, (), key, jnp.zeros((), jnp.int32)))


def learn(
    agent: Agent,
    reward: RewardTransform,
    state: RunState,
    trajectory: Trajectory,
    iteration: jax.Array,
    annotations: PyTree = None,
) -> tuple[RunState, dict[str, jax.Array]]:
    """One learning step: update the reward chain (``annotations``, if any, are for it), relabel, update the agent.

    A step is undone if the new state of the agent or of the chain, a reward channel, or the agent's loss or gradient
    norm is not finite: the old state is kept, except for what the chain remembers of the environments
    (``RewardTransform.remembered``) and for stored data, and ``rejected`` counts up; a finite step sets it back to 0.
    From ``REJECTED_LIMIT`` on every step is undone. Where the chain masked every step (``group_filter``), the agent's
    old state is kept, too: an optimiser with momentum would move without any data.

    Returns:
      The next state, and metrics ``[]`` (see ``reduce_metric`` for how a name decides its reduction). Those under
      ``NON_FINITE`` say what was not finite, see ``cause_of_rejection``.
    """
    policy_params = state.agent.params.get("policy")
    reward_key = stream(state.key, REWARD_UPDATE, iteration)
    reward_state, update_metrics = reward.update(
        state.reward, trajectory, reward_key, policy_params=policy_params, annotations=annotations
    )
    relabelled, apply_metrics = reward.apply(reward_state, trajectory, policy_params=policy_params)
    update_key = stream(state.key, AGENT_UPDATE, iteration)
    if agent.data.kind == "replay":
        # What is kept is raw: it is relabelled by the rewards of the time when it is learned from.
        def relabel(sampled):
            return reward.apply(reward_state, sampled, policy_params=policy_params)[0]

        agent_state, agent_metrics = agent.update(state.agent, trajectory, update_key, relabel=relabel)
    else:
        agent_state, agent_metrics = agent.update(state.agent, relabelled, update_key)
    flags = {f"channel/{name.removeprefix(REWARD_FLAG)}": flag for name, flag in apply_metrics.items() if _flag(name)}
    learned = {f"state/{name}": each for name, each in reward.stored.split(reward_state)[0].items()}
    # A loss that is not finite must not pass because clipping the gradient, whose norm overflowed, made zeros of it.
    losses = [agent_metrics[name] for name in ("loss", "gradient_norm") if name in agent_metrics]
    learned["agent"] = agent.stored.split(agent_state)[0], losses
    flags |= {name: ~all_finite(each) for name, each in learned.items()}
    # Nor must a channel because an estimator made zeros of it.
    finite = all_finite(relabelled.rewards) & ~jnp.any(jnp.stack(list(flags.values())))
    # What has stopped stays as it was, while the other members of its program go on.
    going = state.rejected < REJECTED_LIMIT
    finite &= going
    learns = finite & jnp.any(relabelled.mask > 0)
    agent_state = keep_agent_if(learns, agent, agent_state, state.agent)
    reward_state = keep_reward_if(finite, reward, reward_state, state.reward)
    rejected = jnp.where(finite, 0, jnp.minimum(state.rejected + 1, REJECTED_LIMIT))
    metrics = {f"agent/{name}": value for name, value in agent_metrics.items()}
    reward_metrics = {name: value for name, value in (update_metrics | apply_metrics).items() if not _flag(name)}
    metrics |= {f"reward/{name}": value for name, value in reward_metrics.items()}
    # A rejected step's figures would make every mean of the chunk non-finite.
    metrics = {name: jnp.where(finite, value, 0.0) for name, value in metrics.items()}
    environment_finite = all_finite((trajectory.observation, trajectory.next_observation, trajectory.rewards))
    metrics |= {SUM_PREFIX + name: value for name, value in episode_statistics(trajectory).items()}
    metrics[SUM_PREFIX + "rejected"] = 1 - finite.astype(jnp.int32)
    metrics[SUM_PREFIX + "non_finite_environments"] = 1 - environment_finite.astype(jnp.int32)
    metrics[MAX_PREFIX + "rejected"] = rejected
    metrics |= {NON_FINITE + name: jnp.where(flag & going, iteration, -1) for name, flag in flags.items()}
    return state._replace(agent=agent_state, reward=reward_state, rejected=rejected), metrics


def _flag(name: str) -> bool:
    """Whether a metric of the reward chain is one of its flags for numbers that are not finite."""
    return name.startswith(REWARD_FLAG)


def cause_of_rejection(metrics: Mapping[str, Any], member: int) -> str:
    """Why the last undone step of a chunk was undone, and what to do about it, in words.

    Args:
      metrics: of a chunk, ``[members]`` each.
      member: whose.
    """
    last = {name.removeprefix(NON_FINITE): int(x[member]) for name, x in metrics.items() if name.startswith(NON_FINITE)}
    latest = max(last.values(), default=-1)
    kinds = dict(name.partition("/")[::2] for name, iteration in last.items() if iteration == latest >= 0)
    # A channel comes first: what learns from it is not finite in the same step, either.
    if "channel" in kinds:
        transform, _, channel = kinds["channel"].partition("/")
        return f"the reward transform {transform!r} wrote NaN or infinity into {channel!r} in iteration {latest}"
    if "state" in kinds:
        name = kinds["state"]
        return (
            f"the reward transform {name!r} learned NaN or infinity in iteration {latest}: "
            f"try a smaller learning rate in rewards.{name}"
        )
    return "try a smaller agent.learning_rate"


def start_rollout(environment: Environment, agent: Agent, state: RunState) -> RunState:
    """Starts the environments of an unrolling agent; does nothing for whole episodes."""
    if agent.data.kind == "episodes":
        return state
    batch = agent.data.batch
    key = stream(state.key, ENVIRONMENT_INIT)
    return state._replace(rollout=start_unroll(environment, key, batch, agent.initial_carry(batch)))


def collect(
    environment: Environment, agent: Agent, state: RunState, iteration: jax.Array, *, start_states: int | None = None
) -> tuple[RunState, Trajectory]:
    """The data that ``agent`` wants, from a pure environment; ``start_states`` as in ``envs.rollout.unroll``."""
    data = agent.data
    policy = acting_policy(agent, state.agent.params)
    key = stream(state.key, ROLLOUT, iteration)
    carry = agent.initial_carry(data.batch)
    if data.kind == "episodes":
        trajectory = episodes(
            environment,
            policy,
            key,
            length=data.length,
            batch=data.batch,
            group_size=data.group_size,
            initial_carry=carry,
        )
        return state, trajectory
    rollout, trajectory = unroll(
        environment,
        policy,
        state.rollout,
        key,
        length=data.length,
        initial_carry=carry,
        start_states=start_states,
    )
    return state._replace(rollout=rollout), trajectory


def run_chunk(
    environment: Environment,
    agent: Agent,
    reward: RewardTransform,
    state: RunState,
    first_iteration: jax.Array,
    *,
    iterations: int,
    start_states: int | None = None,
    split: Callable[[PyTree, int], PyTree] = lambda tree, axis: tree,
    watch: Callable[[RunState, Trajectory], dict[str, jax.Array]] = lambda state, trajectory: {},
) -> tuple[RunState, dict[str, jax.Array]]:
    """``iterations`` of collect and learn in one scan.

    Args:
      environment, agent, reward, state: what is trained.
      first_iteration: of the chunk; it need not be known when the chunk is compiled.
      iterations: of the chunk.
      start_states: as in ``envs.rollout.unroll``.
      split: ``(tree, axis)``, shards the environments, ``axis`` of every leaf, over the devices.
      watch: further metrics of every iteration, of the state before it learns and of the trajectory.

    Returns:
      The state, and metrics reduced over the chunk: sums under ``sum/``, means otherwise; ``max/rejected`` is the
      longest run of rejected updates.
    """

    def step(state, offset):
        iteration = first_iteration + offset
        state = state._replace(rollout=split(state.rollout, 0))
        state, trajectory = collect(environment, agent, state, iteration, start_states=start_states)
        watched = watch(state, trajectory)
        state, metrics = learn(agent, reward, state, split(trajectory, 1), iteration)
        return state, metrics | watched

    state, metrics = jax.lax.scan(step, state, jnp.arange(iterations))
    return state, {name: reduce_metric(name, values) for name, values in metrics.items()}


def reduce_metric(name: str, values: Any) -> Any:
    """Reduces the leading axis of a metric by what its name says: sum, maximum or mean."""
    if name.startswith(SUM_PREFIX):
        return values.sum(axis=0)
    if name.startswith(MAX_PREFIX):
        return values.max(axis=0)
    return values.mean(axis=0)
