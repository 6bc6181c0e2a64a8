"""Runs another library's training for a benchmark, in that library's own interpreter.

    python -P experiments/benchmarks/baseline_speed.py '{"baseline": "purejaxrl", "path": "CHECKOUT", ...}'

This file stands alone: the interpreter is another library's, so that nothing of this repository can be imported. The
first line on standard output is a JSON object with ``ready``, the versions and the seconds of the first sample, which
compiles. Then every line read from standard input
trains for one sample and answers with its environment ``steps``, ``seconds`` and this process's ``cpu_seconds``. A
benchmark can thus take turns between a baseline and sagax, and neither runs while the other is timed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import sys
import time
import types
from collections.abc import Callable


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def purejaxrl(job: dict) -> tuple[Callable[[], int], dict]:
    """PureJaxRL's ``ppo.make_train`` from the checkout at ``path``, on gymnax's ``environment_id``.

    One piece is one whole training run.
    """
    # Its wrappers import these two for environments that are not run here.
    for name in ("brax", "brax.envs", "brax.envs.wrappers", "brax.envs.wrappers.training", "navix"):
        module = types.ModuleType(name)
        vars(module).update(EpisodeWrapper=None, AutoResetWrapper=None)
        sys.modules.setdefault(name, module)
    vars(sys.modules["brax"]).update(envs=sys.modules["brax.envs"])
    sys.path.insert(0, f"{job['path']}/purejaxrl")
    import jax
    import ppo

    settings = {
        "LR": job["learning_rate"],
        "NUM_ENVS": job["num_envs"],
        "NUM_STEPS": job["num_steps"],
        "TOTAL_TIMESTEPS": job["steps"],
        "UPDATE_EPOCHS": job["epochs"],
        "NUM_MINIBATCHES": job["minibatches"],
        "GAMMA": job["discount"],
        "GAE_LAMBDA": job["gae_lambda"],
        "CLIP_EPS": job["clip"],
        "ENT_COEF": job["entropy_weight"],
        "VF_COEF": job["value_weight"],
        "MAX_GRAD_NORM": job["max_gradient_norm"],
        "ACTIVATION": job["activation"],
        "ENV_NAME": job["environment_id"],
        "ANNEAL_LR": True,
        "DEBUG": False,
    }
    train = jax.jit(ppo.make_train(settings))
    updates = int(job["steps"]) // job["num_steps"] // job["num_envs"]
    seeds = iter(range(10**6))

    def piece() -> int:
        jax.block_until_ready(train(jax.random.PRNGKey(next(seeds))))
        return updates * job["num_steps"] * job["num_envs"]

    return piece, _versions("jax", "jaxlib", "flax", "gymnax", "distrax")


def rejax(job: dict) -> tuple[Callable[[], int], dict]:
    """rejax's PPO on gymnax's ``environment_id``, without evaluations.

    One piece is one whole training run. Its learning rate has no schedule, and it clips every number of a gradient
    instead of its norm.
    """
    import jax
    from rejax import PPO

    algorithm = PPO.create(
        env=job["environment_id"],
        agent_kwargs={"activation": job["activation"], "hidden_layer_sizes": tuple(job["hidden"])},
        eval_freq=job["steps"],
        skip_initial_evaluation=True,
        total_timesteps=job["steps"],
        num_envs=job["num_envs"],
        num_steps=job["num_steps"],
        num_epochs=job["epochs"],
        num_minibatches=job["minibatches"],
        learning_rate=job["learning_rate"],
        max_grad_norm=job["max_gradient_norm"],
        gamma=job["discount"],
        gae_lambda=job["gae_lambda"],
        clip_eps=job["clip"],
        vf_coef=job["value_weight"],
        ent_coef=job["entropy_weight"],
    )
    algorithm = algorithm.replace(eval_callback=lambda algorithm, state, key: ())
    train = jax.jit(algorithm.train)
    # What it trains are whole iterations, the last one beyond ``steps``.
    iterations = -(-int(job["steps"]) // (job["num_steps"] * job["num_envs"]))
    seeds = iter(range(10**6))

    def piece() -> int:
        jax.block_until_ready(train(jax.random.PRNGKey(next(seeds))))
        return iterations * job["num_steps"] * job["num_envs"]

    return piece, _versions("rejax", "jax", "jaxlib", "flax", "gymnax", "distrax")


def gymnax_environment(job: dict) -> tuple[Callable[[], int], dict]:
    """gymnax's CartPole-v1 alone, auto-resetting, with uniformly random actions, in one scan."""
    import gymnax
    import jax
    import jax.numpy as jnp

    env, params = gymnax.make("CartPole-v1")
    num_envs, length = job["num_envs"], int(job["steps"]) // job["num_envs"]

    @jax.jit
    def run(key):
        observation, state = jax.vmap(env.reset, (0, None))(jax.random.split(key, num_envs), params)

        def step(carry, step_key):
            state, total = carry
            action_key, environment_key = jax.random.split(step_key)
            action = jax.random.randint(action_key, (num_envs,), 0, 2)
            keys = jax.random.split(environment_key, num_envs)
            observation, state, reward, _, _ = jax.vmap(env.step, (0, 0, 0, None))(keys, state, action, params)
            return (state, total + jnp.sum(reward) + jnp.sum(observation)), None

        start = (state, jnp.sum(observation))
        return jax.lax.scan(step, start, jax.random.split(jax.random.fold_in(key, 1), length))[0][1]

    def piece() -> int:
        jax.block_until_ready(run(jax.random.PRNGKey(0)))
        return length * num_envs

    return piece, _versions("jax", "jaxlib", "gymnax")


def _on_policy(job: dict, algorithm, **arguments) -> Callable[[], int]:
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    environments = make_vec_env(job["environment_id"], n_envs=job["num_envs"], seed=0)
    if job["normalise"]:
        environments = VecNormalize(environments, gamma=job["discount"])
    model = algorithm(
        "MlpPolicy",
        environments,
        n_steps=job["num_steps"],
        batch_size=job["num_envs"] * job["num_steps"] // job["minibatches"],
        n_epochs=job["epochs"],
        learning_rate=job["learning_rate"],
        gamma=job["discount"],
        gae_lambda=job["gae_lambda"],
        clip_range=job["clip"],
        ent_coef=job["entropy_weight"],
        vf_coef=job["value_weight"],
        max_grad_norm=job["max_gradient_norm"],
        seed=0,
        **arguments,
    )

    def piece() -> int:
        before = model.num_timesteps
        model.learn(job["steps"], reset_num_timesteps=False)
        return model.num_timesteps - before

    return piece


def stable_baselines3(job: dict) -> tuple[Callable[[], int], dict]:
    """stable-baselines3's PPO on the CPU, with the environments that its ``make_vec_env`` makes."""
    import torch
    from stable_baselines3 import PPO

    # Networks of 64 units: handing work to a second thread costs more than it saves.
    torch.set_num_threads(job["threads"])
    hidden = list(job["hidden"])
    piece = _on_policy(job, PPO, device="cpu", policy_kwargs={"net_arch": {"pi": hidden, "vf": hidden}})
    return piece, _versions("stable-baselines3", "torch", "gymnasium", "numpy")


def sbx(job: dict) -> tuple[Callable[[], int], dict]:
    """sbx's PPO."""
    from sbx import PPO

    hidden = list(job["hidden"])
    piece = _on_policy(job, PPO, policy_kwargs={"net_arch": {"pi": hidden, "vf": hidden}})
    return piece, _versions("sbx-rl", "stable-baselines3", "jax", "jaxlib", "gymnasium", "numpy")


def _off_policy(job: dict, model) -> Callable[[], int]:
    """Gradient steps alone, ``updates`` per call, on a replay buffer with ``stored`` transitions of random actions."""
    model.learn(job["stored"])

    def piece() -> int:
        for _ in range(job["calls"]):
            model.train(gradient_steps=job["updates"], batch_size=job["batch_size"])
        return job["calls"] * job["updates"]

    return piece


def _replay_arguments(job: dict) -> dict:
    arguments = {"buffer_size": job["capacity"], "gamma": job["discount"]}
    arguments |= {key: job[key] for key in ("learning_rate", "batch_size")}
    # Nothing is learned while the buffer is filled.
    return arguments | {"policy": "MlpPolicy", "env": "CartPole-v1", "seed": 0, "learning_starts": job["stored"] + 1}


def sbx_dqn(job: dict) -> tuple[Callable[[], int], dict]:
    """sbx's DQN, with the same numbers of hidden units."""
    from sbx import DQN

    model = DQN(**_replay_arguments(job), policy_kwargs={"net_arch": list(job["hidden"])})
    return _off_policy(job, model), _versions("sbx-rl", "stable-baselines3", "jax", "jaxlib", "gymnasium", "numpy")


def sb3_qrdqn(job: dict) -> tuple[Callable[[], int], dict]:
    """sb3-contrib's QR-DQN on the CPU."""
    import torch
    from sb3_contrib import QRDQN

    torch.set_num_threads(job["threads"])
    network = {"net_arch": list(job["hidden"]), "n_quantiles": job["quantiles"]}
    model = QRDQN(**_replay_arguments(job), device="cpu", policy_kwargs=network)
    return _off_policy(job, model), _versions("sb3-contrib", "stable-baselines3", "torch", "gymnasium", "numpy")


BASELINES = {
    "purejaxrl": purejaxrl,
    "rejax": rejax,
    "gymnax_environment": gymnax_environment,
    "stable_baselines3": stable_baselines3,
    "sbx": sbx,
    "sbx_dqn": sbx_dqn,
    "sb3_qrdqn": sb3_qrdqn,
}


def main() -> None:
    job = json.loads(sys.argv[1])
    answers = sys.stdout
    # What the baselines print must not come between the answers.
    sys.stdout = sys.stderr
    piece, versions = BASELINES[job["baseline"]](job)
    started = time.perf_counter()
    piece()
    first = time.perf_counter() - started
    ready = {"ready": job["baseline"], "versions": versions, "first_seconds": first}
    print(json.dumps(ready), file=answers, flush=True)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        steps = piece()
        answer = {"steps": steps, "seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - processor}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
