"""The examples in docstrings say what the functions return."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("envs", "agents", "rewards", "experiments")


def modules_with_examples() -> list[str]:
    """The dotted names of the modules that hold an example, found by their text: nothing else is imported."""
    files = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    found = (path.relative_to(ROOT) for path in files if "    >>> " in path.read_text(encoding="utf-8"))
    return [".".join(path.with_suffix("").parts) for path in found]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0


def test_there_are_examples():
    assert {"agents.returns", "envs.choices", "experiments.rows.statistics"} <= set(modules_with_examples())
