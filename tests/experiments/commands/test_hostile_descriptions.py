"""A ``config.json`` that is damaged, or somebody else's, is one clear line in every command that reads it."""

import copy
import json
import math

import pytest

from experiments.assembly import registry
from experiments.assembly.members import Member
from experiments.commands import collect, evaluate, figures, ratings, run, summary, visits
from experiments.errors import UserError
from experiments.rows import run_folders
from experiments.rows.reading import encode_line
from experiments.training.restored import read_run
from experiments.training.train import prepare_folder

NAMES = ("ppo_cartpole:native,smoke", "eta_gridworld:smoke", "curiosity_maze:rnd,smoke", "oni_minigrid:smoke")


def described(name):
    loaded = registry.load(name)
    members = [{"seed": 0, "variant": loaded.variant, "values": {}}]
    return loaded, {"config": registry.to_json_dict(loaded.config), "members": members, "programs": [1]}


@pytest.fixture(scope="module")
def descriptions():
    return {name: described(name) for name in NAMES}


def folder_of(runs, loaded):
    """A run folder with rows and without a description or a checkpoint."""
    folder = run_folders.run_folder(runs, loaded.name, loaded.variant)
    folder.mkdir(parents=True)
    rows = [
        {"experiment": loaded.name, "variant": loaded.variant, "seed": 0, "env_steps": step, "iteration": step}
        | {loaded.config.evaluation.metric: 1.0, "return": 1.0}
        for step in (1, 2)
    ]
    (folder / run_folders.METRICS_FILE).write_bytes(b"".join(map(encode_line, rows)))
    (folder / run_folders.ENVIRONMENT_FILE).write_text("{}")
    return folder


TEXTS = {
    "nothing": b"",
    "half": b'{"config": {"agent": ',
    "no UTF-8": b'{"config": "\xff"}',
    "too deep": b'{"config": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
    "deep objects": b'{"config": ' + b'{"a": ' * 10**5 + b"1" + b"}" * 10**5 + b"}",
    "a huge integer": b'{"config": 1' + b"0" * 400 + b"}",
    "a huge float": b'{"config": 1e999}',
    "no number": b'{"config": NaN}',
    "infinity": b'{"config": -Infinity}',
    "a list": b"[]",
    "a number": b"3",
    "text": b'"\\u001b[31m"',
    "half a character": b'{"config": "\\ud800"}',
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_describes_nothing_is_one_line(text, descriptions, tmp_path, capsys):
    loaded, _ = descriptions["ppo_cartpole:native,smoke"]
    folder = folder_of(tmp_path / "runs", loaded)
    path = folder / run_folders.CONFIG_FILE
    path.write_bytes(TEXTS[text])
    out = ["--out", str(tmp_path / "out.jsonl")]
    commands = {
        run: [f"{loaded.name}:{loaded.variant}", f"--runs={tmp_path / 'runs'}"],
        evaluate: [str(folder)],
        visits: [str(folder), *out],
        ratings: [str(folder), *out],
        collect: [str(folder), *out],
    }
    before = {one: one.read_bytes() for one in tmp_path.rglob("*") if one.is_file()}
    for command, arguments in commands.items():
        assert command.main(arguments) == 2
        printed = capsys.readouterr()
        [line] = printed.err.splitlines()
        assert line.startswith("error: ") and str(path) in line and len(line) < 400 and "\x1b" not in line
        assert printed.out == ""
    assert {one: one.read_bytes() for one in tmp_path.rglob("*") if one.is_file()} == before


def test_rows_are_read_without_a_description(descriptions, tmp_path, capsys):
    loaded, _ = descriptions["ppo_cartpole:native,smoke"]
    path = folder_of(tmp_path / "runs", loaded) / run_folders.CONFIG_FILE
    path.write_bytes(TEXTS["too deep"])
    arguments = [loaded.name, "--metric=return", f"--runs={tmp_path / 'runs'}"]
    assert summary.main(arguments) == 0 and figures.main([*arguments, f"--out={tmp_path / 'curve.png'}"]) == 0
    assert capsys.readouterr().err == "" and path.read_bytes() == TEXTS["too deep"]


WRONG = (None, True, -1, 2**62, 1e308, "x", "\x1b[31m", [], [1, "a"], [[[]]], {}, {"a": {"b": []}}, "a.b:c")
# Whatever takes the place of these keys of the configuration, or their absence, never becomes a traceback.
PLACES = {
    "ppo_cartpole:native,smoke": (
        *("agent", "agent.family", "agent.epochs", "agent.clip", "credit", "credit.env", "credit.env.channel"),
        *("credit.env.estimator", "data.batch", "data.kind", "environment", "environment.kind", "evaluate_every"),
        *("evaluation.metric", "evaluators", "evaluators.episodes", "evaluators.episodes.count", "iterations"),
        *("evaluators.episodes.cut", "network.hidden", "rewards", "rollout", "rollout.start_states", "seeds"),
    ),
    "eta_gridworld:smoke": (
        *("agent.capacity", "agent.channels", "agent.channels.env", "agent.functional", "agent.functional.kind"),
        *("agent.stock_features", "environment.stock", "evaluators.exact.objectives", "evaluators.exact.candidates"),
    ),
    "curiosity_maze:rnd,smoke": ("environment.time_limit", "evaluators.episodes.count", "rewards.curiosity"),
    "oni_minigrid:smoke": ("annotator", "annotator.phrases", "annotator.noise", "rewards.language"),
}
READERS = {"curiosity_maze:rnd,smoke": visits, "oni_minigrid:smoke": ratings}
ABSENT = object()


def changed(description, place, value):
    """``description`` with ``value`` at the dotted ``place`` of its configuration."""
    made = copy.deepcopy(description)
    *path, leaf = place.split(".")
    holder = made["config"]
    for name in path:
        holder = holder[name]
    if value is ABSENT:
        del holder[leaf]
    else:
        holder[leaf] = value
    return made


@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_another_kind_is_one_line(name, descriptions, tmp_path, capsys):
    loaded, description = descriptions[name]
    folder = folder_of(tmp_path, loaded)
    path = folder / run_folders.CONFIG_FILE
    command = READERS.get(name, evaluate)
    out = [] if command is evaluate else [f"--out={tmp_path / 'out.jsonl'}"]
    path.write_text(json.dumps(description))
    assert command.main([str(folder), *out]) == 2
    assert "no checkpoint in" in capsys.readouterr().err
    for place in PLACES[name]:
        for value in (ABSENT, *WRONG):
            path.write_text(json.dumps(changed(description, place, value)))
            assert command.main([str(folder), *out]) == 2, (place, value)
            [line] = capsys.readouterr().err.splitlines()
            assert line.startswith("error: ") and "\x1b" not in line and len(line) < 1000, (place, value)


MEMBERS = {
    "none": [],
    "no list": 3,
    "no objects": [3],
    "without a seed": [{"variant": "", "values": {}}],
    "a seed below 0": [{"seed": -1, "variant": "", "values": {}}],
    "a seed of 40 bits": [{"seed": 2**40, "variant": "", "values": {}}],
    "a truth value": [{"seed": True, "variant": "", "values": {}}],
    "values that are lists": [{"seed": 0, "variant": "", "values": {"agent.clip": [1]}}],
    "one twice": [{"seed": 0, "variant": "", "values": {}}] * 2,
}


@pytest.mark.parametrize("case", [*MEMBERS, "programs"])
def test_members_that_cannot_be(case, descriptions, tmp_path):
    loaded, description = descriptions["ppo_cartpole:native,smoke"]
    made = {name: part for name, part in description.items() if name != "programs"}
    # Without ``programs``, all members are those of one.
    made |= {"programs": [2]} if case == "programs" else {"members": MEMBERS[case]}
    (tmp_path / run_folders.CONFIG_FILE).write_text(json.dumps(made))
    for read in (read_run, lambda folder: prepare_folder(folder, loaded.config, [Member(0, loaded.variant)])):
        with pytest.raises(UserError, match=r"config\.json describes no run: "):
            read(tmp_path)


def test_values_of_unknown_keys_are_refused(descriptions, tmp_path):
    _, description = descriptions["ppo_cartpole:native,smoke"]
    for key in ("agent.clop", "agent.epochs", "agent"):
        members = [{"seed": 0, "variant": "", "values": {key: 1.0}}]
        (tmp_path / run_folders.CONFIG_FILE).write_text(json.dumps(description | {"members": members}))
        with pytest.raises(UserError, match=f"its members have values of '{key}', expected numbers"):
            read_run(tmp_path)


def test_what_every_experiment_writes_is_read(tmp_path):
    """The checks refuse no configuration of our own."""
    for name in registry.names():
        variants = [token for token in registry.module_of(name).VARIANTS if token != "smoke"]
        for variant in ("smoke", *(f"{token},smoke" for token in variants)):
            _, description = described(f"{name}:{variant}")
            (tmp_path / run_folders.CONFIG_FILE).write_text(json.dumps(description))
            config, [member] = read_run(tmp_path)
            assert registry.to_json_dict(config) == description["config"]
            assert member.seed == 0 and math.isfinite(config.iterations)
