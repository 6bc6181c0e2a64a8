"""The DQN family on CartPole-v1, compared with stable-baselines3: one agent, whose heads and targets are variants.

Command:
    sagax run dqn_cartpole[:qrdqn,double,...] --seeds=10     (dqn_cartpole:pqn: many environments, without replay)
    sagax baselines dqn_cartpole:sb3_dqn --baseline-python=PYTHON --seeds=10     (sb3_qrdqn: sb3-contrib's)
    sagax summary dqn_cartpole --results --metric=return --threshold=475 --baseline=sb3_dqn,tuned

Expected, greedy return on 32 episodes over 49,152 steps, from results/dqn_cartpole.jsonl (10 seeds; mean return of the
run; thousand steps after which 475 is first passed; its ratio to sb3_dqn,tuned; 95 % intervals):
    dqn                452 [432, 465]    10.8 [7.4, 15.9]     1.19 [0.71, 2.30]
    qrdqn              469 [452, 482]     9.6 [6.1, 14.5]     1.06 [0.58, 2.11]
    sb3_dqn,tuned      466 [444, 479]     9.1 [5.4, 13.0]     1
    sb3_qrdqn,tuned    473 [447, 488]     8.1 [4.3, 15.1]     0.90 [0.43, 2.05]
    sb3_dqn            251 [235, 271]    30.5 [25.4, 34.3]    3.36 [2.24, 5.82]
    sb3_qrdqn          300 [259, 335]    24.9 [14.2, 30.2]    2.75 [1.42, 4.87]
sb3_dqn and sb3_qrdqn have the settings that rl-baselines3-zoo documents, with one-step returns. With equal tuning
budgets ten seeds show no difference between sagax and the baselines (qrdqn takes 1.18 [0.55, 2.56] of the steps of
sb3_qrdqn,tuned); a difference of less than a factor of two would not show. The setting that matters is the 10-step
return.

Tuned on other seeds (rows in results/dqn_cartpole_tuning.jsonl): 4 points per method, two learning rates with and
without 10-step returns, ranked by the mean return of the run:
    sagax sweep dqn_cartpole:METHOD --seeds=2 --first-seed=100 --rank=auc
    sagax baselines dqn_cartpole:BASELINE --baseline-python=PYTHON --sweep --seeds=2 --first-seed=100
With one-step returns the mean return stays below 270 (dqn, qrdqn) and 310 (both baselines). All agents train on the
schedule of the zoo: 128 gradient steps after every 256 environment steps, with a target network that stays fixed in
between.

Time: 10 seeds of dqn or qrdqn take 6 to 7 minutes side by side on two busy cores; a seed of a baseline takes a minute.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import (
    HEADS,
    choose_value_based,
    learn_from_unrolls,
    one_of,
    value_based_config,
    value_based_variants,
)

VARIANTS = value_based_variants("dqn") | {
    "pqn": "PQN: Q(lambda) on fresh unrolls of 32 environments, without a replay buffer and a target network",
    "host": "gymnasium's CartPole-v1, stepped from Python",
    "smoke": "seconds: a few iterations of a small batch",
}
REPRODUCES = "DQN (Mnih et al., 2015), C51, QR-DQN and IQN on gymnasium CartPole-v1: return 500"
# Learning rate and length of the n-step return: of 4 points per method, those with the best area under the return's
# curve. C51 and IQN use those of QR-DQN.
TUNED = {"dqn": (1e-3, 10), "qrdqn": (2e-3, 10)}
# The settings that rl-baselines3-zoo documents as tuned for stable-baselines3 on this environment.
_ZOO = {
    "learning_rate": 2.3e-3,
    "batch_size": 64,
    "buffer_size": 100_000,
    "learning_starts": 1000,
    "gamma": 0.99,
    "target_update_interval": 10,
    "train_freq": 256,
    "gradient_steps": 128,
    "exploration_fraction": 0.16,
    "exploration_final_eps": 0.04,
    "net_arch": (256, 256),
}
BASELINES = {"sb3_dqn": _ZOO, "sb3_qrdqn": _ZOO | {"n_quantiles": 10}}
# Both baselines have the same best point of the same 4 points around the zoo's settings.
BASELINES |= {
    f"{baseline},tuned": settings | {"learning_rate": 2.3e-3, "n_steps": 10} for baseline, settings in BASELINES.items()
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 49,152 environment steps, 499,712 of ``pqn``."""
    tokens = [token for token in variant.split(",") if token]
    config = value_based_config()
    config.iterations, config.evaluate_every = 192, 8
    config.data = {"kind": "replay", "length": 64, "batch": 4, "group_size": 1}
    config.environment = {"kind": "functional", "name": "CartPole-v1"}
    if "host" in tokens:
        config.environment = {"kind": "gymnasium", "environment_id": "CartPole-v1"}
    agent = config.agent
    method = choose_value_based(config, tokens, "dqn")
    config.network.layer_norm = True
    agent.learning_rate, agent.n_step = TUNED.get(method, TUNED["qrdqn"])
    # The zoo's schedule: the target network stays fixed while the network learns from 256 steps.
    agent.updates, agent.batch_size = 128, 64
    agent.target_rate, agent.target_period = 0.0, 128
    agent.value_low, agent.value_high = 0.0, 100.0
    config.evaluators.episodes.count = 32
    unrolls = one_of(tokens, (*HEADS, "pqn"), "dqn") == "pqn"
    if unrolls:
        # The settings of the authors' release for this environment; the reward is a tenth.
        learn_from_unrolls(config, steps=500_000, length=64, batch=32, epochs=4, minibatches=16)
        config.network.hidden, config.evaluate_every = (256, 256), 20
        agent.update({"trace_decay": 0.95, "learning_rate": 1e-4, "channels": {"env": 0.1}})
        agent.update({"epsilon_end": 0.2, "epsilon_steps": 100_000.0})
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        agent.learning_starts, agent.updates = 64, 1 if unrolls else 2
        config.evaluators.episodes.count, config.evaluators.episodes.cut = 4, 100
    return config


def get_sweep() -> dict[str, list]:
    """Learning rates, with and without n-step returns."""
    return {"agent.learning_rate": [1e-3, 2e-3], "agent.n_step": [1, 10]}


def get_baseline_sweep() -> dict[str, list]:
    """Learning rates of the baselines around the one that the zoo documents, with and without n-step returns."""
    return {"learning_rate": [1e-3, 2.3e-3], "n_steps": [1, 10]}
