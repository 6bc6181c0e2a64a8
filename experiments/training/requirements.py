"""What a run needs, worked out from the shapes of its arrays before anything is computed."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from agents.base import Agent
from envs.base import PyTree, Trajectory
from experiments.assembly.build import EnvironmentSource, build_parts
from experiments.assembly.evaluators import build_evaluators
from experiments.errors import UserError, in_one_line
from experiments.evaluators.base import PureEpisodes, episode_length, evaluate
from experiments.training import learn
from experiments.training.keys import seed_key

# A run that needs more than this share of memory is warned about.
WARNED_SHARE = 0.5
EVALUATION_PARTS = ("run state", "evaluation")
# Per member beside its arrays: its description, its rows in hand, its writer of events.
MEMBER_BYTES = 2**10
# Where a container's limit is, in the second and in the first version of control groups.
_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Requirements(NamedTuple):
    """What a run needs at least.

    Attributes:
      env_steps: environment steps of one member; whole episodes may take fewer.
      members: seeds, or seeds of all points of a sweep.
      parameters: numbers that the policy, the critics and the reward chain of one member learn.
      parts: bytes of memory by what takes them, over the members that are trained side by side.
    """

    env_steps: int
    members: int
    parameters: int
    parts: dict[str, int]

    @property
    def memory(self) -> int:
        """Bytes in all. A lower bound: gradients and what a compiler keeps in between are not in it."""
        return sum(self.parts.values())

    def of_evaluation(self) -> Requirements:
        """The requirements of an evaluation alone, without training."""
        return self._replace(parts={name: self.parts[name] for name in EVALUATION_PARTS if name in self.parts})


class Memory(NamedTuple):
    """The bytes that programs may use, and of what."""

    size: int
    owner: str


def requirements(
    config: ConfigDict, source: EnvironmentSource, members: int | None = None, members_per_program: int | None = None
) -> Requirements:
    """The requirements of a run, by ``jax.eval_shape``: nothing is compiled, computed or allocated.

    ::

        memory = members side by side * (run state + trajectory + start states + evaluation + minibatch)

    A run state holds parameters, optimisers, running environments and a replay buffer. The start states are those that
    an unroll draws ahead of its steps; a minibatch is counted with the activations of the hidden layers.

    Args:
      config: the configuration.
      source: its environments.
      members: how many are trained; the configuration's seeds if ``None``.
      members_per_program: how many of them side by side; all if ``None``. Host environments train one at a time.

    Raises:
      UserError: if the arrays are too large to have a shape.
    """
    members = config.seeds if members is None else members
    agent, reward, _ = build_parts(config, source.spec)
    data = config.data
    rollout = _pure_rollout if source.pure is not None else _host_rollout

    def shapes(key):
        state = learn.initial_state(agent, reward, key)
        return rollout(config, source, agent, state, key)

    try:
        state, trajectory, start_states, episodes = jax.eval_shape(shapes, seed_key(0))
    except OverflowError as error:
        raise UserError(
            f"data.length={data.length}, data.batch={data.batch}, network.hidden={_widths(config)}: "
            f"arrays of these sizes have no shape ({in_one_line(error)}); expected smaller numbers"
        ) from error
    slots = data.length * data.batch
    rows = _minibatch_rows(config)
    row = size_of(trajectory) / slots + 4 * sum(_widths(config))
    side_by_side = min(members, members_per_program or members) if source.pure is not None else 1
    parts = {
        "run state": size_of(state),
        "trajectory": size_of(trajectory),
        "start states": size_of(start_states),
        "evaluation": size_of(episodes),
        "minibatch": math.ceil(rows * row),
    }
    parts = {name: side_by_side * size for name, size in parts.items()}
    learned = [state.agent.params, *(each.params for each in state.reward.values() if hasattr(each, "params"))]
    return Requirements(
        env_steps=config.iterations * slots,
        members=members,
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(learned) if _is_float(leaf)),
        parts={name: size for name, size in parts.items() if size} | {"members": members * MEMBER_BYTES},
    )


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _widths(config: ConfigDict) -> tuple[int, ...]:
    """Widths of the hidden layers, as far as the section ``network`` says them: another kind may have no such key."""
    hidden = config.network.get("hidden", ())
    each = hidden if isinstance(hidden, tuple | list) else (hidden,)
    return tuple(width for width in each if isinstance(width, int))


def _minibatch_rows(config: ConfigDict) -> int:
    """Steps that one optimiser step of the agent learns from."""
    if config.data.kind == "replay" and "batch_size" in config.agent:
        return config.agent.batch_size * (config.agent.get("n_step", 1) + 1)
    return config.data.length * config.data.batch // config.agent.get("minibatches", 1)


def _pure_rollout(config: ConfigDict, source: EnvironmentSource, agent: Agent, state, key):
    """Run state, trajectory, start states and evaluation of a member on a pure environment."""
    environment: Any = source.pure
    data = config.data
    state = learn.start_rollout(environment, agent, state)
    drawn = config.rollout.start_states
    _, trajectory = learn.collect(environment, agent, state, jnp.int32(0), start_states=drawn)
    starts: PyTree = ()
    if data.kind != "episodes":
        keys = jax.random.split(key, (data.length if drawn is None else drawn, data.batch))
        starts = jax.vmap(jax.vmap(environment.reset))(keys)
    episodes = _ReadEpisodes(environment, agent)
    evaluate(build_evaluators(config, source, agent, episodes), state, key)
    return state, trajectory, starts, episodes.read


class _ReadEpisodes(PureEpisodes):
    """Whole episodes that keep what the statistics of an evaluation read of them; nothing else stays in memory."""

    def __init__(self, environment: Any, agent: Agent):
        super().__init__(environment, agent)
        self.read: list[PyTree] = []

    def play(self, *arguments: Any, **keywords: Any) -> Trajectory:
        played = super().play(*arguments, **keywords)
        extras = [played.extras[name] for name in ("episode_return", "episode_length", "info")]
        self.read.append((played.terminated, played.truncated, played.mask, played.rewards, extras))
        return played


def _host_rollout(config: ConfigDict, source: EnvironmentSource, agent: Agent, state, key):
    """The same on host environments, whose own memory is not known and which draw no start states ahead."""
    data = config.data

    def steps(step, length):
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (length, *leaf.shape)), step)

    def scalars(batch):
        """Reward, the two ends, mask, running return and length."""
        return jnp.zeros((batch, 6))

    observation = jax.tree.map(
        lambda leaf: jnp.zeros((data.batch, *leaf.shape), leaf.dtype), source.spec.observation_template()
    )
    carry = agent.initial_carry(data.batch)
    action, _, extras = agent.act(state.agent.params, carry, observation, key)
    trajectory = steps((observation, observation, action, carry, extras, scalars(data.batch)), data.length)
    played = [section for section in config.evaluators.values() if "count" in section]
    lengths = [episode_length(source.spec, section.get("cut")) for section in played]
    evaluations = [steps(scalars(one.count), length) for one, length in zip(played, lengths, strict=True)]
    return state, trajectory, (), evaluations


def size_of(tree: PyTree) -> int:
    """Bytes of a tree of arrays or their shapes; typed keys as their data."""

    def size(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


def memory() -> Memory | None:
    """The memory that programs may use: of all devices together, or of this machine where they have none of their own;
    ``None`` where it is not known."""
    # A process is told of its own devices alone; the others have as many.
    devices = jax.local_devices()
    counted = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in devices]
    if jax.default_backend() != "cpu" and all(counted):
        return Memory(jax.process_count() * sum(counted), f"{jax.device_count()} x {devices[0].device_kind}")
    try:
        sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, OSError, ValueError):
        return None
    for name in _LIMIT_FILES:
        try:
            sizes.append(int(Path(name).read_text()))
        except (OSError, ValueError):
            # Not a machine with this version of control groups, or no limit there: "max".
            continue
    return Memory(min(sizes), "this machine")


def require_memory(needs: Requirements, available: Memory | None) -> None:
    """Refuses a run that cannot fit into memory, and warns of one that may not.

    Raises:
      UserError: if it needs more than there is, with both figures and the largest part.
    """
    if available is None or needs.memory <= WARNED_SHARE * available.size:
        return
    part = max(needs.parts, key=lambda name: needs.parts[name])
    told = (
        f"this run needs at least {shown_bytes(needs.memory)} of memory, {shown_bytes(needs.parts[part])} of it for "
        f"{_CAUSES[part]}; {available.owner} has {shown_bytes(available.size)}"
    )
    if needs.memory > available.size:
        raise UserError(f"{told}: expected less")
    print(f"warning: {told}", file=sys.stderr)


# By part of the requirements, the keys that its size follows from.
_CAUSES = {
    "run state": "its run state (network.hidden, agent.capacity, replay, data.batch, seeds)",
    "trajectory": "its trajectory (data.length, data.batch, seeds)",
    "start states": "start states (data.length, data.batch, rollout.start_states, seeds)",
    "evaluation": "its evaluation (evaluators.NAME.count, evaluators.NAME.cut, seeds)",
    "minibatch": "a minibatch (data.length, data.batch, agent.minibatches, agent.batch_size, network.hidden, seeds)",
    "members": "the description of its members (seeds)",
}


def shown_bytes(size: float) -> str:
    """``12 bytes``, ``1.5 KiB``, ``3.2 GiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024 or unit == "PiB":
            break
        size /= 1024
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
