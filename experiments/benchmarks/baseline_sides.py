"""Other libraries as sides of a benchmark: each trains in its own process, in its own interpreter.

The script that runs there is ``baseline_speed.py`` beside this file, which imports nothing of this repository.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.benchmarks.timing import Sample, Side
from experiments.errors import UserError, reason


class Baseline(NamedTuple):
    """Another library as a side of a benchmark.

    Attributes:
      side: trains for one sample.
      versions: of the library and of what it stands on.
      first_seconds: of its first sample, which compiles.
    """

    side: Side
    versions: dict[str, str]
    first_seconds: float


@contextlib.contextmanager
def baseline(python: str, job: dict[str, Any]) -> Iterator[Baseline]:
    """Another library's training in its own process.

    Args:
      python: the interpreter that has the library installed.
      job: the argument of ``baseline_speed.py``; its entry ``baseline`` names the library.

    Raises:
      UserError: if the interpreter cannot be started, or the process ends before it answers; its last line is quoted.
    """
    with tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(
                [python, "-P", str(Path(__file__).with_name("baseline_speed.py")), json.dumps(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        except OSError as error:
            raise UserError(f"cannot start {python}: {reason(error)}; expected a Python interpreter") from error
        assert process.stdin is not None and process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def answer() -> dict[str, Any]:
            line = answers.readline()
            if not line:
                errors.seek(0)
                said = [line for line in errors.read().splitlines() if line.strip()]
                raise UserError(
                    f"{python}: the baseline {job['baseline']!r} failed: {said[-1] if said else 'no message'}"
                )
            return json.loads(line)

        def side() -> Sample:
            with contextlib.suppress(BrokenPipeError):
                print("go", file=requests, flush=True)
            return Sample(**answer())

        try:
            ready = answer()
            yield Baseline(side, ready["versions"], ready["first_seconds"])
        finally:
            process.kill()
            process.communicate()


def baseline_job(config: ConfigDict, name: str, steps: int, **more: Any) -> dict[str, Any]:
    """The hyper-parameters of ``config``, and its environment, by the names that ``baseline_speed.py`` expects."""
    agent, credit = config.agent, config.credit.env
    job = {
        "baseline": name,
        "steps": steps,
        "num_envs": config.data.batch,
        "num_steps": config.data.length,
        "hidden": config.network.hidden,
        "activation": config.network.activation,
        "environment_id": config.environment.get("environment_id", config.environment.get("name")),
        "discount": credit.discount,
        "gae_lambda": credit.gae_lambda,
    }
    keys = ("learning_rate", "epochs", "minibatches", "clip", "entropy_weight", "value_weight", "max_gradient_norm")
    return job | {key: agent[key] for key in keys} | more


def replay_job(config: ConfigDict, name: str, **more: Any) -> dict[str, Any]:
    """The same for a configuration of the value-based family."""
    agent = config.agent
    keys = ("learning_rate", "discount", "capacity", "batch_size", "updates", "quantiles")
    return {"baseline": name, "hidden": config.network.hidden} | {key: agent[key] for key in keys} | more
