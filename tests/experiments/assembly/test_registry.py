"""Experiments by name: what is loaded, what is refused, and what a fingerprint covers."""

import json
import textwrap

import pytest
from ml_collections import ConfigDict, config_dict

from experiments.assembly import registry
from experiments.assembly.members import variant_name
from experiments.errors import INTERRUPT_EXIT, USAGE_EXIT, UserError, command

MODULE = '''
"""The run card."""
from ml_collections import ConfigDict, config_dict

VARIANTS = {"oprl": "process rewards", "grpo": "group z-score", "warm": "from demonstrations"}
REPRODUCES = "A paper, figure 1"


def get_config(variant=""):
    tokens = variant.split(",") if variant else []
    if "oprl" in tokens and "grpo" in tokens:
        raise ValueError("choose one of oprl, grpo")
    config = ConfigDict({"tokens": tuple(tokens), "steps": 100, "credit": {"weight": 0.5}})
    return config


def get_sweep():
    return {"credit.weight": [0.1, 0.3]}
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of configurations with its own name, because Python keeps imported modules."""
    name = f"configs_{abs(hash(str(tmp_path)))}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "_shared.py").write_text("")
    (folder / "oprl_sokoban.py").write_text(MODULE)
    (folder / "ppo_cartpole.py").write_text(MODULE)
    (folder / "broken.py").write_text(textwrap.dedent("VARIANTS = {}"))
    (folder / "half_raises.py").write_text('"""Card."""\nimport no_such_library\n')
    (folder / "half_syntax.py").write_text("def get_config(:\n")
    (folder / "half_config.py").write_text(MODULE.replace("config = ConfigDict", "config = NoSuchName"))
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.fixture
def config():
    config = ConfigDict(
        {
            "steps": 100,
            "name": "sokoban",
            "credit": {"implicit_prm": {"weight": 0.5, "rolling": True}, "channels": ("env",)},
            "network": {"widths": (64, 64), "layers": ((16, 3), (32, 3)), "empty": ()},
        }
    )
    config.limit = config_dict.placeholder(int)
    config.label = config_dict.placeholder(str)
    config.lock()
    return config


def test_names_lists_experiments_and_not_shared_modules(package):
    halves = ["half_config", "half_raises", "half_syntax"]
    assert registry.names(package) == ["broken", *halves, "oprl_sokoban", "ppo_cartpole"]


def test_load_gives_a_locked_config_of_the_canonical_variant(package):
    loaded = registry.load("oprl_sokoban:warm,grpo", package)
    assert (loaded.name, loaded.variant, loaded.config.tokens) == ("oprl_sokoban", "grpo,warm", ("grpo", "warm"))
    assert loaded.module.REPRODUCES == "A paper, figure 1"
    assert loaded.config.is_locked and loaded.config.credit.is_locked
    again = registry.load("oprl_sokoban:grpo,warm,grpo", package)
    assert again.variant == loaded.variant
    assert registry.fingerprint(again.config) == registry.fingerprint(loaded.config)
    assert registry.load("oprl_sokoban", package).variant == registry.load("oprl_sokoban:", package).variant == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("oprl_sokobann", r"unknown experiment 'oprl_sokobann', did you mean 'oprl_sokoban'\?"),
        ("zzz", r"unknown experiment 'zzz'.*known: broken, half_config, .*, oprl_sokoban, ppo_cartpole"),
        ("_shared", "unknown experiment '_shared'"),
        (
            "oprl_sokoban:gpro",
            r"unknown variant 'gpro' of 'oprl_sokoban', did you mean 'grpo'.*\(known: oprl, grpo, warm\)",
        ),
        ("oprl_sokoban:grpo,,warm", "unknown variant ''"),
        ("oprl_sokoban:oprl,grpo", "no variant 'oprl,grpo': choose one of oprl, grpo"),
        ("broken", "'broken' is incomplete: its module lacks get_config, get_sweep, REPRODUCES"),
        (
            "half_raises",
            r"'half_raises' is broken: ModuleNotFoundError: No module named .* \(.*half_raises\.py, line 2\)",
        ),
        ("half_syntax", r"'half_syntax' is broken: SyntaxError: .* \(.*half_syntax\.py, line 1\)"),
        ("half_config", r"'half_config' is broken: NameError: name 'NoSuchName' .* \(.*half_config\.py, line 13\)"),
    ],
)
def test_load_refuses(package, name, message):
    with pytest.raises(UserError, match=message):
        registry.load(name, package)


def test_a_half_written_experiment_is_left_out_in_one_line(package):
    modules, lines = registry.whole_modules(package)
    # ``half_config`` is whole until its configuration is asked for.
    assert list(modules) == ["half_config", "oprl_sokoban", "ppo_cartpole"]
    assert [line.split("'")[1] for line in lines] == ["broken", "half_raises", "half_syntax"]
    assert all(line.startswith("left out: experiment ") and "\n" not in line for line in lines)


@pytest.mark.parametrize(
    ("printed", "variant", "overrides"),
    [
        ("grpo+credit.weight=0.25", "grpo", {"credit.weight": "0.25"}),
        ("+credit.weight=1e+20", "", {"credit.weight": "1e+20"}),
        ("grpo+sweep+credit.weight=0.25+steps=7", "grpo", {"credit.weight": "0.25", "steps": "7"}),
        ("warm,grpo+sweep+steps=7", "grpo,warm", {"steps": "7"}),
        ("grpo", "grpo", {}),
        ("default", "", {}),
        ("default+sweep+steps=7", "", {"steps": "7"}),
    ],
)
def test_a_variant_is_accepted_as_tables_print_it(package, printed, variant, overrides):
    loaded = registry.load(f"oprl_sokoban:{printed}", package)
    assert (loaded.variant, loaded.overrides) == (variant, overrides)
    plain = registry.load(f"oprl_sokoban:{variant}", package)
    assert loaded.config.to_dict() == registry.apply_overrides(plain.config, overrides).to_dict()
    # A run of it is filed under the same name again.
    if "sweep" not in printed and printed != registry.DEFAULT_VARIANT:
        assert variant_name(loaded.variant, loaded.overrides, loaded.config) == printed


def test_settings_of_the_name_and_of_the_arguments_are_combined(package):
    loaded = registry.load("oprl_sokoban:grpo+credit.weight=0.25", package)
    both = registry.with_overrides(loaded, {"steps": "7"})
    assert (both.config.credit.weight, both.config.steps) == (0.25, 7)
    assert both.overrides == {"credit.weight": "0.25", "steps": "7"}
    with pytest.raises(UserError, match=r"'credit\.weight' is given twice: '0\.25' and '1'"):
        registry.with_overrides(loaded, {"credit.weight": "1"})
    with pytest.raises(UserError, match="unknown variant 'gpro'"):
        registry.load("oprl_sokoban:gpro+credit.weight=0.25", package)
    with pytest.raises(UserError, match="unknown configuration key 'stepz', did you mean 'steps'"):
        registry.load("oprl_sokoban:grpo+stepz=3", package)


def test_parse_overrides():
    parsed = registry.parse_overrides(["--config.a.b=0.3", "--config.text=x=y", "--config.empty="])
    assert parsed == {"a.b": "0.3", "text": "x=y", "empty": ""}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--confg.a=1"], "unknown argument '--confg.a', did you mean '--config.KEY=VALUE'"),
        (["--config.a"], "'--config.a' has no value: expected --config.a=VALUE"),
        (["--config.=1"], "expected --config.KEY=VALUE"),
        (["--config.a=1", "--config.a=2"], "'a' is given twice: '1' and '2'"),
    ],
)
def test_parse_overrides_refuses(arguments, message):
    with pytest.raises(UserError, match=message):
        registry.parse_overrides(arguments)


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("steps", "250", 250),
        ("steps", "1e6", 1_000_000),
        ("steps", "-3.0", -3),
        ("steps", 4.0, 4),
        ("credit.implicit_prm.weight", "2", 2.0),
        ("credit.implicit_prm.weight", 3, 3.0),
        ("credit.implicit_prm.weight", ".3", 0.3),
        ("credit.implicit_prm.rolling", "false", False),
        ("credit.implicit_prm.rolling", "True", True),
        ("name", "7", "7"),
        ("name", "none", "none"),
        ("credit.channels", "env,cost/speed", ("env", "cost/speed")),
        ("credit.channels", "[env]", ("env",)),
        ("credit.channels", "'a', 'b'", ("a", "b")),
        ("network.widths", "32", (32,)),
        ("network.widths", "[32, 16]", (32, 16)),
        ("network.widths", "(1e2,)", (100,)),
        ("network.widths", "", ()),
        ("network.widths", [8, 4], (8, 4)),
        ("network.layers", "(8,3),(4,1)", ((8, 3), (4, 1))),
        ("network.layers", "[[8,3]]", ((8, 3),)),
        ("network.empty", "1,2.5", (1, 2.5)),
        ("limit", "12", 12),
        ("limit", "none", None),
        ("limit", None, None),
        ("label", "x", "x"),
        ("label", "none", None),
    ],
)
def test_an_override_takes_the_type_of_the_value_it_replaces(config, key, given, expected):
    before = registry.to_json_dict(config)
    changed = registry.apply_overrides(config, {key: given})
    value = registry.keys(changed)[key]
    assert value == expected and type(value) is type(expected)
    assert registry.to_json_dict(config) == before, "the given configuration must stay as it is"
    assert changed.is_locked and changed.credit.is_locked


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("steps", "0.5", "got '0.5', expected an integer, such as 100"),
        ("steps", True, r"got True \(bool\), expected an integer"),
        ("steps", "ten", "got 'ten', expected an integer"),
        ("steps", "none", "expected an integer, never none"),
        ("steps", 1.5, r"got 1.5 \(float\), expected an integer"),
        ("credit.implicit_prm.weight", "nan", "got 'nan', expected a finite number"),
        ("credit.implicit_prm.weight", float("inf"), "expected a finite number"),
        ("credit.implicit_prm.weight", "1,2", "expected a finite number, such as 0.5"),
        ("credit.implicit_prm.weight", True, "expected a finite number"),
        ("credit.implicit_prm.rolling", "1", r"got '1', expected a truth value \(true or false\)"),
        ("credit.implicit_prm.rolling", 1, r"got 1 \(int\), expected a truth value"),
        ("name", 3, "expected text, such as 'sokoban'"),
        ("name", None, "expected text, never none"),
        ("limit", "1.5", "expected an integer or none"),
        ("steps", "9" * 21, "expected an integer of at most 2147483647, such as 100"),
        ("steps", "1e30", "expected an integer of at most 2147483647, such as 100"),
        ("steps", "9" * 400, "expected an integer, such as 100"),
        ("limit", "9" * 400, "expected an integer or none"),
        ("credit.implicit_prm.weight", "9" * 400, "expected a finite number"),
        ("network.widths", "64,2147483648", "expected a sequence of integers of at most 2147483647"),
        ("network.widths", "64,a", "each element is an integer, such as"),
        ("network.widths", "64,0.5", "each element is an integer"),
        ("network.widths", "[64", "got '\\[64', expected a sequence, written 1,2"),
        ("network.widths", "64,,64", "expected a sequence"),
        ("network.widths", 64, r"got 64 \(int\), expected a sequence"),
        ("credit", "x", "'credit' is a section, expected one of credit.channels, credit.implicit_prm"),
        ("credit.implicit_prm.wieght", "1", "did you mean 'credit.implicit_prm.weight'"),
        ("weight", "1", "unknown configuration key 'weight', did you mean 'credit.implicit_prm.weight'"),
        ("steps.x", "1", "unknown configuration key 'steps.x'"),
    ],
)
def test_an_override_of_another_type_or_key_is_refused(config, key, given, expected):
    with pytest.raises(UserError, match=expected):
        registry.apply_overrides(config, {"steps": "7", key: given} if key != "steps" else {key: given})
    assert config.steps == 100


def test_a_configuration_survives_json(config):
    values = json.loads(json.dumps(registry.to_json_dict(config)))
    restored = registry.from_json_dict(values)
    assert restored.network.layers == ((16, 3), (32, 3)) and restored.limit is None and restored.is_locked
    assert registry.to_json_dict(restored) == registry.to_json_dict(config)
    assert registry.fingerprint(values) == registry.fingerprint(restored) == registry.fingerprint(config)
    with pytest.raises(UserError, match=r"'a\.b' holds <function"):
        registry.to_json_dict(ConfigDict({"a": {"b": lambda: 0}}))


def test_fingerprint_and_difference_see_values_and_not_the_order_of_keys(config):
    reordered = ConfigDict(dict(reversed(list(registry.to_json_dict(config).items()))))
    assert registry.fingerprint(reordered) == registry.fingerprint(config)
    assert registry.difference(config, reordered) == []
    changed = registry.apply_overrides(config, {"steps": 200, "credit.implicit_prm.weight": 0.25})
    assert registry.fingerprint(changed) != registry.fingerprint(config)
    assert registry.difference(config, changed) == [("credit.implicit_prm.weight", 0.5, 0.25), ("steps", 100, 200)]
    assert registry.fingerprint(changed, ["steps", "credit"]) == registry.fingerprint(config, ["steps", "credit"])
    assert [row.key for row in registry.difference(config, changed, ignore=["credit"])] == ["steps"]
    lacking = {key: value for key, value in registry.to_json_dict(config).items() if key != "name"}
    (only,) = registry.difference(config, lacking)
    assert str(only) == "name: 'sokoban' against (absent)"


def test_a_fingerprint_is_the_same_in_every_process():
    # SHA-256 of {"a.b":[1,2.5],"c":null}, from the sha256sum program.
    assert registry.fingerprint({"c": None, "a": {"b": (1, 2.5)}}) == "2ae3d0c2b3e15e1e"


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (UserError("steps=0: expected at least 1"), USAGE_EXIT, "error: steps=0: expected at least 1\n"),
        (KeyboardInterrupt(), INTERRUPT_EXIT, "interrupted\n"),
        (SystemExit(3), 3, ""),
        (SystemExit("text"), 1, "text\n"),
    ],
)
def test_command_turns_a_mistake_into_a_status(capsys, raised, status, message):
    @command
    def main(argv=None):
        raise raised

    assert main([]) == status
    assert capsys.readouterr() == ("", message)


def test_command_keeps_the_traceback_of_a_defect():
    @command
    def main(argv=None):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()
    assert command(lambda argv: None)() == 0
