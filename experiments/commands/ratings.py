"""``sagax ratings RUN... --out=FILE.jsonl``: what models of language feedback pay for each message.

RUN is a run folder with a scripted annotator, or ``NAME[:variant]`` under ``--runs``. Every seed becomes a row with
lists of equal length: ``messages``, those of its training, the latest where they were many; ``paid``, what its reward
model gives for each of them, said once; ``good``, whether the annotator likes it, noise aside; ``withheld``, whether it
says nothing about it, so that the model never saw a label of it. The file is like those of ``sagax collect``.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.commands.checkpoint_rows import rows_parser, write_rows
from experiments.errors import command
from experiments.training.checkpoint_rows import rate


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Rates the messages of some runs.

    Raises:
      UserError: for anything the user can repair.
    """
    arguments = rows_parser("ratings", "List what reward models pay for messages.").parse_args(argv)
    write_rows(arguments, lambda folder: rate(folder, arguments.checkpoint))
    return 0
