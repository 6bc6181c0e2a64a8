"""The rules by which a run is sharded over devices: one mesh, and what of a program lies along its axes.

    mesh [members, data]        members: seeds and, in a sweep, values of traced hyper-parameters
                                data: the environments of one member

The devices of all processes are used. Members never speak to each other, so that each device trains its own members
with ``shard_map`` and no device waits for another inside a program. Where there are more devices than members, those
that are left share each member's environments along ``data``: the compiler splits what the rollout computes and adds up
what the learner needs from it, and results agree with those of one device to rounding.

**Members that do not divide by the devices are padded.** ``members`` is as long as there are devices, or as the
smallest divisor of their number that holds all members; the last member is repeated until every device has as many as
the others. Padding costs no time, because the devices with a padded member would wait for those without. The greatest
divisor of the members would leave devices idle: 7 seeds on 4 devices take as long as 2 seeds when padded, and as long
as 7 otherwise. Padding exists inside compiled programs only: what a program returns has the real members alone, so that
no row, checkpoint or count can contain a padded one. Between programs such a state is sharded over as many devices as
divide the members; choose a number of members that the devices divide where memory is short.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from envs.base import PyTree

MEMBERS, DATA = "members", "data"


def device_mesh(members: int, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh ``[members, data]`` for so many members.

    Args:
      members: at least 1.
      devices: those of all processes if ``None``.
    """
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    size = next((size for size in range(1, count) if count % size == 0 and size >= members), count)
    return _mesh(devices, size)


def _mesh(devices: Sequence[Any], size: int) -> Mesh:
    return Mesh(np.asarray(devices).reshape(size, -1), (MEMBERS, DATA), axis_types=(AxisType.Auto,) * 2)


def stored_sharding(mesh: Mesh, members: int) -> NamedSharding:
    """The sharding of leaves ``[members, ...]`` between programs: over as many devices as divide the members."""
    shards = math.gcd(members, mesh.shape[MEMBERS])
    return NamedSharding(_mesh(mesh.devices.reshape(-1), shards), PartitionSpec(MEMBERS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def placed(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Host arrays, equal in all processes, as device arrays of ``sharding``."""

    def place(x):
        return jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index])

    return jax.tree.map(place, tree)


def split_environments(mesh: Mesh, tree: PyTree, axis: int) -> PyTree:
    """Inside a program of one member: shards the environments, ``axis`` of every leaf, over ``data`` where they
    divide by it."""
    size = mesh.shape[DATA]
    if size == 1:
        return tree

    def constrain(leaf):
        if leaf.ndim <= axis or leaf.shape[axis] % size:
            return leaf
        # Of the mesh that ``shard_map`` has made current, in which ``members`` is not the compiler's.
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(*(None,) * axis, DATA))

    return jax.tree.map(constrain, tree)


def over_members(function: Callable[..., Any], in_axes: Sequence[int | None]) -> Callable[..., Any]:
    """``jax.vmap(function, in_axes)``, where a device has a single member without the axis of length 1.

    XLA compiles such an axis as any other, and products of matrices with it are slower on the CPU.
    """

    def mapped(*arguments):
        with_members = [x for x, axis in zip(arguments, in_axes, strict=True) if axis is not None]
        if jax.tree.leaves(with_members)[0].shape[0] > 1:
            return jax.vmap(function, in_axes=tuple(in_axes))(*arguments)
        alone = (
            x if axis is None else jax.tree.map(lambda leaf: leaf[0], x)
            for x, axis in zip(arguments, in_axes, strict=True)
        )
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], function(*alone))

    return mapped


def member_program(
    function: Callable[..., Any],
    mesh: Mesh,
    members: int,
    *,
    in_axes: Sequence[int | None],
    whole: Any = False,
    donate_argnums: Sequence[int] = (),
) -> Any:
    """``jax.jit(over_members(function, in_axes))``, sharded over ``mesh``.

    Args:
      function: of one member.
      mesh: from ``device_mesh(members)``.
      members: how many.
      in_axes: of each argument 0, where its leaves are ``[members, ...]``, or ``None``, where all members share it.
      whole: a prefix of what ``function`` returns: True where every process needs it whole (metrics), False where it
        stays sharded (a run state).
      donate_argnums: as in ``jax.jit``.
    """
    mapped = over_members(function, in_axes)
    padding = -members % mesh.shape[MEMBERS]
    if mesh.size > 1:
        specs = tuple(PartitionSpec() if axis is None else PartitionSpec(MEMBERS) for axis in in_axes)
        # ``data`` is left to the compiler.
        mapped = jax.shard_map(
            mapped, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(MEMBERS), axis_names={MEMBERS}, check_vma=False
        )

    def padded(leaf):
        return jnp.concatenate([leaf, jnp.broadcast_to(leaf[-1:], (padding, *leaf.shape[1:]))])

    def program(*arguments):
        if padding:
            arguments = tuple(
                argument if axis is None else jax.tree.map(padded, argument)
                for argument, axis in zip(arguments, in_axes, strict=True)
            )
        results = mapped(*arguments)
        return jax.tree.map(lambda leaf: leaf[:members], results) if padding else results

    sharded = stored_sharding(mesh, members)
    shardings = jax.tree.map(lambda is_whole: replicated(sharded.mesh) if is_whole else sharded, whole)
    return jax.jit(program, out_shardings=shardings, donate_argnums=donate_argnums)
