"""Checkpoints: the whole run state, written so that a killed run finds the last one whole."""

from __future__ import annotations

import base64
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from envs.base import PyTree
from experiments.errors import UserError, cannot_read, cannot_write

# Orbax reports every save and restore, and a failure once more from each of its threads; a run has its own progress
# display, and a failure arrives as an exception.
logging.getLogger("absl").setLevel(logging.CRITICAL)

# What a checkpoint needs on the disk beside its arrays.
MARGIN_BYTES = 2**20


class Restored(NamedTuple):
    """A checkpoint: the iteration after which it was taken, the state, the host's snapshot and the metadata."""

    iteration: int
    state: PyTree
    host: bytes | None
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


class Checkpoints:
    """The checkpoints of one program, in a folder.

    Keeps the latest and the best by the evaluation metric. Orbax writes each beside its final place and renames
    it, so that a save that was killed is never found.

    Args:
      folder: made where there is none.
      read_only: only look; what another process is saving stays as it is.

    Raises:
      UserError: if the folder cannot be written, or what is there was damaged from outside.
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
        )
        self.folder = Path(folder).resolve()
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        except ValueError as error:
            raise UserError(f"cannot read the checkpoints in {self.folder}: {_short(error)}") from error

    def latest(self) -> int | None:
        """The iteration of the newest whole checkpoint, or ``None``."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The iteration of the best one by its score, or ``None``."""
        steps = self._manager.all_steps()
        return self._manager.best_step() if steps else None

    def save(
        self, iteration: int, state: PyTree, meta: dict[str, Any], score: float, host: bytes | None = None
    ) -> None:
        """Saves ``state`` as the checkpoint of ``iteration``; returns when it is on the disk.

        Raises:
          UserError: if the disk is full or cannot be written; what was there before stays.
        """
        meta = meta | {"host": None if host is None else base64.b64encode(host).decode()}
        arrays = _storable(state)
        self._require_space(sum(leaf.nbytes for leaf in arrays.values()) + 2 * len(host or b""))
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta))
        try:
            self._manager.save(iteration, args=arguments, metrics={"score": float(score)})
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            for torn in self.folder.glob(f"{iteration}.orbax-checkpoint-tmp*"):
                shutil.rmtree(torn, ignore_errors=True)
            if isinstance(error, OSError):
                raise cannot_write(self.folder, error) from error
            raise UserError(f"cannot write a checkpoint to {self.folder}: {_short(error)}") from error

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
        found = self._read(self._existing(iteration), meta=ocp.args.JsonRestore())
        return {key: value for key, value in found["meta"].items() if key != "host"}

    def _existing(self, iteration: int | None) -> int:
        known = sorted(self._manager.all_steps())
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
        except OSError as error:
            raise cannot_read(self.folder, error) from error
        except (ValueError, KeyError) as error:
            raise UserError(f"cannot read the checkpoint {iteration} in {self.folder}: {_short(error)}") from error

    def restore(self, template: PyTree, iteration: int | None = None) -> Restored:
        """The checkpoint of ``iteration``, or the latest, with the structure of ``template`` (arrays or their shapes).

        What has a sharding in ``template`` is read onto its devices, whatever devices it was saved from.

        Raises:
          UserError: if there is none, it cannot be read, or its arrays are not those of ``template``.
        """
        iteration = self._existing(self.latest() if iteration is None else iteration)
        leaves, structure = jax.tree.flatten(template)
        targets = {_name(index): _wanted(leaf) for index, leaf in enumerate(leaves) if np.prod(leaf.shape)}
        wanted = {name: _described(target) for name, target in targets.items()}
        there = self._shapes(iteration)
        if there != wanted:
            raise UserError(
                f"the checkpoint {iteration} in {self.folder} is of another configuration: {_difference(there, wanted)}"
            )
        found: Any = self._read(iteration, state=ocp.args.StandardRestore(targets), meta=ocp.args.JsonRestore())
        stored = found["state"]
        arrays = [_restored(leaf, stored.get(_name(index))) for index, leaf in enumerate(leaves)]
        meta = dict(found["meta"])
        host = meta.pop("host")
        return Restored(
            iteration,
            jax.tree.unflatten(structure, arrays),
            None if host is None else base64.b64decode(host),
            meta,
        )

    def close(self) -> None:
        """Ends the manager's threads."""
        self._manager.close()


def _short(error: Exception) -> str:
    """The first line of a message without the specification that tensorstore appends."""
    return (str(error).splitlines() or [type(error).__name__])[0].split(" [", 1)[0]


def _difference(there: dict[str, str], wanted: dict[str, str]) -> str:
    """The first array that is not the expected one."""
    if len(there) != len(wanted):
        return f"it holds {len(there)} arrays, expected {len(wanted)}"
    name = next(name for name in sorted(there | wanted) if there.get(name) != wanted.get(name))
    return f"array {int(name)} is {there.get(name)}, expected {wanted.get(name)}"
