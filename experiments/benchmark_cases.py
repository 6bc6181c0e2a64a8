"""What is measured: every case times the house beside something else.

A case is a function of the command line's ``Options`` that returns comparisons; the first paragraph of its docstring
is its line in the help. ``CASES`` names them.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from ml_collections import ConfigDict

from agents import distributional_planning
from agents.functionals import cvar
from agents.replay import replay_add
from agents.return_laws import Representation, StockGrid, categorical, lattice, stock_points
from envs.tabular import from_gymnasium
from experiments import _numpy_planner, learn, registry
from experiments._fused import fused_chunk, fused_state
from experiments.benchmark_peers import peer, peer_job, replay_job
from experiments.benchmark_timing import Comparison, Sample, Side, compared, in_turns, rates, timed
from experiments.build import build_parts, build_world
from experiments.cache import VARIABLE, enable_compilation_cache
from experiments.drivers import HostDriver, Member, ScanDriver, seed_key
from experiments.errors import UserError
from rewards.base import chain

ROOT = Path(__file__).resolve().parent.parent
SEEDS = 10


class Options(NamedTuple):
    """What the command line says about a case.

    Attributes:
      repeats: pairs of measurements.
      tiny: whether the pieces are to be too small to measure, to see that a case runs.
      peer: a checkout of PureJaxRL.
      peer_python: the interpreter that has the peers installed.
    """

    repeats: int
    tiny: bool
    peer: Path | None = None
    peer_python: Path | None = None


# --- what the cases share ------------------------------------------------------------------------------


def loaded(name: str, **overrides: Any) -> ConfigDict:
    """The configuration ``name`` with overrides; a double underscore stands for the dot in a key."""
    config = registry.load(name).config
    return registry.apply_overrides(config, {key.replace("__", "."): value for key, value in overrides.items()})


class Chunks:
    """One driver as a side: every call trains the next ``iterations``, after a first one that compiles.

    Args:
      driver: what trains.
      iterations: of one call.
      slots: environment slots of one iteration of one seed.

    Attributes:
      params: the agent's parameters before the first iteration, ``[members, ...]``.
      compile_seconds: what the first call took, start included, less what the second took.
    """

    def __init__(self, driver: ScanDriver | HostDriver, iterations: int, slots: int):
        self.driver, self._iterations = driver, iterations
        self._slots = slots * iterations * len(driver.members)
        started = time.perf_counter()
        self._state, self._next = driver.start(), 0
        # Copies: the driver donates its buffers, and a view would change with them.
        self.params = jax.tree.map(np.array, self._state.agent.params)
        self._piece()
        first = time.perf_counter() - started
        self.compile_seconds = first - timed(self._piece).seconds

    def _piece(self) -> int:
        self._state, _ = self.driver.chunk(self._state, self._next, self._iterations)
        jax.block_until_ready(self._state.agent)
        self._next += self._iterations
        return self._slots

    def __call__(self) -> Sample:
        return timed(self._piece)


def scan_driver(config: ConfigDict, seeds: int = 1) -> ScanDriver:
    """The scan driver of the first ``seeds`` seeds of a configuration of a pure world."""
    return ScanDriver(config, build_world(config), [Member(seed, "") for seed in range(seeds)])


def slots_of(config: ConfigDict) -> int:
    """Environment slots of one iteration of one seed."""
    return config.data.length * config.data.batch


# --- the cases -----------------------------------------------------------------------------------------


def fused(options: Options, method: str) -> Comparison:
    """One method on Sokoban: the scan driver against ``experiments/_fused.py``, from the same parameters and keys."""
    tiny: dict[str, Any] = {"data__batch": 16, "agent__minibatches": 2} if options.tiny else {}
    config = loaded(f"oprl_sokoban:{method}", **tiny)
    iterations = 2 if options.tiny else 20
    house = Chunks(scan_driver(config), iterations, slots_of(config))
    run = jax.jit(fused_chunk(config), static_argnums=3, donate_argnums=0)
    key = seed_key(house.driver.members[0].seed)
    state = fused_state(jax.tree.map(lambda x: x[0], house.params))
    first = 0

    def piece() -> int:
        nonlocal state, first
        state, solved = run(state, key, first, iterations)
        jax.block_until_ready((state, solved))
        first += iterations
        return iterations * slots_of(config)

    piece()
    samples = in_turns({"house": house, "fused": lambda: timed(piece)}, options.repeats)
    return compared(
        samples,
        "house",
        "fused",
        name=method,
        ours=f"oprl_sokoban:{method}, rollout and learn in one scan",
        reference="the same by hand in one function",
        unit="environment slots/s",
        target=0.9,
        details={"iterations": iterations, "slots_per_iteration": slots_of(config)},
    )


def fused_ppo(options: Options) -> list[Comparison]:
    """what the house costs: oprl_sokoban:ppo against the same algorithm written by hand in one function

    Both sides reach the same parameters, so that the ratio is of the same work. One piece is 20 iterations.
    """
    return [fused(options, "ppo")]


def fused_grpo(options: Options) -> list[Comparison]:
    """the same for oprl_sokoban:grpo

    Without critic and with groups of 8 rollouts per room.
    """
    return [fused(options, "grpo")]


def purejaxrl(options: Options) -> list[Comparison]:
    """PPO on CartPole in jit, whole runs, against PureJaxRL's; needs --peer=CHECKOUT

    Worlds, steps, passes and losses are those of PureJaxRL's ``ppo.py``. Because the two CartPoles differ in cost, the
    worlds alone are compared, too, and the details say which share of a run they are.
    """
    if options.peer is None or not (options.peer / "purejaxrl" / "ppo.py").is_file():
        raise UserError(
            f"--peer={options.peer}: expected a checkout of https://github.com/luchris429/purejaxrl (it is not part of "
            "this repository), and --peer-python=PYTHON of an environment with: "
            "pip install jax flax optax distrax gymnax==0.0.9"
        )
    config = loaded(
        "ppo_cartpole:native",
        data__batch=4,
        data__length=128,
        agent__learning_rate=2.5e-4,
        agent__value_clip=0.2,
        iterations=8 if options.tiny else 976,
    )
    steps = config.iterations * slots_of(config)
    python = str(options.peer_python or sys.executable)
    job = peer_job(config, "purejaxrl", steps, path=str(options.peer.resolve()))
    # The peers start first: a missing package is told before anything is compiled here. They wait while they are not
    # asked.
    with peer(python, job) as (theirs, versions), peer(python, job | {"peer": "gymnax_world"}) as (their_world, _):
        driver, world = scan_driver(config), random_steps(config, steps)

        def whole_run() -> int:
            state, _ = driver.chunk(driver.start(), 0, config.iterations)
            jax.block_until_ready(state.agent)
            return steps

        whole_run()
        world()
        sides = {
            "house": lambda: timed(whole_run),
            "peer": theirs,
            "world": lambda: timed(world),
            "gymnax": their_world,
        }
        samples = in_turns(sides, options.repeats)
    shares = {
        "share_of_time_in_world": statistics.median(rates(samples["house"]))
        / statistics.median(rates(samples["world"])),
        "peer_share_of_time_in_world": statistics.median(rates(samples["peer"]))
        / statistics.median(rates(samples["gymnax"])),
    }
    return [
        compared(
            samples,
            "house",
            "peer",
            name="training",
            ours="ppo_cartpole:native, 4 worlds, 128 steps, 4 epochs of 4 minibatches",
            reference="PureJaxRL's ppo.py, the same numbers",
            unit="environment steps/s",
            target=1.0,
            details={"steps": steps, "peer_versions": versions} | shares,
        ),
        compared(
            samples,
            "world",
            "gymnax",
            name="world",
            ours="4 functional CartPoles of gymnasium, unrolled with random actions",
            reference="4 CartPoles of gymnax, the same",
            unit="environment steps/s",
        ),
    ]


def random_steps(config: ConfigDict, steps: int) -> Callable[[], int]:
    """Unrolls of the worlds of ``config`` under uniformly random actions, and nothing else."""
    from envs.rollout import start_unroll, unroll

    environment: Any = build_world(config).environment
    batch, length = config.data.batch, config.data.length
    size = int(environment.spec.action_space.n)

    def policy(carry, observation, key):
        return jax.random.randint(key, (batch,), 0, size), carry, {}

    @jax.jit
    def run(key):
        def step(state, index):
            state, trajectory = unroll(
                environment, policy, state, jax.random.fold_in(key, index), length=length, initial_carry=()
            )
            return state, trajectory.rewards["env"].sum() + trajectory.next_observation.sum()

        return jax.lax.scan(step, start_unroll(environment, key, batch, ()), jax.numpy.arange(steps // batch // length))

    def piece() -> int:
        jax.block_until_ready(run(jax.random.key(0)))
        return steps

    return piece


def host(options: Options) -> list[Comparison]:
    """the host driver on gymnasium's CartPole-v1, 16 worlds, against the raw worlds and, with --peer-python=PYTHON,
    against stable-baselines3 and sbx

    The target is for the faster of the two. ``share_of_raw_world`` is training against the same worlds under random
    actions and nothing else: its ratio is the share of their speed that is left.
    """
    config = loaded("ppo_cartpole", **({"data__length": 32} if options.tiny else {}))
    iterations = 2 if options.tiny else 20
    batch, steps = config.data.batch, iterations * slots_of(config)
    versions: dict[str, dict[str, str]] = {}
    peers: dict[str, Side] = {}
    with contextlib.ExitStack() as stack:
        if options.peer_python is None:
            print(
                "host: without --peer-python=PYTHON there is no comparison with stable-baselines3 and sbx; it names "
                "the interpreter of an environment with: pip install stable-baselines3 sbx-rl",
                file=sys.stderr,
            )
        else:
            for name in ("stable_baselines3", "sbx"):
                # Networks of 64 units: a second thread of torch costs more than it saves.
                job = peer_job(config, name, steps, threads=1)
                peers[name], versions[name] = stack.enter_context(peer(str(options.peer_python), job))
        driver = HostDriver(config, build_world(config), Member(0, ""))
        stack.callback(driver.close)
        house = Chunks(driver, iterations, slots_of(config))
        vector = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * batch, autoreset_mode=AutoresetMode.SAME_STEP)
        stack.callback(vector.close)
        vector.reset(seed=0)
        actions = np.random.default_rng(0).integers(0, 2, (steps // batch, batch))

        def raw() -> int:
            for action in actions:
                vector.step(action)
            return steps

        sides: dict[str, Side] = {"house": house, "raw": lambda: timed(raw)}
        samples = in_turns(sides | peers, options.repeats)
    ours = f"ppo_cartpole, {batch} worlds, {config.data.length} steps, 4 epochs of 4 minibatches"
    comparisons = [
        compared(
            samples,
            "house",
            name,
            name=name,
            ours=ours,
            reference=f"PPO of {name}, the same numbers",
            unit="environment steps/s",
            details={"peer_versions": versions[name]},
        )
        for name in versions
    ]
    if comparisons:
        # The faster of the two is the one to beat.
        fastest = max(comparisons, key=lambda comparison: comparison.report()["reference_median"])
        comparisons = [c._replace(target=2.0) if c is fastest else c for c in comparisons]
    return [
        *comparisons,
        compared(
            samples,
            "house",
            "raw",
            name="share_of_raw_world",
            ours=ours,
            reference="the same worlds alone, random actions",
            unit="environment steps/s",
        ),
    ]


def seeds(options: Options) -> list[Comparison]:
    """10 seeds of oprl_sokoban:grpo and :ppo vmapped, against 10 runs one after another

    The ratio is of training alone; ``ratio_with_compilation`` is of whole runs of the configuration's length, where
    every run compiles.
    """
    return [seeds_of(options, method) for method in ("grpo", "ppo")]


def seeds_of(options: Options, method: str) -> Comparison:
    """One method; both sides train the same seeds."""
    tiny: dict[str, Any] = {"data__batch": 16, "agent__minibatches": 2} if options.tiny else {}
    config = loaded(f"oprl_sokoban:{method}", **tiny)
    iterations = 1 if options.tiny else 5
    vmapped = Chunks(scan_driver(config, SEEDS), iterations, slots_of(config))
    single = Chunks(scan_driver(config), iterations, slots_of(config))

    def one_after_another() -> Sample:
        parts = [single() for _ in range(SEEDS)]
        return Sample(*(sum(column) for column in zip(*parts, strict=True)))

    samples = in_turns({"vmapped": vmapped, "sequential": one_after_another}, options.repeats)
    comparison = compared(
        samples,
        "vmapped",
        "sequential",
        name=method,
        ours=f"oprl_sokoban:{method}, {SEEDS} seeds vmapped",
        reference=f"{SEEDS} runs one after another",
        unit="environment slots/s",
    )
    pieces = config.iterations / iterations
    together = vmapped.compile_seconds + pieces * statistics.median(s.seconds for s in samples["vmapped"])
    apart = SEEDS * single.compile_seconds + pieces * statistics.median(s.seconds for s in samples["sequential"])
    return comparison._replace(
        details={
            "iterations": iterations,
            "compile_seconds_vmapped": vmapped.compile_seconds,
            "compile_seconds_single": single.compile_seconds,
            "whole_run_iterations": config.iterations,
            "whole_run_seconds_vmapped": together,
            "whole_run_seconds_sequential": apart,
            "ratio_with_compilation": apart / together,
        }
    )


def replay(options: Options) -> list[Comparison]:
    """gradient steps on replayed data: 10 vmapped seeds against one and, with --peer-python=PYTHON, DQN and QR-DQN
    against sbx's DQN and sb3-contrib's QR-DQN

    Batch, network, replay and gradient steps per call are those of dqn_cartpole on every side, with one-step returns
    and plain dense layers, which all of them have; ``dqn_one_a_call`` takes one gradient step per call, as sbx does
    unless it is told otherwise. No world is stepped. The house's side writes a rollout to its buffer at every call and
    moves its target network, too.
    """
    steps, stored = (4, 256) if options.tiny else (800, 10_000)
    common: dict[str, Any] = {"agent__n_step": 1, "network__layer_norm": False}
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
        if options.peer_python is None:
            print(
                "replay: without --peer-python=PYTHON there is no comparison with sbx and sb3-contrib; it names the "
                "interpreter of an environment with: pip install stable-baselines3 sbx-rl sb3-contrib",
                file=sys.stderr,
            )
            rivals = {}
        for method, name in rivals.items():
            calls = steps // configs[method].agent.updates
            job = replay_job(configs[method], name, calls=calls, stored=stored, threads=1)
            sides[f"peer_{method}"], versions[method] = stack.enter_context(peer(str(options.peer_python), job))
        for method in {"dqn": None} | rivals:
            sides[method] = gradient_steps(configs[method], steps, stored)
        sides["seeds"] = gradient_steps(configs["dqn"], steps, stored, SEEDS)
        samples = in_turns(sides, options.repeats)
    comparisons = []
    for method, name in rivals.items():
        agent, hidden = configs[method].agent, configs[method].network.hidden
        comparison = compared(
            samples,
            method,
            f"peer_{method}",
            name=method,
            ours=f"dqn_cartpole, batch {agent.batch_size}, network {hidden}, {agent.updates} a call",
            reference=f"{name}, the same numbers",
            unit="gradient steps/s",
            target=1.5,
            details={"peer_versions": versions[method]},
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
    world = build_world(config)
    environment: Any = world.environment
    agent, _, _ = build_parts(config, world.spec)
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
        states = advance(states, trajectories, jax.random.key(next(keys)))
        jax.block_until_ready(states)
        return seeds * calls * config.agent.updates

    piece()
    return lambda: timed(piece)


COMPILED = ("oprl_sokoban:ppo", "oprl_sokoban:oprl", "ppo_cartpole:native")


def compile_case(options: Options) -> list[Comparison]:
    """time to compile with a cold cache, against a warm one, and peak memory

    Cold and warm start of ``COMPILED``, each in a process of its own; the details give them in seconds.
    """
    return [compile_of(name, options) for name in (COMPILED[2:] if options.tiny else COMPILED)]


def compile_of(name: str, options: Options) -> Comparison:
    """One configuration: a start with an empty compilation cache, then one with what the first has left there."""
    name = f"{name},smoke" if options.tiny else name
    figures, memory = [], []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            cold, warm = (_compile_in_subprocess(name, folder) for _ in range(2))
        figures.append((1 / warm["seconds"], 1 / cold["seconds"]))
        memory.append(cold["peak_mebibytes"])
    return Comparison(
        name=name,
        ours=f"{name}: to build, start and compile, warm cache",
        reference="the same, cold cache",
        unit="1/s",
        figures=figures,
        details={
            "seconds_cold": statistics.median(1 / cold for _, cold in figures),
            "seconds_warm": statistics.median(1 / warm for warm, _ in figures),
            "peak_mebibytes": statistics.median(memory),
        },
    )


def _compile_in_subprocess(name: str, cache: str) -> dict[str, float]:
    """What ``report_compilation`` prints in a new process with the compilation cache ``cache``.

    Raises:
      UserError: if the process fails; what it printed last is quoted.
    """
    code = f"from experiments.benchmark_cases import report_compilation; report_compilation({name!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {VARIABLE: cache},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise UserError(f"compiling {name} failed: {said[-1] if said else f'status {done.returncode}'}")
    return json.loads(done.stdout)


def report_compilation(name: str) -> None:
    """Prints what one process needed to compile ``name`` and its peak memory, as JSON."""
    enable_compilation_cache()
    config = loaded(name)
    chunks = Chunks(scan_driver(config), 1, slots_of(config))
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(json.dumps({"seconds": chunks.compile_seconds, "peak_mebibytes": peak}))


def planner(options: Options) -> list[Comparison]:
    """distributional value iteration on gymnasium's Taxi, 256 stocks and 64 atoms, against NumPy and the memory

    One piece is 10 backups of 500 states and 6 actions, once with exact laws and once with discount 0.99 and projected
    ones. The NumPy version finds the same policy and laws, which is checked before anything is timed; unlike ours it
    does not count what leaves the grids. ``share_of_bandwidth`` is what must move per backup, over the backup's time,
    against a large copy: all laws are read for the action values, and those that the chosen actions lead to are read
    and written.
    """
    return [planner_of(lattice(-43, 20), 1.0, options), planner_of(categorical(-43, 20, 64), 0.99, options)]


def planner_of(representation: Representation, discount: float, options: Options) -> Comparison:
    """One representation with particles; both sides start from the model's tables."""
    model, functional = from_gymnasium("Taxi-v4"), cvar(0.25)
    backups, grid = (2, StockGrid(-8, 7)) if options.tiny else (10, StockGrid(-128, 127))
    stocks, atoms, name = stock_points(grid), np.asarray(representation.particles), representation.name

    def ours() -> distributional_planning.DistributionalPlan:
        return jax.block_until_ready(
            distributional_planning.value_iteration(
                model, functional, representation, grid, discount=discount, horizon=backups
            )
        )

    def theirs() -> tuple[np.ndarray, ...]:
        return _numpy_planner.value_iteration(
            model, lambda x: np.minimum(x, 0), stocks, atoms, discount=discount, horizon=backups
        )

    plan, (policy, laws, values) = ours(), theirs()
    np.testing.assert_array_equal(plan.policy, policy)
    np.testing.assert_allclose(plan.laws, laws, atol=1e-5)
    np.testing.assert_allclose(plan.values, values, rtol=1e-5, atol=1e-5)

    def backups_of(plan_once: Callable[[], Any]) -> Side:
        def piece() -> int:
            plan_once()
            return backups

        return lambda: timed(piece)

    sides = {"house": backups_of(ours), "numpy": backups_of(theirs), "copy": large_copy(options)}
    samples = in_turns(sides, options.repeats)
    moved = 3 * 4 * laws.size
    house, copy = (statistics.median(rates(samples[side])) for side in ("house", "copy"))
    return compared(
        samples,
        "house",
        "numpy",
        name=name,
        ours=f"Taxi, {len(stocks)} stocks, {len(atoms)} atoms, {name}, discount {discount:g}",
        reference="the same in NumPy",
        unit="backups/s",
        details={
            "backups": backups,
            "bytes_per_backup": moved,
            "copied_gigabytes_per_second": copy / 1e9,
            "share_of_bandwidth": moved * house / copy,
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


# By the name on the command line.
CASES: dict[str, Callable[[Options], list[Comparison]]] = {
    "fused_ppo": fused_ppo,
    "fused_grpo": fused_grpo,
    "purejaxrl": purejaxrl,
    "host": host,
    "seeds": seeds,
    "replay": replay,
    "compile": compile_case,
    "planner": planner,
}
