"""Members: the seeds of a run and the traced points of a sweep, and the variant that their rows are filed under."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ml_collections import ConfigDict

from experiments.assembly.build import TEST_SEED
from experiments.assembly.overrides import keys
from experiments.errors import UserError


class Member(NamedTuple):
    """One run of a program: its seed, the variant its rows are filed under, and traced values by dotted key."""

    seed: int
    variant: str
    values: dict[str, float] = {}  # noqa: RUF012  (never written)


def members_of(config, variant: str, seeds: int | None, first_seed: int) -> list[Member]:
    """The members of a run: consecutive seeds.

    Raises:
      UserError: for fewer than one seed or a negative one.
    """
    count = config.seeds if seeds is None else seeds
    if count < 1 or first_seed < 0 or first_seed + count > TEST_SEED:
        raise UserError(
            f"--seeds={count}, --first-seed={first_seed}: expected one seed or more, from 0 to {TEST_SEED - 1}"
        )
    return [Member(seed, variant) for seed in range(first_seed, first_seed + count)]


def variant_name(variant: str, overrides: Iterable[str], config: ConfigDict) -> str:
    """The variant that rows are filed under: overrides make another variant, ``grpo+agent.learning_rate=0.001``.

    Values are written as ``config`` holds them, so that ``1e-3`` and ``0.001`` are one variant; a slash would make
    another folder of what follows it.

    >>> variant_name("grpo", ["agent.learning_rate"], ConfigDict({"agent": {"learning_rate": 1e-3}}))
    'grpo+agent.learning_rate=0.001'
    """
    values = keys(config)
    # An entry that was taken away (``rewards.curiosity=none``) has no value left.
    described = [f"{key}={values.get(key)}".replace("/", "-") for key in sorted(overrides)]
    return "+".join([variant, *described])
