"""What is measured: the cases by name, which time sagax beside something else or on this device.

A case is a function of the command line's ``Options`` that returns comparisons, or yields measurements one by one; the
first paragraph of its docstring is its line in the help. ``CASES`` names them, with those of ``value_cases.py``,
``buffers.py``, ``reward_cases.py`` and ``device_cases.py`` beside this file.
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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from ml_collections import ConfigDict

from envs.hosts.gymnasium import GymnasiumHost
from experiments.assembly.build import build_environment
from experiments.assembly.members import Member
from experiments.benchmarks.baseline_sides import baseline, baseline_job
from experiments.benchmarks.buffers import buffer
from experiments.benchmarks.device_cases import Measurement, devices
from experiments.benchmarks.fused import fused_chunk, fused_state
from experiments.benchmarks.reward_cases import annotator, curiosity, minigrid
from experiments.benchmarks.sides import SEEDS, Chunks, Options, has_baselines, loaded, scan_driver, slots_of
from experiments.benchmarks.timing import Comparison, Sample, Side, compared, in_turns, rates, timed
from experiments.benchmarks.value_cases import planner, replay
from experiments.errors import UserError
from experiments.training.compilation_cache import VARIABLE, enable_compilation_cache
from experiments.training.host_driver import HostDriver
from experiments.training.keys import seed_key

ROOT = Path(__file__).resolve().parents[2]


def fused(options: Options, method: str) -> Comparison:
    """One method on Sokoban: the scan driver against ``experiments/benchmarks/fused.py``, from the same parameters and
    keys."""
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
    """PPO on CartPole in jit, whole runs, against PureJaxRL's; needs --baseline=CHECKOUT

    Environments, steps, passes and losses are those of PureJaxRL's ``ppo.py``. Because the two CartPoles differ in
    cost, the environments alone are compared, too, and the details say which share of a run they are.
    """
    if options.baseline is None or not (options.baseline / "purejaxrl" / "ppo.py").is_file():
        given = "no --baseline" if options.baseline is None else f"--baseline={options.baseline}"
        raise UserError(
            f"{given}: expected a checkout of https://github.com/luchris429/purejaxrl (it is not part of "
            "this repository), and --baseline-python=PYTHON of an environment with: "
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
    python = str(options.baseline_python or sys.executable)
    job = baseline_job(config, "purejaxrl", steps, path=str(options.baseline.resolve()))
    # The baselines start first: a missing package is told before anything is compiled here. They wait while they are
    # not asked.
    with (
        baseline(python, job) as (theirs, versions),
        baseline(python, job | {"baseline": "gymnax_environment"}) as (their_environment, _),
    ):
        driver, source = scan_driver(config), random_steps(config, steps)

        def whole_run() -> int:
            state, _ = driver.chunk(driver.start(), 0, config.iterations)
            jax.block_until_ready(state.agent)
            return steps

        whole_run()
        source()
        sides = {
            "house": lambda: timed(whole_run),
            "baseline": theirs,
            "environment": lambda: timed(source),
            "gymnax": their_environment,
        }
        samples = in_turns(sides, options.repeats)
    shares = {
        "share_of_time_in_environment": statistics.median(rates(samples["house"]))
        / statistics.median(rates(samples["environment"])),
        "baseline_share_of_time_in_environment": statistics.median(rates(samples["baseline"]))
        / statistics.median(rates(samples["gymnax"])),
    }
    return [
        compared(
            samples,
            "house",
            "baseline",
            name="training",
            ours="ppo_cartpole:native, 4 environments, 128 steps, 4 epochs of 4 minibatches",
            reference="PureJaxRL's ppo.py, the same numbers",
            unit="environment steps/s",
            target=1.0,
            details={"steps": steps, "baseline_versions": versions} | shares,
        ),
        compared(
            samples,
            "environment",
            "gymnax",
            name="environment",
            ours="4 functional CartPoles of gymnasium, unrolled with random actions",
            reference="4 CartPoles of gymnax, the same",
            unit="environment steps/s",
        ),
    ]


def random_steps(config: ConfigDict, steps: int) -> Callable[[], int]:
    """Unrolls of the environments of ``config`` under uniformly random actions, and nothing else."""
    from envs.rollout import start_unroll, unroll

    environment: Any = build_environment(config).pure
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
    """the host driver on gymnasium's CartPole-v1, 16 environments, against the raw environments and, with
    --baseline-python=PYTHON, against stable-baselines3 and sbx

    The target is for the faster of the two. ``share_of_raw_environment`` is training against the same environments
    under random actions and nothing else: its ratio is the share of their speed that is left. ``adapter`` is what is
    left of it where the environments are stepped through ``GymnasiumHost`` and nothing learns.
    """
    config = loaded("ppo_cartpole", **({"data__length": 32} if options.tiny else {}))
    iterations = 2 if options.tiny else 20
    batch, steps = config.data.batch, iterations * slots_of(config)
    versions: dict[str, dict[str, str]] = {}
    baselines: dict[str, Side] = {}
    with contextlib.ExitStack() as stack:
        if has_baselines(options, "host", "stable-baselines3 and sbx", "stable-baselines3 sbx-rl"):
            for name in ("stable_baselines3", "sbx"):
                # Networks of 64 units: a second thread of torch costs more than it saves.
                job = baseline_job(config, name, steps, threads=1)
                baselines[name], versions[name] = stack.enter_context(baseline(str(options.baseline_python), job))
        driver = HostDriver(config, build_environment(config), Member(0, ""))
        stack.callback(driver.close)
        house = Chunks(driver, iterations, slots_of(config))
        vector = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * batch, autoreset_mode=AutoresetMode.SAME_STEP)
        stack.callback(vector.close)
        vector.reset(seed=0)
        adapter = GymnasiumHost("CartPole-v1", batch)
        stack.callback(adapter.close)
        adapter.reset(0)
        actions = np.random.default_rng(0).integers(0, 2, (steps // batch, batch))

        def stepped(environments: SyncVectorEnv | GymnasiumHost) -> int:
            for action in actions:
                environments.step(action)
            return steps

        sides: dict[str, Side] = {
            "house": house,
            "raw": lambda: timed(lambda: stepped(vector)),
            "adapter": lambda: timed(lambda: stepped(adapter)),
        }
        samples = in_turns(sides | baselines, options.repeats)
    ours = f"ppo_cartpole, {batch} environments, {config.data.length} steps, 4 epochs of 4 minibatches"
    comparisons = [
        compared(
            samples,
            "house",
            name,
            name=name,
            ours=ours,
            reference=f"PPO of {name}, the same numbers",
            unit="environment steps/s",
            details={"baseline_versions": versions[name]},
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
            name="share_of_raw_environment",
            ours=ours,
            reference="the same environments alone, random actions",
            unit="environment steps/s",
        ),
        compared(
            samples,
            "adapter",
            "raw",
            name="adapter",
            ours=f"GymnasiumHost, {batch} environments of CartPole-v1, random actions",
            reference="gymnasium's SyncVectorEnv of them",
            unit="environment steps/s",
            target=0.7,
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
    code = f"from experiments.benchmarks.cases import report_compilation; report_compilation({name!r})"
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


# By the name on the command line.
CASES: dict[str, Callable[[Options], Iterable[Comparison | Measurement]]] = {
    "fused_ppo": fused_ppo,
    "fused_grpo": fused_grpo,
    "purejaxrl": purejaxrl,
    "host": host,
    "seeds": seeds,
    "replay": replay,
    "compile": compile_case,
    "buffer": buffer,
    "planner": planner,
    "curiosity": curiosity,
    "minigrid": minigrid,
    "annotator": annotator,
    "devices": devices,
}
