"""Process rewards from outcomes alone: OPRL compared with GRPO, RLOO, PRIME, GiGPO and PPO on Sokoban.

Compares with table 1 of OPRL / iStar (arXiv 2509.19199), column VisualSokoban, with small networks instead of language
models: which credit learns 6x6 rooms with one box when only success pays, and with how many steps?

Command:
    sagax run oprl_sokoban:METHOD[,warm] --seeds=10
    sagax summary oprl_sokoban --metric=success --threshold=0.8 --baseline=grpo

Expected, from scratch, 200 iterations (final success; thousand environment steps to 80 %; 95 % intervals; 30 seeds for
ppo and ppo_residual, 10 for the others):
    ppo_residual   0.94 [0.94, 0.95]    250 [240, 261]
    ppo            0.98 [0.97, 0.98]    300 [289, 317]    258 [251, 267] with agent.learning_rate=0.008
    gigpo          0.92 [0.91, 0.93]    325 [303, 354]
    reinforce_pp   0.87 [0.83, 0.90]    345 [297, 408]
    oprl_residual  0.88 [0.87, 0.91]    387 [362, 416]
    grpo           0.92 [0.89, 0.93]    449 [426, 493]
    rloo           0.87 [0.86, 0.88]    519 [486, 554]
    control_variate 0.83 [0.74, 0.89]   not reached by 2 of 10
    drgrpo         0.74 [0.68, 0.77]    not reached by 5 of 10
    oprl           0.21 [0.19, 0.23]    not reached
    oprl_released  0.18 [0.16, 0.20]    not reached
    prime          0.11 [0.04, 0.28]    not reached

Hard rooms (METHOD,hard): 10x10 cells, one box, a number of pushes drawn from 2 to 14 for each room (12 is the most that
such a room can need). Solved optimally, 1,000 of them take 8 pushes in the median (quartiles 5 and 11, 12 at most) and
11 moves (quartiles 7 and 14, 18 at most); the rooms of the other variants take 2 pushes in the median, 4 at most.
Measured by tests/experiments/configs/test_oprl_sokoban.py, which repeats it on fewer rooms, and plays 8,192 at random.
Final success of 10 seeds after 300 iterations, 3.3 (ppo) to 3.8 million steps; random actions solve 1 to 2 %:
    ppo            0.29 [0.26, 0.33]
    gigpo          0.02 [0.02, 0.03]
    grpo           0.02 [0.01, 0.02]
    oprl           0.02 [0.01, 0.02]
    ppo_residual   0.01 [0.01, 0.02]
Only PPO learns. The process rewards make the policies deterministic before there are successes to learn from
(notebooks/oprl.ipynb). The tuning ran in two parts, 2e-3 to 8e-3 and 5e-4 to 1e-3.
    sagax run oprl_sokoban:METHOD,hard --seeds=10
    sagax sweep oprl_sokoban:METHOD,hard --seeds=2 --first-seed=100 --sweep.agent.learning_rate=5e-4,1e-3,2e-3,4e-3,8e-3

On RGB: see notebooks/oprl.ipynb.

All methods were tuned alike, on other seeds (rows in results/oprl_sokoban_tuning.jsonl; the warm start uses the same
values):
    sagax sweep oprl_sokoban:METHOD --seeds=2 --first-seed=100 --config.iterations=80 --rank=auc
    (on RGB METHOD,visual with --sweep.agent.learning_rate=0.0005,0.001,0.002)

Time: 10 seeds side by side took 1 to 3 minutes on 2 cores that also did other work; in hard rooms 5 to 15 minutes.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs._common import entry, one_of, policy_gradient_config

METHODS = {
    "oprl": "group z-score of the outcome plus group z-score of implicit step rewards (the paper's equations)",
    "prime": "leave-one-out outcome plus return-to-go of implicit step rewards, in groups of 20 to 80 % success",
    "gigpo": "group z-score of the outcome plus return-to-go less its mean at the same observation in the group",
    "grpo": "group z-score of the outcome",
    "drgrpo": "outcome less the group's mean, not divided by standard deviation or length",
    "rloo": "outcome less the mean of the group's other rollouts",
    "reinforce_pp": "return-to-go, whitened over the batch",
    "ppo": "generalised advantage estimation with a critic",
    "oprl_released": "oprl as in the released code: leave one out, mean over steps, score before the update, maximum 1",
    "oprl_residual": "oprl with a residual reward model on replay, weighted by its accuracy (the default)",
    "control_variate": "leave-one-out outcome less the part that centred rewards of the other steps explain",
    "ppo_residual": "ppo plus the calibrated process reward of oprl_residual",
}
SETTINGS = {
    "scratch": "from random weights (the default)",
    "warm": "the policy is first cloned from a few of the solver's solutions",
    "visual": "RGB observations and a convolutional network (VisualSokoban)",
    "hard": "10x10 rooms that take 8 pushes in the median, 12 at most",
    "smoke": "seconds: a few iterations of a small batch",
}
VARIANTS = METHODS | SETTINGS
# Learning rate and entropy weight: the best of 8 points per method by the area under the success curve, 80 iterations.
TUNED = {
    "oprl": (2e-3, 0.01),
    "prime": (4e-3, 0.05),
    "gigpo": (8e-3, 0.01),
    "grpo": (4e-3, 0.01),
    "drgrpo": (16e-3, 0.01),
    "rloo": (8e-3, 0.01),
    "reinforce_pp": (8e-3, 0.01),
    "ppo": (4e-3, 0.05),
    "oprl_released": (2e-3, 0.05),
    "oprl_residual": (8e-3, 0.01),
    "control_variate": (8e-3, 0.01),
    "ppo_residual": (8e-3, 0.05),
}
# Every room draws how many pushes it needs: if random actions never solved a room, a sparse reward would teach nothing.
HARD_ROOMS = {
    "height": 10,
    "width": 10,
    "reverse_steps": 60,
    "pushes_low": 2,
    "pushes_high": 14,
    "time_limit": 50,
}
# The same for every method: with 0.05 the policy stays near uniform while successes are rare.
HARD_ENTROPY_WEIGHT = 0.01
# For each method that has rows, the best of 5e-4, 1e-3, 2e-3, 4e-3 and 8e-3 by the area under the success curve.
HARD_LEARNING_RATES = {"ppo": 4e-3, "ppo_residual": 4e-3, "grpo": 1e-3, "gigpo": 1e-3, "oprl": 2e-3}
# Learning rate on RGB: the best of 5e-4, 1e-3 and 2e-3 in the same way; other methods use 2e-3.
TUNED_ON_RGB = {"grpo": 2e-3, "ppo": 2e-3, "oprl": 1e-3}
REPRODUCES = "OPRL / iStar (arXiv 2509.19199), table 1: VisualSokoban column"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``METHOD,setting,...``."""
    tokens = [token for token in variant.split(",") if token]
    method = one_of(tokens, METHODS, "oprl_residual")
    start = one_of(tokens, ("scratch", "warm"), "scratch")
    config = policy_gradient_config()
    config.iterations, config.evaluate_every, config.seeds = 200, 10, 1
    config.environment = {
        "kind": "sokoban",
        "height": 6,
        "width": 6,
        "num_boxes": 1,
        "inner_walls": False,
        "observation": "symbolic",
        "pixels_per_cell": 4,
        "reward": "sparse",
        "time_limit": 20,
    }
    config.data = {"kind": "episodes", "length": 20, "batch": 256, "group_size": 8}
    config.evaluators.episodes.count, config.evaluation.metric = 512, "success"
    config.agent.minibatches = 4
    config.agent.learning_rate, config.agent.entropy_weight = TUNED[method]
    _credit(config, method)
    if start == "warm":
        config.warm_start.demonstrations = 64
        config.warm_start.steps = 75
    if "hard" in tokens:
        config.environment.update(HARD_ROOMS)
        config.data.length = config.environment.time_limit
        config.iterations, config.evaluate_every = 300, 20
        config.agent.learning_rate = HARD_LEARNING_RATES.get(method, 4e-3)
        config.agent.entropy_weight = HARD_ENTROPY_WEIGHT
    if "visual" in tokens:
        config.environment.observation = "rgb"
        config.network.channels, config.network.strides = (16, 16), (4, 1)
        config.agent.learning_rate = TUNED_ON_RGB.get(method, 2e-3)
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        config.data.batch, config.evaluators.episodes.count = 32, 32
    return config


def _credit(config: ConfigDict, method: str) -> None:
    outcome = {
        "oprl": entry("group_outcome", baseline="mean", scale="std"),
        "prime": entry("group_outcome", baseline="leave_one_out", scale="none"),
        "gigpo": entry("group_outcome", baseline="mean", scale="std"),
        "grpo": entry("group_outcome", baseline="mean", scale="std"),
        "drgrpo": entry("group_outcome", baseline="mean", scale="none"),
        "rloo": entry("group_outcome", baseline="leave_one_out", scale="none"),
        "reinforce_pp": entry("whitened_return", discount=1.0),
        "ppo": entry("gae", discount=0.99, gae_lambda=0.95),
        "oprl_released": entry("group_outcome", baseline="leave_one_out", scale="none"),
        "oprl_residual": entry("group_outcome", baseline="mean", scale="std"),
        "control_variate": entry("group_outcome", baseline="leave_one_out", scale="none"),
        "ppo_residual": entry("gae", discount=0.99, gae_lambda=0.95),
    }
    config.credit.env = outcome[method]
    if method in ("ppo", "ppo_residual"):
        config.agent.whiten = "minibatch"
    if method == "drgrpo":
        config.agent.reduction = "constant"
    if method == "gigpo":
        config.credit.anchor = entry("anchor_group", discount=0.95, scale="none")
    if method == "oprl":
        config.credit.implicit_prm = entry(
            "group_steps", "implicit_prm", baseline="mean", scale="std", first_row_baseline=False
        )
        config.rewards.implicit_prm = process_reward()
    if method == "oprl_released":
        config.credit.implicit_prm = entry(
            "group_steps", "implicit_prm", baseline="leave_one_out", scale="none", first_row_baseline=True
        )
        config.rewards.implicit_prm = process_reward(reduction="mean", score="before", scale="max")
    if method in ("oprl_residual", "ppo_residual"):
        config.credit.implicit_prm = entry(
            "group_steps",
            "implicit_prm",
            0.1 if method == "ppo_residual" else 0.3,
            baseline="mean",
            scale="std",
            first_row_baseline=False,
        )
        config.rewards.implicit_prm = process_reward(
            form="residual",
            reduction="mean",
            beta=20.0,
            updates=16,
            replay=16,
            groups_per_update=8,
            calibrated=True,
            fading=5.0,
        )
    if method == "control_variate":
        config.credit.implicit_prm = entry("other_steps", "implicit_prm")
        config.rewards.implicit_prm = process_reward(
            form="centred", loss="squared_error", beta=1.0, updates=16, replay=16, groups_per_update=8, score="before"
        )
        config.agent.whiten = "batch"
    if method == "prime":
        config.credit.implicit_prm = entry("leave_one_out_return_to_go", "implicit_prm", discount=1.0)
        config.rewards.group_filter = {"kind": "group_filter", "low": 0.2, "high": 0.8, "outcome_threshold": 0.0}
        config.rewards.implicit_prm = process_reward(
            loss="cross_entropy", reference="frozen", score="before", scale="return"
        )
        config.agent.whiten = "batch"


def process_reward(**changes) -> dict:
    """The section of the implicit process reward as the OPRL paper defines it, with ``changes``."""
    return {
        "kind": "implicit_prm",
        "form": "policy",
        "reference": "rolling",
        "loss": "preference",
        "reduction": "sum",
        "beta": 0.05,
        "learning_rate": 1e-3,
        "max_gradient_norm": 10.0,
        "weight_decay": 0.0,
        "updates": 1,
        "replay": 0,
        "groups_per_update": 0,
        "score": "after",
        "scale": "none",
        "calibrated": False,
        "calibration_smoothing": 0.0,
        "fading": 0.0,
        "outcome_threshold": 0.0,
        "tolerance": 1e-5,
    } | changes


def get_sweep() -> dict[str, list]:
    """Learning rates and entropy weights, the same for every method."""
    return {"agent.learning_rate": [2e-3, 4e-3, 8e-3, 16e-3], "agent.entropy_weight": [0.01, 0.05]}
