"""``sagax COMMAND``, the same as ``python -m experiments COMMAND``: one entry point for every command."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence

from experiments.errors import command, unknown

# Each command is the module of that name in ``experiments.commands``, which has a function ``main(argv)``. It is
# imported only when it is called, so that ``sagax --help`` answers at once.
COMMANDS = {
    "run": "train an experiment, or continue it where it stopped",
    "sweep": "train a grid over an experiment's settings and rank its points",
    "list": "list the experiments; with a NAME, its variants",
    "show": "print an experiment's run card, its resolved configuration and what it needs",
    "summary": "print final values, steps to a threshold and ratios to a baseline, with intervals",
    "figures": "draw learning curves with intervals",
    "evaluate": "evaluate a checkpoint on episodes that neither trained nor chose it",
    "watch": "see a trained policy act, in the terminal or as a film",
    "publish": "write a run as a folder of safetensors with a model card, for Hugging Face",
    "tables": "write the result tables of docs/ from the committed rows",
    "collect": "merge run folders into one committed file of rows",
    "export": "write rows in the formats of rliable and marl-eval",
    "visits": "count where trained policies go in the maze, as rows",
    "ratings": "list what trained models of language feedback pay for each message, as rows",
    "baselines": "train another library's agent on an experiment's environment",
    "benchmark": "measure speed, beside baselines or by device",
}


def usage() -> str:
    """The text of ``sagax --help``: every command in one line."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}}  {description}" for name, description in COMMANDS.items())
    return f"usage: sagax COMMAND ...\n\n{lines}\n\nsagax COMMAND --help lists what a command takes."


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status.

    Raises:
      UserError: for an unknown command, with the nearest one.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character gets its number instead of ending the work.
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, *rest = words
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    return importlib.import_module(f"experiments.commands.{name}").main(rest)


if __name__ == "__main__":
    sys.exit(main())
