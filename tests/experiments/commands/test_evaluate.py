"""Evaluating checkpoints: compared with the run's own last row, on other environments, and refusals."""

import json
import re

import jax.numpy as jnp
import pytest

from envs.catalogue import ENVIRONMENTS
from envs.suites.functional import make_functional
from experiments.assembly.build import EVALUATION_SEED, TEST_SEED
from experiments.commands import evaluate, run, sweep
from experiments.disk import read_json, write_json_atomic
from experiments.errors import UserError
from experiments.evaluators import base as evaluators_base
from experiments.rows import reading, run_folders
from experiments.rows.summary import summarise_members
from experiments.training import restored, train

TINY = ["--config.data.batch=16", "--config.evaluators.episodes.count=16", "--config.network.hidden=8"]


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


def test_the_latest_checkpoint_gives_the_last_row(trained):
    found = restored.evaluate_run(trained, "latest", stream=EVALUATION_SEED)
    rows = [row for row in reading.read_rows(trained / run_folders.METRICS_FILE) if row["iteration"] == 4]
    assert len(rows) == len(found) == 2
    for row, seed in zip(rows, found, strict=True):
        for key in ("seed", "variant", "iteration", "success", "length", "return"):
            assert seed[key] == (pytest.approx(row[key], rel=1e-6) if isinstance(row[key], float) else row[key])


def test_a_checkpoint_is_not_judged_by_the_episodes_that_chose_it(trained, capsys):
    answer = answer_of(capsys, str(trained), "--checkpoint=latest")
    assert answer["seeds"] == restored.evaluate_run(trained, "latest", stream=TEST_SEED)
    rows = [row for row in reading.read_rows(trained / run_folders.METRICS_FILE) if row["iteration"] == 4]
    assert [seed["length"] for seed in answer["seeds"]] != pytest.approx([row["length"] for row in rows], rel=1e-6)


def test_an_iteration_an_environment_and_a_number_of_episodes_can_be_chosen(trained, capsys):
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
        (["--config.agent.clip=0.1"], "'agent.clip' is of the training"),
        (["--evaluators=episode"], "unknown evaluator 'episode' in evaluators.episode, did you mean 'episodes'"),
        (["--evaluators=exact", "--episodes=3"], "--episodes: none of the evaluators exact has a key 'count'"),
        (["--evaluators=exact"], "section 'evaluators.exact': the environment's model is not known"),
        (["--environment=sokobn"], "unknown environment kind 'sokobn', did you mean 'sokoban'"),
        (
            ["--config.environment.hight=7"],
            "unknown configuration key 'environment.hight', did you mean 'environment.height'",
        ),
    ],
)
def test_a_mistake_is_one_line(trained, arguments, message, capsys):
    assert evaluate.main([str(trained), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1


def test_a_missing_run_is_refused_with_the_nearest(trained, capsys):
    assert evaluate.main(["oprl_sokoban:grpo,smok", f"--runs={trained.parent.parent}"]) == 2
    assert "did you mean 'oprl_sokoban:grpo,smoke" in capsys.readouterr().err


CARTPOLE = [
    "--config.data.length=4",
    "--config.data.batch=2",
    "--config.network.hidden=4",
    "--config.agent.epochs=1",
    "--config.agent.minibatches=1",
    "--config.evaluators.episodes.count=4",
    "--config.evaluators.episodes.cut=10",
]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of two points and two seeds on a pure environment, cut into programs of three members."""
    runs = tmp_path_factory.mktemp("sweep")
    arguments = ["ppo_cartpole:native,smoke", "--sweep.agent.learning_rate=0.01,0.5", "--seeds=2"]
    assert sweep.main([*arguments, "--members-per-program=3", f"--runs={runs}", *CARTPOLE]) == 0
    [folder] = (runs / "ppo_cartpole").iterdir()
    return folder


def test_a_sweep_is_evaluated_point_by_point(swept, capsys):
    assert {path.name for path in (swept / "checkpoints").iterdir()} == {"program_0", "program_1"}
    found = restored.evaluate_run(swept, "latest", stream=EVALUATION_SEED)
    last = [row for row in reading.read_rows(swept / run_folders.METRICS_FILE) if row["iteration"] == 4]
    assert len(last) == len(found) == 4
    for row, seed in zip(last, found, strict=True):
        assert {key: seed[key] for key in ("seed", "variant")} == {key: row[key] for key in ("seed", "variant")}
        assert seed["return"] == pytest.approx(row["return"], rel=1e-6)
    variants = summarise_members(found)
    assert len(variants) == 2
    for variant, metrics in variants.items():
        own = [row["return"] for row in last if row["variant"] == variant]
        assert metrics["return"]["iqm"] == pytest.approx(sum(own) / 2)
    answer = answer_of(capsys, str(swept), "--checkpoint=latest")
    assert answer["metrics"] is None and answer["variants"].keys() == variants.keys()


def test_what_was_trained_in_a_pure_environment_is_evaluated_on_a_host(swept, capsys):
    host = ["--environment=gymnasium", "--config.environment.environment_id=CartPole-v1", "--greedy"]
    answer = answer_of(capsys, str(swept), "--checkpoint=latest", *host)
    assert len(answer["seeds"]) == 4
    for seed in answer["seeds"]:
        # One for every step, ten at most, a quarter of an episode each.
        assert seed["return"] == seed["length"] <= 10 and (4 * seed["return"]).is_integer()


def test_a_host_starts_from_other_seeds_than_those_that_chose_a_checkpoint(swept, monkeypatch):
    started = []
    original = evaluators_base.episodes_host

    def recording(*arguments, **keywords):
        started.append((keywords["seeds"], arguments[3]))
        return original(*arguments, **keywords)

    monkeypatch.setattr(evaluators_base, "episodes_host", recording)
    source = {"environment": "gymnasium", "overrides": {"environment.environment_id": "CartPole-v1"}}
    for stream in (EVALUATION_SEED, TEST_SEED):
        restored.evaluate_run(swept, "latest", **source, stream=stream)
    chose, judge = started[: len(started) // 2], started[len(started) // 2 :]
    assert len(chose) == len(judge) == 4 and all(len(seeds) == 4 for seeds, _ in started)
    assert not {one for seeds, _ in chose for one in seeds} & {one for seeds, _ in judge for one in seeds}
    assert not any(key == other for _, key in chose for _, other in judge)


class Broken:
    """An environment whose rewards are not numbers."""

    def __init__(self, environment):
        self._environment = environment
        self.spec, self.reset = environment.spec, environment.reset

    def step(self, key, state, action):
        state, time_step = self._environment.step(key, state, action)
        return state, time_step._replace(reward=time_step.reward * jnp.nan)


def test_an_environment_that_is_not_finite_is_one_line(swept, capsys, monkeypatch):
    monkeypatch.setitem(ENVIRONMENTS, "broken", lambda: Broken(make_functional("CartPole-v1")))
    assert evaluate.main([str(swept), "--environment=broken"]) == 2
    captured = capsys.readouterr()
    assert "'return' of [nan, nan, nan]: expected finite rewards" in captured.err and captured.err.count("\n") == 1


def test_a_checkpoint_of_another_configuration_is_refused(trained, tmp_path, capsys):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "checkpoints").symlink_to(trained / "checkpoints")
    description = read_json(trained / run_folders.CONFIG_FILE)
    description["config"]["agent"]["clip"] = 0.3
    write_json_atomic(copy / run_folders.CONFIG_FILE, description)
    assert evaluate.main([str(copy)]) == 2
    assert "is of another configuration" in capsys.readouterr().err


DAMAGES = {
    "no members": (lambda found: found | {"members": []}, "its 'members' are no list of objects with seed, variant, v"),
    "a member without seed": (lambda found: found | {"members": [{"variant": ""}]}, "its 'members' are no list of"),
    "members as text": (lambda found: found | {"members": "hello"}, "its 'members' are no list of objects with seed"),
    "a configuration as text": (lambda found: found | {"config": "hello"}, "its 'config' lacks the section 'environ"),
    "no section": (
        lambda found: found | {"config": {key: value for key, value in found["config"].items() if key != "data"}},
        "its 'config' lacks the section 'data'",
    ),
    "nothing": (lambda found: {}, "its 'config' lacks the section 'environment'"),
    "a list": (lambda found: [found], "expected a JSON object"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_invalid_run_description_is_one_line(damage, trained, tmp_path, capsys):
    change, message = DAMAGES[damage]
    folder = tmp_path / "oprl_sokoban" / trained.name
    write_json_atomic(folder / run_folders.CONFIG_FILE, change(read_json(trained / run_folders.CONFIG_FILE)))
    assert evaluate.main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert message in error and str(folder) in error and error.count("\n") == 1
    # Nor can it be continued as the original run.
    with pytest.raises(UserError, match=re.escape(message)):
        train.prepare_folder(folder, *restored.read_run(trained))
    assert [path.name for path in folder.iterdir()] == [run_folders.CONFIG_FILE]
