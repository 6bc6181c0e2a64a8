"""How every layer refuses a name that it does not know: with the nearest that it knows, in one wording."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def nearest(name: Any, known: Iterable[str], limit: int = 3) -> str:
    """``", did you mean 'a' or 'b'?"`` from the closest of ``known``; the single closest one where none is close.

    Returns an empty string where nothing is known.
    """
    choices = [str(choice) for choice in dict.fromkeys(known)]
    by_lower = {choice.lower(): choice for choice in reversed(choices)}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=limit, cutoff=0.6)
    close = close or difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.0)
    if not close:
        return ""
    return f", did you mean {' or '.join(repr(by_lower[choice]) for choice in close)}?"


def unknown(kind: str, name: Any, known: Iterable[str], where: str = "") -> str:
    """What is said of a ``name`` that is none of ``known``: what it was, the nearest ones, and the whole list."""
    choices = [str(choice) for choice in known]
    place = f" {where}" if where else ""
    hint = nearest(name, choices)
    listing = f"known: {', '.join(choices)}" if choices else "none is known"
    return f"unknown {kind} {name!r}{place}{hint or ':'} {'(' + listing + ')' if hint else listing}"


def require_known(kind: str, name: Any, known: Iterable[str], where: str = "") -> None:
    """Refuses a ``name`` that is none of ``known``.

    Raises:
      ValueError: in the words of ``unknown``.
    """
    choices = tuple(known)
    if name not in choices:
        raise ValueError(unknown(kind, name, choices, where))
