"""Which factory a section of the configuration describes, and hence which keys it may have.

The keys of a section are the keyword arguments of its factory, which the section itself names (``kind``, ``estimator``,
``family``) or which is always the same, less what the run supplies (the spec, the data, a seed), and a few that are
read before the factory is called (``Section.own``).
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from agents.base import DataSpec
from agents.behaviour_cloning import behaviour_cloning
from agents.catalogue import FAMILIES, Family
from agents.estimators import ESTIMATORS
from agents.functionals import FUNCTIONALS, expectation
from agents.networks.catalogue import DEFAULT_NETWORK, NETWORKS
from envs.catalogue import ENVIRONMENTS
from envs.hosts.wrappers import WRAPPERS
from envs.kinds import Kind
from envs.stock import StockAugmented
from experiments.annotation.catalogue import ANNOTATORS
from experiments.annotation.service import AnnotationService
from experiments.assembly.kinds import is_import_path, resolve
from experiments.evaluators.catalogue import EVALUATORS
from rewards.catalogue import REWARDS
from rewards.catalogue import Kind as RewardKind
from rewards.constraints.lagrangian import Constraint
from rewards.constraints.multipliers import MULTIPLIERS

# What stands for a parameter's default or annotation where there is none.
EMPTY = inspect.Parameter.empty
# Keys of the section ``annotator`` that are the service's; all others are the annotator's.
ANNOTATION_KEYS = ("labels", "pairs", "recent")


def is_host(factory: Callable) -> bool:
    """Whether ``factory`` makes a host batch of ``num_envs`` environments instead of a pure environment."""
    return "num_envs" in inspect.signature(factory).parameters


class Key(NamedTuple):
    """One key that a section may have: its annotation and its default, each ``EMPTY`` where there is none."""

    annotation: Any
    default: Any = EMPTY


def parameters_of(factory: Callable) -> tuple[dict[str, Key], bool]:
    """The keyword arguments of ``factory``, and whether it takes any others as well (``**parameters``)."""
    try:
        signature = inspect.signature(factory, eval_str=True)
    except Exception:  # An annotation may name what is imported for type checkers alone: it stays text then.
        signature = inspect.signature(factory)
    parameters = signature.parameters.values()
    named = (one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY))
    open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters)
    return {one.name: Key(one.annotation, one.default) for one in named}, open_ended


def _environment_keys(kind: Kind) -> dict[str, Key]:
    """``stock`` and ``wrappers`` are sections of their own; ``time_limit`` wraps a pure environment, see ``build``."""
    own = {} if is_host(kind.factory) else {"time_limit": Key(int | None, EMPTY)}
    if "wrappers" in inspect.signature(kind.factory).parameters:
        own["wrappers"] = Key(Mapping[str, Any] | None, None)
    return own | {"stock": Key(Mapping[str, Any] | None, None)}


def _agent_keys(family: Family) -> dict[str, Key]:
    whiten = {"whiten": Key(str, "none")} if "credit" in parameters_of(family.factory)[0] else {}
    return {"schedule": Key(str, "constant"), "warmup": Key(float, 0.0)} | whiten


def _credit_keys(kind: Kind) -> dict[str, Key]:
    del kind
    return {"channel": Key(str, "env"), "weight": Key(float, 1.0)}


def _warm_start_keys(kind: Kind) -> dict[str, Key]:
    del kind
    return {"demonstrations": Key(int, 0)}


def _annotator_keys(kind: Kind) -> dict[str, Key]:
    del kind
    known, _ = parameters_of(AnnotationService)
    return {name: known[name] for name in ANNOTATION_KEYS}


def _no_keys(kind: Any) -> dict[str, Key]:
    del kind
    return {}


class Section(NamedTuple):
    """A kind of section.

    Attributes:
      path: dotted, with ``*`` for the name of an entry.
      table: what ``selector`` names, or the one factory of every such section.
      selector: the key that names an entry of ``table``; empty for one factory.
      what: what is named, for messages.
      record: see ``kinds.resolve``.
      supplied: parameters of the factory that the run supplies.
      own: ``(record) -> keys`` that are read before the factory is called.
      optional: whether a configuration may be without it.
      default: what a section names that is without ``selector``; empty for nothing.
    """

    path: str
    table: Any
    selector: str = ""
    what: str = ""
    record: type = Kind
    supplied: tuple[str, ...] = ()
    own: Callable[[Any], dict[str, Key]] = _no_keys
    optional: bool = False
    default: str = ""

    def matches(self, path: Sequence[str]) -> bool:
        """Whether ``path``, a dotted key cut at its dots, is the path of such a section."""
        parts = self.path.split(".")
        return len(parts) == len(path) and all(part in ("*", given) for part, given in zip(parts, path, strict=True))

    def named(self, section: Mapping[str, Any]) -> Any:
        """What ``section`` names by ``selector``, or else the default; ``None`` where there is neither."""
        return section[self.selector] if self.selector in section else self.default or None

    def entry(self, section: Mapping[str, Any], where: str) -> Any:
        """The record of what ``section`` names; ``None`` where it names nothing yet.

        Raises:
          UserError: if it names something unknown.
        """
        if not self.selector:
            return Kind(self.table)
        named = self.named(section)
        if named is None:
            return None
        place = f"in {where}" if "." in where else ""
        return resolve(named, self.table, self.what, place, self.record)

    def keys(self, entry: Any) -> tuple[dict[str, Key], bool]:
        """The keys of a section that names ``entry``, and whether it takes any others as well."""
        known, open_ended = parameters_of(entry.factory)
        selector = {self.selector: Key(str)} if self.selector else {}
        return selector | {
            name: key for name, key in (known | self.own(entry)).items() if name not in self.supplied
        }, open_ended


_FUNCTIONALS = {"mean": expectation, **FUNCTIONALS}
SECTIONS = (
    Section("data", DataSpec),
    Section("network", NETWORKS, "kind", "network kind", default=DEFAULT_NETWORK),
    Section(
        "environment", ENVIRONMENTS, "kind", "environment kind", supplied=("num_envs", "render"), own=_environment_keys
    ),
    Section("environment.stock", StockAugmented, supplied=("environment", "discount"), optional=True),
    Section("environment.wrappers.*", WRAPPERS, "kind", "wrapper", supplied=("env",), optional=True),
    Section(
        "agent",
        FAMILIES,
        "family",
        "agent family",
        Family,
        supplied=("spec", "data", "network_config", "critic_config", "credit"),
        own=_agent_keys,
    ),
    Section("agent.functional", _FUNCTIONALS, "kind", "functional", optional=True),
    Section("credit.*", ESTIMATORS, "estimator", "estimator", own=_credit_keys, optional=True),
    Section(
        "rewards.*",
        REWARDS,
        "kind",
        "reward transform",
        RewardKind,
        supplied=("spec", "data", "network_config", "continuous", "initial_std"),
        optional=True,
    ),
    Section("rewards.*.multiplier", MULTIPLIERS, "kind", "multiplier rule", optional=True),
    Section("rewards.*.constraints.*", Constraint, optional=True),
    Section("warm_start", behaviour_cloning, supplied=("network", "distribution"), own=_warm_start_keys, optional=True),
    Section(
        "annotator",
        ANNOTATORS,
        "kind",
        "annotator",
        supplied=("seed", "size", "folder"),
        own=_annotator_keys,
        optional=True,
    ),
    Section("evaluators.*", EVALUATORS, "kind", "evaluator", supplied=("context",), optional=True),
    Section("evaluators.*.objectives.*", _FUNCTIONALS, "kind", "functional", optional=True),
)


class Found(NamedTuple):
    """A section of a configuration: which kind it is of, where it stands, and the record of what it names."""

    section: Section
    where: str
    entry: Any


def section_at(path: Sequence[str]) -> Section | None:
    """The kind of the section at ``path``."""
    return next((section for section in SECTIONS if section.matches(path)), None)


def part(config: Mapping[str, Any], path: Sequence[str]) -> Any:
    """What ``config`` holds at ``path``; an empty section where it holds nothing."""
    found: Any = config
    for name in path:
        found = found[name] if isinstance(found, ConfigDict | Mapping) and name in found else {}
    return {} if found is None else found


def enclosing(config: Mapping[str, Any], key: str) -> Found | None:
    """The innermost section around ``key``; its entry is ``None`` where it names nothing yet.

    Raises:
      UserError: if it names something unknown.
    """
    path = key.split(".")[:-1]
    for length in range(len(path), 0, -1):
        section = section_at(path[:length])
        if section is not None:
            where = ".".join(path[:length])
            return Found(section, where, section.entry(part(config, path[:length]), where))
    return None


def sections_of(config: Mapping[str, Any]) -> Iterator[Found]:
    """Every section of ``config`` that names something.

    Raises:
      UserError: for one that names something unknown.
    """

    def walk(holder: Any, path: list[str]) -> Iterator[Found]:
        section = section_at(path)
        if section is not None:
            where = ".".join(path)
            entry = section.entry(holder, where)
            if entry is not None:
                yield Found(section, where, entry)
        for name, value in holder.items():
            if isinstance(value, ConfigDict | Mapping):
                yield from walk(value, [*path, name])

    yield from walk(config, [])


def imported_kinds(config: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key to import path of every kind that is named by one; nothing is imported.

    gymnasium's identifier ``MODULE:ID`` is such a path, too: the module is imported, so that it registers the ID.
    """
    found: dict[str, str] = {}
    identifier = config["environment"].get("environment_id") if "environment" in config else None
    if is_import_path(identifier):
        found["environment.environment_id"] = str(identifier)

    def walk(holder: Any, path: list[str]) -> None:
        section = section_at(path)
        named = holder.get(section.selector) if section is not None and section.selector else None
        if section is not None and is_import_path(named):
            found[".".join([*path, section.selector])] = str(named)
        for name, value in holder.items():
            if isinstance(value, ConfigDict | Mapping):
                walk(value, [*path, name])

    walk(config, [])
    return found


def type_of(key: Key) -> tuple[type, bool]:
    """The type that a value of ``key`` is read as, ``NoneType`` for any literal, and whether it may be ``None``."""
    optional = key.default is None
    annotation = key.annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = typing.get_args(annotation)
        optional = optional or type(None) in members
        # What a number may be instead, such as a schedule, cannot be written in a configuration.
        read = {_plain_type(member) for member in members if member is not type(None)} - {type(None)}
        return (read.pop() if len(read) == 1 else type(None)), optional
    if annotation is EMPTY or isinstance(annotation, str):
        return (type(None) if key.default is EMPTY else type(key.default)), optional
    return _plain_type(annotation), optional


def _plain_type(annotation: Any) -> type:
    """The type without its parameters; ``NoneType`` for one that no text is read as."""
    origin = typing.get_origin(annotation) or annotation
    if origin is typing.Literal:
        return type(typing.get_args(annotation)[0])
    if origin in (bool, int, float, str):
        return origin
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return dict
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return tuple
    return type(None)


def value_type(key: Key) -> Key:
    """The key of one value in a dictionary that ``key`` declares: ``Mapping[str, float]`` holds floats."""
    for member in (key.annotation, *typing.get_args(key.annotation)):
        if _plain_type(member) is dict and len(typing.get_args(member)) == 2:
            return Key(typing.get_args(member)[1])
    return Key(Any)
