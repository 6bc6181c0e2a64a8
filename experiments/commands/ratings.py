"""``sagax ratings RUN... --out=FILE.jsonl``: what models of language feedback pay for each message.

RUN is a run folder with a scripted annotator, or ``NAME[:variant]`` under ``--runs``. Every seed becomes a row with
lists of equal length: ``messages``, the latest of its training; ``paid``, the reward that its model gives for each of
them, said once; ``good``, whether the annotator likes it, without noise; ``withheld``, whether the annotator never
labels it, so that the model has not seen a label of it. The file has the form of those that ``sagax collect`` writes.
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
    description = "List what trained models of language feedback pay for each message, as rows."
    arguments = rows_parser("ratings", description).parse_args(argv)
    write_rows(arguments, lambda folder: rate(folder, arguments.checkpoint))
    return 0
