"""The values of ``kind``: an entry of a catalogue, or the import path of a factory from elsewhere."""

import os

import gymnasium
import pytest
from ml_collections import ConfigDict

from envs.kinds import Kind
from envs.ranges import ZERO_UP
from experiments.assembly import registry
from experiments.assembly.build import build_environment
from experiments.assembly.kinds import require_trusted, resolve
from experiments.assembly.sections import imported_kinds
from experiments.errors import UserError
from rewards.catalogue import REWARDS
from rewards.catalogue import Kind as RewardKind
from tests.experiments.assembly import parts

PARTS = "tests.experiments.assembly.parts"
TABLE = {"bare": dict, "declared": Kind(list, ranges={"size": ZERO_UP})}


def test_a_name_of_the_table():
    assert resolve("bare", TABLE, "part") == Kind(dict)
    assert resolve("declared", TABLE, "part") is TABLE["declared"]
    assert resolve("scale", REWARDS, "reward transform", record=RewardKind) is REWARDS["scale"]


def test_an_import_path_is_a_factory_or_a_record():
    assert resolve(f"{PARTS}:threshold", REWARDS, "reward transform", record=RewardKind) == RewardKind(parts.threshold)
    assert resolve(f"{PARTS}:THRESHOLD", REWARDS, "reward transform", record=RewardKind) is parts.THRESHOLD
    assert resolve("collections:OrderedDict.fromkeys", {}, "part").factory({"a"}) == {"a": None}


def test_a_module_of_the_working_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "own_part_of_the_folder.py").write_text("def part(): return 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    assert resolve("own_part_of_the_folder:part", {}, "part").factory() == 7


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bear", r"unknown part 'bear' in place, did you mean 'bare'\? \(known: bare, declared\)"),
        (None, "unknown part None in place"),
        (["bare"], r"unknown part \['bare'\] in place"),
        (
            "no_such_package.module:part",
            "part 'no_such_package.module:part' in place: there is no module 'no_such_pack",
        ),
        (f"{PARTS}.deeper:part", f"there is no module '{PARTS}.deeper'; expected one that is installed or lies in "),
        (f"{PARTS}:NO_FACTORY", r"parts\.py has no 'NO_FACTORY', did you mean 'NOT_A_FACTORY'"),
        (
            f"{PARTS}:NOT_A_FACTORY",
            "'.*NOT_A_FACTORY' in place is int, expected a factory that can be called, or a envs.",
        ),
        ("a:b:c", "expected MODULE:ATTRIBUTE, such as my_package.my_module:factory"),
        (":part", "expected MODULE:ATTRIBUTE"),
        ("module:", "expected MODULE:ATTRIBUTE"),
        ("../module:part", "expected MODULE:ATTRIBUTE"),
    ],
)
def test_what_is_refused(kind, message):
    with pytest.raises(UserError, match=message):
        resolve(kind, TABLE, "part", "in place")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nraise RuntimeError('two\\nlines')\n", r"RuntimeError: two lines \(.*broken_\d+\.py, line 2\)"),
        ("def part(:\n", r"SyntaxError: .* \(.*broken_\d+\.py, line 1\)"),
        ("import no_such_library\n", r"ModuleNotFoundError: No module named 'no_such_library' \(.*, line 1\)"),
        ("raise SystemExit(3)\n", r"SystemExit: 3 \(.*, line 1\)"),
    ],
)
def test_a_module_that_fails_is_one_line_with_the_place(tmp_path, monkeypatch, source, message):
    name = f"broken_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"part '{name}:part': {message}") as refusal:
        resolve(f"{name}:part", {}, "part")
    assert "\n" not in str(refusal.value)


def test_what_a_file_names_by_import_path_is_not_imported_before_it_is_trusted(monkeypatch):
    config = ConfigDict(
        {
            "environment": {"kind": "os:system", "command": "false"},
            "network": {"kind": "own_package.networks:network", "hidden": (4,)},
            "agent": {"family": "policy_gradient", "note": "a:b"},
            "credit": {"env": {"estimator": "gae"}, "own": {"estimator": "own_package.module:estimator"}},
            "rewards": {"own": {"kind": "own_package.rewards:transform"}, "env": {"kind": "scale"}},
        }
    )
    paths = imported_kinds(config)
    assert paths == {
        "environment.kind": "os:system",
        "network.kind": "own_package.networks:network",
        "credit.own.estimator": "own_package.module:estimator",
        "rewards.own.kind": "own_package.rewards:transform",
    }
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("a file executed something"))
    with pytest.raises(
        UserError, match=r"runs/x: credit\.own\.estimator=own_package\.module:estimator would import and"
    ):
        require_trusted(paths, "runs/x")
    monkeypatch.setenv("SAGAX_TRUST", "own_package.module,own_package.rewards,own_package.networks")
    with pytest.raises(
        UserError, match=r"environment\.kind=os:system would import and call system of os; .*TRUST=os in"
    ):
        require_trusted(paths, "runs/x")
    monkeypatch.setenv("SAGAX_TRUST", "own_package.mod,os")
    with pytest.raises(
        UserError, match=r"credit\.own\.estimator=.*expected SAGAX_TRUST=own_package in the environment"
    ):
        require_trusted(paths, "runs/x")
    monkeypatch.setenv("SAGAX_TRUST", "own_package, os")
    require_trusted(paths, "runs/x")
    require_trusted({}, "runs/x")


def test_an_identifier_of_gymnasium_with_a_module_is_an_import_path(monkeypatch, tmp_path):
    """The module is found in the working directory, and a run folder that names one imports it only where trusted."""
    (tmp_path / "registers_own.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('OwnCartPole-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv')\n"
    )
    config = registry.load("ppo_cartpole:smoke").config
    config.environment.environment_id = "registers_own:OwnCartPole-v0"
    assert imported_kinds(config) == {"environment.environment_id": "registers_own:OwnCartPole-v0"}
    with pytest.raises(UserError, match=r"registers_own:OwnCartPole-v0.*there is no module 'registers_own'"):
        build_environment(config)
    monkeypatch.chdir(tmp_path)
    try:
        assert build_environment(config).spec.action_space.n == 2
    finally:
        gymnasium.registry.pop("OwnCartPole-v0", None)
