"""Cases of the benchmark for replay and return distributions: gradient steps, and backups of the exact planner."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from agents.functionals import cvar
from agents.planning import distributional
from agents.planning.return_distributions import Representation, StockGrid, categorical, lattice, stock_points
from agents.replay import replay_add
from envs.keys import seed_key
from envs.native.tabular import from_gymnasium
from experiments.assembly.build import build_environment, build_parts
from experiments.benchmarks import numpy_planner
from experiments.benchmarks.baseline_sides import baseline, replay_job
from experiments.benchmarks.sides import SEEDS, Options, has_baselines, loaded, slots_of
from experiments.benchmarks.timing import Comparison, Side, compared, in_turns, rates, timed
from experiments.training import learn
from rewards.base import chain


def replay(options: Options) -> list[Comparison]:
    """Gradient steps on replayed data: 10 vmapped seeds beside one; DQN beside sbx's, QR-DQN beside sb3-contrib's.

    Batch, network and replay are those of ``dqn_cartpole`` on every side, with one-step returns and plain dense layers,
    which all of them have, and 32 gradient steps per call; ``dqn_one_a_call`` takes one, which is the default of sbx.
    No environment is stepped. The side of sagax also writes 64 steps to its buffer at every call and moves its target
    network after every gradient step.
    """
    steps, stored = (4, 256) if options.tiny else (800, 10_000)
    common: dict[str, Any] = {"agent__n_step": 1, "network__layer_norm": False, "agent__updates": 32}
    common |= {"data__length": 16, "agent__target_rate": 0.01, "agent__target_period": None}
    common |= {"agent__updates": 2, "agent__batch_size": 8} if options.tiny else {}
    configs = {
        "dqn": loaded("dqn_cartpole:dqn", **common),
        "dqn_one_a_call": loaded("dqn_cartpole:dqn", **common | {"agent__updates": 1}),
        "qrdqn": loaded("dqn_cartpole:qrdqn", **common),
    }
    rivals = {"dqn": "sbx_dqn", "dqn_one_a_call": "sbx_dqn", "qrdqn": "sb3_qrdqn"}
    versions: dict[str, dict[str, str]] = {}
    sides: dict[str, Side] = {}
    with contextlib.ExitStack() as stack:
        if not has_baselines(options, "replay", "sbx and sb3-contrib", "stable-baselines3 sbx-rl sb3-contrib"):
            rivals = {}
        for method, name in rivals.items():
            calls = steps // configs[method].agent.updates
            job = replay_job(configs[method], name, calls=calls, stored=stored, threads=1)
            theirs = stack.enter_context(baseline(str(options.baseline_python), job))
            sides[f"baseline_{method}"], versions[method] = theirs.side, theirs.versions
        for method in {"dqn": None} | rivals:
            sides[method] = gradient_steps(configs[method], steps, stored)
        sides["seeds"] = gradient_steps(configs["dqn"], steps, stored, SEEDS)
        samples = in_turns(sides, options.repeats, options.say)
    comparisons = []
    for method, name in rivals.items():
        agent, hidden = configs[method].agent, configs[method].network.hidden
        comparison = compared(
            samples,
            method,
            f"baseline_{method}",
            name=method,
            ours=f"dqn_cartpole, batch {agent.batch_size}, network {hidden}, {agent.updates} a call",
            reference=f"{name}, the same numbers",
            unit="gradient steps/s",
            target=1.5,
            details={"baseline_versions": versions[method]},
        )
        comparisons.append(comparison)
    together = compared(
        samples,
        "seeds",
        "dqn",
        name="seeds",
        ours=f"dqn_cartpole, {SEEDS} seeds vmapped",
        reference="one seed",
        unit="gradient steps/s",
    )
    return [*comparisons, together]


def gradient_steps(config: ConfigDict, steps: int, stored: int, seeds: int = 1) -> Side:
    """``steps`` gradient steps of an agent with ``stored`` transitions, of ``seeds`` such agents vmapped, as a side."""
    source = build_environment(config)
    environment: Any = source.pure
    agent, _, _ = build_parts(config, source.spec)
    calls = steps // config.agent.updates
    filling = -(-stored // slots_of(config))

    def start(seed):
        key = seed_key(seed)
        state = learn.start_rollout(environment, agent, learn.initial_state(agent, chain(), key))
        _, trajectory = learn.collect(environment, agent, state, 0)
        # Gradient steps take as long whichever the transitions are.
        replay = jax.lax.fori_loop(0, filling, lambda _, replay: replay_add(replay, trajectory), state.agent.replay)
        return state.agent._replace(replay=replay), trajectory

    def run(state, trajectory, key):
        def step(state, index):
            return agent.update(state, trajectory, jax.random.fold_in(key, index))[0], None

        return jax.lax.scan(step, state, jax.numpy.arange(calls))[0]

    states, trajectories = jax.jit(jax.vmap(start))(jax.numpy.arange(seeds))
    advance = jax.jit(jax.vmap(run, (0, 0, None)), donate_argnums=0)
    keys = iter(range(10**6))

    def piece() -> int:
        nonlocal states
        states = advance(states, trajectories, seed_key(next(keys)))
        jax.block_until_ready(states)
        return seeds * calls * config.agent.updates

    piece()
    return lambda: timed(piece)


def planner(options: Options) -> list[Comparison]:
    """Distributional value iteration on gymnasium's Taxi with 256 stocks and 64 atoms, beside NumPy.

    One sample is 10 backups of 500 states and 6 actions, once with exact return distributions and once with discount
    0.99 and projected ones. Before anything is timed, the NumPy version is checked to find the same policy and
    distributions; unlike sagax it does not count what leaves the grids. ``share_of_bandwidth`` is the speed at which a
    backup must move memory, over the speed of a large copy: it reads all distributions for the action values, and reads
    and writes those of the chosen actions.
    """
    return [planner_of(lattice(-43, 20), 1.0, options), planner_of(categorical(-43, 20, 64), 0.99, options)]


def planner_of(representation: Representation, discount: float, options: Options) -> Comparison:
    """The comparison for one representation with particles; both sides start from the model's tables."""
    model, functional = from_gymnasium("Taxi-v4"), cvar(0.25)
    backups, grid = (2, StockGrid(-8, 7)) if options.tiny else (10, StockGrid(-128, 127))
    stocks, atoms, name = stock_points(grid), np.asarray(representation.particles), representation.name

    def ours() -> distributional.DistributionalPlan:
        return jax.block_until_ready(
            distributional.value_iteration(model, functional, representation, grid, discount=discount, horizon=backups)
        )

    def theirs() -> tuple[np.ndarray, ...]:
        return numpy_planner.value_iteration(
            model, lambda x: np.minimum(x, 0), stocks, atoms, discount=discount, horizon=backups
        )

    plan, (policy, distributions, values) = ours(), theirs()
    np.testing.assert_array_equal(plan.policy, policy)
    np.testing.assert_allclose(plan.distributions, distributions, atol=1e-5)
    np.testing.assert_allclose(plan.values, values, rtol=1e-5, atol=1e-5)

    def backups_of(plan_once: Callable[[], Any]) -> Side:
        def piece() -> int:
            plan_once()
            return backups

        return lambda: timed(piece)

    sides = {"sagax": backups_of(ours), "numpy": backups_of(theirs), "copy": large_copy(options)}
    samples = in_turns(sides, options.repeats, options.say)
    moved = 3 * 4 * distributions.size
    sagax, copy = (statistics.median(rates(samples[side])) for side in ("sagax", "copy"))
    return compared(
        samples,
        "sagax",
        "numpy",
        name=name,
        ours=f"Taxi, {len(stocks)} stocks, {len(atoms)} atoms, {name}, discount {discount:g}",
        reference="the same in NumPy",
        unit="backups/s",
        details={
            "backups": backups,
            "bytes_per_backup": moved,
            "copied_gigabytes_per_second": copy / 1e9,
            "share_of_bandwidth": moved * sagax / copy,
        },
    )


def large_copy(options: Options) -> Side:
    """Bytes read and written per second by a copy that no cache holds, on the device that plans."""
    size = 2**20 if options.tiny else 2**26
    if jax.default_backend() == "cpu":
        source, target = np.ones(size, np.float32), np.zeros(size, np.float32)

        def piece() -> int:
            for _ in range(4):
                np.copyto(target, source)
            return 4 * 2 * source.nbytes

        return lambda: timed(piece)
    negated = jax.jit(jnp.negative, donate_argnums=0)
    array = jax.block_until_ready(negated(jnp.ones(size, jnp.float32)))

    def piece_on_device() -> int:
        nonlocal array
        for _ in range(4):
            array = negated(array)
        jax.block_until_ready(array)
        return 4 * 2 * array.nbytes

    return lambda: timed(piece_on_device)
