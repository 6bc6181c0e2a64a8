"""``sagax tables``: writes the tables of ``docs/`` anew from the committed rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.commands.command_parser import CommandParser
from experiments.errors import UserError, command
from experiments.rows.pages import stale_pages, write_pages


def _parser() -> CommandParser:
    made = CommandParser(prog="sagax tables", description="Write docs/results.md and docs/benchmarks.md from the rows.")
    made.add_argument("--root", default=".", help="the root of the repository (default: this folder)")
    made.add_argument("--check", action="store_true", help="write nothing; fail where a page is not what the rows say")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Writes or checks the pages.

    Raises:
      UserError: if rows are missing, a page cannot be written, or with ``--check`` a page is out of date.
    """
    options = _parser().parse_args(argv)
    root = Path(options.root).expanduser()
    if options.check:
        stale = stale_pages(root)
        if stale:
            raise UserError(f"{', '.join(stale)}: not what the rows in results/ say; run `sagax tables`")
        return 0
    print("\n".join(write_pages(root)))
    return 0
