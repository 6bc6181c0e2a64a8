"""Checkpoints: which are kept, which are ignored, what is refused, and a full disk."""

from __future__ import annotations

import errno
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from envs.snapshots import Snapshot
from experiments.errors import UserError
from experiments.training import checkpoint
from experiments.training.checkpoint import Checkpoints
from experiments.training.pickle_signature import STATE_VARIABLE
from tests.experiments import corridor
from tests.experiments.corridor import assert_same_arrays


def state_of(number):
    """Every kind of leaf that a run state has, a host's 64 bits and an array without elements included."""
    return {
        "key": jax.random.key(number),
        "keys": jax.random.split(jax.random.key(number), 3),
        "parameters": jnp.arange(6, dtype=jnp.float32).reshape(2, 3) / 3 + number,
        "count": jnp.int32(number),
        "flags": jnp.asarray([True, False]),
        "nothing": jnp.zeros((2, 0)),
        "half": jnp.asarray([1.5, number], jnp.bfloat16),
        "observation": np.asarray([1 / 3, number], np.float64),
        "counter": np.asarray([2**40 + number], np.int64),
        "carry": (),
    }


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints")
    yield made
    made.close()


def save(checkpoints, iteration, score=0.0, **extra):
    checkpoints.save(iteration, state_of(iteration), {"env_steps": [iteration]}, score, **extra)


def kept(checkpoints):
    return sorted(int(path.name) for path in checkpoints.folder.iterdir() if path.name.isdigit())


def test_what_is_saved_is_restored_bit_for_bit(checkpoints):
    save(checkpoints, 3)
    found = checkpoints.restore(state_of(0))
    assert (found.iteration, found.host, found.ours, found.meta) == (3, None, False, {"env_steps": [3]})
    assert_same_arrays(found.state, state_of(3))
    # Arrays of a host stay numpy arrays of 64 bits; all others go to the device.
    assert isinstance(found.state["observation"], np.ndarray) and found.state["counter"].dtype == np.int64
    assert isinstance(found.state["parameters"], jax.Array)
    assert jax.random.key_impl(found.state["key"]) == jax.random.key_impl(jax.random.key(3))


def test_a_template_of_shapes_is_enough(checkpoints):
    save(checkpoints, 3)
    on_device = {name: leaf for name, leaf in state_of(3).items() if not isinstance(leaf, np.ndarray)}
    checkpoints.save(4, on_device, {}, 0.0)
    template = jax.eval_shape(lambda: {name: jnp.asarray(leaf) for name, leaf in on_device.items() if name != "carry"})
    assert_same_arrays(checkpoints.restore(template).state, on_device)


def test_the_latest_and_the_best_are_kept(checkpoints):
    for iteration, score in [(1, 0.1), (2, 0.9), (3, 0.5), (4, 0.2)]:
        save(checkpoints, iteration, score)
    assert kept(checkpoints) == [2, 4]
    assert (checkpoints.latest(), checkpoints.best()) == (4, 2)
    assert_same_arrays(checkpoints.restore(state_of(0)).state, state_of(4))
    assert_same_arrays(checkpoints.restore(state_of(0), 2).state, state_of(2))
    save(checkpoints, 5, 1.0)
    assert (kept(checkpoints), checkpoints.best()) == ([5], 5)


def test_an_empty_folder_has_none(checkpoints):
    assert checkpoints.latest() is None and checkpoints.best() is None
    with pytest.raises(UserError, match=r"no checkpoint of iteration None.*there are none"):
        checkpoints.restore(state_of(0))


def test_an_iteration_that_is_not_there_names_those_that_are(checkpoints):
    save(checkpoints, 2, 0.9)
    save(checkpoints, 4, 0.1)
    with pytest.raises(UserError, match=r"no checkpoint of iteration 3 in .*there are \[2, 4\]"):
        checkpoints.restore(state_of(0), 3)


def test_a_save_that_was_killed_is_ignored(tmp_path):
    first = Checkpoints(tmp_path)
    save(first, 2)
    save(first, 4)
    first.close()
    # A kill leaves the folder under its temporary name, with some of its files.
    shutil.copytree(tmp_path / "4", tmp_path / "6.orbax-checkpoint-tmp-123")
    for file in sorted(path for path in (tmp_path / "6.orbax-checkpoint-tmp-123").rglob("*") if path.is_file())[::2]:
        file.unlink()
    second = Checkpoints(tmp_path)
    assert second.latest() == 4
    assert_same_arrays(second.restore(state_of(0)).state, state_of(4))
    # The same iteration can be saved again.
    save(second, 6)
    assert second.latest() == 6
    assert_same_arrays(second.restore(state_of(0)).state, state_of(6))
    second.close()
    assert not list(tmp_path.glob("*tmp*"))


def test_reading_does_not_remove_the_save_of_another_process(tmp_path):
    first = Checkpoints(tmp_path)
    save(first, 2)
    first.close()
    (tmp_path / "4.orbax-checkpoint-tmp-123").mkdir()
    looking = Checkpoints(tmp_path, read_only=True)
    assert looking.latest() == 2
    looking.close()
    assert (tmp_path / "4.orbax-checkpoint-tmp-123").is_dir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": jnp.zeros((3, 2))}, r"is float32\[2,3\], expected float32\[3,2\]"),
        ({"count": jnp.float32(0)}, r"is int32\[\], expected float32\[\]"),
        ({"more": jnp.zeros(1)}, r"it holds 8 arrays, expected 9"),
    ],
)
def test_another_structure_is_refused(checkpoints, changes, message):
    save(checkpoints, 2)
    with pytest.raises(UserError, match="is of another configuration: .*" + message):
        checkpoints.restore(state_of(0) | changes)


HOST = Snapshot(
    {"inside": {"steps": 3}, "text": "\xff\u2028"},
    {
        "a/b": np.asarray([2**40, -1]),
        "half": np.asarray([1.5, -2.0], jnp.bfloat16),
        "flag": np.asarray(True),
        "empty": np.zeros((0, 2), np.int8),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    },
    b"not unpickled here",
)


def test_a_host_comes_back_as_data_and_its_pickle_as_ours(checkpoints, monkeypatch, tmp_path):
    save(checkpoints, 2, host=HOST)
    found = checkpoints.restore(state_of(0))
    assert found.ours and found.host.pickled == HOST.pickled and found.host.values == HOST.values
    assert list(found.host.arrays) == list(HOST.arrays)
    corridor.assert_same_arrays(found.host.arrays, HOST.arrays)
    # For anybody else it is somebody's.
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "another"))
    assert not checkpoints.restore(state_of(0)).ours
    save(checkpoints, 4, host=Snapshot({}, {}))
    assert checkpoints.restore(state_of(0))[2:4] == (Snapshot({}, {}), False)


HOSTILE = {
    "a list": [],
    "no arrays": {"values": {}, "pickled": False, "signature": None},
    "objects": {"arrays": [["a", "object", [1]]]},
    "a type that is none": {"arrays": [["a", "spam", [1]]]},
    "a negative size": {"arrays": [["a", "int8", [-1]]]},
    "too many bytes": {"arrays": [["a", "int64", [2**40]]]},
    "a signature that is a number": {"signature": 3},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_host_that_is_no_data_is_one_message(case, checkpoints):
    save(checkpoints, 2, host=Snapshot({}, {}))
    folder = checkpoints.folder / "2"
    (folder / checkpoint.DIGEST_FILE).unlink()
    path = folder / "meta" / "metadata"
    changed = HOSTILE[case]
    good = {"values": {}, "arrays": [], "pickled": False, "signature": None}
    host = good | changed if isinstance(changed, dict) and case != "no arrays" else changed
    path.write_text(json.dumps({"env_steps": [2], "host": host}))
    with pytest.raises(UserError, match=r"cannot read the checkpoint 2 in .*: its host"):
        checkpoints.restore(state_of(0), 2)


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_whatever_is_damaged_the_one_before_is_restored(tmp_path, capsys):
    whole = Checkpoints(tmp_path / "whole")
    save(whole, 1, 0.9)
    save(whole, 2, 0.5)
    whole.close()
    names = [path.relative_to(whole.folder) for path in files_of(whole.folder / "2")]
    assert len(names) > 8
    rng = np.random.default_rng(0)
    for index, name in enumerate(names):
        folder = tmp_path / f"damaged_{index}"
        shutil.copytree(whole.folder, folder)
        content = bytearray((folder / name).read_bytes())
        how = ("flip", "cut", "gone")[index % 3]
        if how == "gone" or not content:
            (folder / name).unlink()
        elif how == "cut":
            (folder / name).write_bytes(content[: len(content) // 2])
        else:
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
            (folder / name).write_bytes(content)
        found = Checkpoints(folder)
        restored = found.restore(state_of(0))
        lines = capsys.readouterr().err.splitlines()
        # Without its digests it cannot be told from one that is older than they are.
        expected = 2 if name.name == checkpoint.DIGEST_FILE and how == "gone" else 1
        assert restored.iteration == expected, name
        assert_same_arrays(restored.state, state_of(expected))
        if expected == 1:
            [line] = lines
            assert line.startswith(f"the checkpoint 2 in {folder} is damaged (") and "Traceback" not in line
            assert (folder / checkpoint.DAMAGED_FOLDER / "2").is_dir()
            save(found, 2, 0.5)
            assert found.restore(state_of(0)).iteration == 2
        found.close()


def test_reading_only_reports_a_damaged_checkpoint_and_leaves_it(tmp_path, capsys):
    whole = Checkpoints(tmp_path)
    save(whole, 1, 0.9)
    save(whole, 2, 0.5)
    whole.close()
    path = max((tmp_path / "2" / "state").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    looking = Checkpoints(tmp_path, read_only=True)
    with pytest.raises(UserError, match=r"the checkpoint 2 in .* is damaged \(state/.* is another\): .*checkpoint=1"):
        looking.restore(state_of(0), 2)
    assert looking.restore(state_of(0), 1).iteration == 1
    looking.close()
    assert kept(looking) == [1, 2] and capsys.readouterr().err == ""


def test_one_without_digests_that_is_damaged_is_set_aside_too(checkpoints, capsys):
    save(checkpoints, 1, 0.9)
    save(checkpoints, 2, 0.5)
    (checkpoints.folder / "2" / checkpoint.DIGEST_FILE).unlink()
    for path in files_of(checkpoints.folder / "2" / "state"):
        path.unlink()
    assert checkpoints.restore(state_of(0)).iteration == 1
    assert "the checkpoint 2 in" in capsys.readouterr().err
    (checkpoints.folder / "1" / "meta" / "metadata").write_text("[" * 10**5)
    with pytest.raises(UserError, match=r"there is no whole checkpoint in .*--fresh"):
        checkpoints.restore(state_of(0))


def test_a_kill_while_an_old_one_is_deleted_leaves_nothing_listed(tmp_path, monkeypatch):
    first = Checkpoints(tmp_path)
    save(first, 1)

    def killed(path, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            save(first, 2)
    first.close()
    assert kept(first) == [2] and (tmp_path / checkpoint.REMOVED_FOLDER / "1").is_dir()
    second = Checkpoints(tmp_path)
    assert second.latest() == second.best() == 2 and not (tmp_path / checkpoint.REMOVED_FOLDER).exists()
    second.close()


def test_a_disk_that_fills_up_keeps_earlier_checkpoints(checkpoints, monkeypatch):
    save(checkpoints, 2, 0.5)

    def full(*arguments, **keywords):
        # As if a save had begun: part of it is already on the disk.
        (checkpoints.folder / "4.orbax-checkpoint-tmp-9").mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", full)
        with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
            save(checkpoints, 4, 0.9)
    assert not list(checkpoints.folder.glob("*tmp*"))
    assert checkpoints.latest() == 2
    assert_same_arrays(checkpoints.restore(state_of(0)).state, state_of(2))
    save(checkpoints, 4, 0.9)
    assert_same_arrays(checkpoints.restore(state_of(0)).state, state_of(4))


def test_a_disk_without_room_is_refused_before_anything_is_written(checkpoints, monkeypatch):
    save(checkpoints, 2)
    usage = shutil.disk_usage(checkpoints.folder)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: usage._replace(free=2**19))
    with pytest.raises(UserError, match=r"it needs 1.0 MiB, 0.5 MiB are free"):
        save(checkpoints, 4)
    assert kept(checkpoints) == [2] and checkpoints.latest() == 2
    assert_same_arrays(checkpoints.restore(state_of(0)).state, state_of(2))


def test_a_folder_that_cannot_be_made_is_a_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        Checkpoints(tmp_path / "file" / "checkpoints")
