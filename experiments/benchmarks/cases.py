"""The cases of the benchmark by name: they time sagax beside something else, or on this machine's device.

A case is a function of the command line's ``Options`` that returns comparisons, or yields measurements one by one.
``CASES`` lists them by name, those of ``value_cases.py``, ``buffers.py``, ``reward_cases.py`` and ``device_cases.py``
included, each with its line in the command's help.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from envs.keys import seed_key
from experiments.benchmarks.baseline_cases import host, host_mujoco, purejaxrl, rejax
from experiments.benchmarks.buffers import buffer
from experiments.benchmarks.device_cases import Measurement, devices
from experiments.benchmarks.fused import fused_chunk, fused_state
from experiments.benchmarks.reward_cases import annotator, curiosity, minigrid
from experiments.benchmarks.sides import SEEDS, Chunks, Options, loaded, scan_driver, slots_of
from experiments.benchmarks.timing import Comparison, Sample, compared, in_turns, timed
from experiments.benchmarks.value_cases import planner, replay
from experiments.errors import UserError
from experiments.training.compilation_cache import VARIABLE, enable_compilation_cache

ROOT = Path(__file__).resolve().parents[2]


def fused(options: Options, method: str) -> Comparison:
    """One method on Sokoban: the scan driver beside ``experiments/benchmarks/fused.py``, from the same parameters and
    keys."""
    tiny: dict[str, Any] = {"data__batch": 16, "agent__minibatches": 2} if options.tiny else {}
    config = loaded(f"oprl_sokoban:{method}", **tiny)
    iterations = 2 if options.tiny else 20
    sagax = Chunks(scan_driver(config), iterations, slots_of(config))
    run = jax.jit(fused_chunk(config), static_argnums=3, donate_argnums=0)
    key = seed_key(sagax.driver.members[0].seed)
    state = fused_state(jax.tree.map(lambda x: x[0], sagax.params))
    first = 0

    def piece() -> int:
        nonlocal state, first
        state, solved = run(state, key, first, iterations)
        jax.block_until_ready((state, solved))
        first += iterations
        return iterations * slots_of(config)

    piece()
    samples = in_turns({"sagax": sagax, "fused": lambda: timed(piece)}, options.repeats, options.say)
    return compared(
        samples,
        "sagax",
        "fused",
        name=method,
        ours=f"oprl_sokoban:{method}, rollout and learn in one scan",
        reference="the same by hand in one function",
        unit="environment slots/s",
        target=0.9,
        details={"iterations": iterations, "slots_per_iteration": slots_of(config)},
    )


def fused_ppo(options: Options) -> list[Comparison]:
    """``oprl_sokoban:ppo`` beside ``experiments/benchmarks/fused.py``.

    Both sides reach the same parameters, so that the ratio compares the same work. One sample is 20 iterations.
    """
    return [fused(options, "ppo")]


def fused_grpo(options: Options) -> list[Comparison]:
    """``oprl_sokoban:grpo``, without a critic and with groups of 8 rollouts per room, beside the same file."""
    return [fused(options, "grpo")]


# Configurations whose seeds are compared, by the comparison's name, with the iterations of one sample.
SEEDED = {"grpo": ("oprl_sokoban:grpo", 5), "ppo": ("oprl_sokoban:ppo", 5), "cartpole": ("ppo_cartpole:native", 20)}


def seeds(options: Options) -> list[Comparison]:
    """10 vmapped seeds of ``SEEDED`` beside 10 runs one after another.

    With several devices, such as ``JAX_NUM_CPU_DEVICES=2`` makes of two cores, the seeds are spread over them, and the
    single runs have the first one. The ratio compares training alone; ``ratio_with_compilation`` compares whole runs of
    the configuration's length, in which every run compiles.
    """
    return [seeds_of(options, name) for name in SEEDED]


def seeds_of(options: Options, comparison_name: str) -> Comparison:
    """The comparison for one configuration; both sides train the same seeds."""
    name, iterations = SEEDED[comparison_name]
    tiny: dict[str, Any] = {"data__batch": 16, "agent__minibatches": 2} if options.tiny else {}
    config = loaded(name, **tiny)
    iterations = 1 if options.tiny else iterations
    devices = jax.devices()
    over = f" over {len(devices)} devices" if len(devices) > 1 else ""
    vmapped = Chunks(scan_driver(config, SEEDS), iterations, slots_of(config))
    single = Chunks(scan_driver(config, devices=devices[:1]), iterations, slots_of(config))

    def one_after_another() -> Sample:
        parts = [single() for _ in range(SEEDS)]
        return Sample(*(sum(column) for column in zip(*parts, strict=True)))

    samples = in_turns({"vmapped": vmapped, "sequential": one_after_another}, options.repeats, options.say)
    comparison = compared(
        samples,
        "vmapped",
        "sequential",
        name=comparison_name + over.replace(" ", "_"),
        ours=f"{name}, {SEEDS} seeds vmapped{over}",
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
    """The time to compile ``COMPILED`` with a warm cache beside a cold one, each in a process of its own.

    The details give both in seconds, and the peak memory.
    """
    return [compile_of(name, options) for name in (COMPILED[2:] if options.tiny else COMPILED)]


def compile_of(name: str, options: Options) -> Comparison:
    """One configuration, started with an empty compilation cache and then with the cache that this start has filled."""
    name = f"{name},smoke" if options.tiny else name
    figures, memory = [], []
    for repeat in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            compiled = []
            for cache in ("cold", "warm"):
                options.say(f"compiling {name} with a {cache} cache, round {repeat + 1} of {options.repeats}")
                compiled.append(_compile_in_subprocess(name, folder))
            cold, warm = compiled
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
    """The figures that ``report_compilation`` prints in a new process with the compilation cache ``cache``.

    Raises:
      UserError: if the process fails; its last line is quoted.
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
    """Prints the seconds that this process took to compile ``name``, and its peak memory, as JSON."""
    enable_compilation_cache()
    config = loaded(name)
    chunks = Chunks(scan_driver(config), 1, slots_of(config))
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(json.dumps({"seconds": chunks.compile_seconds, "peak_mebibytes": peak}))


class Case(NamedTuple):
    """A case of the benchmark: its line in the help, and the function that measures it."""

    summary: str
    measure: Callable[[Options], Iterable[Comparison | Measurement]]


# By the name on the command line.
CASES = {
    "fused_ppo": Case("oprl_sokoban:ppo beside the same algorithm written by hand in one function", fused_ppo),
    "fused_grpo": Case("oprl_sokoban:grpo beside the same algorithm written by hand in one function", fused_grpo),
    "purejaxrl": Case(
        "PPO on CartPole and MinAtar's Breakout beside PureJaxRL's; needs --baseline=CHECKOUT and the extra gymnax",
        purejaxrl,
    ),
    "rejax": Case(
        "PPO on gymnax's CartPole and MinAtar's Breakout beside rejax's; needs --baseline-python=PYTHON and the extra "
        "gymnax",
        rejax,
    ),
    "host": Case(
        "the host driver on CartPole-v1 beside the raw environments; with --baseline-python=PYTHON beside "
        "stable-baselines3 and sbx",
        host,
    ),
    "host_mujoco": Case(
        "the same on MuJoCo's Hopper, with normalised observations; needs the extra mujoco", host_mujoco
    ),
    "seeds": Case(
        "10 vmapped seeds of oprl_sokoban:grpo, :ppo and ppo_cartpole:native beside 10 runs one after another; with "
        "JAX_NUM_CPU_DEVICES=2 spread over two cores",
        seeds,
    ),
    "replay": Case(
        "gradient steps on replayed data, 10 vmapped seeds beside one; with --baseline-python=PYTHON beside sbx's DQN "
        "and sb3-contrib's QR-DQN",
        replay,
    ),
    "compile": Case("time to compile with a warm cache beside a cold one, and peak memory", compile_case),
    "buffer": Case("segments drawn from the replay buffer beside flashbax's; needs the package flashbax", buffer),
    "planner": Case("distributional value iteration on Taxi beside NumPy and beside the memory's speed", planner),
    "curiosity": Case(
        "every curiosity in the maze beside plain PPO, BYOL-Hindsight beside RND, 5 vmapped seeds beside one", curiosity
    ),
    "minigrid": Case(
        "every curiosity and model of language feedback on MiniGrid beside plain PPO; needs the extra minigrid",
        minigrid,
    ),
    "annotator": Case(
        "oni_minigrid with an annotator that takes a second per reply beside one that answers at once; needs the extra "
        "minigrid",
        annotator,
    ),
    "devices": Case(
        "speed, compile time and memory of oprl_sokoban, curiosity_maze and ppo_cartpole:native at 1, 10 and 100 "
        "seeds; see --names, --seeds, --seconds and --limit",
        devices,
    ),
}
