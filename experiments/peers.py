"""``python -m experiments.peers NAME:PEER --peer-python=PYTHON``: another library's agent on an experiment's world.

The peer trains for as many environment steps as the experiment and is evaluated at the same steps, on as many greedy
episodes. Its settings are ``PEERS[PEER]`` of the experiment's configuration, in that library's words; ``--sweep`` runs
the grid of ``get_peer_sweep()`` instead. The rows are filed under the variant ``PEER`` (``PEER+sweep+KEY=VALUE``), in
run folders like any other. The same command continues: a seed that was finished is not run again. What follows a comma
in ``PEER`` names other settings of the same agent.

What runs in the other interpreter is ``experiments/_peers_learning.py``, which imports nothing of this repository.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from experiments import registry, results
from experiments.build import EVALUATION_SEED
from experiments.command_parser import CommandParser
from experiments.disk import read_json_object, write_atomic, write_json_atomic
from experiments.environment_report import environment_report
from experiments.errors import UserError, command, reason, unknown
from experiments.sweep import MARK

SCRIPT = Path(__file__).with_name("_peers_learning.py")


class Point(NamedTuple):
    """A peer with its settings: the variant its rows are filed under, and their run folder."""

    variant: str
    settings: dict[str, Any]
    folder: Path


def parser() -> CommandParser:
    made = CommandParser(prog="python -m experiments.peers", description=(__doc__ or "").split("\n")[0])
    made.add_argument("name", help="NAME:PEER, such as dqn_cartpole:sb3_dqn or dqn_cartpole:sb3_dqn,tuned")
    made.add_argument("--peer-python", required=True, help="the interpreter that has the peer installed")
    made.add_argument("--seeds", type=int, default=1, help="how many seeds, counted from --first-seed (default: 1)")
    made.add_argument("--first-seed", type=int, default=0)
    made.add_argument("--sweep", action="store_true", help="run the peers' grid in place of the settings")
    made.add_argument("--limit", type=int, help="start at most so many seeds; the same command goes on with the others")
    made.add_argument("--jobs", type=int, default=1, help="processes at a time (default: 1)")
    made.add_argument("--runs", default=results.RUNS_FOLDER, help="where run folders are (default: runs)")
    return made


def environment_id(config: Any) -> str:
    """The gymnasium identifier of the world of ``config``.

    Raises:
      UserError: for a world that is none of gymnasium's.
    """
    section = config.environment
    if section.kind == "functional":
        return section.name
    if section.kind == "gymnasium":
        return section.environment_id
    raise UserError(f"environment.kind={section.kind!r}: a peer knows gymnasium's worlds alone")


def points(loaded: registry.Loaded, peer: str, sweep: bool, runs: str) -> list[Point]:
    """The peer as it is documented, or every point of its grid.

    Raises:
      UserError: if the experiment has no such peer, or no grid for peers.
    """
    peers = getattr(loaded.module, "PEERS", {})
    if peer not in peers:
        raise unknown("peer", peer, peers, f"of {loaded.name!r}")
    if sweep and not hasattr(loaded.module, "get_peer_sweep"):
        raise UserError(f"--sweep: experiment {loaded.name!r} has no get_peer_sweep(), the grid of its peers")
    grid = loaded.module.get_peer_sweep() if sweep else {}
    found = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        described = [f"{key}={chosen[key]}" for key in sorted(chosen)]
        variant = "+".join([peer, *([MARK, *described] if sweep else [])])
        found.append(Point(variant, {**peers[peer], **chosen}, results.run_folder(runs, loaded.name, variant)))
    return found


def prepare(point: Point, job: Mapping[str, Any]) -> list[results.Row]:
    """Makes the run folder, or reads the rows of the seeds that it holds.

    Raises:
      UserError: if the folder holds a run of another job.
    """
    path = point.folder / results.CONFIG_FILE
    described = registry.to_json_dict({key: value for key, value in job.items() if key != "seed"})
    if path.exists():
        differences = registry.difference(read_json_object(path), described)
        if differences:
            shown = "; ".join(str(one) for one in differences[:3])
            raise UserError(f"{point.folder} holds a run of another peer ({shown}); give --runs for another place")
    else:
        write_json_atomic(path, described)
    rows = point.folder / results.METRICS_FILE
    return results.read_rows(rows) if rows.exists() else []


def train(python: str, job: Mapping[str, Any]) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """One seed of a peer in its own process: the versions there, and its evaluations.

    Raises:
      UserError: if the interpreter cannot be started or the peer fails, what it printed last is quoted, or what was
        started answers with anything but versions and evaluations.
    """
    try:
        done = subprocess.run(
            [python, "-P", str(SCRIPT), json.dumps(job)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise UserError(f"cannot start {python}: {reason(error)}; expected a Python interpreter") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise UserError(
            f"{python}: the peer {job['peer']!r} failed: {said[-1] if said else f'status {done.returncode}'}"
        )
    answer = _evaluations(done.stdout)
    if answer is None:
        first = (done.stdout.splitlines() or [""])[0][:60]
        raise UserError(f"{python} answered {first!r}: expected the interpreter that has {job['peer']!r} installed")
    return answer


def _evaluations(answer: str) -> tuple[dict[str, str], list[dict[str, Any]]] | None:
    """Versions and rows of what a peer printed; None where it printed anything else."""
    try:
        versions, *rows = [json.loads(line) for line in answer.splitlines()]
    except ValueError:
        return None
    if not rows or not all(isinstance(line, dict) for line in (versions, *rows)):
        return None
    numbers = all(type(row.get("env_steps")) is int and isinstance(row.get("return"), int | float) for row in rows)
    return (versions, rows) if numbers else None


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Trains one peer.

    Raises:
      UserError: for anything the user can repair.
    """
    arguments = parser().parse_args(argv)
    lowest = {"seeds": 1, "first_seed": 0, "jobs": 1, "limit": 1}
    for option, least in lowest.items():
        value = getattr(arguments, option)
        if value is not None and value < least:
            raise UserError(f"--{option.replace('_', '-')}={value}: expected at least {least}")
    name, _, peer = arguments.name.partition(":")
    loaded = registry.load(name)
    config = loaded.config
    slots = config.data.length * config.data.batch
    evaluation = config.evaluation
    waiting: list[tuple[Point, dict[str, Any]]] = []
    kept: dict[Path, list[results.Row]] = {}
    for point in points(loaded, peer, arguments.sweep, arguments.runs):
        job = {
            "peer": peer.partition(",")[0],
            "environment_id": environment_id(config),
            "steps": config.iterations * slots,
            "evaluate_every": config.evaluate_every * slots,
            "episodes": evaluation.episodes,
            "length": evaluation.length,
            "evaluation_seed": EVALUATION_SEED,
            "settings": point.settings,
        }
        kept[point.folder] = prepare(point, job)
        finished = {row["seed"] for row in kept[point.folder]}
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        waiting += [(point, job | {"seed": seed}) for seed in seeds if seed not in finished]
    with ThreadPoolExecutor(arguments.jobs) as executor:
        running = {
            executor.submit(train, arguments.peer_python, job): (point, job)
            for point, job in waiting[: arguments.limit]
        }
        try:
            for future in as_completed(running):
                point, job = running[future]
                versions, rows = future.result()
                identity = {"experiment": loaded.name, "variant": point.variant, "seed": job["seed"]}
                kept[point.folder] += [identity | row for row in rows]
                report = environment_report() | {"versions": versions}
                write_json_atomic(point.folder / results.ENVIRONMENT_FILE, report)
                lines = [results.encode_line(row) for row in kept[point.folder]]
                write_atomic(point.folder / results.METRICS_FILE, b"".join(lines))
                print(f"{point.variant}, seed {job['seed']}: return {rows[-1]['return']:g}", flush=True)
        finally:
            executor.shutdown(cancel_futures=True)
    for folder in kept:
        print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
