"""The case of the benchmark for replay buffers: adding and sampling alone, beside flashbax."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from agents.replay import replay_add, replay_init, replay_prioritise, replay_sample
from envs.base import Trajectory
from envs.keys import seed_key
from experiments.assembly.build import build_environment, build_parts
from experiments.benchmarks.sides import Options, loaded
from experiments.benchmarks.timing import Comparison, Side, compared, in_turns, timed
from experiments.errors import UserError
from experiments.training import learn
from rewards.base import chain

SEGMENT = 3

Buffer = tuple[Any, Callable[[Any, Any], Any]]
"""An empty buffer, and the function of state and key that adds, samples and returns the next state."""


def buffer(options: Options) -> list[Comparison]:
    """Segments drawn from the replay buffer beside flashbax's, uniformly and by priority.

    Transitions, rows per call, batch and capacity are those of ``dqn_cartpole`` with 3-step segments: a call adds 64
    rows of 4 environments and draws 128 batches of 64 segments; with priorities it also gives each batch new ones. The
    buffer is full before timing begins.

    Raises:
      UserError: without flashbax.
    """
    try:
        import flashbax
    except ImportError as error:
        raise UserError("the case buffer needs flashbax: pip install flashbax") from error
    tiny: dict[str, Any] = (
        {"agent__updates": 2, "agent__batch_size": 8, "agent__capacity": 1024} if options.tiny else {}
    )
    config = loaded("dqn_cartpole:dqn", **tiny)
    trajectory = _trajectory(config)
    sides: dict[str, Side] = {}
    for prioritised in (False, True):
        for name, made in (
            ("ours", _ours(config, trajectory, prioritised)),
            ("flashbax", _flashbax(flashbax, config, trajectory, prioritised)),
        ):
            sides[f"{name}_{prioritised}"] = _drawing(made, config, calls=1 if options.tiny else 20)
    samples = in_turns(sides, options.repeats, options.say)
    return [
        compared(
            samples,
            f"ours_{prioritised}",
            f"flashbax_{prioritised}",
            name=name,
            ours=f"{config.agent.capacity} transitions, batch {config.agent.batch_size}, {name}",
            reference="flashbax, the same",
            unit="segments/s",
            details={"baseline_versions": {"flashbax": importlib.metadata.version("flashbax")}},
        )
        for prioritised, name in ((False, "uniform"), (True, "prioritised"))
    ]


def _trajectory(config: Any) -> Trajectory:
    """The rows that one call adds."""
    source = build_environment(config)
    environment: Any = source.pure
    agent, _, _ = build_parts(config, source.spec)
    state = learn.start_rollout(environment, agent, learn.initial_state(agent, chain(), seed_key(0)))
    _, trajectory = learn.collect(environment, agent, state, 0)
    return trajectory._replace(extras={})


def _ours(config: Any, trajectory: Trajectory, prioritised: bool) -> Buffer:
    agent = config.agent
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), trajectory)
    environments = trajectory.mask.shape[1]
    state = replay_init(template, capacity=agent.capacity, batch=environments, prioritised=prioritised)

    def call(state, key):
        def draw(carry, key):
            state, total = carry
            segments, index, _ = replay_sample(state, key, batch=agent.batch_size, length=SEGMENT)
            if prioritised:
                state = replay_prioritise(state, index, _surprise(segments.mask, key), exponent=agent.priority_exponent)
            return (state, total + _read(segments)), None

        (state, total), _ = jax.lax.scan(
            draw, (replay_add(state, trajectory), 0.0), jax.random.split(key, agent.updates)
        )
        return state, total

    return state, call


def _flashbax(flashbax: Any, config: Any, trajectory: Trajectory, prioritised: bool) -> Buffer:
    agent = config.agent
    length, environments = trajectory.mask.shape
    shared = {
        "add_batch_size": environments,
        "sample_batch_size": agent.batch_size,
        "sample_sequence_length": SEGMENT,
        "period": 1,
        "min_length_time_axis": length,
        "max_length_time_axis": agent.capacity // environments,
    }
    if prioritised:
        device = jax.default_backend()
        made = flashbax.make_prioritised_trajectory_buffer(
            **shared, priority_exponent=agent.priority_exponent, device=device
        )
    else:
        made = flashbax.make_trajectory_buffer(**shared)
    state = made.init(jax.tree.map(lambda x: x[0, 0], trajectory))
    added = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), trajectory)

    def call(state, key):
        def draw(carry, key):
            state, total = carry
            drawn = made.sample(state, key)
            if prioritised:
                state = made.set_priorities(state, drawn.indices, _surprise(drawn.experience.mask.T, key))
            return (state, total + _read(drawn.experience)), None

        keys = jax.random.split(key, agent.updates)
        (state, total), _ = jax.lax.scan(draw, (made.add(state, added), 0.0), keys)
        return state, total

    return state, call


def _surprise(mask: jax.Array, key: jax.Array) -> jax.Array:
    """Priorities ``[batch]`` of segments with ``mask [length, batch]``; their values do not matter here."""
    return jax.random.uniform(key, mask.shape[1:]) + 0.01


def _read(segments: Trajectory) -> jax.Array:
    """Reads everything that was drawn, so that the compiler can leave nothing out."""
    return sum(jnp.sum(jnp.asarray(leaf, jnp.float32)) for leaf in jax.tree.leaves(segments))


def _drawing(made: Buffer, config: Any, calls: int) -> Side:
    """A side that makes ``calls`` to a full buffer and counts segments."""
    empty, call = made

    def run(state, key):
        def step(carry, key):
            state, total = carry
            state, read = call(state, key)
            return (state, total + read), None

        (state, total), _ = jax.lax.scan(step, (state, 0.0), jax.random.split(key, calls))
        return state, total

    rows = config.agent.capacity // (config.data.batch * config.data.length)
    state, _ = jax.jit(lambda state, key: jax.lax.scan(call, state, jax.random.split(key, rows + 1)))(
        empty, seed_key(0)
    )
    advance = jax.jit(run, donate_argnums=0)
    keys = iter(range(1, 10**6))

    def piece() -> int:
        nonlocal state
        state, total = advance(state, seed_key(next(keys)))
        jax.block_until_ready((state, total))
        return calls * config.agent.updates * config.agent.batch_size

    piece()
    return lambda: timed(piece)
