"""Run by ``test_devices.py`` in separate processes, which have other devices than pytest's.

``python -m tests.experiments.training.device_worker four FOLDER`` (with four devices) and
``... part FOLDER`` (one of several processes).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest

from agents.networks.normaliser import MOMENTS
from envs.catalogue import ENVIRONMENTS
from experiments.assembly import registry
from experiments.assembly.build import build_environment
from experiments.commands import run
from experiments.training.host_driver import HostDriver
from experiments.training.scan_driver import ScanDriver
from experiments.training.sharding import DATA, MEMBERS, device_mesh, stored_sharding
from tests.experiments import corridor


def train(config, folder: Path, seeds: int, devices: int | None = None) -> None:
    """``sagax run corridor`` on the first ``devices`` devices, or on all if ``None``."""
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.dict(ENVIRONMENTS, corridor=corridor.Corridor))
        patches.enter_context(mock.patch.object(registry, "load", lambda name: corridor.loaded(config)))
        if devices is not None:
            # Not earlier: with several processes, the devices are known only once the processes are connected.
            chosen = jax.devices()[:devices]
            patches.enter_context(mock.patch.object(jax, "devices", lambda: chosen))
        assert run.main(["corridor", f"--runs={folder}", f"--seeds={seeds}"]) == 0


def config_of(iterations: int):
    config = corridor.process(form="residual")
    config.iterations = iterations
    return config


def resumed_elsewhere(folder: Path) -> None:
    """Three seeds, which four devices do not divide: all on one device, and the second half on one, two and four."""
    train(config_of(4), folder / "one", 3, 1)
    train(config_of(2), folder / "four_then_4", 3)
    for devices in (1, 2):
        shutil.copytree(folder / "four_then_4", folder / f"four_then_{devices}")
    for devices in (1, 2, 4):
        train(config_of(4), folder / f"four_then_{devices}", 3, devices)


def environments_of_one_seed() -> dict[str, float]:
    """One seed whose environments are spread over four devices: the largest difference from one device. The moments of
    its observations and the statistics of its value targets are merged across the devices, and sums of hundreds of
    squares differ relative to their size."""
    config = corridor.with_critic()
    config.network.normalise_observations = True
    config.agent.popart = True
    states = []
    with mock.patch.dict(ENVIRONMENTS, corridor=corridor.Corridor):
        source = build_environment(config)
        for devices in (1, 4):
            driver = ScanDriver(config, source, corridor.members(0), devices=jax.devices()[:devices])
            states.append(driver.chunk(driver.start(), 0, 2)[0])
            arguments = (states[-1], driver._values, np.int32(2))
            program = driver._chunks[2].lower(*arguments).compile().as_text()
    # A part of the batch of 8 on each device, and what they have to tell each other.
    shared = "all-reduce" in program and "f32[2,2]" in program
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(states[0])[0]]
    differences = [
        np.max(np.abs(one.astype(np.float64) - other.astype(np.float64)))
        / (np.maximum(np.max(np.abs(one)), 1.0) if MOMENTS in path else 1.0)
        for path, one, other in zip(paths, *map(corridor.arrays, states), strict=True)
        if one.size
    ]
    return {"largest_difference": float(max(differences)), "shared": shared}


def meshes() -> dict[str, list[list[int]]]:
    """Members, data and shards between programs, by number of members and devices."""
    found = {}
    for devices in (1, 2, 4):
        for members in (1, 2, 3, 4, 6, 8):
            mesh = device_mesh(members, jax.devices()[:devices])
            shards = stored_sharding(mesh, members).mesh.shape[MEMBERS]
            found[f"{members} on {devices}"] = [mesh.shape[MEMBERS], mesh.shape[DATA], shards]
    return found


def shards() -> list[int]:
    """How many members each device holds of a state of four members."""
    config = corridor.without_critic()
    with mock.patch.dict(ENVIRONMENTS, corridor=corridor.Corridor):
        driver = ScanDriver(config, build_environment(config), corridor.members(0, 1, 2, 3))
        leaves = jax.tree.leaves(driver.start().agent.params)
    return [len(shard.data) for shard in leaves[0].addressable_shards]


def host_devices() -> list[int]:
    """The devices of the leaves of a host driver that was given the last one, of its template and of its state."""
    config = corridor.with_critic()
    config.environment.kind = "corridor_host"
    with pytest.MonkeyPatch.context() as patch:
        corridor.register(patch)
        driver = HostDriver(config, build_environment(config), corridor.members(0)[0], device=jax.devices()[-1])
        state = driver.start()
        leaves = jax.tree.leaves((driver.template().agent, state.agent))
        driver.close()
        # The agent that was trained there is evaluated by the other driver on all devices.
        config.environment.kind = "corridor"
        scan = ScanDriver(config, build_environment(config), corridor.members(0))
        assert scan.evaluate(jax.tree.map(lambda leaf: leaf[None], state._replace(rollout=())))["length"] > 0
    return sorted({device.id for leaf in leaves for device in leaf.sharding.device_set})


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "part":
        train(corridor.without_critic(), folder / "parts", 2)
        return
    resumed_elsewhere(folder)
    train(corridor.without_critic(), folder / "whole", 2, 1)
    found = {"meshes": meshes(), "shards": shards(), "host": host_devices()}
    found["environments"] = environments_of_one_seed()
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
