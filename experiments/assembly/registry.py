"""Experiments by name: configurations, variants, overrides and fingerprints.

A configuration is a module ``experiments/configs/NAME.py`` with

* ``get_config(variant: str = "") -> ConfigDict``: the whole configuration of one variant;
* ``get_sweep() -> dict[str, list]``: dotted key to the values that a sweep tries;
* ``VARIANTS: dict[str, str]``: variant to a one-line description; variants compose with commas, ``NAME:a,b``;
* ``REPRODUCES: str``: the paper and the figure or table;
* a docstring, the run card;

and, where ``sagax baselines`` is to run other libraries' agents on its environment, ``BASELINES: dict[str, dict]``, a
baseline's settings by its name, and ``get_baseline_sweep() -> dict[str, list]``, the grid of their settings.

A module whose name starts with an underscore is shared code and no experiment.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib
import json
import math
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from envs.choices import nearest
from experiments.errors import UserError, unknown, unknown_argument

PACKAGE = "experiments.configs"
PREFIX = "--config."
ABSENT = "(absent)"
_CONTRACT = ("get_config", "get_sweep", "VARIANTS", "REPRODUCES")
# Counters on a device have 32 bits.
LARGEST_INTEGER = 2**31 - 1
_NONE_WORDS = ("none", "null")
_TRUTH_WORDS = {"true": True, "false": False}


class Loaded(NamedTuple):
    """An experiment read by name.

    Attributes:
      name: the experiment, ``NAME``.
      variant: its variant tokens in the order of ``VARIANTS``, joined by commas; empty for the default.
      module: the configuration's module.
      config: the locked configuration.
    """

    name: str
    variant: str
    module: ModuleType
    config: ConfigDict


class Difference(NamedTuple):
    """One dotted key in which two configurations differ; ``ABSENT`` marks a key that one of them lacks."""

    key: str
    first: Any
    second: Any

    def __str__(self) -> str:
        return f"{self.key}: {_show(self.first)} against {_show(self.second)}"


def names(package: str = PACKAGE) -> list[str]:
    """Every experiment of ``package``, sorted; nothing is imported but the package itself."""
    root = importlib.import_module(package)
    return sorted(found.name for found in pkgutil.iter_modules(root.__path__) if not found.name.startswith("_"))


def module_of(name: str, package: str = PACKAGE) -> ModuleType:
    """The module of an experiment.

    Raises:
      UserError: if there is no such experiment, or it lacks a part of the contract.
    """
    known = names(package)
    if name not in known:
        raise unknown("experiment", name, known)
    module = importlib.import_module(f"{package}.{name}")
    lacking = [part for part in _CONTRACT if not hasattr(module, part)]
    if lacking:
        raise UserError(f"experiment {name!r} is incomplete: its module lacks {', '.join(lacking)}")
    return module


def canonical_variant(variant: str, known: Iterable[str], name: str = "") -> str:
    """The tokens of ``a,b`` in the order of ``known``, each once, so that ``a,b`` and ``b,a`` are one variant.

    Raises:
      UserError: if a token is none of ``known``.
    """
    order = list(known)
    if not variant.strip():
        return ""
    tokens = [token.strip() for token in variant.split(",")]
    for token in tokens:
        if token not in order:
            raise unknown("variant", token, order, f"of {name!r}" if name else "")
    return ",".join(token for token in order if token in tokens)


def load(name_with_variant: str, package: str = PACKAGE) -> Loaded:
    """Reads ``NAME`` or ``NAME:variant,variant``.

    Raises:
      UserError: if the experiment or a variant is unknown, or the variants do not go together.
    """
    name, _, requested = name_with_variant.partition(":")
    name = name.strip()
    module = module_of(name, package)
    variant = canonical_variant(requested, module.VARIANTS, name)
    try:
        config = module.get_config(variant)
    except ValueError as error:
        raise UserError(f"experiment {name!r} has no variant {variant!r}: {error}") from error
    config.lock()
    return Loaded(name, variant, module, config)


def parse_overrides(arguments: Sequence[str], options: Iterable[str] = ()) -> dict[str, str]:
    """Reads ``--config.KEY=VALUE`` arguments into dotted key to text.

    Args:
      arguments: what the command's parser left over.
      options: what else the command takes, for the suggestions.

    Raises:
      UserError: if an argument has another form or a key is given twice.
    """
    overrides: dict[str, str] = {}
    for argument in arguments:
        if not argument.startswith(PREFIX):
            raise unknown_argument(argument, [f"{PREFIX}KEY=VALUE", *options])
        key, equals, value = argument.removeprefix(PREFIX).partition("=")
        if not equals or not key:
            raise UserError(f"argument {argument!r} has no value: expected {PREFIX}{key or 'KEY'}=VALUE")
        if key in overrides:
            raise UserError(f"key {key!r} is given twice: {overrides[key]!r} and {value!r}")
        overrides[key] = value
    return overrides


def keys(config: ConfigDict) -> dict[str, Any]:
    """Every leaf of a configuration: dotted key to value."""
    return dict(_leaves(config, ""))


def apply_overrides(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """A locked copy of ``config`` with ``overrides`` (dotted key to value or text) in it; ``config`` stays as it is.

    Text is read as the type of the value it replaces: ``true`` or ``false``, integers (``1e6`` is one, ``0.5`` is
    not), finite floats, tuples from ``1,2`` or ``[1,2]``, and ``none`` where the field may be empty (it is empty
    now, or declared by ``config_dict.placeholder``). Other values obey the same rules.

    Raises:
      UserError: if a key is unknown or a section, or a value has another type; nothing is applied then.
    """
    changed = copy.deepcopy(config)
    known = keys(changed)
    for key, value in overrides.items():
        if key not in known:
            raise _unknown_key(key, known)
        *path, leaf = key.split(".")
        section = changed
        for part in path:
            section = section[part]
        field = dict(section.items(preserve_field_references=True))[leaf]
        optional = isinstance(field, config_dict.FieldReference) or field is None
        section[leaf] = _convert(key, value, known[key], section.get_type(leaf), optional)
    changed.lock()
    return changed


def to_json_dict(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as plain JSON values: sections are dictionaries, tuples are lists.

    Raises:
      UserError: if a value is not a JSON value (a function, an array, a number that is not finite).
    """
    return _plain(config, "")


def from_json_dict(values: Mapping[str, Any]) -> ConfigDict:
    """The inverse of ``to_json_dict``: a locked configuration whose lists are tuples."""
    config = ConfigDict(_tuples(values))
    config.lock()
    return config


def fingerprint(config: ConfigDict | Mapping[str, Any], ignore: Sequence[str] = ()) -> str:
    """16 hexadecimal digits that are equal for equal configurations, whatever the order of their keys.

    Args:
      config: a configuration or its JSON values.
      ignore: dotted keys, or sections, that may differ, such as the number of steps of a run that is prolonged.
    """
    leaves = {key: value for key, value in _json_leaves(config).items() if not _ignored(key, ignore)}
    text = json.dumps(leaves, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(
    first: ConfigDict | Mapping[str, Any], second: ConfigDict | Mapping[str, Any], ignore: Sequence[str] = ()
) -> list[Difference]:
    """The dotted keys in which two configurations differ, sorted, with both values."""
    left, right = _json_leaves(first), _json_leaves(second)
    rows = (
        Difference(key, left.get(key, ABSENT), right.get(key, ABSENT)) for key in sorted(left.keys() | right.keys())
    )
    return [row for row in rows if not _ignored(row.key, ignore) and json.dumps(row.first) != json.dumps(row.second)]


def _ignored(key: str, ignore: Sequence[str]) -> bool:
    return any(key == entry or key.startswith(f"{entry}.") for entry in ignore)


def _leaves(section: ConfigDict, prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _json_leaves(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    def walk(section, prefix):
        for key, value in section.items():
            # An empty section is a leaf of its own, so that {"a": {}} and {} differ.
            if isinstance(value, dict) and value:
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(walk(to_json_dict(config), ""))


def _unknown_key(key: str, known: Mapping[str, Any]) -> UserError:
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        return UserError(f"configuration key {key!r} is a section, expected one of {', '.join(inside)}")
    # A key typed without its section, or in another one, is nearer than one with similar letters.
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
    return UserError(f"unknown configuration key {key!r}{nearest(key, same_leaf or known)}")


def _show(value: Any) -> str:
    return value if value is ABSENT else repr(value)


def _wrong(key: str, value: Any, expected: str, current: Any) -> UserError:
    given = f"{value!r}" if isinstance(value, str) else f"{value!r} ({type(value).__name__})"
    return UserError(f"configuration key {key!r} got {given}, expected {expected}, such as {current!r}")


def _convert(key: str, value: Any, current: Any, kind: type, optional: bool) -> Any:
    """``value`` as the type of the field, or a refusal that names key, value and type."""
    if value is None or (isinstance(value, str) and kind is not str and value.strip().lower() in _NONE_WORDS):
        if optional:
            return None
        raise _wrong(key, value, f"{_describe(kind)}, never none", current)
    # An optional string is emptied by the same word as every other optional field.
    if kind is str and optional and isinstance(value, str) and value.strip().lower() in _NONE_WORDS:
        return None
    if kind is type(None):
        return _literal(value) if isinstance(value, str) else value
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
    """Text for a field of unknown type: a truth value, a number, a tuple in brackets, or the text itself."""
    stripped = text.strip()
    if stripped.lower() in _TRUTH_WORDS:
        return _TRUTH_WORDS[stripped.lower()]
    number = _number(stripped)
    if number is not None and math.isfinite(number):
        return number
    if stripped[:1] in ("(", "["):
        try:
            return _tuples(ast.literal_eval(stripped))
        except (ValueError, SyntaxError):
            return text
    return text


def _sequence(key: str, value: Any, current: Sequence[Any], kind: type) -> Any:
    """A sequence whose elements have the type of the present ones; any type where it is empty or mixed."""
    kinds = {type(element) for element in current}
    if kinds == {int, float}:
        kinds = {float}
    element_kind = kinds.pop() if len(kinds) == 1 else None
    example = current if len(current) else (1, 2)
    elements = _elements(value) if isinstance(value, str) else value
    if not isinstance(elements, tuple | list):
        raise _wrong(key, value, "a sequence, written 1,2 or [1,2]", example)
    if element_kind not in (bool, int, float, str):
        return kind(_tuples(elements))
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


def _plain(value: Any, key: str) -> Any:
    if isinstance(value, ConfigDict | Mapping):
        return {str(name): _plain(inner, f"{key}.{name}" if key else str(name)) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner, key) for inner in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise UserError(
        f"configuration key {key!r} holds {value!r}, expected a number, text, truth value, sequence or none"
    )


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_tuples(inner) for inner in value)
    return value
