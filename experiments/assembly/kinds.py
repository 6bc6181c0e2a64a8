"""From the ``kind`` of a section to what it names: an entry of a catalogue, or a part that is imported."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from envs.choices import nearest
from envs.kinds import Kind
from experiments.errors import UserError, unknown

TRUST = "SAGAX_TRUST"
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_import_path(kind: Any) -> bool:
    """Whether ``kind`` names a part by import path, ``my_package.my_module:factory``."""
    return isinstance(kind, str) and ":" in kind


def require_trusted(paths: Mapping[str, str], place: str | os.PathLike) -> None:
    """Refuses import paths that are read from a file: who wrote the file would choose what is called, and with what.

    A module is trusted that ``SAGAX_TRUST`` names, alone or by a package around it; several are separated by commas.

    Args:
      paths: dotted key to import path.
      place: the file or folder, for the message.

    Raises:
      UserError: for the first that is not trusted.
    """
    trusted = [name.strip() for name in os.environ.get(TRUST, "").split(",") if name.strip()]
    for key, path in paths.items():
        module = path.partition(":")[0]
        if not any(f"{module}.".startswith(f"{name}.") for name in trusted):
            raise UserError(
                f"{os.fspath(place)}: {key}={path} would import and call {path.partition(':')[2]} of {module}; where "
                f"you trust that module, expected {TRUST}={module.partition('.')[0]} in the environment"
            )


def resolve(kind: Any, table: Mapping[str, Any], what: str, where: str = "", record: type = Kind) -> Any:
    """The ``record`` that ``kind`` names.

    Args:
      kind: a name in ``table``, or ``MODULE:ATTRIBUTE``, which is imported. Modules are also looked for in the working
        directory, whichever way the program was started.
      table: a catalogue: name to ``record``, or to the bare factory.
      what: what is named, for the message: ``"reward transform"``.
      where: the place in the configuration, for the message: ``"in rewards.curiosity"``.
      record: the type of an entry; a bare factory becomes ``record(factory)``.

    Raises:
      UserError: for a name that is none of ``table``, and for a module or an attribute that is missing, cannot be
        imported, or is no factory.
    """
    if is_import_path(kind):
        found = _imported(kind, f"{what} {kind!r}{f' {where}' if where else ''}")
    elif isinstance(kind, str) and kind in table:
        found = table[kind]
    else:
        raise unknown(what, kind, table, where)
    if isinstance(found, record):
        return found
    if not callable(found):
        raise UserError(
            f"{what} {kind!r}{f' {where}' if where else ''} is {type(found).__name__}, expected a factory that can be "
            f"called, or a {record.__module__}.{record.__name__}"
        )
    return record(found)


def _imported(path: str, described: str) -> Any:
    """The object at ``MODULE:ATTRIBUTE``."""
    if not _IMPORT_PATH.fullmatch(path):
        raise UserError(f"{described}: expected MODULE:ATTRIBUTE, such as my_package.my_module:factory")
    name, _, attributes = path.partition(":")
    found: Any = import_module(name, described)
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            public = [one for one in dir(found) if not one.startswith("_")]
            place = getattr(found, "__file__", None) or name
            raise UserError(f"{described}: {place} has no {attribute!r}{nearest(attribute, public)}")
        found = getattr(found, attribute)
    return found


def import_module(name: str, described: str) -> ModuleType:
    """The module ``name``, found as Python finds it or in the working directory.

    Raises:
      UserError: if there is no such module, or it fails while it is imported, with the line at which it does.
    """
    # The console script ``sagax`` starts with its own folder on the path in place of the working directory.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{described}: there is no module {error.name!r}; expected one that is installed or lies in "
                f"{os.getcwd()}"
            ) from error
        raise UserError(f"{described}: {broken(error)}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{described}: {broken(error)}") from error


def broken(error: BaseException) -> str:
    """One line about an exception of somebody's module: type, text, and the file and line where it was raised."""
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
    else:
        frames = [one for one in traceback.extract_tb(error.__traceback__) if "importlib" not in one.filename]
        place = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else "unknown place"
    return f"{type(error).__name__}: {text or 'without a message'} ({place})"
