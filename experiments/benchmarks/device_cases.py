"""Speed, compile time and memory of whole runs by number of seeds, on whatever device this machine has.

Every measurement is a process of its own: its peak memory is its own, nothing was compiled before, and one that takes
too long or too much memory ends alone, with what it had measured so far.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.assembly import registry
from experiments.assembly.build import build_environment
from experiments.benchmarks.sides import Options, loaded, machine, scan_driver
from experiments.errors import UserError
from experiments.rows.environment_report import command_line

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("oprl_sokoban", "curiosity_maze", "ppo_cartpole:native")
SEEDS = (1, 10, 100)
FINISHED = "finished"
# What JAX says after XLA has compiled a program.
COMPILED = "/jax/core/compile/backend_compile_duration"


class Measurement(NamedTuple):
    """One configuration at one number of seeds.

    Attributes:
      name: of the configuration.
      seeds: how many were trained side by side.
      ended: ``finished``, or why the process ended before that; the figures are those it had by then.
      figures: ``start_seconds`` (build, initial state, warm start), ``compile_seconds`` (what XLA took for the program
        of a chunk, tracing apart), ``first_chunk_seconds`` (with tracing and compiling), ``iterations`` of a chunk and
        ``chunks`` that were timed after the first one, their ``steps`` of the environments and ``seconds``,
        ``steps_per_second``, ``peak_bytes`` and ``memory_of``: the largest ``device`` or, where a device does not
        count, this ``process``.
      machine: what the figures hold for, or nothing where the process did not get as far.
    """

    name: str
    seeds: int
    ended: str
    figures: dict[str, Any]
    machine: dict[str, Any]

    def report(self) -> dict[str, Any]:
        """As JSON, without the machine."""
        return {"name": self.name, "seeds": self.seeds, "ended": self.ended} | self.figures

    def line(self) -> str:
        """In words."""
        told = [f"devices/{self.name}, {self.seeds} seeds:"]
        figures = self.figures
        if "steps_per_second" in figures:
            memory = f"{figures['peak_bytes'] / 2**20:,.0f} MiB of the {figures['memory_of']}"
            told.append(f"{figures['steps_per_second']:,.4g} environment steps/s, compiled in")
            told.append(f"{figures['compile_seconds']:.1f} s, at most {memory}")
        told += [] if self.ended == FINISHED else [f"({self.ended})"]
        if self.machine:
            told.append(f"[{self.machine['device_count']} x {self.machine['device']}, {self.machine['cores']} cores]")
        return " ".join(told)


def devices(options: Options) -> Iterator[Measurement]:
    """Speed, compile time and memory of ``NAMES``, or ``options.names``, by number of seeds, one by one.

    Raises:
      UserError: for a configuration of host environments.
    """
    names = options.names or (NAMES[2:] if options.tiny else NAMES)
    seeds = options.seeds or (SEEDS[:1] if options.tiny else SEEDS)
    if options.tiny:
        names = tuple(f"{name},smoke" for name in names)
    for name in names:
        if build_environment(registry.load(name).config).pure is None:
            raise UserError(f"--names={name}: host environments train one seed after another; expected a pure one")
    for count in seeds:
        for name in names:
            options.say(f"measuring {name} with {count} seeds")
            yield measured(name, count, options.seconds, options.limit)


def measured(name: str, seeds: int, seconds: float, limit: float) -> Measurement:
    """``report_devices`` in a process of its own, ended after ``limit`` seconds."""
    arguments = (name, seeds, seconds, command_line())
    code = f"from experiments.benchmarks.device_cases import report_devices; report_devices(*{arguments!r})"
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=output, stderr=errors)
        try:
            status = process.wait(limit)
            errors.seek(0)
            said = errors.read().strip().splitlines()
            failed = said[-1] if said else f"status {status}"
            ended = FINISHED if status == 0 else f"failed: {failed}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit:g} s"
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        # Each line holds everything up to then; the last may be torn.
        lines = [line for line in output.read().split("\n")[:-1] if line.startswith("{")]
    found = json.loads(lines[-1]) if lines else {}
    return Measurement(name, seeds, ended, found.get("figures", {}), found.get("machine", {}))


def report_devices(name: str, seeds: int, seconds: float, command: Sequence[str]) -> None:
    """Prints, line by line, what one process has found out so far, as JSON.

    Args:
      name: of the configuration.
      seeds: trained side by side.
      seconds: for which chunks are timed; two at least.
      command: the command line to be told.
    """
    # Compilation is part of what is measured.
    jax.config.update("jax_enable_compilation_cache", False)
    compilations: list[float] = []

    def listen(event: str, duration: float, **details: Any) -> None:
        del details
        if event == COMPILED:
            compilations.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    where = machine(command)
    figures: dict[str, Any] = {}

    def tell() -> None:
        peak, owner = peak_memory()
        figures.update(peak_bytes=peak, memory_of=owner)
        print(json.dumps({"figures": figures, "machine": where}), flush=True)

    tell()
    # About the same work for every number of seeds: many seeds fill a chunk of one iteration.
    iterations = max(1, 20 // seeds)
    started = time.perf_counter()
    driver = scan_driver(loaded(name), seeds)
    state = jax.block_until_ready(driver.start())
    figures["start_seconds"] = time.perf_counter() - started
    tell()
    compilations.clear()
    times: list[float] = []
    steps = 0
    while len(times) < 3 or sum(times[1:]) < seconds:
        began = time.perf_counter()
        state, metrics = driver.chunk(state, len(times) * iterations, iterations)
        jax.block_until_ready(state)
        times.append(time.perf_counter() - began)
        if len(times) == 1:
            figures |= {"compile_seconds": sum(compilations), "first_chunk_seconds": times[0]}
        else:
            steps += int(metrics["sum/env_steps"].sum())
            timed = sum(times[1:])
            figures |= {"iterations": iterations, "chunks": len(times) - 1, "steps": steps, "seconds": timed}
            figures["steps_per_second"] = steps / timed
        tell()


def peak_memory() -> tuple[int, str]:
    """The most bytes that any device of this process held, or the process where devices do not count; and which."""
    counted = [device.memory_stats() for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in counted if found and "peak_bytes_in_use" in found]
    if peaks:
        return max(peaks), "device"
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process"
