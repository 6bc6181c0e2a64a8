"""Exported rows against hand-computed numbers and the documented schemas of rliable and marl-eval."""

import json

import numpy as np
import pytest

from experiments.commands.export import main
from experiments.disk import read_json
from experiments.rows.reading import encode_line


def rows_of(experiment, variant, curves):
    """``curves`` is seed to ``[(env_steps, return, length), ...]``."""
    return [
        {
            "experiment": experiment,
            "variant": variant,
            "seed": seed,
            "env_steps": steps,
            "return": value,
            "length": length,
        }
        for seed, points in curves.items()
        for steps, value, length in points
    ]


# Two tasks, two algorithms, two runs of each; the evaluations of task ``b`` are at other steps.
A_PPO = rows_of("a", "ppo", {0: [(10, 0.0, 9), (20, 1.0, 8)], 1: [(10, 2.0, 7), (20, 3.0, 6)]})
A_GRPO = rows_of("a", "grpo", {0: [(10, 4.0, 5), (20, 3.5, 5)], 1: [(10, 5.0, 5), (20, 6.0, 5)]})
B_PPO = rows_of("b", "ppo", {3: [(100, -1.0, 1), (300, -3.0, 1)], 4: [(100, -2.0, 1), (300, -4.0, 1)]})
B_GRPO = rows_of("b", "grpo", {3: [(100, 0.5, 1), (300, 0.25, 1)], 4: [(200, 0.0, 1), (400, 1.0, 1)]})


@pytest.fixture
def sources(tmp_path):
    """A committed file with a header, and two run folders."""
    committed = tmp_path / "a.jsonl"
    lines = [encode_line({"header": True, "experiment": "a"}), *map(encode_line, [*A_PPO, *A_GRPO])]
    committed.write_bytes(b"".join(lines))
    folders = []
    for name, rows in (("ppo", B_PPO), ("grpo", B_GRPO)):
        folder = tmp_path / "runs" / "b" / name
        folder.mkdir(parents=True)
        lines = [encode_line(row | {"iteration": row["env_steps"]}) for row in rows]
        (folder / "metrics.jsonl").write_bytes(b"".join(lines))
        folders.append(folder)
    return [str(path) for path in (committed, *folders)]


@pytest.mark.parametrize("suffix", ["npz", "json"])
def test_final_scores_for_rliable(suffix, sources, tmp_path, capsys):
    out = tmp_path / f"scores.{suffix}"
    assert main([*sources, "--format=rliable", f"--out={out}"]) == 0
    assert capsys.readouterr().out == f"{out}: 2 algorithms, 2 tasks, 2 runs of each\n"
    scores = dict(np.load(out)) if suffix == "npz" else {name: np.asarray(v) for name, v in read_json(out).items()}
    assert scores.keys() == {"ppo", "grpo"}
    # [runs, tasks]
    np.testing.assert_array_equal(scores["ppo"], [[1.0, -3.0], [3.0, -4.0]])
    np.testing.assert_array_equal(scores["grpo"], [[3.5, 0.25], [6.0, 1.0]])
    about = read_json(tmp_path / f"scores.{suffix}.about.json")
    assert about == {
        "metric": "return",
        "tasks": ["a", "b"],
        "seeds": {"a": {"grpo": [0, 1], "ppo": [0, 1]}, "b": {"grpo": [3, 4], "ppo": [3, 4]}},
    }


def test_scores_at_steps_for_rliable(sources, tmp_path):
    out = tmp_path / "scores.npz"
    assert main([*sources, "--format=rliable", "--steps=3", f"--out={out}"]) == 0
    scores = np.load(out)
    # From the latest first evaluation to the earliest last one: 10 to 20 of task a, 200 to 300 of task b.
    assert read_json(tmp_path / "scores.npz.about.json")["env_steps"] == {"a": [10, 15, 20], "b": [200, 250, 300]}
    assert scores["ppo"].shape == (2, 2, 3)
    np.testing.assert_allclose(scores["ppo"][:, 0], [[0.0, 0.5, 1.0], [2.0, 2.5, 3.0]])
    np.testing.assert_allclose(scores["ppo"][:, 1], [[-2.0, -2.5, -3.0], [-3.0, -3.5, -4.0]])
    np.testing.assert_allclose(scores["grpo"][:, 1], [[0.375, 0.3125, 0.25], [0.0, 0.25, 0.5]])


@pytest.mark.parametrize(("absolute", "index"), [("final", 1), ("best", 0)])
def test_raw_data_for_marl_eval(absolute, index, sources, tmp_path):
    out = tmp_path / "raw.json"
    arguments = ["--format=marl-eval", "--metrics=return,length", f"--absolute={absolute}", "--environment=mine"]
    assert main([*sources, *arguments, f"--out={out}"]) == 0
    data = read_json(out)
    assert data.keys() == {"mine"} and data["mine"].keys() == {"a", "b"}
    assert all(by_algorithm.keys() == {"ppo", "grpo"} for by_algorithm in data["mine"].values())
    assert data["mine"]["a"]["grpo"]["seed_0"] == {
        "step_1": {"step_count": 10, "return": [4.0], "length": [5.0]},
        "step_2": {"step_count": 20, "return": [3.5], "length": [5.0]},
        "absolute_metrics": {"return": [[3.5, 4.0][1 - index]], "length": [5.0]},
    }
    # The length is that of the evaluation with the best return.
    assert data["mine"]["a"]["ppo"]["seed_1"]["absolute_metrics"] == {"return": [3.0], "length": [6.0]}
    check_schema(data)


def check_schema(data):
    """What marl-eval's own check of raw data asks for: equal runs, steps and metrics within an environment."""
    for tasks in data.values():
        assert len({frozenset(by_algorithm) for by_algorithm in tasks.values()}) == 1
        runs = [run for by_algorithm in tasks.values() for by_run in by_algorithm.values() for run in by_run.values()]
        assert len({len(by_run) for by_algorithm in tasks.values() for by_run in by_algorithm.values()}) == 1
        assert len({len(run) for run in runs}) == 1
        for run in runs:
            *steps, last = run
            assert last == "absolute_metrics" and steps == [f"step_{index + 1}" for index in range(len(steps))]
            names = set(run[last])
            assert all(type(run[step]["step_count"]) is int for step in steps)
            assert all(run[step].keys() == names | {"step_count"} for step in steps)
            assert all(isinstance(value, list) for step in steps for name, value in run[step].items() if name in names)


def test_variants_that_name_tasks(tmp_path):
    path, out = tmp_path / "rows.jsonl", tmp_path / "scores.json"
    names = ("hopper", "hopper,wide", "cheetah", "cheetah,wide+clip=0.1", "cheetah+sweep+clip=0.1")
    rows = [row for index, name in enumerate(names) for row in rows_of("ppo", name, {0: [(10, float(index), 1)]})]
    path.write_bytes(b"".join(map(encode_line, rows)))
    arguments = [str(path), "--format=rliable", f"--out={out}", "--task-variants=hopper,cheetah"]
    assert main([*arguments, "--variants=hopper;cheetah"]) == 0
    assert read_json(out) == {"default": [[2.0, 0.0]]}
    assert read_json(tmp_path / "scores.json.about.json")["tasks"] == ["ppo:cheetah", "ppo:hopper"]


def test_committed_rows_of_the_repository(tmp_path):
    out = tmp_path / "scores.npz"
    assert main(["results/ppo_cartpole.jsonl", "--format=rliable", f"--out={out}"]) == 0
    assert all(array.shape[1] == 1 and np.isfinite(array).all() for array in np.load(out).values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format=rlible", "--out=x.npz"], "unknown value 'rlible' of --format, did you mean 'rliable'"),
        (["--format=rliable", "--out=x.csv"], "--out=x.csv: expected a file *.npz or *.json"),
        (["--format=marl-eval", "--out=x.npz"], "--out=x.npz: expected a file *.json"),
        (["--format=rliable", "--out=x.npz", "--metrics=retrun"], "unknown metric 'retrun', did you mean 'return'"),
        (["--format=rliable", "--out=x.npz", "--metrics=return,length"], "expected one metric"),
        (["--format=rliable", "--out=x.npz", "--steps=1"], "--steps=1: expected at least 2"),
        (["--format=rliable", "--out=x.npz", "--variants=pop"], "unknown variant 'pop' in the rows"),
        (
            ["--format=rliable", "--out=x.npz", "--task-variants=poo"],
            "unknown variant 'poo' of --task-variants, did you",
        ),
        (["--format=rliable", "--out=absent/../x.npz", "--absolute=beste"], "unknown value 'beste' of --absolute"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, sources, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main([*sources, *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1, said
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-2], "'grpo' has 1 runs of task 'a', expected 2 as elsewhere"),
        (lambda rows: [row for row in rows if row["variant"] == "ppo"], "has 0 runs of task 'a', expected 2"),
        (lambda rows: [*rows, rows[0]], "has two rows of"),
        (lambda rows: [*rows, *rows_of("a", "ppo", {9: [(10, None, 1)]})], "has seeds without a value of 'return'"),
        (lambda rows: [{k: v for k, v in row.items() if k != "experiment"} for row in rows], "lacks its experiment"),
        (lambda rows: [row | {"variant": "x+sweep+a=1"} for row in rows[:2]], None),
        (lambda rows: [], None),
    ],
)
def test_rows_that_are_no_table(change, message, sources, tmp_path, capsys):
    changed = b"".join(map(encode_line, change([*A_PPO, *A_GRPO])))
    (tmp_path / "a.jsonl").write_bytes(changed)
    chosen = sources if message else sources[:1]
    assert main([*chosen, "--format=rliable", f"--out={tmp_path / 'x.npz'}"]) == 2
    assert (message or "no rows to export") in capsys.readouterr().err
    assert not (tmp_path / "x.npz").exists()


def test_runs_with_other_numbers_of_evaluations(sources, tmp_path, capsys):
    rows = [*A_PPO, *A_GRPO, *rows_of("a", "grpo", {1: [(30, 7.0, 5)]})]
    (tmp_path / "a.jsonl").write_bytes(b"".join(map(encode_line, rows)))
    arguments = [*sources, "--format=marl-eval", f"--out={tmp_path / 'raw.json'}"]
    assert main(arguments) == 2
    assert "seed 0 has 2 evaluations, others have 3: expected as many" in capsys.readouterr().err
    assert main([*arguments, "--steps=4"]) == 0
    check_schema(json.loads((tmp_path / "raw.json").read_text()))


def test_a_folder_that_is_none(tmp_path, capsys):
    assert main([str(tmp_path), "--format=rliable", f"--out={tmp_path / 'x.npz'}"]) == 2
    assert "is no run folder: it has no metrics.jsonl" in capsys.readouterr().err
