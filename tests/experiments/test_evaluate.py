"""Evaluating checkpoints: against the run's own last row, on other worlds, and the refusals."""

import json

import pytest

from experiments import evaluate, results, run

TINY = ["--config.data.batch=16", "--config.evaluation.episodes=16", "--config.network.hidden=8"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    assert run.main(["oprl_sokoban:grpo,smoke", "--seeds=2", f"--runs={runs}", *TINY]) == 0
    [folder] = (runs / "oprl_sokoban").iterdir()
    return folder


def answer_of(capsys, *arguments):
    capsys.readouterr()
    assert evaluate.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_latest_checkpoint_gives_the_last_row(trained, capsys):
    answer = answer_of(capsys, str(trained), "--checkpoint=latest")
    rows = [row for row in results.read_rows(trained / results.METRICS_FILE) if row["iteration"] == 4]
    assert len(rows) == len(answer["seeds"]) == 2
    for row, seed in zip(rows, answer["seeds"], strict=True):
        for key in ("seed", "variant", "iteration", "success", "length", "return"):
            assert seed[key] == (pytest.approx(row[key], rel=1e-6) if isinstance(row[key], float) else row[key])


def test_an_iteration_a_world_and_a_number_of_episodes_can_be_chosen(trained, capsys):
    answer = answer_of(capsys, str(trained), "--checkpoint=4", "--episodes=8", "--greedy")
    # Eight episodes: every mean success is a multiple of an eighth.
    assert all(float(8 * seed["success"]).is_integer() for seed in answer["seeds"])
    walls = answer_of(capsys, str(trained), "--checkpoint=4", "--config.environment.inner_walls=true")
    plain = answer_of(capsys, str(trained), "--checkpoint=4")
    assert walls["seeds"] != plain["seeds"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint=newest"], "expected best, latest or an iteration"),
        (["--checkpoint=3"], "no checkpoint"),
        (["--episodes=0"], "expected at least 1"),
        (["--config.environment.height=7"], "the run was trained on"),
        (["--config.environment.hight=7"], "unknown configuration key 'environment.hight', did you mean"),
    ],
)
def test_a_mistake_is_one_line(trained, arguments, message, capsys):
    assert evaluate.main([str(trained), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1


def test_a_missing_run_is_refused_with_the_nearest(trained, capsys):
    assert evaluate.main(["oprl_sokoban:grpo,smok", f"--runs={trained.parent.parent}"]) == 2
    assert "did you mean 'oprl_sokoban:grpo,smoke" in capsys.readouterr().err


def test_a_checkpoint_of_another_configuration_is_refused(trained, tmp_path, capsys):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "checkpoints").symlink_to(trained / "checkpoints")
    description = results.read_json(trained / results.CONFIG_FILE)
    description["config"]["agent"]["clip"] = 0.3
    results.write_json_atomic(copy / results.CONFIG_FILE, description)
    assert evaluate.main([str(copy)]) == 2
    assert "is of another configuration" in capsys.readouterr().err
