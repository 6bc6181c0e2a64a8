"""``sagax publish RUN --out=FOLDER``: a run as a folder in the form of Hugging Face.

RUN is a run folder, or ``NAME[:variant]`` under ``--runs``. FOLDER gets the parameters of every seed's agent as
safetensors, the configuration, the rows, and a model card. ``sagax evaluate FOLDER``, ``sagax watch FOLDER`` and
``experiments.api.restore(FOLDER)`` take it back, on any machine. ``--upload=USER/NAME`` sends it to the hub, too, with
the login of ``hf auth login``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.commands.command_parser import CommandParser
from experiments.commands.options import add_runs_option
from experiments.errors import command
from experiments.training.published import require_destination, require_login, upload
from experiments.training.restored import find_folder, publish_run


def parser() -> CommandParser:
    made = CommandParser(
        prog="sagax publish",
        description="Write a run to a folder in the form of Hugging Face: weights as safetensors, configuration, rows "
        "and a model card.",
    )
    made.add_argument("run", metavar="RUN", help="a run folder, or NAME[:variant]")
    add_runs_option(made)
    made.add_argument("--checkpoint", default="best", help="best of all seeds (the default), latest or an iteration")
    made.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    made.add_argument("--upload", metavar="USER/NAME", help="also upload it to this repository of the hub")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Publishes one run.

    Raises:
      UserError: for anything the user can repair.
    """
    arguments = parser().parse_args(argv)
    require_destination(arguments.out)
    client = require_login(arguments.upload) if arguments.upload is not None else None
    folder = find_folder(arguments.run, arguments.runs)
    for path in publish_run(folder, arguments.out, arguments.checkpoint):
        print(path)
    if client is not None:
        print(upload(client, arguments.out, arguments.upload))
    return 0
