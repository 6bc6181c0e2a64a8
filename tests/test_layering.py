"""Imports point one way, and the packages in the repository are the ones that are imported."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each package may import those before it.
LAYERS = ("envs", "agents", "rewards", "experiments", "examples", "notebooks")
# Disk, flags, clocks, loggers, display and configuration objects.
ONLY_EXPERIMENTS = (
    "argparse", "matplotlib", "ml_collections", "mlflow", "optuna", "orbax", "rich", "tensorboardX", "time", "wandb",
)  # fmt: skip
# The packages of experiments: each may import those of earlier entries; those of one entry do not import each other.
# Modules outside of them (errors, disk) are below all.
ROOMS = (
    ("configs",),
    ("evaluators", "annotation"),
    ("assembly",),
    ("rows",),
    ("training",),
    ("api",),
    ("benchmarks",),
    ("commands",),
)
NOT_IN_ENVS = ("flax", "optax", "orbax")
NETWORKS = "agents.networks"


def imported(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that ``source`` imports, relative names made absolute."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            above = parts[: len(parts) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # ``from flax import linen`` names a module as much as ``import flax.linen`` does.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            if node.args and isinstance(node.args[0], ast.Constant):
                yield node.lineno, str(node.args[0].value)


def room(module: str) -> int | None:
    """The place of a module's room in ``ROOMS``; -1 for what is below all, ``None`` for what is above or elsewhere."""
    package, *parts = module.split(".")
    if package != "experiments" or not parts or parts[0] == "__main__":
        return None
    return next((place for place, names in enumerate(ROOMS) if parts[0] in names), -1)


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """The forbidden imports of ``module``, described in one line each."""
    layer = module.split(".")[0]
    wrong = []

    def refuse(line: int, name: str, rule: str) -> None:
        wrong.append(f"{module}:{line} imports {name}: {rule}")

    for line, name in imported(source, module, is_package):
        top = name.split(".")[0]
        if top in LAYERS and LAYERS.index(top) > LAYERS.index(layer):
            refuse(line, name, f"{layer} lies below {top}")
        own, other = room(module), room(name)
        if own is not None and other is not None:
            beside = own == other and own >= 0 and module.split(".")[1] != name.split(".")[1]
            if other > own or beside:
                refuse(line, name, f"{module.split('.')[1]} does not know {name.split('.')[1]}")
        if top == "tests":
            refuse(line, name, "tests are imported by nothing")
        if layer == "envs" and top in NOT_IN_ENVS:
            refuse(line, name, "environments know no learning library")
        if (name == "flax" or name.startswith("flax.linen")) and not f"{module}.".startswith(f"{NETWORKS}."):
            refuse(line, name, f"only {NETWORKS} builds networks")
        if top in ONLY_EXPERIMENTS and LAYERS.index(layer) < LAYERS.index("experiments"):
            refuse(line, name, "only experiments touches disk, flags, clocks and displays")
    return wrong


def notebook_source(path: Path) -> str:
    """The Python of a notebook's code cells, without the lines that are commands to IPython."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code").splitlines()
    return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines)


def modules() -> list[tuple[str, Path]]:
    """Dotted name and file of every module and notebook of the repository."""
    files = [
        path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.*")) if path.suffix in (".py", ".ipynb")
    ]
    named = []
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not any(part.startswith(".") for part in parts):
            named.append((".".join(part for part in parts if part != "__init__"), path))
    return named


def test_imports_point_one_way():
    wrong = []
    for module, path in modules():
        source = notebook_source(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
        wrong += violations(source, module, path.name == "__init__.py")
    assert not wrong, "\n".join(wrong)


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The modules that import each other, directly or through others; ``imports`` holds what each module imports."""
    reached = {module: set(others) for module, others in imports.items()}
    for middle in imports:
        for module in imports:
            if middle in reached[module]:
                reached[module] |= reached[middle]
    within = {module: frozenset(o for o in reached[module] if module in reached.get(o, ())) for module in imports}
    return sorted(map(sorted, set(within.values()) - {frozenset()}))


def test_no_modules_import_each_other():
    """An import inside of a function counts, too: it hides a circle and does not take it away."""
    found = dict(modules())
    imports = {}
    for module, path in found.items():
        source = notebook_source(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
        names = [name for _, name in imported(source, module, path.name == "__init__.py")]
        # ``from a import b`` names the module ``a.b``, or something that the module ``a`` holds.
        imports[module] = {name if name in found else name.rpartition(".")[0] for name in names} & found.keys()
    assert circles(imports) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"e"}}) == [["a", "b", "c"], ["e"]]


def test_the_walk_sees_every_package():
    found = {module for module, _ in modules()}
    assert {"envs.base", "agents.networks", "rewards.base", "experiments.commands.run", "experiments.configs"} <= found


@pytest.mark.parametrize(
    ("module", "source", "rule"),
    [
        ("envs.a", "from agents.base import Agent", "envs lies below agents"),
        ("envs.a", "def f():\n    import agents", "envs lies below agents"),
        ("agents.a", "import rewards.base", "agents lies below rewards"),
        ("agents.a.b", "from ... import x\nfrom rewards import base", "agents lies below rewards"),
        ("rewards.a", "from experiments import results", "rewards lies below experiments"),
        ("experiments.a", "import notebooks.oprl", "experiments lies below notebooks"),
        ("experiments.evaluators.a", "from experiments.training import learn", "evaluators does not know training"),
        ("experiments.evaluators.a", "from experiments.annotation import http", "evaluators does not know annotation"),
        ("experiments.disk", "from experiments.rows import reading", "disk does not know rows"),
        ("experiments.rows.a", "import experiments.commands.run", "rows does not know commands"),
        ("agents.a", 'import importlib\nimportlib.import_module("rewards.base")', "agents lies below rewards"),
        ("experiments.a", "from tests.conftest import settings", "tests are imported by nothing"),
        ("envs.a", "import optax", "no learning library"),
        ("envs.a", "from flax.core import FrozenDict", "no learning library"),
        ("rewards.a", "from flax import linen as nn", "only agents.networks"),
        ("agents.a", "import flax.linen as nn", "only agents.networks"),
        ("experiments.a", "from flax.linen import Dense", "only agents.networks"),
        *((layer, f"import {name}.x", "only experiments") for layer in LAYERS[:3] for name in ONLY_EXPERIMENTS),
    ],
)
def test_a_violation_is_found(module, source, rule):
    assert any(rule in line for line in violations(source, module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("envs.a", "from envs.base import TimeStep\nimport gymnasium, jax, numpy"),
        ("agents.networks.a", "from flax import linen as nn"),
        ("agents.a", "import optax\nfrom . import networks"),
        ("rewards.a", "from agents.credit import Credit\nfrom envs import types"),
        ("experiments.a", "import time, argparse, orbax.checkpoint\nfrom rewards.base import chain"),
        ("experiments.training.a", "from experiments import disk, errors\nfrom experiments.evaluators.base import x"),
        ("experiments.__main__", "from experiments.commands import run"),
        ("notebooks.a", "import matplotlib.pyplot\nfrom experiments import figures"),
    ],
)
def test_what_is_allowed_is_not_refused(module, source):
    assert violations(source, module) == []


def test_relative_imports_are_made_absolute():
    assert list(imported("from . import a", "envs.b")) == [(1, "envs.a")]
    assert list(imported("from .a import c", "envs.inner", is_package=True)) == [(1, "envs.inner.a.c")]
    assert list(imported("from ..a import c", "envs.inner.b")) == [(1, "envs.a.c")]


def _import_experiments(folder: Path, *path: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-c", "import experiments"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_a_package_of_another_project_in_place_of_ours_is_refused(tmp_path):
    other = tmp_path / "site" / "agents"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    refused = _import_experiments(tmp_path, other.parent, ROOT)
    assert refused.returncode != 0
    assert f"package 'agents' is found at {other.resolve() / '__init__.py'}" in refused.stderr
    assert "openai-agents" in refused.stderr
    assert _import_experiments(tmp_path, ROOT, other.parent).returncode == 0
