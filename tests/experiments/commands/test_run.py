"""The command ``run``: its output and files, running it again, prolonging a run, and stopping before it begins."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest

from experiments.assembly import registry
from experiments.assembly.build import TEST_SEED
from experiments.assembly.members import members_of, variant_name
from experiments.commands import run as run_module
from experiments.commands.run import main
from experiments.disk import read_json
from experiments.errors import UserError
from experiments.rows import reading, run_folders
from experiments.training import host_driver
from experiments.training.train import CHECKPOINT_FOLDER, Outcome

OVERRIDES = [
    "--config.data.length=8",
    "--config.data.batch=4",
    "--config.network.hidden=4",
    "--config.agent.schedule=constant",
    "--config.agent.epochs=1",
    "--config.agent.minibatches=1",
    "--config.evaluators.episodes.count=2",
    "--config.evaluators.episodes.cut=10",
]
ARGUMENTS = ["ppo_cartpole:smoke", *OVERRIDES, "--seeds=2", "--first-seed=3"]
# The keys in alphabetical order, the values as the configuration holds them.
VARIANT = (
    "smoke+agent.epochs=1+agent.minibatches=1+agent.schedule=constant+data.batch=4+data.length=8"
    "+evaluators.episodes.count=2+evaluators.episodes.cut=10+network.hidden=(4,)"
)


def command(*arguments):
    """``(status, stdout, stderr)``."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(arguments))
    return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two seeds, four iterations and two evaluations, with what it printed."""
    runs = tmp_path_factory.mktemp("runs")
    printed = command(*ARGUMENTS, f"--runs={runs}", "--json", f"--figure={runs / 'curve.png'}")
    return runs, runs / "ppo_cartpole" / VARIANT, printed


@pytest.fixture
def again(trained, tmp_path):
    """A copy of the run, to be changed."""
    runs, folder, _ = trained
    shutil.copytree(folder, tmp_path / folder.relative_to(runs))
    return tmp_path, tmp_path / folder.relative_to(runs)


def rows_of(folder):
    rows = reading.read_rows(folder / run_folders.METRICS_FILE)
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def contents(folder):
    """Every file but the TensorBoard events, which are made anew of the rows."""
    files = (path for path in folder.rglob("*") if path.is_file() and run_folders.TENSORBOARD_FOLDER not in path.parts)
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_json_is_one_object_on_the_standard_output_alone(trained):
    _, folder, (status, out, err) = trained
    assert status == 0
    assert len(out.splitlines()) == 1
    answer = json.loads(out)
    assert answer.keys() == {"folder", "finished", "resumed_from", "seeds"}
    assert Path(answer["folder"]) == folder and answer["finished"] and answer["resumed_from"] is None
    last = [row for row in rows_of(folder) if row["iteration"] == 4]
    assert answer["seeds"] == [
        {key: row[key] for key in ("seed", "env_steps", "iteration", "return", "length")} for row in last
    ]
    assert "2 seeds" in err and str(folder) in err


def test_progress_is_plain_lines_where_there_is_no_terminal(trained):
    _, _, (_, _, err) = trained
    lines = [line for line in err.splitlines() if " environment steps" in line]
    assert lines and lines[-1].startswith("ppo_cartpole:smoke+")
    # 8 steps of 4 environments, 4 iterations, 2 seeds.
    assert ": 100 %, return " in lines[-1] and ", 0:00 left, 256 environment steps" in lines[-1]
    assert "\x1b" not in err and "\r" not in err


def test_rows_say_what_they_are_of(trained):
    _, folder, _ = trained
    rows = reading.read_rows(folder / run_folders.METRICS_FILE)
    identity = [(row["seed"], row["iteration"], row["env_steps"]) for row in rows]
    # One seed after the other on host environments; 8 x 4 environment steps an iteration.
    assert identity == [(3, 2, 64), (3, 4, 128), (4, 2, 64), (4, 4, 128)]
    for row in rows:
        assert row["experiment"] == "ppo_cartpole" and row["variant"] == VARIANT
        assert 1 <= row["return"] == row["length"] <= 10
        assert row["train/rejected_updates"] == 0
        assert row["time/steps_per_second"] > 0
        assert {"train/episodes", "train/return", "agent/entropy", "agent/policy_loss"} <= row.keys()


def test_the_configuration_and_the_environment_are_on_the_disk(trained):
    _, folder, _ = trained
    loaded = registry.load("ppo_cartpole:smoke")
    config = registry.apply_overrides(loaded.config, registry.parse_overrides(OVERRIDES))
    described = read_json(folder / run_folders.CONFIG_FILE)
    assert described["config"] == registry.to_json_dict(config)
    assert described["config"]["network"]["hidden"] == [4] and described["config"]["agent"]["schedule"] == "constant"
    assert described["members"] == [{"seed": seed, "variant": VARIANT, "values": {}} for seed in (3, 4)]
    environment = read_json(folder / run_folders.ENVIRONMENT_FILE)
    assert environment.keys() >= {"commit", "dirty", "versions", "device", "platform", "command", "started"}
    assert environment["versions"].keys() >= {"python", "jax", "numpy", "gymnasium"}
    assert environment["platform"] == "cpu"


def test_the_figure_is_a_png(trained):
    runs, _, _ = trained
    content = (runs / "curve.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and content.endswith(b"IEND\xaeB`\x82")


def test_each_seed_has_events_and_checkpoints(trained):
    _, folder, _ = trained
    assert {path.name for path in (folder / run_folders.TENSORBOARD_FOLDER).iterdir()} == {"seed_3", "seed_4"}
    assert {path.name for path in (folder / CHECKPOINT_FOLDER).iterdir()} == {"program_0", "program_1"}


def test_a_finished_run_is_only_reported(again, monkeypatch):
    runs, folder = again

    def trains(*arguments):
        raise AssertionError("a finished run trains no more")

    for name in ("start", "chunk", "evaluate"):
        monkeypatch.setattr(host_driver.HostDriver, name, trains)
    before = contents(folder)
    status, out, _ = command(*ARGUMENTS, f"--runs={runs}", "--json")
    assert status == 0
    answer = json.loads(out)
    assert answer["finished"] and answer["resumed_from"] == 4 and [one["seed"] for one in answer["seeds"]] == [3, 4]
    status, out, _ = command(*ARGUMENTS, f"--runs={runs}")
    assert status == 0
    assert "continued from iteration 4" in out and "return" in out
    assert "after 256 environment steps of 2 seeds together" in out
    assert contents(folder) == before


def test_a_prolonged_run_continues(again):
    runs, folder = again
    before = rows_of(folder)
    status, out, _ = command(*ARGUMENTS, "--config.iterations=6", f"--runs={runs}", "--json")
    assert status == 0
    answer = json.loads(out)
    assert Path(answer["folder"]) == folder and answer["resumed_from"] == 4
    assert [(one["seed"], one["iteration"], one["env_steps"]) for one in answer["seeds"]] == [(3, 6, 192), (4, 6, 192)]
    after = rows_of(folder)
    assert [row for row in after if row["iteration"] <= 4] == before
    assert [row["seed"] for row in after if row["iteration"] == 6] == [3, 4]
    assert read_json(folder / run_folders.CONFIG_FILE)["config"]["iterations"] == 6


def test_a_seed_alone_gives_the_rows_it_gives_beside_others(trained, tmp_path):
    _, folder, _ = trained
    status, out, _ = command("ppo_cartpole:smoke", *OVERRIDES, "--first-seed=4", f"--runs={tmp_path}", "--json")
    assert status == 0
    assert [one["seed"] for one in json.loads(out)["seeds"]] == [4]
    assert rows_of(tmp_path / "ppo_cartpole" / VARIANT) == [row for row in rows_of(folder) if row["seed"] == 4]


def test_a_signal_before_the_first_chunk_ends_without_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "train", lambda *arguments, **keywords: Outcome(False, 15, [], None))
    for flags in ([], ["--json"]):
        status, out, err = command(*ARGUMENTS, f"--runs={tmp_path}", *flags)
        assert status == 128 + 15
        assert "stopped by signal 15; the same command continues" in err
        assert (json.loads(out)["seeds"] == []) if flags else (out == "")


def test_a_range_of_stocks_that_is_too_narrow_at_the_end_is_shown(tmp_path, monkeypatch):
    row = {"variant": VARIANT, "seed": 3, "return": 1.0, "agent/stock_outside": 0.5, "edge/far": 1.0, "edge/near": 1.0}
    rows = [row | {"iteration": 2, "env_steps": 64}, row | {"iteration": 4, "env_steps": 128, "edge/near": 0.0}]
    monkeypatch.setattr(run_module, "train", lambda *arguments, **keywords: Outcome(True, None, rows, None))
    status, out, _ = command(*ARGUMENTS, f"--runs={tmp_path}")
    assert status == 0 and "agent/stock_outside" in out and "edge/far" in out and "edge/near" not in out
    status, out, _ = command(*ARGUMENTS, f"--runs={tmp_path}", "--json")
    [seed] = json.loads(out)["seeds"]
    assert seed["agent/stock_outside"] == 0.5 and seed["edge/far"] == 1 and "edge/near" not in seed


def test_the_variant_of_overrides():
    config = registry.load("ppo_cartpole:smoke").config
    changed = registry.apply_overrides(config, {"agent.learning_rate": "1e-3"})
    assert variant_name("smoke", ["agent.learning_rate"], changed) == "smoke+agent.learning_rate=0.001"
    assert variant_name("", [], config) == ""
    named = registry.apply_overrides(config, {"environment.environment_id": "phys2d/CartPole-v1"})
    assert "/" not in variant_name("smoke", ["environment.environment_id"], named)


def test_members_are_consecutive_seeds():
    config = registry.load("ppo_cartpole:smoke").config
    assert [member.seed for member in members_of(config, "v", 3, 5)] == [5, 6, 7]
    assert [(member.seed, member.variant) for member in members_of(config, "v", None, 0)] == [(0, "v")]
    # The evaluation key belongs to no member.
    assert [member.seed for member in members_of(config, "v", 1, TEST_SEED - 1)] == [TEST_SEED - 1]
    with pytest.raises(UserError, match=f"from 0 to {TEST_SEED - 1}"):
        members_of(config, "v", 2, TEST_SEED - 1)
