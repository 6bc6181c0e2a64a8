"""Rows on disk: torn lines, rewinding, full disks and TensorBoard files."""

import os
import resource

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from experiments.disk import write_json_atomic
from experiments.errors import UserError
from experiments.rows.reading import encode_line, read_rows
from experiments.rows.run_folders import run_folder
from experiments.training.loggers.tensorboard import TensorBoard
from experiments.training.row_writer import RowWriter


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


def test_rows_come_back_as_written_and_are_plain_numbers(tmp_path):
    path = tmp_path / "runs" / "metrics.jsonl"
    with RowWriter(path, {"experiment": "x", "variant": ""}) as writer:
        written = writer.append(
            row(np.int64(1), np.int32(2), a=jnp.float32(0.5), b=np.float64(1 / 3), c=jnp.asarray([4]), d=np.bool_(True))
        )
        writer.append(row(2, nan=float("nan"), inf=jnp.inf, none=None, text="word"))
        writer.flush()
    assert written == {
        "experiment": "x", "variant": "", "seed": 2, "env_steps": 10, "iteration": 1,
        "a": 0.5, "b": 1 / 3, "c": 4, "d": True,
    }  # fmt: skip
    rows = read_rows(path)
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
def test_an_invalid_row_is_refused_and_nothing_is_written(tmp_path, bad, message):
    with RowWriter(tmp_path / "metrics.jsonl") as writer:
        with pytest.raises(ValueError, match=message):
            writer.append(bad)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_line_torn_at_any_byte_is_dropped_and_the_next_row_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with RowWriter(path) as writer:
        writer.append(row(1, success=0.25))
        writer.append(row(2, success=0.5))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        assert [found["iteration"] for found in read_rows(path)] == [1]
        with RowWriter(path) as writer:
            assert path.stat().st_size == first
            writer.append(row(2, success=0.5))
        assert path.read_bytes() == whole
    path.write_bytes(whole + b"\0" * 100)
    RowWriter(path).close()
    assert path.read_bytes() == whole


def lines_of(*rows):
    return [encode_line(one) for one in rows]


@pytest.mark.parametrize(
    ("damage", "kept", "saved"),
    [
        # A newline became a carriage return, another letter, or nothing.
        (lambda a, b, c: [a[:-1] + b"\r", b, c], [1, 2, 3], 2),
        (lambda a, b, c: [a[:-1] + b"J", b, c], [1, 2, 3], 2),
        (lambda a, b, c: [a[:-1], b, c[:-1]], [1, 2], 2),
        (lambda a, b, c: [a, b"\x00" * 9 + b, c], [1, 2, 3], 1),
        (lambda a, b, c: [a, b[:20] + b"\n", c], [1, 3], 0),
        (lambda a, b, c: [a, b.replace(b'"seed"', b'"se\xffd"'), c], [1, 3], 0),
        (lambda a, b, c: [a, b"[" * 10**5 + b"\n", b"1" * 5000 + b"\n", b'{"seed":NaN}\n', b, c], [1, 2, 3], 0),
        (lambda a, b, c: [a, b'{"' * 10**5 + b"\n", c], [1, 3], 0),
        (lambda a, b, c: [a, b.replace(b"}", b',"x":1e999}'), c], [1, 3], 0),
    ],
)
def test_of_a_damaged_file_every_row_that_can_be_read_is_kept(damage, kept, saved, tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    content = b"".join(damage(*lines_of(row(1), row(2), row(3))))
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics.jsonl, line \d: expected a JSON object"):
        read_rows(path)
    assert path.read_bytes() == content
    RowWriter(path).close()
    assert [one["iteration"] for one in read_rows(path)] == kept
    assert path.with_name("metrics.jsonl.damaged").read_bytes() == content
    [line] = capsys.readouterr().err.splitlines()
    assert f"the {len(kept)} rows that can be read are kept, {saved} of them from these lines" in line
    # Mended once.
    RowWriter(path).close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "change", [{"iteration": None}, {"seed": "0"}, {"variant": "\x1b[31m"}, {"x": [1]}, {"\x07": 1}]
)
def test_rows_that_are_not_those_of_a_run_are_refused_and_stay(change, tmp_path):
    path = tmp_path / "metrics.jsonl"
    [content] = lines_of({key: value for key, value in (row(1) | change).items() if value is not None})
    path.write_bytes(content)
    with pytest.raises(UserError) as found:
        RowWriter(path)
    assert str(found.value).isprintable() and path.read_bytes() == content


def test_a_variant_names_no_folder_outside_its_own(tmp_path):
    folder = tmp_path / "run"
    with RowWriter(folder / "metrics.jsonl", sinks=[TensorBoard(folder / "tensorboard", by_variant=True)]) as writer:
        writer.append(row(1, variant="../../x", success=1.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    [events_folder] = (folder / "tensorboard").iterdir()
    assert events_folder.name.startswith("_._.._x~") and events(events_folder / "seed_0") == [(10, "success", 1.0)]


def test_more_seeds_than_files_may_be_open(tmp_path):
    seeds = 80
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 10, hard))
    try:
        with RowWriter(tmp_path / "metrics.jsonl", sinks=[TensorBoard(tmp_path / "tensorboard")]) as writer:
            for iteration in (1, 2):
                for seed in range(seeds):
                    writer.append(row(iteration, seed, success=0.5))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 2 * seeds
    for seed in range(seeds):
        assert events(tmp_path / "tensorboard" / f"seed_{seed}") == [(10, "success", 0.5), (20, "success", 0.5)]


def test_events_that_cannot_be_written_are_dropped_with_one_line(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("in the way")
    with RowWriter(tmp_path / "metrics.jsonl", sinks=[TensorBoard(tmp_path / "tensorboard")]) as writer:
        for iteration in (1, 2):
            writer.append(row(iteration, success=0.5))
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("TensorBoard events are no longer written") and line.endswith("; the rows are")


def test_rewind_drops_newer_rows_once_and_the_sink_follows(tmp_path):
    path, folder = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    with RowWriter(path, sinks=[TensorBoard(folder)]) as writer:
        for iteration in (1, 2, 3):
            for seed in (0, 1):
                writer.append(row(iteration, seed, success=iteration / 4, word="x", missing=None))
    with RowWriter(path, sinks=[TensorBoard(folder)]) as writer:
        assert writer.rewind(2) == 2
        assert writer.rewind(2) == 0
        writer.append(row(3, 0, success=1.0))
    assert [(found["iteration"], found["seed"]) for found in read_rows(path)] == [
        (1, 0), (1, 1), (2, 0), (2, 1), (3, 0),
    ]  # fmt: skip
    assert events(folder / "seed_0") == [(10, "success", 0.25), (20, "success", 0.5), (30, "success", 1.0)]
    assert events(folder / "seed_1") == [(10, "success", 0.25), (20, "success", 0.5)]
    assert sorted(found.name for found in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_points_of_a_sweep_have_curves_of_their_own(tmp_path):
    path, folder = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    long = "+".join(f"agent.setting_{index}=0.5" for index in range(20))
    values = {"a": 0.25, long: 0.5}

    def assert_apart():
        for variant, value in values.items():
            assert events(run_folder(tmp_path, "tensorboard", variant) / "seed_0") == [(10, "success", value)]
        assert len(list(folder.iterdir())) == 2

    with RowWriter(path, sinks=[TensorBoard(folder, by_variant=True)]) as writer:
        for variant, value in values.items():
            writer.append(row(1, variant=variant, success=value))
        writer.flush()
        assert_apart()
    # Made anew of the file.
    RowWriter(path, sinks=[TensorBoard(folder, by_variant=True)]).close()
    assert_apart()


def test_a_second_writer_of_the_same_file_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with RowWriter(path) as writer:
        with pytest.raises(UserError, match="is being written by another run"):
            RowWriter(path)
        writer.append(row(1))
        writer.rewind(0)
        with pytest.raises(UserError, match="is being written by another run"):
            RowWriter(path)
    RowWriter(path).close()


def test_a_full_disk_is_one_message_and_leaves_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = RowWriter(path)
    writer.append(row(1, success=0.5))
    whole = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The limit allows three bytes of the second row, as a disk that fills up in the middle of a write.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 3, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl: File too large"):
            writer.append(row(2, success=0.5))
        with pytest.raises(UserError, match=r"cannot write .*big.json: File too large"):
            write_json_atomic(tmp_path / "big.json", {"text": "x" * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == whole
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
    writer.append(row(2, success=0.5))
    writer.close()
    assert [found["iteration"] for found in read_rows(path)] == [1, 2]


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/metrics.jsonl: "):
        RowWriter(tmp_path / "file" / "metrics.jsonl")
