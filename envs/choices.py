"""The error message for an unknown name, the same in every layer: it suggests the nearest known names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


def nearest(name: Any, known: Iterable[str], limit: int = 3) -> str:
    """``", did you mean 'a' or 'b'?"``, with the closest of ``known``, at least one however far.

    Returns an empty string where ``known`` is empty.

    >>> nearest("lambda", ["gae_lambda", "discount"])
    ", did you mean 'gae_lambda'?"
    >>> nearest("anything", [])
    ''
    """
    choices = [str(choice) for choice in dict.fromkeys(known)]
    by_lower = {choice.lower(): choice for choice in reversed(choices)}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=limit, cutoff=0.6)
    close = close or difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.0)
    return suggested(by_lower[choice] for choice in close)


def similar(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Those of ``known`` that differ from ``name`` by hardly more than a slip of the keyboard, the nearest first."""
    return difflib.get_close_matches(name, list(known), n=limit, cutoff=0.8)


def suggested(names: Iterable[str]) -> str:
    """``", did you mean 'a' or 'b'?"``; an empty string where there is no name."""
    quoted = " or ".join(map(repr, names))
    return f", did you mean {quoted}?" if quoted else ""


def unknown(kind: str, name: Any, known: Iterable[str], where: str = "", meant: Sequence[str] = ()) -> str:
    """The message for a ``name`` that is not in ``known``: the name, the nearest known names, and all known names.

    What is ``meant`` by another library's word for it is named in place of the nearest.

    >>> unknown("metric", "succes", ["success", "return"])
    "unknown metric 'succes', did you mean 'success'? (known: success, return)"
    """
    choices = [str(choice) for choice in known]
    place = f" {where}" if where else ""
    hint = suggested(meant) or nearest(name, choices)
    listing = f"known: {', '.join(choices)}" if choices else "none is known"
    return f"unknown {kind} {name!r}{place}{hint or ':'} {'(' + listing + ')' if hint else listing}"


def require_known(kind: str, name: Any, known: Iterable[str], where: str = "") -> None:
    """Refuses a ``name`` that is not in ``known``.

    Raises:
      ValueError: with the message of ``unknown``.
    """
    choices = tuple(known)
    if name not in choices:
        raise ValueError(unknown(kind, name, choices, where))
