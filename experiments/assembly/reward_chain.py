"""The reward chain of a configuration: its transforms, the channels that they read and write, and what has to fit."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from envs.base import EnvironmentSpec
from envs.choices import nearest
from experiments.assembly import sections
from experiments.assembly.factories import arguments_of, call, wrong_result
from experiments.assembly.kinds import resolve
from experiments.errors import UserError, unknown
from rewards.base import RewardTransform, chain
from rewards.catalogue import REWARDS, Kind, channels

# The keys of the section ``agent`` that describe the distribution over actions, for whoever else needs it.
ACTION_KEYS = ("continuous", "initial_std")


def reward_kinds(nested: Mapping[str, Any]) -> dict[str, Kind]:
    """What the sections of ``rewards`` name."""
    return {
        name: resolve(section.get("kind"), REWARDS, "reward transform", f"in rewards.{name}", Kind)
        for name, section in nested["rewards"].items()
    }


def written_channels(nested: Mapping[str, Any]) -> dict[str, set[str]]:
    """By the name of each reward transform, the channels that it writes or rewrites.

    Args:
      nested: the configuration as nested dictionaries.

    Raises:
      UserError: for a transform of an unknown kind.
    """
    parts = nested["rewards"]
    return {name: channels(kind, kind.writes, parts[name]) for name, kind in reward_kinds(nested).items()}


def reward_chain(
    nested: Mapping[str, Any], kinds: Mapping[str, Kind], spec: EnvironmentSpec, context: Mapping[str, Any]
) -> tuple[RewardTransform, list[str]]:
    """The reward chain, in the alphabetical order of the transforms' names (that of a configuration), and the channels
    that there are after it.

    Args:
      nested: the configuration as nested dictionaries.
      kinds: of ``reward_kinds``.
      spec: the environment's.
      context: what transforms may take besides: the data and the network.

    Raises:
      UserError: if a factory refuses its arguments, or a transform reads a channel that is not there.
    """
    known = {"env", *(f"cost/{name}" for name in spec.costs), *(f"objective/{name}" for name in spec.objectives)}
    context = {"spec": spec, **context}
    context |= {name: nested["agent"][name] for name in ACTION_KEYS if name in nested["agent"]}
    made = {}
    for name, kind in kinds.items():
        section = nested["rewards"][name]
        parameters = inspect.signature(kind.factory).parameters
        supplied = {key: value for key, value in context.items() if key in parameters}
        made[name] = call(
            kind.factory, f"rewards.{name}", **supplied, **_with_parts(arguments_of(section), ["rewards", name])
        )
        if not isinstance(made[name], RewardTransform):
            raise wrong_result(f"rewards.{name}", section["kind"], made[name], "a RewardTransform")
        for channel in sorted(channels(kind, kind.reads, section) - known):
            for other in kinds.keys() - made.keys():
                if channel in channels(kinds[other], kinds[other].writes, nested["rewards"][other]):
                    raise UserError(
                        f"rewards.{name} reads the channel {channel!r}, which rewards.{other} writes after it: "
                        "transforms apply in the alphabetical order of their names"
                    )
            raise unknown("reward channel", channel, sorted(known), f"in rewards.{name}")
        known |= channels(kind, kind.writes, section)
    return chain(**made), sorted(known)


def _with_parts(arguments: Mapping[str, Any], path: list[str]) -> dict[str, Any]:
    """``arguments`` of the section at ``path`` with what its own sections describe (``sections.SECTIONS``) in place of
    these."""
    made = dict(arguments)
    for key, part in arguments.items():
        inner = [*path, key]
        section = sections.section_at(inner)
        if not isinstance(part, Mapping):
            continue
        where = ".".join(inner)
        if section is None:
            # A dictionary of sections, or of values.
            made[key] = _with_parts(part, inner)
            continue
        entry = section.entry(part, where)
        if entry is None:
            raise UserError(f"configuration section {where!r} lacks {section.selector!r}")
        made[key] = call(entry.factory, where, **_with_parts(arguments_of(part), inner))
    return made


def unread(nested: Mapping[str, Any], kinds: Mapping[str, Kind], read: set[str]) -> dict[str, str]:
    """Per transform the channel that it writes and that nothing reads: neither the agent (``read``) nor a transform
    that writes another one."""
    named = {
        name: [channels(kind, parameters, nested["rewards"][name]) for parameters in (kind.reads, kind.writes)]
        for name, kind in kinds.items()
    }
    read = {"env", *read}.union(*(reads - writes for reads, writes in named.values()))
    return {name: channel for name, (_, writes) in named.items() for channel in sorted(writes - read)}


def require_weighed(nested, kinds: Mapping[str, Kind], entries: tuple[str, ...], where: str) -> None:
    """Refuses a reward transform that weighs an entry which the agent does not have; ``where`` it would stand."""
    for name, kind in kinds.items():
        wanted = (
            () if kind.weighs is None else call(kind.weighs, f"rewards.{name}", **arguments_of(nested["rewards"][name]))
        )
        for entry in wanted:
            if entry not in entries:
                raise UserError(
                    f"rewards.{name} weighs the entry {entry!r}, which is not there: expected "
                    f"{where.format(entry)}{nearest(entry, entries)} (known: {', '.join(entries)})"
                )


def require_read_channels(nested, kinds: Mapping[str, Kind], written: list[str], weights: Mapping[str, Any]) -> None:
    """Refuses a channel that nothing reads, and one that is read and not there, of an agent that adds up channels."""
    for name, channel in unread(nested, kinds, set(weights)).items():
        raise UserError(
            f"rewards.{name}: nothing reads its channel {channel!r}: expected its weight in agent.channels.{channel}"
        )
    for name in weights:
        if name not in written:
            raise unknown("reward channel", name, written, "in agent.channels")
