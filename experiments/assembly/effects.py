"""Keys without effect: a value that is set for a run and that nothing would read is refused, with the reason.

A configuration may hold the defaults of keys that its kind does not use; what is refused is setting one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from ml_collections import ConfigDict

from agents.estimators import ESTIMATORS
from experiments.assembly import sections
from experiments.assembly.kinds import resolve
from experiments.errors import UserError
from rewards.catalogue import REWARDS
from rewards.catalogue import Kind as RewardKind


def require_effect(config: ConfigDict, key: str) -> None:
    """Refuses ``key``, which was set in ``config``, where it has no effect.

    Raises:
      UserError: with what it would take.
    """
    why = _unused_by_kind(config, key)
    for pattern, reason in CONDITIONS.items():
        why = why or (reason(config) if fnmatchcase(key, pattern) else None)
    if why is not None:
        raise UserError(f"configuration key {key!r} has no effect: {why}")


def _unused_by_kind(config: ConfigDict, key: str) -> str | None:
    """What other keys of the section of ``key`` would have to be, as its kind declares it."""
    found = sections.enclosing(config, key)
    if found is None or found.entry is None:
        return None
    known, _ = found.section.keys(found.entry)
    section = sections.part(config, found.where.split("."))
    for other, values in found.entry.needs.get(key.removeprefix(f"{found.where}."), {}).items():
        current = section.get(other, known[other].default)
        if current not in values:
            return f"{found.where}.{other}={current}, and it is used with {' or '.join(map(str, values))} only"
    return None


def _no_demonstrations(config: ConfigDict) -> str | None:
    shown = sections.part(config, ["warm_start"]).get("demonstrations", 0)
    return None if shown else "warm_start.demonstrations=0, and without demonstrations nothing is cloned"


def _no_stock(config: ConfigDict) -> str | None:
    stock = sections.part(config, ["environment", "stock"])
    return None if stock else "the environment has no stock; it would be a section environment.stock"


def _no_critic(config: ConfigDict) -> str | None:
    """No entry of ``credit``, and none that an intrinsic reward would get, has a critic."""
    for name, section in sections.part(config, ["credit"]).items():
        arguments = {key: one for key, one in section.items() if key not in ("channel", "estimator", "weight")}
        factory = resolve(section.get("estimator"), ESTIMATORS, "estimator", f"in credit {name!r}").factory
        try:
            if factory(**arguments).critic:
                return None
        except (TypeError, ValueError):
            return None  # Refused where it is built, in words of its own.
    for name, section in sections.part(config, ["rewards"]).items():
        if resolve(section.get("kind"), REWARDS, "reward transform", f"in rewards.{name}", RewardKind).intrinsic:
            return None
    return "no entry of credit has an estimator with a critic, such as gae"


def _no_groups(config: ConfigDict) -> str | None:
    kind: Any = sections.part(config, ["data"]).get("kind", "episodes")
    return None if kind == "episodes" else f"data.kind={kind}, and only episodes come in groups"


def _no_start_states(config: ConfigDict) -> str | None:
    environment: Any = sections.section_at(["environment"])
    entry = environment.entry(sections.part(config, ["environment"]), "environment")
    if entry is not None and sections.is_host(entry.factory):
        return "a host environment draws its own start states; it is used with pure environments only"
    kind = sections.part(config, ["data"]).get("kind")
    return f"data.kind={kind}, and every episode draws a start state of its own" if kind == "episodes" else None


def _no_replay(config: ConfigDict) -> str | None:
    kind = sections.part(config, ["data"]).get("kind", "replay")
    return None if kind == "replay" else f"data.kind={kind}, and it is used with replay only"


def _no_trace(config: ConfigDict) -> str | None:
    decay = sections.part(config, ["agent"]).get("trace_decay")
    return "agent.trace_decay=None, and without a trace there is none to cut" if decay is None else None


def _no_munchausen(config: ConfigDict) -> str | None:
    weight = sections.part(config, ["agent"]).get("munchausen", 0)
    return None if weight else "agent.munchausen=0, and without it nothing is added to the reward"


# Keys, ``*`` for any, to the reason why one of them has no effect in a configuration, or ``None``.
CONDITIONS: dict[str, Callable[[ConfigDict], str | None]] = {
    "warm_start.steps": _no_demonstrations,
    "warm_start.batch": _no_demonstrations,
    "warm_start.learning_rate": _no_demonstrations,
    "agent.return_scale": _no_stock,
    "agent.use_stock": _no_stock,
    "agent.stock_*": _no_stock,
    **{
        f"agent.{name}": _no_replay
        for name in ("capacity", "batch_size", "learning_starts", "target_rate", "target_period", "importance_exponent")
    },
    "agent.trace_cut": _no_trace,
    "agent.log_policy_floor": _no_munchausen,
    "agent.value_weight": _no_critic,
    "agent.value_clip": _no_critic,
    "agent.shared_critic": _no_critic,
    "agent.popart": _no_critic,
    "data.group_size": _no_groups,
    "rollout.start_states": _no_start_states,
}
