"""Run folders collected into committed files, and the rows read from both."""

import pytest

from experiments import collect as collect_command
from experiments import registry, results
from experiments.disk import read_json, write_json_atomic
from experiments.errors import UserError
from experiments.row_writer import RowWriter


def make_run(root, name="oprl_sokoban", variant="grpo", seeds=(0, 1), iterations=3):
    folder = results.run_folder(root, name, variant)
    write_json_atomic(folder / results.CONFIG_FILE, {"steps": 30})
    write_json_atomic(
        folder / results.ENVIRONMENT_FILE,
        {
            "commit": "abc",
            "dirty": False,
            "command": "python -m experiments.run",
            "versions": {"jax": "1"},
            "device": "cpu",
        },
    )
    with RowWriter(folder / results.METRICS_FILE, {"experiment": name, "variant": variant}) as writer:
        for iteration in range(1, iterations + 1):
            for seed in seeds:
                progress = {"seed": seed, "env_steps": 10 * iteration, "iteration": iteration}
                writer.append({**progress, "success": iteration / 7 + seed, "length": 3})
    return folder


def test_run_folder():
    assert results.run_folder("runs", "x").as_posix() == "runs/x/default"
    assert results.run_folder("runs", "x", "a,b").as_posix() == "runs/x/a,b"


def test_a_folder_of_many_overrides_fits_the_disk(tmp_path):
    variants = [f"ppo+{'+'.join(f'agent.setting_{i}=0.{i}' for i in range(40))}+last={last}" for last in (1, 2)]
    folders = [results.run_folder(tmp_path, "x", variant) for variant in variants]
    for folder in folders:
        folder.mkdir(parents=True)
        assert folder.name.startswith("ppo+agent.setting_0=0.0+") and len(folder.name.encode()) == results.LONGEST_NAME
    assert folders[0] != folders[1]
    # Letters of two bytes are not cut in half.
    assert len(results.run_folder(tmp_path, "x", "ä" * 150).name.encode()) in (199, 200)


def test_collect_rounds_chooses_and_keeps_the_source(tmp_path):
    folders = [make_run(tmp_path, variant="grpo"), make_run(tmp_path, variant="", seeds=(5,))]
    out = tmp_path / "results" / "oprl_sokoban.jsonl"
    assert results.collect(folders, out, metrics=["success"]) == 9
    sections = results.read_sections(out)
    assert [len(section.rows) for section in sections] == [6, 3]
    assert sections[0].header == {
        "experiment": "oprl_sokoban", "variant": "grpo", "commit": "abc", "dirty": False,
        "command": "python -m experiments.run", "versions": {"jax": "1"}, "device": "cpu", "device_count": None,
        "platform": None, "config_fingerprint": registry.fingerprint({"steps": 30}),
    }  # fmt: skip
    assert sections[0].rows[0] == {
        "experiment": "oprl_sokoban", "variant": "grpo", "seed": 0, "env_steps": 10, "success": 0.142857,
    }  # fmt: skip
    assert results.variants_of(results.read_rows(out)) == ["grpo", ""]
    assert results.metrics_of(results.read_rows(out)) == ["success"]
    assert len(results.read_runs(tmp_path, "oprl_sokoban")) == 9
    assert results.read_runs(tmp_path, "none") == []


def test_collect_says_with_what_a_run_was_continued(tmp_path):
    folder = make_run(tmp_path)
    environment = read_json(folder / results.ENVIRONMENT_FILE)
    again = [{"first_row": 2} | environment, {"first_row": 4} | environment | {"commit": "def", "dirty": True}]
    write_json_atomic(folder / results.ENVIRONMENT_FILE, environment | {"continued": again})
    header, rows = results.run_section(folder)
    assert header["commit"] == "abc" and header["continued"] == [{"first_row": 4, "commit": "def", "dirty": True}]
    assert len(rows) == 6


def test_collect_append_replaces_the_same_variant_and_keeps_others(tmp_path):
    out = tmp_path / "out.jsonl"
    results.collect([make_run(tmp_path, variant="grpo"), make_run(tmp_path, variant="ppo")], out)
    longer = make_run(tmp_path / "again", variant="ppo", iterations=4)
    assert results.collect([longer], out, append=True) == 6 + 8
    assert results.variants_of(results.read_rows(out)) == ["grpo", "ppo"]
    assert results.collect([longer], out) == 8


def test_collect_refuses_what_it_cannot_merge(tmp_path):
    folder = make_run(tmp_path)
    with pytest.raises(UserError, match=r"unknown metric 'sucess', did you mean 'success'\?"):
        results.collect([folder], tmp_path / "out.jsonl", metrics=["sucess"])
    with pytest.raises(UserError, match=r"is no run folder: it has no metrics.jsonl"):
        results.collect([tmp_path], tmp_path / "out.jsonl")
    with pytest.raises(UserError, match=r"two rows of experiment='oprl_sokoban', variant='grpo', seed=0, env_steps=10"):
        results.collect([folder, folder], tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_the_collect_command(tmp_path, capsys):
    folder, out = make_run(tmp_path), tmp_path / "out.jsonl"
    assert collect_command.main([str(folder), f"--out={out}", "--metrics=success"]) == 0
    assert capsys.readouterr().out == f"{out}: 6 rows\n"
    assert collect_command.main([str(tmp_path), f"--out={out}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
