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
import hashlib
import importlib
import inspect
import json
import math
import pkgutil
import re
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.assembly.kinds import broken
from experiments.assembly.overrides import LARGEST_INTEGER as LARGEST_INTEGER
from experiments.assembly.overrides import PREFIX, apply_overrides, as_tuples, parse_overrides
from experiments.assembly.overrides import keys as keys
from experiments.errors import UserError, unknown

PACKAGE = "experiments.configs"
ABSENT = "(absent)"
# What tables and folders call the variant without a name.
DEFAULT_VARIANT = "default"
# Rows of a point of a sweep are filed under one of these marks, apart from those of a run with the same values. Points
# of a grid share run folders, and those of a search have one each, so that the same point may be in both.
SWEEP_MARK, SEARCH_MARK = "sweep", "search"
_CONTRACT = ("get_config", "get_sweep", "VARIANTS", "REPRODUCES")
# In a variant as tables print it, a value that was set begins with a plus: ``ppo+agent.learning_rate=0.008``.
_SETTING = re.compile(r"\+(?=[A-Za-z_]\w*(?:\.\w+)*=)")


class Loaded(NamedTuple):
    """An experiment read by name.

    Attributes:
      name: the experiment, ``NAME``.
      variant: its variant tokens in the order of ``VARIANTS``, joined by commas; empty for the default.
      module: the configuration's module.
      config: the locked configuration.
      overrides: dotted key to text or value of what was set, in the name or beside it; in ``config`` already.
    """

    name: str
    variant: str
    module: ModuleType
    config: ConfigDict
    overrides: dict[str, Any] = {}  # noqa: RUF012  (never written)


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
      UserError: if there is no such experiment, its module cannot be imported, or it lacks a part of the contract.
    """
    known = names(package)
    if name not in known:
        raise unknown("experiment", name, known)
    try:
        module = importlib.import_module(f"{package}.{name}")
    except (Exception, SystemExit) as error:
        raise UserError(f"experiment {name!r} is broken: {broken(error)}") from error
    lacking = [part for part in _CONTRACT if not hasattr(module, part)]
    if lacking:
        raise UserError(f"experiment {name!r} is incomplete: its module lacks {', '.join(lacking)}")
    return module


def whole_modules(package: str = PACKAGE) -> tuple[dict[str, ModuleType], list[str]]:
    """The modules of all experiments by name, without those that are half-written; and a line about each of these."""
    modules, lines = {}, []
    for name in names(package):
        try:
            modules[name] = module_of(name, package)
        except UserError as error:
            lines.append(f"left out: {error}")
    return modules, lines


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
    """Reads ``NAME`` or ``NAME:variant,variant``, or a variant as tables print it, ``NAME:variant+KEY=VALUE``.

    Raises:
      UserError: if the experiment, a variant or a key is unknown, the variants do not go together, or the experiment's
        module is broken.
    """
    name, _, requested = name_with_variant.partition(":")
    name = name.strip()
    requested, *settings = _SETTING.split(requested)
    if settings:
        requested = requested.removesuffix(f"+{SWEEP_MARK}").removesuffix(f"+{SEARCH_MARK}")
    module = module_of(name, package)
    if requested.strip() == DEFAULT_VARIANT and DEFAULT_VARIANT not in module.VARIANTS:
        requested = ""
    variant = canonical_variant(requested, module.VARIANTS, name)
    try:
        config = module.get_config(variant)
    except ValueError as error:
        raise UserError(f"experiment {name!r} has no variant {variant!r}: {error}") from error
    except Exception as error:
        raise UserError(f"experiment {name!r} is broken: {broken(error)}") from error
    config.lock()
    overrides = parse_overrides([f"{PREFIX}{setting}" for setting in settings])
    return Loaded(name, variant, module, apply_overrides(config, overrides), overrides)


def with_overrides(loaded: Loaded, overrides: Mapping[str, Any]) -> Loaded:
    """``loaded`` with ``overrides`` beside those of its name, all of them in its configuration.

    Raises:
      UserError: if a key is set in the name as well, or is unknown, or a value has another type.
    """
    twice = sorted(loaded.overrides.keys() & overrides.keys())
    if twice:
        key = twice[0]
        raise UserError(f"key {key!r} is given twice: {loaded.overrides[key]!r} and {overrides[key]!r}")
    config = apply_overrides(loaded.config, overrides)
    return loaded._replace(config=config, overrides=loaded.overrides | dict(overrides))


def to_json_dict(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as plain JSON values: sections are dictionaries, tuples are lists.

    Raises:
      UserError: if a value is not a JSON value (a function, an array, a number that is not finite).
    """
    return _plain(config, "")


def from_json_dict(values: Mapping[str, Any]) -> ConfigDict:
    """The inverse of ``to_json_dict``: a locked configuration whose lists are tuples."""
    config = ConfigDict(as_tuples(values))
    config.lock()
    return config


def run_card(module: ModuleType) -> str:
    """The docstring of an experiment's module, from its source where Python has dropped docstrings (``-OO``)."""
    card = module.__doc__ or ast.get_docstring(ast.parse(inspect.getsource(module)))
    return inspect.cleandoc(card or "(this experiment has no run card)")


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


def _json_leaves(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    def walk(section, prefix):
        for key, value in section.items():
            # An empty section is a leaf of its own, so that {"a": {}} and {} differ.
            if isinstance(value, dict) and value:
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(walk(to_json_dict(config), ""))


def _show(value: Any) -> str:
    return value if value is ABSENT else repr(value)


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
