"""Run folders: where the files of a run are, and what a run says of itself.

A run folder ``RUNS/NAME/VARIANT`` (``default`` for no variant) holds

* ``config.json`` and ``environment.json``: what was run, with what, on what, and with what it was continued;
* ``metrics.jsonl``: one row per seed and evaluation, the truth;
* ``tensorboard/seed_N``: TensorBoard events, a sink of the same rows that is rebuilt from them; of a sweep
  ``tensorboard/VARIANT/seed_N``;
* the checkpoints.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.assembly.registry import DEFAULT_VARIANT as DEFAULT_VARIANT
from experiments.assembly.registry import SEARCH_MARK as SEARCH_MARK
from experiments.assembly.registry import SWEEP_MARK as SWEEP_MARK
from experiments.disk import read_json_object
from experiments.errors import UserError

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"
LOGGERS_FILE = "loggers.json"
TENSORBOARD_FOLDER = "tensorboard"
RUNS_FOLDER = "runs"
RESULTS_FOLDER = "results"
# What the configuration of every experiment has.
SECTIONS = ("environment", "data", "network", "agent", "rewards", "evaluators", "evaluation")
# Some room is left for what is written beside it under the same name.
LONGEST_NAME = 200
# Seeds have 31 bits.
LARGEST_SEED = 2**31 - 1


def run_folder(root: str | os.PathLike, name: str, variant: str = "") -> Path:
    """``root/NAME/VARIANT``; the default variant has the folder ``default``. See ``path_part``."""
    return Path(root) / path_part(name) / path_part(variant or DEFAULT_VARIANT)


def path_part(text: str) -> str:
    """``text`` as the name of one file or folder, which stays in the folder that it is put in.

    What separates folders, is hidden or cannot be printed is replaced. File systems take names of 255 bytes. Where
    something was replaced, or many overrides make a longer name, it ends in a digest of the whole ``text``, so that two
    texts never have one name; the rows inside keep the variant in full.

    >>> path_part("ppo+agent.clip=0.1")
    'ppo+agent.clip=0.1'
    >>> path_part("../elsewhere")
    '_._elsewhere~b8543627c7604859'
    """
    safe = "".join(letter if letter.isprintable() and letter not in "/\\" else "_" for letter in text)
    safe = f"_{safe[1:]}" if safe.startswith(".") else safe
    encoded = safe.encode()
    if safe == text and 0 < len(encoded) <= LONGEST_NAME:
        return safe
    digest = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]
    return f"{encoded[: LONGEST_NAME - len(digest) - 1].decode(errors='ignore')}~{digest}"


def run_folders(root: str | os.PathLike, name: str = "*", file: str = METRICS_FILE) -> list[Path]:
    """The run folders ``root/NAME/*`` that hold ``file``, sorted; what is hidden is none."""
    found = (path.parent for path in Path(root).glob(f"{name}/*/{file}"))
    return sorted(path for path in found if not path.name.startswith(".") and not path.parent.name.startswith("."))


def read_description(folder: Path) -> dict[str, Any]:
    """What a run folder says of itself: ``config`` in JSON values; ``members`` with ``seed``, ``variant``, ``values``;
    ``programs``, how many of the members each program trains side by side.

    Raises:
      UserError: if the description cannot be read, or is none.
    """
    path = folder / CONFIG_FILE
    found = read_json_object(path)
    config: Any = found.get("config")
    members: Any = found.get("members")
    lacking = [name for name in SECTIONS if not (isinstance(config, dict) and isinstance(config.get(name), dict))]
    if lacking:
        raise UserError(f"{path} describes no run: its 'config' lacks the section {lacking[0]!r}")
    kinds = {"seed": int, "variant": str, "values": dict}
    for member in members if isinstance(members, list) and members else [None]:
        if not isinstance(member, dict) or any(type(member.get(key)) is not kind for key, kind in kinds.items()):
            raise UserError(f"{path} describes no run: its 'members' are no list of objects with {', '.join(kinds)}")
        if not 0 <= member["seed"] <= LARGEST_SEED:
            raise UserError(f"{path} describes no run: its seed {member['seed']} is none from 0 to {LARGEST_SEED}")
        if any(type(value) not in (int, float) for value in member["values"].values()):
            raise UserError(f"{path} describes no run: the values of seed {member['seed']} are no numbers")
    identities = [(member["variant"], member["seed"], *sorted(member["values"].items())) for member in members]
    if len(set(identities)) < len(identities):
        raise UserError(f"{path} describes no run: its 'members' list one twice")
    sizes = found.setdefault("programs", [len(members)])
    if not isinstance(sizes, list) or any(type(size) is not int or size < 1 for size in sizes):
        raise UserError(f"{path} describes no run: its 'programs' are no list of positive integers")
    if sum(sizes) != len(members):
        raise UserError(f"{path} describes no run: its 'programs' have {sum(sizes)} members, it lists {len(members)}")
    return found


def programs_of(description: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """The members of each program of a run that ``read_description`` describes."""
    members = iter(description["members"])
    return [list(itertools.islice(members, size)) for size in description["programs"]]


def is_sweep_point(variant: str) -> bool:
    """Whether rows of ``variant`` are those of a point of a sweep: ``VARIANT+sweep+KEY=VALUE`` of a grid,
    ``VARIANT+search+KEY=VALUE`` of a search.

    >>> is_sweep_point("ppo+sweep+agent.clip=0.1"), is_sweep_point("ppo+agent.clip=0.1")
    (True, False)
    """
    return not {SWEEP_MARK, SEARCH_MARK}.isdisjoint(variant.split("+"))


def committed_file(name: str) -> Path:
    """``results/NAME.jsonl``."""
    return Path(RESULTS_FOLDER) / f"{name}.jsonl"
