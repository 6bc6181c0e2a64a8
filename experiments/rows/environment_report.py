"""What a run depends on beside its configuration."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.disk import read_json_object, write_json_atomic
from experiments.errors import UserError

# The field that says on which episodes the seeds of a run are evaluated: each on its own. Rows without it were made
# when all seeds shared one draw, which an interval over seeds leaves out.
EVALUATION_EPISODES, PER_SEED = "evaluation_episodes", "per_seed"
# Settings of JAX that change numbers: the generator of random numbers, how it is split over devices, 64 bits, and how
# exact products of matrices are.
SETTINGS = (
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_enable_x64",
    "jax_default_matmul_precision",
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "gymnasium")


def environment_report(command: Sequence[str] | None = None) -> dict[str, Any]:
    """What a run depends on beside its configuration.

    Args:
      command: the command line as words; ``sys.argv`` if none.

    Returns:
      ``commit`` (None unless sagax is a git checkout of its own), ``dirty`` (tracked files differ from the commit),
      ``versions``, ``device`` (kind), ``device_count``, ``platform``, ``evaluation_episodes``, ``settings`` (of JAX:
      see ``SETTINGS``), ``xla_flags`` (the variable), ``command``, ``started`` (UTC).
    """
    import jax

    root = Path(__file__).resolve().parents[2]
    # A copy inside another repository would be told that one's commit.
    top = _git(root, "rev-parse", "--show-toplevel")
    own = top is not None and Path(top).resolve() == root
    commit = _git(root, "rev-parse", "HEAD") if own else None
    status = _git(root, "status", "--porcelain", "--untracked-files=no") if own else None
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    device = jax.devices()[0]
    return {
        "commit": commit,
        "dirty": None if status is None else bool(status),
        "versions": versions,
        "device": device.device_kind,
        "device_count": jax.device_count(),
        "platform": device.platform,
        "system": platform.platform(),
        EVALUATION_EPISODES: PER_SEED,
        "settings": settings(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "command": shlex.join(command if command is not None else command_line()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def note_session(path: Path, first_row: int, facts: Mapping[str, Any] | None = None) -> None:
    """Writes into a run folder who makes its rows from ``first_row`` on.

    The file holds the ``environment_report`` of the first session and a list ``continued`` of those after it. Rows from
    a session's ``first_row`` to that of the next one are its own; one of which no row was left is forgotten.

    Args:
      path: the file.
      first_row: how many rows the run has before this session makes one.
      facts: what else there is to say of the session.
    """
    report = environment_report() | dict(facts or {})
    if first_row and path.exists():
        earlier = read_environment(path)
        kept = [session for session in earlier.get("continued", []) if session["first_row"] < first_row]
        report = earlier | {"continued": [*kept, {"first_row": first_row} | report]}
    write_json_atomic(path, report)


def read_environment(path: Path) -> dict[str, Any]:
    """What ``note_session`` wrote.

    Raises:
      UserError: if it cannot be read, or is no such file.
    """
    report = read_json_object(path)
    sessions = report.get("continued", [])
    good = isinstance(sessions, list) and all(
        isinstance(session, dict) and type(session.get("first_row")) is int for session in sessions
    )
    if not good:
        raise UserError(
            f"{path} describes no sessions: its 'continued' is no list of objects with an integer first_row"
        )
    for session in (report, *sessions):
        if not isinstance(session.get("settings", {}), dict):
            raise UserError(f"{path} describes no sessions: its 'settings' are no object")
    return report


def settings() -> dict[str, Any]:
    """The settings of JAX that change the numbers of a run, by name."""
    import jax

    return {name: jax.config.values[name] for name in SETTINGS}


def require_same_settings(path: Path) -> None:
    """Refuses to continue a run with other settings of JAX than it was made with.

    Args:
      path: the file of ``note_session``; where there is none, and in one without settings, nothing is known of them.

    Raises:
      UserError: with the settings that differ.
    """
    if not path.exists():
        return
    report = read_environment(path)
    made = [report, *report.get("continued", [])][-1].get("settings", {})
    now = settings()
    differing = [
        f"{name}={made[name]}, and now {now[name]}" for name in SETTINGS if name in made and made[name] != now[name]
    ]
    if differing:
        raise UserError(
            f"{path.parent} was made with other settings of JAX: {'; '.join(differing)}: set them as they were (the "
            "environment variables have these names in capitals), or give --fresh to start over"
        )


def changed_sessions(report: Mapping[str, Any], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Of a file of ``note_session``: per session that differs from the one before it in ``keys``, its ``first_row`` and
    what differs."""
    changes = []
    before = report
    for session in report.get("continued", []):
        differs = {key: session.get(key) for key in keys if session.get(key) != before.get(key)}
        if differs:
            changes.append({"first_row": session["first_row"]} | differs)
        before = session
    return changes


def command_line() -> list[str]:
    """The words of the command that runs, as a user would type them: ``sagax`` and its arguments, or the script's."""
    specification = getattr(sys.modules.get("__main__"), "__spec__", None)
    ours = specification is not None and specification.name == "experiments.__main__"
    if ours or Path(sys.argv[0]).name == "sagax":
        return ["sagax", *sys.argv[1:]]
    start = ["python", "-m", specification.name] if specification is not None else ["python", sys.argv[0]]
    return [*start, *sys.argv[1:]]


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
