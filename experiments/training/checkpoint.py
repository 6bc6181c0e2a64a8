"""Checkpoints: the whole run state, written so that a killed run finds the last one whole."""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from envs.base import PyTree
from envs.snapshots import Snapshot
from experiments.disk import read_json_object, write_json_atomic
from experiments.errors import UserError, cannot_write, reason, say
from experiments.training import pickle_signature

# Orbax reports every save and restore, and a failure once more from each of its threads; a run has its own progress
# display, and a failure arrives as an exception.
logging.getLogger("absl").setLevel(logging.CRITICAL)

# What a checkpoint needs on the disk beside its arrays.
MARGIN_BYTES = 2**20
# In the folder of a checkpoint: what its files were when they were written.
DIGEST_FILE = "digests.json"
# In the folder of the checkpoints: those that are about to be deleted, and those that are not as they were written.
REMOVED_FOLDER, DAMAGED_FOLDER = ".removed", ".damaged"


class DamagedError(UserError):
    """A checkpoint that is not as it was written."""


class Restored(NamedTuple):
    """A checkpoint.

    Attributes:
      iteration: after which it was taken.
      state: with the structure that was asked for.
      host: the state of the host environments and what is saved with them, or ``None``. Its pickle, where it has one,
        may be anybody's.
      ours: whether this user pickled it on this machine.
      meta: what else was saved.
    """

    iteration: int
    state: PyTree
    host: Snapshot | None
    ours: bool
    meta: dict[str, Any]


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def _storable(tree: PyTree) -> dict[str, jax.Array | np.ndarray]:
    """The leaves as arrays by position; typed keys as their data. The structure is the program's, not the disk's.

    Arrays of a device stay on it: Orbax writes each of their shards from where it is. An array without elements says
    nothing and stays out: Orbax refuses it.
    """

    def storable(leaf):
        if _is_key(leaf):
            return jax.random.key_data(leaf)
        return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)

    leaves = map(storable, jax.tree.leaves(tree))
    return {_name(index): leaf for index, leaf in enumerate(leaves) if leaf.size}


def _wanted(template: Any) -> Any:
    """What Orbax is asked for: with the sharding of ``template``, where it has one, straight onto its devices."""
    if isinstance(template, np.ndarray | np.generic):
        return np.empty(template.shape, template.dtype)
    data = jax.eval_shape(jax.random.key_data, template) if _is_key(template) else template
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=template.sharding)


def _name(index: int) -> str:
    return f"{index:05d}"


def _described(leaf: Any) -> str:
    """``float32[3,4]``."""
    return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, np.shape(leaf)))}]"


def _restored(template: Any, stored: jax.Array | np.ndarray | None) -> Any:
    """One leaf as ``template`` is: a host's numpy array keeps its 64 bits, which a device array does not have."""
    if stored is None:
        stored = np.zeros(template.shape, template.dtype)
    if isinstance(template, np.ndarray | np.generic):
        return np.asarray(stored)
    # A copy of a host's array: a run donates its state, and may not donate what somebody else owns.
    stored = stored if isinstance(stored, jax.Array) else jnp.array(stored)
    return jax.random.wrap_key_data(stored, dtype=template.dtype) if _is_key(template) else stored


def _saved_host(host: Snapshot) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A snapshot as JSON values and as arrays of bytes, the pickle apart from the others."""
    arrays = {name: np.asarray(array) for name, array in host.arrays.items()}
    described = [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()]
    content = {"arrays": b"".join(array.tobytes() for array in arrays.values()), "pickled": host.pickled or b""}
    values: dict[str, Any] = {"values": host.values, "arrays": described, "pickled": host.pickled is not None}
    values["signature"] = None if host.pickled is None else pickle_signature.signature(host.pickled)
    return values, {name: np.frombuffer(each, np.uint8) for name, each in content.items() if each}


def _read_host(values: Any, content: Mapping[str, np.ndarray]) -> tuple[Snapshot, bool]:
    """The inverse of ``_saved_host``, and whether this user made the pickle on this machine.

    Raises:
      ValueError: these are no such values.
    """
    kinds = {"values": dict, "arrays": list, "pickled": bool, "signature": str | None}
    if not isinstance(values, dict) or not all(isinstance(values.get(key), kind) for key, kind in kinds.items()):
        raise ValueError(f"its host is no object with {', '.join(kinds)}")
    rest = content["arrays"].tobytes() if "arrays" in content else b""
    arrays = {}
    for described in values["arrays"]:
        name, dtype, shape = _checked_description(described)
        size = dtype.itemsize * math.prod(shape)
        if size > len(rest):
            raise ValueError(f"its host's array {name!r} is cut short")
        arrays[name] = np.frombuffer(rest[:size], dtype).reshape(shape)
        rest = rest[size:]
    pickled = content["pickled"].tobytes() if values["pickled"] and "pickled" in content else None
    ours = pickled is not None and pickle_signature.is_ours(pickled, values["signature"])
    return Snapshot(values["values"], arrays, pickled), ours


def _checked_description(described: Any) -> tuple[str, np.dtype, list[int]]:
    name, dtype, shape = described if isinstance(described, list) and len(described) == 3 else (None, None, None)
    sizes = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    try:
        found = np.dtype(dtype) if isinstance(dtype, str) else None
    except TypeError:
        found = None
    # An array of objects would be read from addresses.
    if not isinstance(name, str) or shape is None or not sizes or found is None or found.hasobject:
        raise ValueError(f"its host's array {str(described)[:40]} is no name, type and shape")
    return name, found, shape


class Checkpoints:
    """The checkpoints of one program, in a folder.

    Keeps the latest and the best by the evaluation metric. Orbax writes each beside its final place and renames
    it, so that a save that was killed is never found; one that is to be removed is renamed before it is. Beside its
    files a checkpoint has their digests. One that is not as it was written is never restored: it is set aside, with a
    message, so that the one before it is the latest.

    Args:
      folder: made where there is none.
      read_only: only look; what another process is saving, and what is damaged, stays where it is.

    Raises:
      UserError: if the folder cannot be written, or what is there cannot be read.
    """

    def __init__(self, folder: Path, *, read_only: bool = False):
        # `max_to_keep` together with `best_fn` may delete the newest step; these policies do not.
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(1),
                preservation_policy.BestN(get_metric_fn=lambda metrics: metrics["score"], n=1),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            enable_async_checkpointing=False,
            best_fn=lambda metrics: metrics["score"],
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            todelete_subdir=None if read_only else REMOVED_FOLDER,
        )
        self.folder = Path(folder).resolve()
        self._read_only = read_only
        try:
            damage = {int(path.name): _damage(path) for path in self.folder.glob("[0-9]*") if path.name.isdecimal()}
            self._damage = {iteration: why for iteration, why in damage.items() if why is not None}
            if not read_only:
                for iteration, why in self._damage.items():
                    self._set_aside(iteration, why)
                self._remove_old()
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        # What Orbax reads here has the digests of its writing; without them it may raise anything.
        except Exception as error:
            raise UserError(f"cannot read the checkpoints in {self.folder}: {_short(error)}") from error

    def _set_aside(self, iteration: int, why: str) -> None:
        aside = self.folder / DAMAGED_FOLDER / str(iteration)
        if jax.process_index() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            (self.folder / str(iteration)).rename(aside)
            say(f"the checkpoint {iteration} in {self.folder} is damaged ({why}): it is not used, and lies in {aside}")
        _wait_for_others(f"set aside {aside}")

    def _remove_old(self) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(self.folder / REMOVED_FOLDER, ignore_errors=True)

    def latest(self) -> int | None:
        """The iteration of the newest whole checkpoint, or ``None``."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The iteration of the best one by its score, or ``None``."""
        steps = self._manager.all_steps()
        return self._manager.best_step() if steps else None

    def save(
        self, iteration: int, state: PyTree, meta: dict[str, Any], score: float, host: Snapshot | None = None
    ) -> None:
        """Saves ``state`` as the checkpoint of ``iteration``; returns when it is on the disk.

        Raises:
          UserError: if the disk is full or cannot be written; what was there before stays.
        """
        arrays = _storable(state)
        items = {"state": ocp.args.StandardSave(arrays)}
        size = sum(leaf.nbytes for leaf in arrays.values())
        described, content = (None, {}) if host is None else _saved_host(host)
        if content:
            items["host"] = ocp.args.StandardSave(content)
            size += sum(each.nbytes for each in content.values())
        self._require_space(size)
        arguments = ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta | {"host": described}))
        try:
            self._manager.save(iteration, args=arguments, metrics={"score": float(score)})
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                _write_digests(self.folder / str(iteration))
        except (OSError, ValueError) as error:
            for torn in self.folder.glob(f"{iteration}.orbax-checkpoint-tmp*"):
                shutil.rmtree(torn, ignore_errors=True)
            if isinstance(error, OSError):
                raise cannot_write(self.folder, error) from error
            raise UserError(f"cannot write a checkpoint to {self.folder}: {_short(error)}") from error
        self._remove_old()

    def _require_space(self, size: int) -> None:
        """Refuses to start what cannot end well: Orbax's threads print a page each when the disk fills up."""
        try:
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        if free < size + MARGIN_BYTES:
            raise UserError(
                f"cannot write a checkpoint to {self.folder}: it needs {(size + MARGIN_BYTES) / 2**20:.1f} MiB, "
                f"{free / 2**20:.1f} MiB are free"
            )

    def meta(self, iteration: int) -> dict[str, Any]:
        """What was saved beside the state of ``iteration``.

        Raises:
          UserError: if there is no such checkpoint, or it cannot be read.
        """
        meta = self._read_meta(self._existing(iteration))
        return {key: value for key, value in meta.items() if key != "host"}

    def _read_meta(self, iteration: int) -> dict[str, Any]:
        # Read as data that may be anybody's, not by Orbax.
        try:
            return read_json_object(self.folder / str(iteration) / "meta" / "metadata")
        except UserError as error:
            raise DamagedError(str(error)) from error

    def _existing(self, iteration: int | None) -> int:
        known = sorted(set(self._manager.all_steps()) - self._damage.keys())
        if iteration in self._damage and self._read_only:
            raise UserError(
                f"the checkpoint {iteration} in {self.folder} is damaged ({self._damage[iteration]}): "
                f"expected --checkpoint={known[-1] if known else 'of another run: there is no other'}"
            )
        if iteration is None or iteration not in known:
            raise UserError(f"no checkpoint of iteration {iteration} in {self.folder}; there are {known or 'none'}")
        return iteration

    def _read(self, iteration: int, **items: Any) -> Any:
        return self._guarded(iteration, lambda: self._manager.restore(iteration, args=ocp.args.Composite(**items)))

    def _shapes(self, iteration: int) -> dict[str, str]:
        """The arrays of ``iteration`` by name, described; none is read."""
        folder = self.folder / str(iteration) / "state"
        found = self._guarded(iteration, lambda: ocp.StandardCheckpointHandler().metadata(folder))
        return {name: _described(leaf) for name, leaf in found.tree.items()}

    def _guarded(self, iteration: int, read: Callable[[], Any]) -> Any:
        try:
            return read()
        # A checkpoint without digests may be damaged in any way, and Orbax then raises whatever it stumbles over.
        except Exception as error:
            raise DamagedError(f"cannot read the checkpoint {iteration} in {self.folder}: {_short(error)}") from error

    def restore(self, template: PyTree, iteration: int | None = None) -> Restored:
        """The checkpoint of ``iteration``, or the latest whole one, with the structure of ``template`` (arrays or their
        shapes).

        What has a sharding in ``template`` is read onto its devices, whatever devices it was saved from.

        Raises:
          DamagedError: if it cannot be read.
          UserError: if there is none, or its arrays are not those of ``template``.
        """
        if iteration is not None or self._read_only or self.latest() is None:
            return self._restore(template, self._existing(self.latest() if iteration is None else iteration))
        while (latest := self.latest()) is not None:
            try:
                return self._restore(template, latest)
            except DamagedError as error:
                self._set_aside(latest, str(error))
                self._manager.reload()
        raise UserError(f"there is no whole checkpoint in {self.folder}: --fresh starts over")

    def _restore(self, template: PyTree, iteration: int) -> Restored:
        leaves, structure = jax.tree.flatten(template)
        meta = self._read_meta(iteration)
        described = meta.pop("host", None)
        targets = {_name(index): _wanted(leaf) for index, leaf in enumerate(leaves) if np.prod(leaf.shape)}
        wanted = {name: _described(target) for name, target in targets.items()}
        there = self._shapes(iteration)
        if there != wanted:
            raise UserError(
                f"the checkpoint {iteration} in {self.folder} is of another configuration: {_difference(there, wanted)}"
            )
        items = {"state": ocp.args.StandardRestore(targets)}
        # What the host saved is plain bytes.
        if (self.folder / str(iteration) / "host").is_dir():
            items["host"] = ocp.args.StandardRestore()
        found: Any = self._read(iteration, **items)
        stored = found["state"]
        arrays = [_restored(leaf, stored.get(_name(index))) for index, leaf in enumerate(leaves)]
        try:
            content = {name: np.asarray(each) for name, each in found["host"].items()} if "host" in items else {}
            host, ours = (None, False) if described is None else _read_host(described, content)
        except ValueError as error:
            raise DamagedError(f"cannot read the checkpoint {iteration} in {self.folder}: {error}") from error
        return Restored(iteration, jax.tree.unflatten(structure, arrays), host, ours, meta)

    def close(self) -> None:
        """Ends the manager's threads."""
        self._manager.close()


def _wait_for_others(what: str) -> None:
    """Returns once every process of a run on several hosts is here; the first alone moves files."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _digests(folder: Path) -> dict[str, str]:
    """The digest of every file of a checkpoint, by its path in ``folder``."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != DIGEST_FILE:
            with open(path, "rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, hashlib.blake2b).hexdigest()
    return found


def _write_digests(folder: Path) -> None:
    write_json_atomic(folder / DIGEST_FILE, {"blake2b": _digests(folder)})


def _damage(folder: Path) -> str | None:
    """What is not as it was written, in a few words; ``None`` for a whole checkpoint, and for one without digests,
    which was killed before they were written, or is older than they are."""
    path = folder / DIGEST_FILE
    if not path.exists():
        return None
    try:
        written = read_json_object(path).get("blake2b")
        found = _digests(folder)
    except OSError as error:
        return reason(error)
    except UserError:
        written = None
    if not isinstance(written, dict):
        return f"{DIGEST_FILE} cannot be read"
    changed = [name for name, digest in written.items() if found.get(name) != digest]
    return f"{changed[0]} is {'another' if changed[0] in found else 'missing'}" if changed else None


def _short(error: Exception) -> str:
    """The first line of a message without the specification that tensorstore appends."""
    return (str(error).splitlines() or [type(error).__name__])[0].split(" [", 1)[0]


def _difference(there: dict[str, str], wanted: dict[str, str]) -> str:
    """The first array that is not the expected one."""
    if len(there) != len(wanted):
        return f"it holds {len(there)} arrays, expected {len(wanted)}"
    name = next(name for name in sorted(there | wanted) if there.get(name) != wanted.get(name))
    return f"array {int(name)} is {there.get(name)}, expected {wanted.get(name)}"
