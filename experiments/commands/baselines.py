"""``sagax baselines NAME:BASELINE --baseline-python=PYTHON``: another library's agent on an experiment's environment.

The baseline trains for as many environment steps as the experiment and is evaluated at the same steps, on as many
episodes, greedy or not as its own, each seed on its own. Its settings are ``BASELINES[BASELINE]`` of the experiment's
module, by that library's names; ``--sweep`` trains the grid of ``get_baseline_sweep()`` instead. The rows are filed
under the variant ``BASELINE`` (``BASELINE+sweep+KEY=VALUE``), in run folders like any other. The same command
continues: a seed that is finished is not trained again. A word after a comma in ``BASELINE`` names other settings of
the same agent; where it is a variant of the experiment, such as a task, the baseline is trained on that.

The script that runs in the other interpreter is ``experiments/benchmarks/baseline_learning.py``, which imports nothing
of this repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.assembly import registry
from experiments.benchmarks.baselines import points, train_all, unfinished
from experiments.commands.command_parser import CommandParser
from experiments.commands.options import add_runs_option
from experiments.errors import UserError, command


def parser() -> CommandParser:
    made = CommandParser(
        prog="sagax baselines", description="Train another library's agent on an experiment's environment."
    )
    made.add_argument(
        "name", metavar="NAME:BASELINE", help="such as dqn_cartpole:sb3_dqn or dqn_cartpole:sb3_dqn,tuned"
    )
    made.add_argument(
        "--baseline-python", type=Path, required=True, help="an interpreter that has the library installed"
    )
    made.add_argument("--seeds", type=int, default=1, help="how many seeds, counted from --first-seed (default: 1)")
    made.add_argument("--first-seed", type=int, default=0, help="the first seed (default: 0)")
    made.add_argument("--sweep", action="store_true", help="train the baselines' grid instead of the settings")
    made.add_argument("--limit", type=int, help="train at most so many seeds; the same command continues with others")
    made.add_argument("--jobs", type=int, default=1, help="processes at a time (default: 1)")
    add_runs_option(made)
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Trains one baseline.

    Raises:
      UserError: for anything the user can repair.
    """
    arguments = parser().parse_args(argv)
    lowest = {"seeds": 1, "first_seed": 0, "jobs": 1, "limit": 1}
    for option, least in lowest.items():
        value = getattr(arguments, option)
        if value is not None and value < least:
            raise UserError(f"--{option.replace('_', '-')}={value}: expected at least {least}")
    name, _, baseline = arguments.name.partition(":")
    loaded = registry.load(name)
    variants = [word for word in baseline.split(",")[1:] if word in loaded.module.VARIANTS]
    if variants and baseline in getattr(loaded.module, "BASELINES", {}):
        loaded = registry.load(f"{name}:{','.join(variants)}")
    made = points(loaded, baseline, arguments.sweep, arguments.runs)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    waiting = unfinished(loaded, baseline, made, seeds)[: arguments.limit]
    for point, seed, value in train_all(loaded.name, waiting, str(arguments.baseline_python), arguments.jobs):
        print(f"{point.variant}, seed {seed}: return {value:g}", flush=True)
    for point in made:
        print(point.folder)
    return 0
