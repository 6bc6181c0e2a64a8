"""Rows on disk: torn lines, rewinding, full disks, TensorBoard as a sink, and committed files."""

import errno
import json
import os
import resource

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from experiments import collect as collect_command
from experiments import registry, results
from experiments.errors import UserError


def row(iteration, seed=0, **metrics):
    return {"seed": seed, "env_steps": 10 * iteration, "iteration": iteration, **metrics}


def events(folder):
    """(step, tag, value) of every scalar in the event files of a folder, by the record format itself."""
    found = []
    for path in sorted(folder.glob("*tfevents*")):
        content, position = path.read_bytes(), 0
        while position < len(content):
            length = int.from_bytes(content[position : position + 8], "little")
            event = event_pb2.Event.FromString(content[position + 12 : position + 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            position += 12 + length + 4
    return found


def make_run(root, name="oprl_sokoban", variant="grpo", seeds=(0, 1), iterations=3):
    folder = results.run_folder(root, name, variant)
    results.write_json_atomic(folder / results.CONFIG_FILE, {"steps": 30})
    results.write_json_atomic(
        folder / results.ENVIRONMENT_FILE,
        {
            "commit": "abc",
            "dirty": False,
            "command": "python -m experiments.run",
            "versions": {"jax": "1"},
            "device": "cpu",
        },
    )
    with results.RowWriter(folder / results.METRICS_FILE, {"experiment": name, "variant": variant}) as writer:
        for iteration in range(1, iterations + 1):
            for seed in seeds:
                writer.append(row(iteration, seed, success=iteration / 7 + seed, length=3))
    return folder


def test_rows_come_back_as_written_and_are_plain_numbers(tmp_path):
    path = tmp_path / "runs" / "metrics.jsonl"
    with results.RowWriter(path, {"experiment": "x", "variant": ""}) as writer:
        written = writer.append(
            row(np.int64(1), np.int32(2), a=jnp.float32(0.5), b=np.float64(1 / 3), c=jnp.asarray([4]), d=np.bool_(True))
        )
        writer.append(row(2, nan=float("nan"), inf=jnp.inf, none=None, text="word"))
        writer.flush()
    assert written == {
        "experiment": "x", "variant": "", "seed": 2, "env_steps": 10, "iteration": 1,
        "a": 0.5, "b": 1 / 3, "c": 4, "d": True,
    }  # fmt: skip
    rows = results.read_rows(path)
    assert rows[0] == written
    assert [rows[1][key] for key in ("nan", "inf", "none", "text")] == [None, None, None, "word"]
    assert "NaN" not in path.read_text() and path.read_text().count("\n") == 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"seed": 0, "env_steps": 1}, "a row needs an integer iteration"),
        (row(1, value=np.zeros(2)), "'value' in a row is"),
        (row(1, value={"a": 1}), "'value' in a row is"),
    ],
)
def test_a_row_that_is_no_row_is_refused_and_nothing_is_written(tmp_path, bad, message):
    with results.RowWriter(tmp_path / "metrics.jsonl") as writer:
        with pytest.raises(ValueError, match=message):
            writer.append(bad)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_line_torn_at_any_byte_is_dropped_and_the_next_row_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with results.RowWriter(path) as writer:
        writer.append(row(1, success=0.25))
        writer.append(row(2, success=0.5))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        assert [found["iteration"] for found in results.read_rows(path)] == [1]
        with results.RowWriter(path) as writer:
            assert path.stat().st_size == first
            writer.append(row(2, success=0.5))
        assert path.read_bytes() == whole
    path.write_bytes(whole + b"\0" * 100)
    results.RowWriter(path).close()
    assert path.read_bytes() == whole


def test_a_damaged_line_before_the_last_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"seed":0}\n{"se\n{"seed":1}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: expected a JSON object"):
        results.RowWriter(path)
    with pytest.raises(UserError, match="line 2"):
        results.read_rows(path)
    assert path.read_text().count("\n") == 3


def test_rewind_drops_newer_rows_once_and_the_sink_follows(tmp_path):
    path, folder = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    with results.RowWriter(path, tensorboard=folder) as writer:
        for iteration in (1, 2, 3):
            for seed in (0, 1):
                writer.append(row(iteration, seed, success=iteration / 4, word="x", missing=None))
    with results.RowWriter(path, tensorboard=folder) as writer:
        assert writer.rewind(2) == 2
        assert writer.rewind(2) == 0
        writer.append(row(3, 0, success=1.0))
    assert [(found["iteration"], found["seed"]) for found in results.read_rows(path)] == [
        (1, 0), (1, 1), (2, 0), (2, 1), (3, 0),
    ]  # fmt: skip
    assert events(folder / "seed_0") == [(10, "success", 0.25), (20, "success", 0.5), (30, "success", 1.0)]
    assert events(folder / "seed_1") == [(10, "success", 0.25), (20, "success", 0.5)]
    assert sorted(found.name for found in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_a_second_writer_of_the_same_file_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with results.RowWriter(path) as writer:
        with pytest.raises(UserError, match="is being written by another run"):
            results.RowWriter(path)
        writer.append(row(1))
        writer.rewind(0)
        with pytest.raises(UserError, match="is being written by another run"):
            results.RowWriter(path)
    results.RowWriter(path).close()


def test_a_full_disk_is_one_message_and_leaves_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = results.RowWriter(path)
    writer.append(row(1, success=0.5))
    whole = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The limit lets three bytes of the second row through, as a disk does that fills up in the middle of a write.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 3, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl: File too large"):
            writer.append(row(2, success=0.5))
        with pytest.raises(UserError, match=r"cannot write .*big.json: File too large"):
            results.write_json_atomic(tmp_path / "big.json", {"text": "x" * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == whole
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
    writer.append(row(2, success=0.5))
    writer.close()
    assert [found["iteration"] for found in results.read_rows(path)] == [1, 2]


def test_a_failed_atomic_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "config.json"
    results.write_json_atomic(path, {"a": 1})

    def refuse(*arguments):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for function in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(results.os, function, refuse)
            with pytest.raises(UserError, match=r"cannot write .*config.json: Read-only file system"):
                results.write_json_atomic(path, {"a": 2})
        assert results.read_json(path) == {"a": 1}
        assert os.listdir(path.parent) == ["config.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        results.write_json_atomic(tmp_path / "file" / "config.json", {})
    with pytest.raises(UserError, match="cannot write"):
        results.RowWriter(tmp_path / "file" / "metrics.jsonl")


def test_read_json_refuses_what_is_none(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*absent.json: No such file"):
        results.read_json(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match=r"bad.json is no JSON file"):
        results.read_json(tmp_path / "bad.json")


def test_environment_report_names_versions_device_and_command():
    report = results.environment_report(["python", "-m", "experiments.run", "a b"])
    assert report["command"] == "python -m experiments.run 'a b'"
    assert {"python", "jax", "jaxlib", "flax", "optax", "numpy", "gymnasium"} <= report["versions"].keys()
    assert report["platform"] in ("cpu", "gpu", "tpu") and report["device"]
    json.dumps(report, allow_nan=False)


def test_run_folder():
    assert results.run_folder("runs", "x").as_posix() == "runs/x/default"
    assert results.run_folder("runs", "x", "a,b").as_posix() == "runs/x/a,b"


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
