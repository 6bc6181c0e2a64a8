"""The rows that are made of trained checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from experiments.assembly.members import Member
from experiments.errors import UserError
from experiments.rows import collecting, reading, run_folders


def row_starts(folder: Path) -> tuple[reading.Row, Callable[[Member, int], reading.Row]]:
    """The header of a run's rows, and what a row begins with: ``(member, iteration) -> row``.

    Raises:
      UserError: if the run has no rows; from what is returned, if it has none of a seed and iteration.
    """
    header, known = collecting.run_section(folder)
    steps = {(row["seed"], row.get("iteration")): row["env_steps"] for row in known}

    def start(member: Member, iteration: int) -> reading.Row:
        if (member.seed, iteration) not in steps:
            raise UserError(
                f"{folder / run_folders.METRICS_FILE} has no row of seed {member.seed}, iteration {iteration}"
            )
        return {
            "experiment": header["experiment"],
            "variant": member.variant,
            "seed": member.seed,
            "env_steps": steps[member.seed, iteration],
        }

    return header, start
