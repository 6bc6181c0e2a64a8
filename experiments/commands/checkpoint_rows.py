"""What the commands share that make rows from trained checkpoints: ``visits`` and ``ratings``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from experiments.commands.command_parser import CommandParser
from experiments.commands.options import add_destination_options, add_runs_option
from experiments.disk import require_writable
from experiments.rows import collecting, reading
from experiments.training.compilation_cache import enable_compilation_cache
from experiments.training.restored import find_folder


def rows_parser(name: str, description: str) -> CommandParser:
    """The arguments of the command ``name``: runs, a checkpoint of each, and the file to write."""
    made = CommandParser(prog=f"sagax {name}", description=description)
    made.add_argument("run", nargs="+", metavar="RUN", help="run folders, or NAME[:variant]")
    add_runs_option(made)
    made.add_argument("--checkpoint", default="latest", help="best, latest (the default) or an iteration")
    made.add_argument("--out", type=Path, required=True, help=f"the file to write, such as results/NAME_{name}.jsonl")
    add_destination_options(made)
    return made


def write_rows(arguments: argparse.Namespace, section_of: Callable[[Path], reading.Section]) -> None:
    """Writes the sections of all runs that were asked for, once all of them are made.

    Args:
      arguments: of ``rows_parser``.
      section_of: the rows of one run folder.

    Raises:
      UserError: if there is no such run, or the file cannot be written or would lose rows.
    """
    require_writable(arguments.out)
    folders = [find_folder(run, arguments.runs) for run in arguments.run]
    choices = arguments.out, arguments.append, arguments.replace
    # A run has at least as many rows as its seeds will have: what would be refused after the work is refused before it.
    collecting.kept_sections([collecting.run_section(folder) for folder in folders], *choices)
    enable_compilation_cache()
    sections = [section_of(folder) for folder in folders]
    print(f"{arguments.out}: {collecting.write_sections(sections, *choices)} rows")
