"""Trained runs read back: their configuration, members and checkpoints, and an evaluation of a checkpoint."""

from __future__ import annotations

import contextlib
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from agents.base import Agent
from agents.networks.catalogue import DEFAULT_NETWORK
from envs.base import ObservationRangeError, PyTree
from envs.choices import nearest
from experiments.assembly import registry, sections
from experiments.assembly.build import TEST_SEED, EnvironmentSource, build_environment, build_parts
from experiments.assembly.kinds import require_trusted
from experiments.assembly.members import Member, variant_name
from experiments.assembly.overrides import fits
from experiments.assembly.ranges import validate
from experiments.assembly.sections import imported_kinds
from experiments.configs._common import (
    bandit_config,
    policy_gradient_config,
    tabular_config,
    trust_region_config,
    value_based_config,
)
from experiments.errors import UserError
from experiments.rows import run_folders
from experiments.training.checkpoint import Checkpoints, Restored
from experiments.training.drivers import drivers
from experiments.training.learn import RunState
from experiments.training.published import is_published, publish, published_programs, require_destination
from experiments.training.requirements import memory, require_memory, requirements
from experiments.training.train import CHECKPOINT_FOLDER, program_name, restore
from experiments.training.videos import member_params

CHOICES = ("best", "latest")
CHANGEABLE = ("environment.", "evaluators.")
FAMILIES = {
    "policy_gradient": policy_gradient_config,
    "trust_region": trust_region_config,
    "value_based": value_based_config,
    "tabular": tabular_config,
    "bandit": bandit_config,
}


def find_folder(run: str, runs: str | os.PathLike) -> Path:
    """The run folder of ``run``, a folder or ``NAME[:variant]``; a leading ``~`` is the home folder.

    Raises:
      UserError: if there is none, with the nearest that there is.
    """
    folder = Path(os.path.expanduser(run))
    if (folder / run_folders.CONFIG_FILE).is_file():
        return folder
    name, _, variant = run.partition(":")
    # What is no variant of the experiment's now may be one of a run that is there; it is looked up as it is.
    with contextlib.suppress(UserError):
        loaded = registry.load(run)
        variant = variant_name(loaded.variant, loaded.overrides, loaded.config)
    folder = run_folders.run_folder(runs, name, variant)
    if (folder / run_folders.CONFIG_FILE).is_file():
        return folder
    known = run_folders.run_folders(runs, file=run_folders.CONFIG_FILE)
    named = [f"{path.parent.name}:{path.name}" for path in known]
    raise UserError(
        f"no run {run!r}: neither {run} nor {folder} holds a {run_folders.CONFIG_FILE}{nearest(run, named)}"
    )


def read_run(folder: Path) -> tuple[ConfigDict, list[Member]]:
    """The configuration and the members of a run folder.

    Raises:
      UserError: if its description cannot be read, or it names a part by an import path that is not trusted.
    """
    found = run_folders.read_description(folder)
    members = [Member(one["seed"], one["variant"], one["values"]) for one in found["members"]]
    config = registry.from_json_dict(found["config"])
    require_complete(config, folder / run_folders.CONFIG_FILE)
    require_trusted(imported_kinds(config), folder)
    require_types(config, folder / run_folders.CONFIG_FILE)
    validate(config)
    known = registry.keys(config)
    for name in {name for member in members for name in member.values}:
        if not isinstance(known.get(name), float):
            raise UserError(
                f"{folder / run_folders.CONFIG_FILE} describes no run: its members have values of {name[:40]!r}, "
                "expected numbers of its configuration"
            )
    return config, members


def require_complete(config: ConfigDict, path: Path) -> None:
    """Checks that a configuration from a file has what every experiment of its family has, of the same types.

    Raises:
      UserError: with the first key that is missing or has another type.
    """
    values = registry.keys(config)
    for key, value in values.items():
        if isinstance(value, int) and abs(value) > registry.LARGEST_INTEGER:
            raise UserError(
                f"{path} describes no run: its {key} is {value}, expected at most {registry.LARGEST_INTEGER}"
            )
    family = config.agent.get("family")
    if isinstance(family, str) and ":" in family:
        # A family of the user's own, by its import path.
        return
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(
            f"{path} describes no run: its agent.family is {str(family)[:40]!r}, expected one of {[*FAMILIES]}"
        )
    own = ["environment", "evaluators", "credit", "rewards", "agent.channels", "agent.functional"]
    if config.network.get("kind", DEFAULT_NETWORK) != DEFAULT_NETWORK:
        own.append("network")
    for key, expected in registry.keys(FAMILIES[family]()).items():
        # Some sections are the experiment's own or of another kind, and some keys of others may be empty.
        if key.startswith(tuple(own)):
            continue
        if key not in values:
            raise UserError(f"{path} describes no run: its configuration lacks {key!r}")
        if sections.section_at(key.split(".")[:-1]) is not None:
            # What a section takes is its factory's to say, see ``require_types``: nothing is imported here.
            continue
        value = values[key]
        numbers = isinstance(value, int | float) and isinstance(expected, float)
        same = type(value) is type(expected) or (numbers and not isinstance(value, bool))
        if not same and expected is not None:
            raise UserError(
                f"{path} describes no run: its {key} is {str(value)[:40]!r}, expected one like {expected!r}"
            )
    start_states = config.rollout.start_states
    if start_states is not None and type(start_states) is not int:
        raise UserError(
            f"{path} describes no run: its rollout.start_states is {str(start_states)[:40]!r}, expected an integer"
        )


def require_types(config: ConfigDict, path: Path) -> None:
    """Checks that a configuration from a file has sections where there must be some, and in them values of the types
    that their factories take.

    Raises:
      UserError: with the first key whose value is of another type, or a section that names something unknown.
    """
    for where, value in _places(config):
        section = sections.section_at(where.split("."))
        if not isinstance(value, ConfigDict):
            raise UserError(f"{path} describes no run: its {where} is {str(value)[:40]!r}, expected a section")
        if section is not None and section.selector and section.named(value) is None:
            raise UserError(f"{path} describes no run: its configuration lacks '{where}.{section.selector}'")
    for found in sections.sections_of(config):
        known, _ = found.section.keys(found.entry)
        inner = {name for name in known if sections.section_at([*found.where.split("."), name]) is not None}
        for name, value in sections.part(config, found.where.split(".")).items():
            if name not in known.keys() - inner:
                continue
            declared = {f"{found.where}.{name}": (known[name], value)}
            if isinstance(value, ConfigDict) and sections.type_of(known[name])[0] is dict:
                each = sections.value_type(known[name])
                declared |= {f"{found.where}.{name}.{key}": (each, one) for key, one in value.items()}
            for where, (key, one) in declared.items():
                if not fits(key, one):
                    kind, optional = sections.type_of(key)
                    expected = f"{kind.__name__}{' or none' if optional else ''}"
                    raise UserError(f"{path} describes no run: its {where} is {str(one)[:40]!r}, expected {expected}")


def _places(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of whatever stands where a configuration may have a section, or a section of sections."""

    def walk(holder: ConfigDict, path: list[str]) -> Iterator[tuple[str, Any]]:
        for name, value in holder.items():
            place = [*path, name]
            if sections.section_at(place) is not None or sections.section_at([*place, "*"]) is not None:
                yield ".".join(place), value
            if isinstance(value, ConfigDict):
                yield from walk(value, place)

    return walk(config, [])


def read_single_run(folder: Path) -> tuple[ConfigDict, list[Member]]:
    """The same of a run, whose members are the seeds of one variant.

    Raises:
      UserError: if it is a sweep, or its description cannot be read.
    """
    config, members = read_run(folder)
    if len({member.variant for member in members}) > 1:
        raise UserError(f"{folder} holds a sweep: expected a run, whose seeds are of one variant")
    return config, members


def iteration_of(checkpoints: Checkpoints, wanted: str) -> int:
    """The iteration that ``best``, ``latest`` or a number names.

    Raises:
      UserError: if there is no checkpoint, or ``wanted`` is none of these.
    """
    number = re.fullmatch("[0-9]{1,18}", wanted)
    if wanted not in CHOICES and not number:
        raise UserError(f"--checkpoint={wanted}: expected best, latest or an iteration{nearest(wanted, CHOICES)}")
    if number:
        return int(wanted)
    found = checkpoints.best() if wanted == "best" else checkpoints.latest()
    if found is None:
        raise UserError(f"no checkpoint in {checkpoints.folder}: run the experiment first")
    return found


def changed_config(
    config: ConfigDict, kind: str | None, overrides: Mapping[str, Any], evaluators: Sequence[str] = ()
) -> ConfigDict:
    """``config`` for an evaluation: with another environment, or other evaluators.

    Args:
      config: what was trained.
      kind: of an environment that replaces the trained one's section; ``None`` keeps it.
      overrides: dotted key to value; with ``kind`` those of the section environment are the new environment's
        arguments.
      evaluators: those of ``config`` to evaluate by, and kinds of others, each under the name of its kind with what
        ``overrides`` say of it; all of ``config`` where there are none.

    Raises:
      UserError: for a key that is unknown or of the training, or a value of another type.
    """
    for key in overrides:
        if not key.startswith(CHANGEABLE):
            raise UserError(
                f"key {key!r} is of the training: an evaluation changes {' and '.join(f'{c}KEY' for c in CHANGEABLE)}"
            )
    changed = config.copy_and_resolve_references()
    # Where the policy started from is over; a host environment would have no expert.
    if "warm_start" in changed:
        changed.warm_start.demonstrations = 0
    if kind is not None:
        with changed.unlocked():
            changed.environment = {"kind": kind}
    if evaluators:
        with changed.unlocked():
            changed.evaluators = {name: changed.evaluators.get(name, {"kind": name}) for name in evaluators}
    changed = registry.apply_overrides(changed, overrides)
    validate(changed)
    return changed


def evaluate_run(
    folder: Path,
    checkpoint: str = "best",
    overrides: Mapping[str, Any] | None = None,
    environment: str | None = None,
    stream: int = TEST_SEED,
    evaluators: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Evaluates every member of a run: one row per seed with ``seed``, ``variant``, ``iteration`` and the metrics.

    Args:
      folder: the run folder.
      checkpoint: ``best``, ``latest`` or an iteration.
      overrides, environment, evaluators: for the evaluation alone, see ``changed_config``.
      stream: of the episodes, from which every seed draws its own (``keys.evaluation_key``); ``EVALUATION_SEED``
        repeats what the run's rows say.

    Raises:
      UserError: if there is no such checkpoint, it is of another configuration, or the changed environment has other
        shapes or is not finite.
    """
    config, members = read_run(folder)
    changed = changed_config(config, environment, overrides or {}, evaluators)
    source = build_environment(config)
    changed_source = build_environment(changed) if changed.environment != config.environment else source
    described, wanted = source.spec.observation_template(), changed_source.spec.observation_template()
    if described != wanted or source.spec.action_space != changed_source.spec.action_space:
        raise UserError(
            f"the changed environment has observations {wanted} and actions {changed_source.spec.action_space}; "
            f"the run was trained on {described} and {source.spec.action_space}"
        )
    require_memory(requirements(changed, changed_source, len(members)).of_evaluation(), memory())
    rows: list[dict[str, Any]] = []
    for own, found in restored_programs(folder, config, source, members, checkpoint):
        state = found.state
        if (source.pure is None) == (changed_source.pure is None):
            states = [state]
        elif source.pure is None:
            states = [_each(state, operator.itemgetter(None))]
        else:
            # Environments of a host are stepped for one member at a time.
            states = [_each(state, operator.itemgetter(position)) for position in range(len(own))]
        evaluated = _evaluated(drivers(changed, changed_source, [own]), states, stream)
        for position, member in enumerate(own):
            row = {"seed": member.seed, "variant": member.variant, "iteration": found.iteration}
            rows.append(row | {name: float(values[position]) for name, values in evaluated.items()})
    return rows


def publish_run(folder: Path, destination: Path, checkpoint: str = "best") -> list[Path]:
    """Writes a checkpoint of a run in the form of Hugging Face (``published.publish``); returns the files.

    Raises:
      UserError: if there is no such run or checkpoint, it is a sweep, or the folder cannot be made.
    """
    require_destination(destination)
    config, members = read_single_run(folder)
    source = build_environment(config)
    params, iterations = {}, {}
    for own, found in restored_programs(folder, config, source, members, checkpoint):
        for position, member in enumerate(own):
            iterations[member.seed] = found.iteration
            params[member.seed] = member_params(source, found.state, position)
    return publish(folder, destination, params, iterations, config)


class RestoredMember(NamedTuple):
    """One seed of a run, restored: its configuration and environments, and its agent with its parameters."""

    config: ConfigDict
    source: EnvironmentSource
    member: Member
    agent: Agent
    params: PyTree
    iteration: int


def restored_member(folder: Path, checkpoint: str = "best", seed: int | None = None) -> RestoredMember:
    """The policy of a seed of a run, of its first one if ``seed`` is ``None``.

    Raises:
      UserError: if there is no such run, checkpoint or seed.
    """
    config, members = read_single_run(folder)
    seeds = [member.seed for member in members]
    wanted = seeds[0] if seed is None else seed
    if wanted not in seeds:
        raise UserError(f"{folder} has no seed {wanted}; it has {', '.join(map(str, seeds))}")
    source = build_environment(config)
    for own, found in restored_programs(folder, config, source, members, checkpoint):
        for position, member in enumerate(own):
            if member.seed == wanted:
                agent = build_parts(config, source.spec, member.values).agent
                params = member_params(source, found.state, position)
                return RestoredMember(config, source, member, agent, params, found.iteration)
    raise UserError(f"{folder} has no checkpoint of seed {wanted}")


def restored_programs(
    folder: Path, config: ConfigDict, source: EnvironmentSource, members: Sequence[Member], checkpoint: str
) -> Iterator[tuple[list[Member], Restored]]:
    """Per program of a run: its members and its checkpoint; of a published folder, its agents' parameters.

    Args:
      folder: the run folder.
      config, environment, members: what it was run with.
      checkpoint: ``best``, ``latest`` or an iteration.

    Raises:
      UserError: if there is no such checkpoint, or it is of another configuration.
    """
    if is_published(folder):
        yield from published_programs(folder, config, source, members, checkpoint)
        return
    done = index = 0
    while done < len(members):
        path = folder / CHECKPOINT_FOLDER / program_name(index)
        if not path.is_dir():
            raise UserError(f"no checkpoint in {path}: run the experiment first")
        checkpoints = Checkpoints(path, read_only=True)
        try:
            iteration = iteration_of(checkpoints, checkpoint)
            # How many members a program has is the run's business: a sweep may have cut them up.
            own = list(members[done : done + len(checkpoints.meta(iteration)["members"])])
            [make] = drivers(config, source, [own])
            with contextlib.closing(make()) as driver:
                found = restore(checkpoints, config, driver, iteration)
        finally:
            checkpoints.close()
        yield own, found
        done += len(own)
        index += 1


def _each(state: RunState, change: Callable[[Any], Any]) -> RunState:
    """``state`` with ``change`` made to every array; no evaluation reads the environments that were trained in."""
    return jax.tree.map(change, state._replace(rollout=()))


def _evaluated(makers: Sequence[Callable[[], Any]], states: Sequence[RunState], stream: int) -> dict[str, np.ndarray]:
    """The metrics ``[members]`` of each driver's state, one after the other."""
    parts: list[dict[str, np.ndarray]] = []
    for make, state in zip(makers, states, strict=True):
        with contextlib.closing(make()) as judge:
            try:
                parts.append(judge.evaluate(state, stream))
            except (FloatingPointError, ObservationRangeError) as error:
                raise UserError(str(error)) from error
    evaluated = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name, values in evaluated.items():
        if not np.all(np.isfinite(values)):
            raise UserError(f"the environment gives a {name!r} of {values.tolist()}: expected finite rewards")
    return evaluated
