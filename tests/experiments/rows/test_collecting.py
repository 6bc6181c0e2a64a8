"""Run folders collected into committed files."""

import pytest

from experiments.assembly import registry
from experiments.commands import collect as collect_command
from experiments.disk import read_json, write_json_atomic
from experiments.errors import UserError
from experiments.rows import collecting, reading, run_folders
from experiments.training.row_writer import RowWriter


def make_run(root, name="oprl_sokoban", variant="grpo", seeds=(0, 1), iterations=3):
    folder = run_folders.run_folder(root, name, variant)
    write_json_atomic(folder / run_folders.CONFIG_FILE, {"steps": 30})
    write_json_atomic(
        folder / run_folders.ENVIRONMENT_FILE,
        {
            "commit": "abc",
            "dirty": False,
            "command": "sagax run",
            "versions": {"jax": "1"},
            "device": "cpu",
        },
    )
    with RowWriter(folder / run_folders.METRICS_FILE, {"experiment": name, "variant": variant}) as writer:
        for iteration in range(1, iterations + 1):
            for seed in seeds:
                progress = {"seed": seed, "env_steps": 10 * iteration, "iteration": iteration}
                writer.append({**progress, "success": iteration / 7 + seed, "length": 3})
    return folder


def test_collect_rounds_chooses_and_keeps_the_source(tmp_path):
    folders = [make_run(tmp_path, variant="grpo"), make_run(tmp_path, variant="", seeds=(5,))]
    out = tmp_path / "results" / "oprl_sokoban.jsonl"
    assert collecting.collect(folders, out, metrics=["success"]) == 9
    sections = reading.read_sections(out)
    assert [len(section.rows) for section in sections] == [6, 3]
    assert sections[0].header == {
        "experiment": "oprl_sokoban", "variant": "grpo", "commit": "abc", "dirty": False,
        "command": "sagax run", "versions": {"jax": "1"}, "device": "cpu", "device_count": None,
        "platform": None, "evaluation_episodes": None, "config_fingerprint": registry.fingerprint({"steps": 30}),
    }  # fmt: skip
    assert sections[0].rows[0] == {
        "experiment": "oprl_sokoban", "variant": "grpo", "seed": 0, "env_steps": 10, "success": 0.142857,
    }  # fmt: skip
    assert reading.variants_of(reading.read_rows(out)) == ["grpo", ""]
    assert reading.metrics_of(reading.read_rows(out)) == ["success"]
    assert len(reading.read_runs(tmp_path, "oprl_sokoban")) == 9
    assert reading.read_runs(tmp_path, "none") == []


def test_collect_records_the_other_versions_that_continued_a_run(tmp_path):
    folder = make_run(tmp_path)
    environment = read_json(folder / run_folders.ENVIRONMENT_FILE)
    again = [{"first_row": 2} | environment, {"first_row": 4} | environment | {"commit": "def", "dirty": True}]
    write_json_atomic(folder / run_folders.ENVIRONMENT_FILE, environment | {"continued": again})
    header, rows = collecting.run_section(folder)
    assert header["commit"] == "abc" and header["continued"] == [{"first_row": 4, "commit": "def", "dirty": True}]
    assert len(rows) == 6


def test_collect_append_replaces_the_same_variant_and_keeps_others(tmp_path):
    out = tmp_path / "out.jsonl"
    collecting.collect([make_run(tmp_path, variant="grpo"), make_run(tmp_path, variant="ppo")], out)
    longer = make_run(tmp_path / "again", variant="ppo", iterations=4)
    assert collecting.collect([longer], out, append=True) == 6 + 8
    assert reading.variants_of(reading.read_rows(out)) == ["grpo", "ppo"]
    assert collecting.collect([longer], out, replace=True) == 8


def test_rows_are_dropped_only_if_asked_for(tmp_path):
    out = tmp_path / "out.jsonl"
    grpo, ppo = make_run(tmp_path, variant="grpo"), make_run(tmp_path, variant="ppo", seeds=(0, 1, 2))
    collecting.collect([grpo, ppo], out)
    before = out.read_bytes()

    def refused(folder, append, words):
        with pytest.raises(UserError, match=words):
            collecting.collect([folder], out, append=append)
        assert out.read_bytes() == before

    lost = r"would lose 9 rows, the first 3 of experiment 'oprl_sokoban', variant 'ppo', seed 0: expected --append, "
    refused(grpo, False, lost)
    # Two seeds of three, and three evaluations of four: other runs of the same variant.
    refused(make_run(tmp_path / "few", variant="ppo"), True, r"3 rows, .* 'ppo', seed 2: expected --replace or another")
    refused(make_run(tmp_path / "short", variant="grpo", iterations=2), True, r"2 rows, the first 1 .* 'grpo', seed 0")
    # The same command again, in either form, and rows that are added lose nothing.
    assert collecting.collect([ppo, grpo], out) == collecting.collect([grpo], out, append=True) == 15
    assert collecting.collect([make_run(tmp_path, variant="oprl"), grpo, ppo], out) == 21
    before = out.read_bytes()
    refused(grpo, False, "would lose 15 rows, the first 3 of .* 'oprl', seed 0")
    assert collecting.collect([grpo], out, append=True, replace=True) == 21
    assert collecting.collect([grpo], out, replace=True) == 6


def test_a_variant_that_shares_a_section_with_another_is_not_lost(tmp_path):
    out = tmp_path / "out.jsonl"
    rows = [{"experiment": "x", "variant": v, "seed": 0, "env_steps": 1, "success": 1.0} for v in ("a", "b")]
    swept = reading.Section({"experiment": "x", "variant": "a"}, rows)
    collecting.write_sections([swept], out)
    with pytest.raises(UserError, match="would lose 1 rows, the first 1 of experiment 'x', variant 'b', seed 0"):
        collecting.write_sections([swept._replace(rows=rows[:1])], out, append=True)
    assert reading.read_rows(out) == rows


@pytest.mark.parametrize("content", [b"# A page\n", b"\x00\xff", b'{"experiment":"oprl_sokoban"'])
def test_a_file_that_holds_more_than_rows_is_not_replaced(content, tmp_path):
    out = tmp_path / "README.md"
    out.write_bytes(content)
    folder = make_run(tmp_path)
    for append in (False, True):
        with pytest.raises(UserError, match=r"README.md holds more than rows: expected --replace or another --out"):
            collecting.collect([folder], out, append=append)
    assert out.read_bytes() == content


def test_collect_refuses_what_it_cannot_merge(tmp_path):
    folder = make_run(tmp_path)
    with pytest.raises(UserError, match=r"unknown metric 'sucess', did you mean 'success'\?"):
        collecting.collect([folder], tmp_path / "out.jsonl", metrics=["sucess"])
    with pytest.raises(UserError, match=r"is no run folder: it has no metrics.jsonl"):
        collecting.collect([tmp_path], tmp_path / "out.jsonl")
    with pytest.raises(UserError, match=r"two rows of experiment='oprl_sokoban', variant='grpo', seed=0, env_steps=10"):
        collecting.collect([folder, folder], tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_malformed_header_and_rows_of_several_runs(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(reading.encode_line({"header": True, "variant": ["grpo"]}))
    with pytest.raises(UserError, match=r"line 1: variant=\['grpo'\], expected text"):
        collecting.collect([make_run(tmp_path)], path, append=True)
    for variant, value in (("grpo", 0.5), ("ppo", "x")):
        folder = make_run(tmp_path / "runs", variant=variant)
        row = {"experiment": "oprl_sokoban", "variant": variant, "seed": 0, "env_steps": 5, "success": value}
        (folder / run_folders.METRICS_FILE).write_bytes(reading.encode_line(row))
    with pytest.raises(UserError, match=r"oprl_sokoban: success='x', .*variant='ppo'.*: expected a number"):
        reading.read_runs(tmp_path / "runs", "oprl_sokoban")


@pytest.mark.parametrize("file", [run_folders.CONFIG_FILE, run_folders.ENVIRONMENT_FILE])
def test_a_run_folder_whose_description_is_no_object_is_refused(file, tmp_path):
    folder = make_run(tmp_path)
    write_json_atomic(folder / file, [1, 2])
    with pytest.raises(UserError, match=rf"{file} holds \[1, 2\]: expected a JSON object"):
        collecting.collect([folder], tmp_path / "out.jsonl")


def test_a_later_row_of_a_run_that_lacks_its_variant_is_refused(tmp_path):
    folder = make_run(tmp_path)
    with open(folder / run_folders.METRICS_FILE, "ab") as file:
        file.write(reading.encode_line({"experiment": "oprl_sokoban", "seed": 7, "env_steps": 1}))
    with pytest.raises(UserError, match=r"metrics.jsonl: a row lacks variant"):
        collecting.collect([folder], tmp_path / "out.jsonl")


def test_the_collect_command(tmp_path, capsys):
    folder, out = make_run(tmp_path), tmp_path / "out.jsonl"
    assert collect_command.main([str(folder), f"--out={out}", "--metrics=success"]) == 0
    assert capsys.readouterr().out == f"{out}: 6 rows\n"
    assert collect_command.main([str(tmp_path), f"--out={out}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    other = str(make_run(tmp_path, variant="ppo"))
    assert collect_command.main([other, f"--out={out}"]) == 2
    assert "would lose 6 rows" in capsys.readouterr().err
    for options, rows in ((["--append"], 12), (["--replace"], 6)):
        assert collect_command.main([other, f"--out={out}", *options]) == 0
        assert capsys.readouterr().out == f"{out}: {rows} rows\n"
