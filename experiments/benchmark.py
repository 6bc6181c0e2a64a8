"""How fast the house is, and against what.

python -m experiments.benchmark CASE... [--json] [--repeats=N] [--tiny] [--out=results/benchmark.jsonl]

Two sides of a comparison take turns (A B, B A, A B, ...), so that what else the machine does meets both; the ratio is
the median of the pairs' ratios, beside the smallest and the largest of them. Processor time is given beside the clock:
on a machine that does other work it tells more. Nothing is written unless ``--out`` says where.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from ml_collections import ConfigDict

from experiments import registry, results
from experiments._fused import fused_chunk, fused_state
from experiments.build import build_world
from experiments.cache import VARIABLE, enable_compilation_cache
from experiments.drivers import HostDriver, Member, ScanDriver, seed_key
from experiments.errors import UserError, cannot_write, command, unknown

ROOT = Path(__file__).resolve().parent.parent
SEEDS = 10


class Sample(NamedTuple):
    """One timed piece: environment slots it filled, and the seconds of the clock and of the processor it took."""

    steps: int
    seconds: float
    cpu_seconds: float


class Comparison(NamedTuple):
    """Two sides that took turns; a figure is a rate in ``unit`` where more is better.

    Attributes:
      name: within the case.
      ours, reference: what the sides are, in words.
      unit: of the figures.
      figures: ``(ours, reference)`` of every pair.
      cpu_figures: the same per second of processor time, or empty.
      target: what the median ratio should reach, or ``None``.
      details: what else was measured.
    """

    name: str
    ours: str
    reference: str
    unit: str
    figures: list[tuple[float, float]]
    cpu_figures: list[tuple[float, float]] = []  # noqa: RUF012  (never written)
    target: float | None = None
    details: dict[str, Any] = {}  # noqa: RUF012  (never written)

    def report(self) -> dict[str, Any]:
        """As JSON: medians, and the median and range of the pairs' ratios."""
        ratios = [ours / reference for ours, reference in self.figures]
        report = {
            "name": self.name,
            "ours": self.ours,
            "reference": self.reference,
            "unit": self.unit,
            "ours_median": statistics.median(ours for ours, _ in self.figures),
            "reference_median": statistics.median(reference for _, reference in self.figures),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "pairs": len(ratios),
            "target": self.target,
        }
        if self.cpu_figures:
            report["ratio_cpu"] = statistics.median(ours / reference for ours, reference in self.cpu_figures)
        return report | {"details": self.details}


class Options(NamedTuple):
    """What the command line says about a case."""

    repeats: int
    tiny: bool
    peer: Path | None
    peer_python: Path | None


Side = Callable[[], Sample]


# --- timing --------------------------------------------------------------------------------------------


def timed(piece: Callable[[], int]) -> Sample:
    """Runs ``piece``, which returns its steps once the device has finished them."""
    wall, processor = time.perf_counter(), time.process_time()
    steps = piece()
    return Sample(steps, time.perf_counter() - wall, time.process_time() - processor)


def in_turns(sides: dict[str, Side], repeats: int) -> dict[str, list[Sample]]:
    """``repeats`` samples of every side, one round after another, every second round in reverse order."""
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in list(sides) if repeat % 2 == 0 else reversed(sides):
            samples[name].append(sides[name]())
    return samples


def rates(samples: Sequence[Sample]) -> list[float]:
    """Steps per second of the clock."""
    return [sample.steps / sample.seconds for sample in samples]


def compared(samples: dict[str, list[Sample]], first: str, second: str, **fields: Any) -> Comparison:
    """The comparison of the sides ``first`` and ``second`` of ``in_turns``."""
    clock = list(zip(rates(samples[first]), rates(samples[second]), strict=True))
    processor = [
        (a.steps / a.cpu_seconds, b.steps / b.cpu_seconds)
        for a, b in zip(samples[first], samples[second], strict=True)
        if a.cpu_seconds > 0 and b.cpu_seconds > 0
    ]
    return Comparison(figures=clock, cpu_figures=processor, **fields)


def loaded(name: str, **overrides: Any) -> ConfigDict:
    """The configuration ``name`` with overrides; a double underscore stands for the dot in a key."""
    config = registry.load(name).config
    return registry.apply_overrides(config, {key.replace("__", "."): value for key, value in overrides.items()})


class Chunks:
    """One driver as a side: every call trains the next ``iterations``, after a first one that compiles."""

    def __init__(self, driver: ScanDriver | HostDriver, iterations: int, slots: int):
        self.driver, self._iterations = driver, iterations
        self._slots = slots * iterations * len(driver.members)
        started = time.perf_counter()
        self._state, self._next = driver.start(), 0
        self.params = jax.tree.map(np.asarray, self._state.agent.params)
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
    return ScanDriver(config, build_world(config), [Member(seed, "") for seed in range(seeds)])


def slots_of(config: ConfigDict) -> int:
    """Environment slots of one iteration of one seed."""
    return config.data.length * config.data.batch


# --- peers ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def peer(python: str, job: dict[str, Any]) -> Iterator[tuple[Side, dict[str, str]]]:
    """Another library's training in its own process, as a side, and that library's versions.

    Raises:
      UserError: if the process ends before it answers; what it printed last is quoted.
    """
    with tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(
                [python, "-P", str(Path(__file__).with_name("_peers.py")), json.dumps(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        except OSError as error:
            raise UserError(f"cannot start {python}: {error.strerror}") from error
        assert process.stdin is not None and process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def answer() -> dict[str, Any]:
            line = answers.readline()
            if not line:
                errors.seek(0)
                said = [line for line in errors.read().splitlines() if line.strip()]
                raise UserError(f"{python}: the peer {job['peer']!r} failed: {said[-1] if said else 'no message'}")
            return json.loads(line)

        def side() -> Sample:
            with contextlib.suppress(BrokenPipeError):
                print("go", file=requests, flush=True)
            return Sample(**answer())

        try:
            yield side, answer()["versions"]
        finally:
            process.kill()
            process.communicate()


def peer_job(config: ConfigDict, name: str, steps: int, **more: Any) -> dict[str, Any]:
    """The hyper-parameters of ``config`` in the words of ``experiments/_peers.py``."""
    agent, credit = config.agent, config.credit.env
    job = {
        "peer": name,
        "steps": steps,
        "num_envs": config.data.batch,
        "num_steps": config.data.length,
        "hidden": config.network.hidden,
        "discount": credit.discount,
        "trace": credit.trace,
    }
    keys = ("learning_rate", "epochs", "minibatches", "clip", "entropy_weight", "value_weight", "max_gradient_norm")
    return job | {key: agent[key] for key in keys} | more


# --- cases ---------------------------------------------------------------------------------------------


def fused(options: Options, method: str) -> Comparison:
    """One method on Sokoban: the scan driver against ``experiments/_fused.py``."""
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
    """what the house costs: oprl_sokoban:ppo against the same algorithm written by hand in one function"""
    return [fused(options, "ppo")]


def fused_grpo(options: Options) -> list[Comparison]:
    """the same for oprl_sokoban:grpo"""
    return [fused(options, "grpo")]


def purejaxrl(options: Options) -> list[Comparison]:
    """PPO on CartPole in jit, whole runs, against PureJaxRL's; needs --peer=CHECKOUT"""
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
    driver = scan_driver(config)

    def whole_run() -> int:
        state, _ = driver.chunk(driver.start(), 0, config.iterations)
        jax.block_until_ready(state.agent)
        return steps

    whole_run()
    world = random_steps(config, steps)
    world()
    python = str(options.peer_python or sys.executable)
    job = peer_job(config, "purejaxrl", steps, path=str(options.peer.resolve()))
    with peer(python, job) as (theirs, versions), peer(python, job | {"peer": "gymnax_world"}) as (their_world, _):
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
    against stable-baselines3 and sbx"""
    config = loaded("ppo_cartpole", **({"data__length": 32} if options.tiny else {}))
    iterations = 2 if options.tiny else 20
    batch, steps = config.data.batch, iterations * slots_of(config)
    vector = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * batch, autoreset_mode=AutoresetMode.SAME_STEP)
    vector.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 2, (steps // batch, batch))

    def raw() -> int:
        for action in actions:
            vector.step(action)
        return steps

    house = Chunks(HostDriver(config, build_world(config), Member(0, "")), iterations, slots_of(config))
    sides: dict[str, Side] = {"house": house, "raw": lambda: timed(raw)}
    versions: dict[str, dict[str, str]] = {}
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
                sides[name], versions[name] = stack.enter_context(peer(str(options.peer_python), job))
        samples = in_turns(sides, options.repeats)
    vector.close()
    ours = "ppo_cartpole, 16 worlds, 64 steps, 4 epochs of 4 minibatches"
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
    """10 seeds of oprl_sokoban:grpo and :ppo vmapped, against 10 runs one after another"""
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
    """time to compile with a cold cache, against a warm one, and peak memory"""
    return [compile_of(name, options) for name in (COMPILED[2:] if options.tiny else COMPILED)]


def compile_of(name: str, options: Options) -> Comparison:
    """One configuration, every measurement in a process of its own."""
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
    code = f"from experiments.benchmark import report_compilation; report_compilation({name!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {VARIABLE: cache},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"compiling {name} failed: {done.stderr.strip().splitlines()[-1]}")
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


CASES: dict[str, Callable[[Options], list[Comparison]]] = {
    "fused_ppo": fused_ppo,
    "fused_grpo": fused_grpo,
    "purejaxrl": purejaxrl,
    "host": host,
    "seeds": seeds,
    "compile": compile_case,
}


# --- command -------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    report = results.environment_report()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return report | {"cores": usable, "load_average": round(os.getloadavg()[0], 2)}


def line(case: str, report: dict[str, Any], where: dict[str, Any]) -> str:
    """One comparison in words."""
    target = "" if report["target"] is None else f", target {report['target']:g}"
    processor = f", by processor time {report['ratio_cpu']:.2f}" if "ratio_cpu" in report else ""
    scalars = {key: value for key, value in report["details"].items() if isinstance(value, float)}
    details = "".join(f", {key} {value:.3g}" for key, value in scalars.items())
    return (
        f"{case}/{report['name']}: {report['ours']}: {report['ours_median']:,.4g} {report['unit']}; "
        f"{report['reference']}: {report['reference_median']:,.4g}; "
        f"ratio {report['ratio']:.2f} ({report['ratio_min']:.2f} to {report['ratio_max']:.2f}, "
        f"{report['pairs']} pairs{processor}{target}){details} "
        f"[{where['device_count']} x {where['device']}, {where['cores']} cores, jax {where['versions']['jax']}]"
    )


def parser() -> argparse.ArgumentParser:
    cases = "\n".join(f"  {name:12}{' '.join((case.__doc__ or '').split())}" for name, case in CASES.items())
    made = argparse.ArgumentParser(
        prog="python -m experiments.benchmark",
        description=f"{(__doc__ or '').splitlines()[0]}\n\ncases:\n{cases}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("cases", nargs="+", metavar="CASE", help="one or more of the cases above")
    made.add_argument("--json", action="store_true", help="print one JSON object per case")
    made.add_argument("--repeats", type=int, default=7, help="pairs of measurements (default: 7)")
    made.add_argument("--tiny", action="store_true", help="pieces too small to measure, to see that a case runs")
    made.add_argument("--peer", type=Path, help="a checkout of PureJaxRL, for the case purejaxrl")
    made.add_argument("--peer-python", type=Path, help="the interpreter that has the peers installed")
    made.add_argument("--out", type=Path, help="also append one JSON line per case to this file")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cases.

    Raises:
      UserError: for an unknown case, a peer that is missing, or a file that cannot be written.
    """
    arguments = parser().parse_args(argv)
    for name in arguments.cases:
        if name not in CASES:
            raise unknown("case", name, CASES)
    if arguments.repeats < 1:
        raise UserError(f"--repeats={arguments.repeats}: expected at least 1")
    options = Options(arguments.repeats, arguments.tiny, arguments.peer, arguments.peer_python)
    for name in arguments.cases:
        where = machine()
        reports = [comparison.report() for comparison in CASES[name](options)]
        record = {"case": name, "comparisons": reports, "tiny": options.tiny, "machine": where}
        if arguments.out is not None:
            try:
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                with open(arguments.out, "a") as file:
                    file.write(json.dumps(record) + "\n")
            except OSError as error:
                raise cannot_write(arguments.out, error) from error
        if arguments.json:
            print(json.dumps(record), flush=True)
        else:
            for report in reports:
                print(line(name, report, where), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
