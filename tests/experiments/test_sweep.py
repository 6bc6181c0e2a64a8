"""A sweep's points against single runs, its grid, its jobs and its refusals."""

import json

import pytest

from experiments import registry, results, run, sweep
from experiments.build import build_world

TINY = [
    "--config.data.batch=16",
    "--config.evaluation.episodes=16",
    "--config.network.hidden=8",
]


def rows_of(folder, variant):
    rows = [row for row in results.read_runs(folder, "oprl_sokoban") if row["variant"] == variant]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    arguments = ["oprl_sokoban:grpo,smoke", "--seeds=2", "--sweep.agent.learning_rate=0.01,0.02", f"--runs={folder}"]
    assert sweep.main([*arguments, *TINY]) == 0
    return folder, arguments


def test_a_point_equals_the_single_run_with_its_overrides(swept, tmp_path, capsys):
    folder, _ = swept
    override = "--config.agent.learning_rate=0.02"
    assert run.main(["oprl_sokoban:grpo,smoke", "--seeds=2", override, f"--runs={tmp_path}", *TINY]) == 0
    capsys.readouterr()
    [variant] = results.variants_of(results.read_runs(tmp_path, "oprl_sokoban"))
    single, point = rows_of(tmp_path, variant), rows_of(folder, variant.replace("+", "+sweep+", 1))
    assert len(single) == len(point) == 4
    # The first evaluation, after two updates: a traced number is not folded into the compiled constants, so that
    # the two are equal to rounding, which grows as learning goes on.
    for alone, beside in zip(single[:2], point[:2], strict=True):
        assert alone.keys() == beside.keys()
        for key in alone.keys() - {"variant"}:
            value = alone[key]
            expected = value if isinstance(value, str) or value is None else pytest.approx(value, rel=1e-4, abs=1e-6)
            assert beside[key] == expected, key


def test_the_points_are_ranked_and_the_best_is_a_command(swept, capsys):
    folder, arguments = swept
    assert sweep.main([*arguments, *TINY, "--json", "--rank=auc"]) == 0
    answer = json.loads(capsys.readouterr().out)
    scores = [point["iqm"] for point in answer["points"]]
    assert len(scores) == 2 and scores == sorted(scores, reverse=True)
    assert answer["best"].startswith(
        "python -m experiments.run oprl_sokoban:grpo,smoke --config.agent.learning_rate=0.0"
    )
    # The same command again trained nothing: the rows are still those of two points, two seeds, two evaluations.
    assert len(results.read_runs(folder, "oprl_sokoban")) == 8


def test_a_learning_rate_is_traced_and_a_width_is_not():
    loaded = registry.load("oprl_sokoban:oprl_residual,smoke")
    config = registry.apply_overrides(loaded.config, {"network.hidden": "8", "data.batch": "16"})
    world = build_world(config)
    assert sweep.is_traceable(config, world, "agent.learning_rate")
    assert sweep.is_traceable(config, world, "credit.implicit_prm.weight")
    assert sweep.is_traceable(config, world, "rewards.implicit_prm.beta")
    assert not sweep.is_traceable(config, world, "agent.epochs")
    assert not sweep.is_traceable(config, world, "network.hidden")


def test_every_combination_of_untraced_keys_is_a_job(tmp_path):
    loaded = registry.load("oprl_sokoban:grpo,smoke")
    grid = {"agent.epochs": ["1", "2"], "agent.learning_rate": ["0.1", "0.2", "0.3"], "network.activation": ["relu"]}
    made = sweep.plan(loaded, loaded.config, [], grid, seeds=2, first_seed=5, runs=str(tmp_path))
    assert [job.config.agent.epochs for job in made.jobs] == [1, 2]
    assert len({job.folder for job in made.jobs}) == 2
    for job in made.jobs:
        assert [member.seed for member in job.members] == [5, 6] * 3
        assert sorted({member.values["agent.learning_rate"] for member in job.members}) == [0.1, 0.2, 0.3]
        assert all(f"agent.epochs={job.config.agent.epochs}" in member.variant for member in job.members)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep.agent.learning_rat=1,2"], "unknown configuration key 'agent.learning_rat', did you mean"),
        (["--sweep.agent.epochs=1,x"], "'agent.epochs' got 'x', expected"),
        (["--sweep.agent.epochs"], "has no value"),
        (["--sweep.agent.epochs=1", "--config.agent.epochs=2"], "both swept and set"),
        (["--sweep.data.batch=16,20"], "not a multiple of group_size=8"),
        (["--jobs=0"], "expected 1 up"),
    ],
)
def test_a_mistake_is_refused_before_any_work(arguments, message, tmp_path, capsys):
    assert sweep.main(["oprl_sokoban:grpo,smoke", f"--runs={tmp_path}", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
