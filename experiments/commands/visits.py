"""``sagax visits RUN... --out=FILE.jsonl``: where trained policies go in the maze, for heat maps.

RUN is a run folder of a maze, or ``NAME[:variant]`` under ``--runs``. The policy of every seed acts in the environment
that it was trained in and becomes a row: ``visits``, how often it stood on each cell, as rows and columns of the map,
and ``no_op``, the share of steps in which it chose to do nothing. The file has the form of those that ``sagax collect``
writes.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.commands.checkpoint_rows import rows_parser, write_rows
from experiments.commands.command_parser import CommandParser
from experiments.errors import UserError, command
from experiments.training.checkpoint_rows import count_visits


def parser() -> CommandParser:
    made = rows_parser("visits", "Count where trained policies go in the maze, as rows for heat maps.")
    made.add_argument("--episodes", type=int, help="how many episodes per seed (default: the configuration's)")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Counts the visits of some runs.

    Raises:
      UserError: for anything the user can repair.
    """
    arguments = parser().parse_args(argv)
    if arguments.episodes is not None and arguments.episodes < 1:
        raise UserError(f"--episodes={arguments.episodes}: expected at least 1")
    write_rows(arguments, lambda folder: count_visits(folder, arguments.checkpoint, arguments.episodes))
    return 0
