"""Checkpoints: which are kept, what is never found, what is refused, and the full disk."""

from __future__ import annotations

import errno
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments.errors import UserError
from experiments.training import checkpoint
from experiments.training.checkpoint import Checkpoints
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
    save(checkpoints, 3, host=b"\x00snapshot\xff")
    found = checkpoints.restore(state_of(0))
    assert (found.iteration, found.host, found.meta) == (3, b"\x00snapshot\xff", {"env_steps": [3]})
    assert_same_arrays(found.state, state_of(3))
    # What a host owns stays numpy with its 64 bits; the rest goes to the device.
    assert isinstance(found.state["observation"], np.ndarray) and found.state["counter"].dtype == np.int64
    assert isinstance(found.state["parameters"], jax.Array)
    assert jax.random.key_impl(found.state["key"]) == jax.random.key_impl(jax.random.key(3))


def test_shapes_are_enough_of_a_template(checkpoints):
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


def test_a_save_that_was_killed_is_never_found(tmp_path):
    first = Checkpoints(tmp_path)
    save(first, 2)
    save(first, 4)
    first.close()
    # What a kill leaves: the folder under its temporary name, with some of its files.
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


def test_looking_leaves_the_save_of_another_process_alone(tmp_path):
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


def test_a_damaged_checkpoint_is_a_message(checkpoints):
    save(checkpoints, 2)
    for path in (checkpoints.folder / "2" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot read"):
        checkpoints.restore(state_of(0))


def test_a_disk_that_fills_up_leaves_what_was_there(checkpoints, monkeypatch):
    save(checkpoints, 2, 0.5)

    def full(*arguments, **keywords):
        # As a save that had begun: something is on the disk already.
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
