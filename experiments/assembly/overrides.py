"""Settings from the command line, ``--config.KEY=VALUE``, put into a configuration.

A key is one that the configuration holds, or one that the factory of its section takes (``sections``): a section is
complete with the defaults of its factory whether or not the configuration spells them out. A ``kind`` that is set
brings its own keys, and keys of the former kind that the new one does not take are dropped.
"""

from __future__ import annotations

import ast
import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from envs.choices import nearest, similar, suggested
from experiments.assembly import effects, sections
from experiments.assembly.sections import Found, Key, Section
from experiments.assembly.synonyms import meant, meant_options
from experiments.errors import UserError, unknown_argument

PREFIX = "--config."
# Counters on a device have 32 bits.
LARGEST_INTEGER = 2**31 - 1
_NONE_WORDS = ("none", "null")
_TRUTH_WORDS = {"true": True, "false": False}


def keys(config: ConfigDict) -> dict[str, Any]:
    """Every leaf of a configuration: dotted key to value."""
    return dict(_leaves(config, ""))


def possible_keys(config: ConfigDict) -> list[str]:
    """Every dotted key that can be set: the leaves of ``config``, and what the factories of its sections take."""
    known = dict.fromkeys(keys(config))
    for found in sections.sections_of(config):
        for name in found.section.keys(found.entry)[0]:
            key = f"{found.where}.{name}"
            if sections.section_at(key.split(".")) is None and not sections.part(config, key.split(".")):
                known.setdefault(key)
    return list(known)


def parse_overrides(
    arguments: Sequence[str], options: Iterable[str] = (), config: ConfigDict | None = None
) -> dict[str, str]:
    """Reads ``--config.KEY=VALUE`` arguments into dotted key to text.

    Args:
      arguments: what the command's parser left over.
      options: what else the command takes, for the suggestions.
      config: what the keys are of, for the suggestions: ``--lr`` is meant as ``--config.agent.learning_rate``.

    Raises:
      UserError: if an argument has another form or a key is given twice.
    """
    overrides: dict[str, str] = {}
    options = list(options)
    for argument in arguments:
        if not argument.startswith(PREFIX):
            known = [] if config is None else possible_keys(config)
            raise unknown_argument(
                argument, [f"{PREFIX}KEY=VALUE", *options], meant_options(argument, options, known, PREFIX)
            )
        key, equals, value = argument.removeprefix(PREFIX).partition("=")
        if not equals or not key:
            raise UserError(f"argument {argument!r} has no value: expected {PREFIX}{key or 'KEY'}=VALUE")
        if key in overrides:
            raise UserError(f"key {key!r} is given twice: {overrides[key]!r} and {value!r}")
        overrides[key] = value
    return overrides


def apply_overrides(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """A locked copy of ``config`` with ``overrides`` (dotted key to value or text) in it; ``config`` stays as it is.

    What names a kind is set first, whatever the order. Text is read as the type of the value it replaces, or as what
    the factory's annotation and default say: ``true`` or ``false``, integers (``1e6`` is one, ``0.5`` is not), finite
    floats, tuples from ``1,2`` or ``[1,2]``, and ``none`` where the field may be empty (it is empty now, declared by
    ``config_dict.placeholder``, or annotated so). A value in a dictionary that the factory takes
    (``environment.make_kwargs.NAME``) is a literal. ``none`` for a whole section that need not be there, or an entry of
    credit or rewards, takes it away. Other values obey the same rules.

    Raises:
      UserError: if a key is unknown, a section, or without effect, or a value has another type; nothing is applied
        then.
    """
    changed = copy.deepcopy(config)
    with changed.unlocked(), changed.ignore_type():
        chosen = {key: section for key in overrides if (section := _selects(key)) is not None}
        for key in sorted(chosen, key=lambda key: key.count(".")):
            _choose(changed, chosen[key], key, overrides[key])
        for key, value in overrides.items():
            if key not in chosen:
                _set(changed, key, value)
    changed.lock()
    for key in overrides:
        effects.require_effect(changed, key)
    return changed


def _selects(key: str) -> Section | None:
    """The kind of the section in which ``key`` names an entry of a catalogue."""
    *path, leaf = key.split(".")
    section = sections.section_at(path)
    return section if section is not None and section.selector == leaf else None


def _choose(config: ConfigDict, section: Section, key: str, value: Any) -> None:
    """Makes the section of ``key`` one of the kind ``value``, with the keys that this kind shares with the former."""
    where, _, selector = key.rpartition(".")
    path = where.split(".")
    former = sections.part(config, path)
    if not isinstance(value, str):
        raise _wrong(key, value, "text", section.named(former))
    if former.get(selector) == value:
        return
    _require_place(config, path, key)
    entry = section.entry({selector: value}, where)
    known, _ = section.keys(entry)
    kept = {name: one for name, one in _fields(former).items() if name in known and fits(known[name], one)}
    _holder(config, path[:-1])[path[-1]] = {selector: value, **{name: kept[name] for name in kept if name != selector}}
    if section.selector == "family" and former:
        before = section.entry(former, where)
        for name in (*before.sections, *entry.sections):
            if name not in entry.sections:
                _remove(config, name)
            elif name not in config:
                config[name] = {}


def _set(config: ConfigDict, key: str, value: Any) -> None:
    """Sets one key that names no kind."""
    *path, leaf = key.split(".")
    leaves = keys(config)
    found = sections.enclosing(config, key)
    inside = [name for name in leaves if name.startswith(f"{key}.")]
    section = None if key in leaves else sections.section_at([*path, leaf])
    if section is not None and section.optional and _is_none(value):
        _remove(_holder(config, path), leaf)
        return
    declared = _declared(found, key)
    if section is not None or (inside and (declared is None or sections.type_of(declared)[0] is not dict)):
        names = inside or _keys_inside(config, key)
        raise UserError(f"configuration key {key!r} is a section, expected one of {', '.join(names)}")
    if found is not None and found.entry is None and not sections.part(config, found.where.split(".")):
        raise UserError(
            f"configuration section {found.where!r} names no {found.section.what} yet: set "
            f"{PREFIX}{found.where}.{found.section.selector}=NAME, too; known: {', '.join(found.section.table)}"
        )
    if key in leaves:
        holder = sections.part(config, path)
        field = dict(holder.items(preserve_field_references=True))[leaf]
        current, kind = leaves[key], holder.get_type(leaf)
        optional = isinstance(field, config_dict.FieldReference) or field is None
        if declared is not None:
            annotated, may_be_none = sections.type_of(declared)
            kind, optional = annotated if kind is type(None) else kind, optional or may_be_none
        holder[leaf] = _convert(key, value, current, kind, optional)
        return
    if declared is None:
        raise _unknown_key(config, key, found)
    _require_place(config, path, key)
    kind, optional = sections.type_of(declared)
    current = None if declared.default is sections.EMPTY else declared.default
    _holder(config, path)[leaf] = _convert(key, value, current, kind, optional)


def _declared(found: Found | None, key: str) -> Key | None:
    """What the factory of the section around ``key`` says of it; ``None`` where it does not take such a key."""
    if found is None or found.entry is None:
        return None
    known, open_ended = found.section.keys(found.entry)
    name, *inner = key.removeprefix(f"{found.where}.").split(".")
    if inner:
        # A value in a dictionary of the factory's.
        return sections.value_type(known[name]) if name in known and sections.type_of(known[name])[0] is dict else None
    if name in known:
        return known[name]
    return Key(Any) if open_ended else None


def _require_place(config: ConfigDict, path: Sequence[str], key: str) -> None:
    """Refuses a section inside another one that does not take it, such as a functional of a policy-gradient agent."""
    for length in range(1, len(path)):
        outer = sections.section_at(path[:length])
        if outer is None:
            continue
        found = Found(outer, ".".join(path[:length]), outer.entry(sections.part(config, path[:length]), ""))
        if found.entry is None or path[length] not in found.section.keys(found.entry)[0]:
            raise _unknown_key(config, key, found)


def _holder(config: ConfigDict, path: Sequence[str]) -> ConfigDict:
    """The section at ``path``, made where it is not there or is empty."""
    holder = config
    for name in path:
        if not isinstance(holder.get(name), ConfigDict):
            holder[name] = {}
        holder = holder[name]
    return holder


def _fields(section: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a section, those that were declared without a value as such."""
    return dict(section.items(preserve_field_references=True) if isinstance(section, ConfigDict) else section)


def fits(key: Key, field: Any) -> bool:
    """Whether ``field``, a value or a reference to one, has the type of ``key``: a whole number is a float, too."""
    value = field.get() if isinstance(field, config_dict.FieldReference) else field
    kind, optional = sections.type_of(key)
    if value is None:
        return optional
    if kind is type(None):
        return True
    if kind is dict:
        return isinstance(value, ConfigDict)
    if kind is tuple:
        return isinstance(value, tuple | list)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not (isinstance(value, str) and kind is not str) and _scalar(value, kind) is not None


def _keys_inside(config: ConfigDict, where: str) -> list[str]:
    """The keys of the section ``where``, or what names its kind."""
    found = sections.enclosing(config, f"{where}.KEY")
    if found is None:
        return [f"{where}.KEY"]
    if found.entry is None:
        return [f"{where}.{found.section.selector}"]
    return [f"{where}.{name}" for name in found.section.keys(found.entry)[0]]


def _remove(holder: ConfigDict, name: str) -> None:
    if name in holder:
        del holder[name]


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in _NONE_WORDS)


def _leaves(section: ConfigDict, prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _unknown_key(config: ConfigDict, key: str, found: Found | None) -> UserError:
    """The refusal of ``key``.

    It names what the key was meant as in another library, or a key of its section's kind with similar letters, or the
    same key of another section, or else the nearest of all.
    """
    known = possible_keys(config)
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
    own: list[str] = []
    of_kind = ""
    if found is not None and found.entry is not None:
        own = [f"{found.where}.{name}" for name in found.section.keys(found.entry)[0]]
        named = found.section.named(sections.part(config, found.where.split(".")))
        of_kind = f" to {named!r}" if named else ""
    close = similar(key, own, limit=2)
    likely = meant(key, known) or close or same_leaf
    hint = suggested(likely[:3]) if likely else nearest(key, own or known)
    listing = f" (known{of_kind}: {', '.join(own)})" if own else ""
    return UserError(f"unknown configuration key {key!r}{hint}{listing}")


def _wrong(key: str, value: Any, expected: str, current: Any) -> UserError:
    given = f"{value!r}" if isinstance(value, str) else f"{value!r} ({type(value).__name__})"
    example = "" if current is None else f", such as {current!r}"
    return UserError(f"configuration key {key!r} got {given}, expected {expected}{example}")


def _convert(key: str, value: Any, current: Any, kind: type, optional: bool) -> Any:
    """``value`` as the type of the field, or a refusal that names key, value and type."""
    if value is None or (kind is not str and _is_none(value)):
        if optional or kind is type(None):
            return None
        raise _wrong(key, value, f"{_describe(kind)}, never none", current)
    # An optional string is emptied by the same word as every other optional field.
    if kind is str and optional and _is_none(value):
        return None
    if kind is type(None):
        return _literal(value) if isinstance(value, str) else value
    if kind is dict:
        return _mapping(key, value)
    if kind in (tuple, list):
        return _sequence(key, value, current, kind)
    converted = _scalar(value, kind)
    if converted is None:
        raise _wrong(key, value, _describe(kind) + (" or none" if optional else ""), current)
    if kind is int and abs(converted) > LARGEST_INTEGER:
        raise _wrong(key, value, f"an integer of at most {LARGEST_INTEGER}", current)
    return converted


def _describe(kind: type) -> str:
    described = {bool: "a truth value (true or false)", int: "an integer", float: "a finite number", str: "text"}
    return described.get(kind, kind.__name__)


def _scalar(value: Any, kind: type) -> Any:
    """``value`` as ``kind``; None where it is not one."""
    if kind is bool:
        if isinstance(value, str):
            return _TRUTH_WORDS.get(value.strip().lower())
        return value if isinstance(value, bool) else None
    if kind is str:
        return value if isinstance(value, str) else None
    if kind not in (int, float):
        return value if isinstance(value, kind) else None
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = _number(value)
    if not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if kind is float:
        return float(value)
    return int(value) if value == int(value) else None


def _number(text: str) -> int | float | None:
    try:
        # An integer that no float can hold is as good as infinite.
        return int(text) if math.isfinite(float(text)) else math.inf
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return None


def _literal(text: str) -> Any:
    """Text for a field of unknown type: none, a truth value, a number, a tuple in brackets, or text, also in quotes."""
    stripped = text.strip()
    if stripped.lower() in _NONE_WORDS:
        return None
    if stripped.lower() in _TRUTH_WORDS:
        return _TRUTH_WORDS[stripped.lower()]
    number = _number(stripped)
    if number is not None and math.isfinite(number):
        return number
    if stripped[:1] in ("(", "[", "'", '"'):
        try:
            return as_tuples(ast.literal_eval(stripped))
        except (ValueError, SyntaxError):
            return text
    return text


def _mapping(key: str, value: Any) -> Any:
    """A dictionary, written ``{}`` or ``{'name': 1}``; its values can be set one by one as ``KEY.name``, too."""
    try:
        found = ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise _wrong(key, value, f"a dictionary, written {{'name': 1}}, or one of its values, {key}.NAME=VALUE", None)
    return ConfigDict(as_tuples(found))


def _sequence(key: str, value: Any, current: Sequence[Any] | None, kind: type) -> Any:
    """A sequence whose elements have the type of the present ones; any type where it is empty or mixed."""
    current = current or ()
    kinds = {type(element) for element in current}
    if kinds == {int, float}:
        kinds = {float}
    element_kind = kinds.pop() if len(kinds) == 1 else None
    example = current if len(current) else (1, 2)
    elements = _elements(value) if isinstance(value, str) else value
    if not isinstance(elements, tuple | list):
        raise _wrong(key, value, "a sequence, written 1,2 or [1,2]", example)
    if element_kind not in (bool, int, float, str):
        return kind(as_tuples(elements))
    converted = [_scalar(element, element_kind) for element in elements]
    if None in converted:
        raise _wrong(key, value, f"a sequence in which each element is {_describe(element_kind)}", example)
    if element_kind is int and any(abs(element) > LARGEST_INTEGER for element in converted):
        raise _wrong(key, value, f"a sequence of integers of at most {LARGEST_INTEGER}", example)
    return kind(converted)


def _elements(text: str) -> Sequence[Any] | None:
    """The elements of ``1,2``, ``[1,2]``, ``(1,2)`` or of bare words ``a,b``; None where brackets do not match."""
    try:
        value = ast.literal_eval(f"({text})")
        return value if isinstance(value, tuple | list) else (value,)
    except (ValueError, SyntaxError):
        inner = text.strip()
    if (inner[:1], inner[-1:]) in (("[", "]"), ("(", ")")):
        inner = inner[1:-1]
    words = [word.strip() for word in inner.removesuffix(",").split(",")]
    return None if "" in words or any(bracket in inner for bracket in "[]()") else words


def as_tuples(value: Any) -> Any:
    """``value`` with its lists as tuples."""
    if isinstance(value, Mapping):
        return {key: as_tuples(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return tuple(as_tuples(inner) for inner in value)
    return value
