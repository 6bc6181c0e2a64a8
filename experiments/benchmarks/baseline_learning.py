"""Trains another library's agent and evaluates it as sagax evaluates its own, in that library's interpreter.

    python -P experiments/benchmarks/baseline_learning.py '{"baseline": "sb3_dqn", "environment_id": ..., "seed": 0}'

This file stands alone: the interpreter is another library's, so that nothing of this repository can be imported.
Standard output has a JSON object per line: first the versions, then each evaluation (``env_steps``, ``return``,
``length``).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

NETWORK_KEYS = ("net_arch", "n_quantiles", "log_std_init", "ortho_init", "activation")
# Settings that are not of the algorithm: environments at a time, and whether observations and rewards are normalised.
ENVIRONMENT_KEYS = ("n_envs", "normalise")
# By baseline: the module and the class of the algorithm.
ALGORITHMS = {
    "sb3_dqn": ("stable_baselines3", "DQN"),
    "sb3_qrdqn": ("sb3_contrib", "QRDQN"),
    "sb3_ppo": ("stable_baselines3", "PPO"),
    "sbx_ppo": ("sbx", "PPO"),
}


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    packages = ("stable-baselines3", "sb3-contrib", "sbx-rl", "torch", "jax", "gymnasium", "mujoco", "numpy", "Box2D")
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _algorithm(baseline: str) -> Any:
    if baseline not in ALGORITHMS:
        raise ValueError(f"unknown baseline {baseline!r}: expected one of {', '.join(ALGORITHMS)}")
    module, name = ALGORITHMS[baseline]
    return getattr(importlib.import_module(module), name)


def _activation(baseline: str, name: str) -> Any:
    """The activation ``name`` (``relu`` or ``tanh``) as the library of ``baseline`` wants it."""
    if baseline.startswith("sbx"):
        return getattr(importlib.import_module("jax.nn"), name)
    return getattr(importlib.import_module("torch.nn"), {"relu": "ReLU", "tanh": "Tanh"}[name])


def training_environments(environment_id: str, seed: int, n_envs: int, normalise: bool, gamma: float) -> Any:
    """``n_envs`` environments as stable-baselines3 takes them; ``normalise`` is its ``VecNormalize``."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    made = make_vec_env(environment_id, n_envs=n_envs, seed=seed)
    return VecNormalize(made, gamma=gamma) if normalise else made


def evaluate(model: Any, vector: SyncVectorEnv, seeds: list[int], length: int, greedy: bool = True) -> dict[str, float]:
    """Mean return and length of one episode per seed, of at most ``length`` steps.

    Observations are normalised as in training, by statistics that do not change here.
    """
    normaliser = model.get_vec_normalize_env()
    observation, _ = vector.reset(seed=seeds)
    alive = np.ones(len(seeds), bool)
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds))
    for _ in range(length):
        seen = observation if normaliser is None else normaliser.normalize_obs(observation)
        action, _ = model.predict(seen, deterministic=greedy)
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
            row = evaluate(self.model, vector, seeds, job["length"], job.get("greedy", True))
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
    if "activation" in network:
        network["activation_fn"] = _activation(job["baseline"], network.pop("activation"))
    own = {key: settings.pop(key) for key in ENVIRONMENT_KEYS if key in settings}
    environments = gymnasium.make(job["environment_id"])
    if own:
        n_envs, normalise = own.get("n_envs", 1), own.get("normalise", False)
        discount = settings.get("gamma", 0.99)
        environments = training_environments(job["environment_id"], job["seed"], n_envs, normalise, discount)
    rate = settings["learning_rate"]
    if settings.pop("anneal", False):
        settings["learning_rate"] = lambda remaining: remaining * rate
    model = _algorithm(job["baseline"])(
        "MlpPolicy",
        environments,
        policy_kwargs=network,
        seed=job["seed"],
        device="cpu",
        **settings,
    )
    report(_versions())
    model.learn(job["steps"], callback=evaluations(job, report))


if __name__ == "__main__":
    main()
