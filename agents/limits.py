"""Limits on totals: the senses of a constraint, the same for planners, reward transforms and evaluators."""

from __future__ import annotations

SENSES = ("at_most", "at_least", "equal")


def sign_of(sense: str) -> float:
    """-1 for ``at_least``, else 1: ``sign (total - limit)`` is above 0 where an inequality is missed.

    >>> [sign_of(sense) for sense in SENSES]
    [1.0, -1.0, 1.0]
    """
    return -1.0 if sense == "at_least" else 1.0
