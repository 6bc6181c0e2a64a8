"""Trains another library's agent and evaluates it as sagax evaluates its own, in that library's interpreter.

    python -P experiments/benchmarks/baseline_learning.py '{"baseline": "sb3_dqn", "environment_id": ..., "seed": 0}'

This file stands alone: the interpreter is another library's, so that nothing of this repository can be imported.
Standard output has a JSON object per line: first the versions, then each evaluation (``env_steps``, ``return``,
``length``).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

NETWORK_KEYS = ("net_arch", "n_quantiles")


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in ("stable-baselines3", "sb3-contrib", "torch", "gymnasium", "numpy", "Box2D"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _algorithm(baseline: str) -> Any:
    if baseline == "sb3_dqn":
        from stable_baselines3 import DQN

        return DQN
    if baseline == "sb3_qrdqn":
        from sb3_contrib import QRDQN

        return QRDQN
    raise ValueError(f"unknown baseline {baseline!r}: expected 'sb3_dqn' or 'sb3_qrdqn'")


def evaluate(model: Any, vector: SyncVectorEnv, seeds: list[int], length: int) -> dict[str, float]:
    """Mean return and length of one greedy episode per seed, of at most ``length`` steps."""
    observation, _ = vector.reset(seed=seeds)
    alive = np.ones(len(seeds), bool)
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds))
    for _ in range(length):
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, terminated, truncated, _ = vector.step(action)
        returns += np.where(alive, reward, 0.0)
        lengths += alive
        alive &= ~(terminated | truncated)
        if not alive.any():
            break
    return {"return": float(returns.mean()), "length": float(lengths.mean())}


def evaluations(job: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> Any:
    """A callback that evaluates after every ``evaluate_every`` environment steps, once they were learned from."""
    from stable_baselines3.common.callbacks import BaseCallback

    seeds = job["evaluation_seeds"]
    makers = [lambda: gymnasium.make(job["environment_id"])] * job["episodes"]
    vector = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)

    class Evaluations(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            # The gradient steps that belong to a rollout are taken after it.
            if self.num_timesteps and self.num_timesteps % job["evaluate_every"] == 0:
                self._on_training_end()

        def _on_training_end(self) -> None:
            row = evaluate(self.model, vector, seeds, job["length"])
            report({"env_steps": self.num_timesteps} | row)

    return Evaluations()


def main() -> None:
    import torch

    job = json.loads(sys.argv[1])
    answers = sys.stdout
    # What the baselines print must not come between the answers.
    sys.stdout = sys.stderr

    def report(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    # Small networks: handing work to a second thread costs more than it saves.
    torch.set_num_threads(1)
    settings = dict(job["settings"])
    network = {key: settings.pop(key) for key in NETWORK_KEYS if key in settings}
    rate = settings["learning_rate"]
    if settings.pop("anneal", False):
        settings["learning_rate"] = lambda remaining: remaining * rate
    model = _algorithm(job["baseline"])(
        "MlpPolicy",
        gymnasium.make(job["environment_id"]),
        policy_kwargs=network,
        seed=job["seed"],
        device="cpu",
        **settings,
    )
    report(_versions())
    model.learn(job["steps"], callback=evaluations(job, report))


if __name__ == "__main__":
    main()
