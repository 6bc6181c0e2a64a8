"""The pages of ``docs/`` that are generated from committed rows, and the tables of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from experiments.disk import write_atomic
from experiments.errors import UserError, cannot_read
from experiments.rows.tables import Curves, Grid, benchmark_table, curves_table, devices_table, grid_table

_METHODS = (
    *("ppo_residual", "ppo", "ppo+agent.learning_rate=0.008", "gigpo", "reinforce_pp", "oprl_residual", "grpo"),
    *("rloo", "control_variate", "drgrpo", "oprl", "oprl_released", "prime"),
)
_NOT_WARM = ("control_variate", "oprl_released")
_LEARNING_RATE = "ppo, learning rate 8e-3"
_THRESHOLDS = {
    "ofs": "OFS",
    "ofs+agent.bonus_scale=0.03": "OFS, bounds 0.3 times as wide",
    "ofs+agent.bonus_scale=0.3": "OFS, bounds 3 times as wide",
    "ucb": "UCB, unconstrained",
    "primal_dual+agent.multiplier_step=0.01": "primal-dual, step 0.01",
    "primal_dual": "primal-dual, step 0.05",
    "primal_dual+agent.multiplier_step=0.25": "primal-dual, step 0.25",
}

RESULTS: tuple[Curves | Grid, ...] = (
    Curves(
        "oprl_sokoban: process rewards from outcomes alone, on Sokoban from scratch",
        "oprl_sokoban",
        "success",
        {name: _LEARNING_RATE if "=" in name else f"`{name}`" for name in _METHODS},
        threshold=0.8,
        baseline="ppo+agent.learning_rate=0.008",
        text="The ratio is to the best-tuned baseline: PPO at its best learning rate, found after the sweep that tuned "
        "every method alike. What holds of the claims of OPRL (arXiv 2509.19199) is in "
        "[notebooks/oprl.ipynb](../notebooks/oprl.ipynb).",
    ),
    Curves(
        "oprl_sokoban: the policy cloned from a few solutions first",
        "oprl_sokoban",
        "success",
        {f"{name},warm": f"`{name},warm`" for name in _METHODS if "=" not in name and name not in _NOT_WARM},
        threshold=0.8,
        baseline="ppo,warm",
    ),
    Curves(
        "oprl_sokoban: RGB observations",
        "oprl_sokoban",
        "success",
        {f"{name},visual": f"`{name},visual`" for name in ("grpo", "ppo", "oprl")},
        text="The learning rate was tuned on RGB, the entropy weight as above.",
    ),
    Curves(
        "oprl_sokoban: hard rooms, 8 pushes in the median",
        "oprl_sokoban",
        "success",
        {f"{name},hard": f"`{name},hard`" for name in ("ppo", "ppo_residual", "gigpo", "grpo", "oprl")},
        text="Random actions solve 1 to 2 % of these rooms.",
    ),
    Curves(
        "dqn_cartpole: the value-based family beside stable-baselines3 on CartPole-v1",
        "dqn_cartpole",
        "return",
        {
            "dqn": "`dqn`",
            "qrdqn": "`qrdqn`",
            "sb3_dqn,tuned": "stable-baselines3's DQN, tuned",
            "sb3_qrdqn,tuned": "sb3-contrib's QR-DQN, tuned",
            "sb3_dqn": "stable-baselines3's DQN, as documented",
            "sb3_qrdqn": "sb3-contrib's QR-DQN, as documented",
        },
        threshold=475.0,
        baseline="sb3_dqn,tuned",
        digits=0,
        untuned=("sb3_dqn", "sb3_qrdqn"),
    ),
    Curves(
        "qrdqn_lunarlander: the same on LunarLander-v3",
        "qrdqn_lunarlander",
        "return",
        {
            "": "`qrdqn` (the default)",
            "dqn": "`dqn`",
            "sb3_dqn,tuned": "stable-baselines3's DQN, tuned",
            "sb3_qrdqn,32_quantiles": "sb3-contrib's QR-DQN with 32 quantiles",
        },
        threshold=200.0,
        baseline="sb3_dqn,tuned",
        digits=0,
    ),
    Curves(
        "ppo_cartpole: PPO on gymnasium's CartPole-v1",
        "ppo_cartpole",
        "return",
        {"": "host environments", "native": "`native`: inside jit"},
        threshold=475.0,
        digits=0,
    ),
    Curves("ppo_pendulum: PPO on gymnasium's Pendulum-v1", "ppo_pendulum", "return", {"": "the default"}, digits=0),
    Curves(
        "ppo_mujoco: PPO on MuJoCo with normalised observations and returns",
        "ppo_mujoco",
        "return",
        {"half_cheetah": "HalfCheetah-v5", "hopper": "Hopper-v5", "walker2d": "Walker2d-v5"},
        text="Episodes of sampled actions. For its `ppo_continuous_action.py`, whose settings these are, CleanRL has "
        "1,443 ± 46 and 2,383 ± 272 on version 4 of the tasks after 10^6 steps (mean and standard deviation of 3 "
        "seeds). rl-baselines3-zoo publishes single models of stable-baselines3 with settings that were tuned for each "
        "task: 5,836 on HalfCheetah-v3, 2,410 on Hopper-v3.",
        digits=0,
        untuned=("half_cheetah", "hopper", "walker2d"),
    ),
    Grid(
        "eta_gridworld: mean of the worst share of the returns",
        "eta_gridworld",
        {
            "cvar": "eta-network, one agent for all shares",
            **{f"cvar,stockless,tau_{share}": f"without stock, trained for {share} %" for share in (10, 25, 50, 100)},
        },
        {"10": "10 %", "25": "25 %", "50": "50 %", "100": "all"},
        "final",
        metrics={share: f"objective/tau_{share}" for share in ("10", "25", "50", "100")},
        text="Stock-augmented return distributions (arXiv 2501.13028); the exact planner's optimum is in "
        "[notebooks/distributional_dp.ipynb](../notebooks/distributional_dp.ipynb).",
    ),
    Grid(
        "curiosity_maze: trackers reached per training episode, mean of the run",
        "curiosity_maze",
        {
            "hindsight": "BYOL-Hindsight",
            "explore": "BYOL-Explore",
            "rnd": "RND",
            "icm": "ICM",
            "count": "counts of hashed observations",
            "ppo": "no intrinsic reward",
        },
        {
            "quiet": "no noise",
            "brownian": "wandering blocks",
            "pixel": "random pixels",
            "on_demand": "pixels on demand",
        },
        "mean",
        "train/trackers",
        text="No reward from the environment; see [notebooks/curiosity.ipynb](../notebooks/curiosity.ipynb).",
    ),
    Curves(
        "curiosity_minigrid: KeyCorridorS3R3",
        "curiosity_minigrid",
        "train/success",
        {"episodic": "`episodic`: counts within the episode", "ppo": "`ppo`: no intrinsic reward"},
        threshold=0.5,
        digits=3,
    ),
    Grid(
        "oni_minigrid: success of training episodes with labels of messages, mean of the run",
        "oni_minigrid",
        {"retrieval": "retrieval", "classification": "classification", "ranking": "ranking"},
        {
            "delay_0": "labels at once",
            "delay_100": "100 messages late",
            "delay_1000": "1,000 messages late",
            "partial": "half of the colours never labelled",
        },
        "mean",
        "train/success",
        text="Rewards from an annotator's opinion (ONI, arXiv 2410.23022) on KeyCorridorS3R3; see "
        "[notebooks/language_feedback.ipynb](../notebooks/language_feedback.ipynb).",
    ),
    Grid(
        "stepmix_tabular: exploration that keeps a promise in every episode, mean of 10,000 episodes",
        "stepmix_tabular",
        {
            f"{safety},{steps}": f"{label}, {steps.removeprefix('steps_')} steps"
            for steps in ("steps_3", "steps_5")
            for safety, label in (
                ("step_mix", "StepMix"),
                ("eps_mix", "EpsMix"),
                ("unsafe", "optimism alone"),
                ("baseline", "the baseline alone"),
            )
        },
        {
            "regret": "regret per episode",
            "below": "share of episodes below the threshold",
            "bounds": "share with a bound that failed",
        },
        "mean",
        metrics={"regret": "train/regret", "below": "train/below", "bounds": "train/bounds_failed"},
        text="Exact values of what is played in every episode, with the radii that are proved (arXiv 2306.06265). The "
        "threshold is nine tenths of the baseline's value.",
        digits=5,
    ),
    Grid(
        "stepmix_tabular: narrower radii, and other models, 5 steps",
        "stepmix_tabular",
        {
            f"{safety},steps_5,{setting}": f"{label}, {setting.replace('_', ' ')}"
            for setting in ("narrow", "model_1", "model_2", "model_3", "model_4")
            for safety, label in (("step_mix", "StepMix"), ("eps_mix", "EpsMix"), ("unsafe", "optimism alone"))
        },
        {
            "regret": "regret per episode",
            "below": "share of episodes below the threshold",
            "bounds": "share with a bound that failed",
        },
        "mean",
        metrics={"regret": "train/regret", "below": "train/below", "bounds": "train/bounds_failed"},
        text="`narrow` has a fifth of the radii that are proved.",
        digits=5,
    ),
    Grid(
        "ofs_threshold: fair thresholds in a closed loop, mean of 10,000 periods",
        "ofs_threshold",
        _THRESHOLDS,
        {"reward": "reward", "violation": "violation", "gap": "gap to the best feasible threshold"},
        "mean",
        metrics={"reward": "train/reward", "violation": "train/violation", "gap": "train/gap"},
        text="What each period was expected to bring, without noise (arXiv 2512.22313). A gap below 0 is a higher "
        "reward than that of any feasible threshold.",
        digits=4,
    ),
    Grid(
        "ofs_threshold: the last 1,000 periods, and where the population settles under the favourite threshold",
        "ofs_threshold",
        _THRESHOLDS,
        {"gap": "gap", "violation": "violation", "settled": "settled gap", "settled_violation": "settled violation"},
        "final",
        metrics={
            "gap": "train/gap",
            "violation": "train/violation",
            "settled": "gap",
            "settled_violation": "violation",
        },
        digits=4,
    ),
)

_MADE = "<!-- Made by `sagax tables` from the rows in results/; change the rows or the code, not this page. -->"
_RESULTS_HEAD = """# Results

Every number is computed from the rows in [results/](../results) by `sagax tables`. Estimates are interquartile means
over seeds, with 95 % stratified bootstrap intervals; the x-axis is environment steps. "Tuned on" is the budget that
chose a method's settings, on seeds that are not reported. Rows made before evaluation episodes were drawn for each seed
judge all seeds on the same episodes, so that their intervals leave out the error of that one draw."""
_BENCHMARKS_HEAD = """# Speed of sagax beside baselines

Each comparison takes turns between two sides in one run (`sagax benchmark CASE`); a ratio above 1 favours sagax. The
clock's figure is the median over pairs, with the smallest and the largest; processor time adds up all cores."""


_SEEDS = """## Seeds on several cores

To JAX a CPU is one device. `JAX_NUM_CPU_DEVICES=2` in front of a command makes two of it, and each trains half of the
seeds: the rows named `over_2_devices` say what that gains."""
_DEVICES_HEAD = """## By device and number of seeds

Each measurement trains that many seeds side by side in a process of its own (`sagax benchmark devices`)."""


def results_page(root: Path) -> str:
    """The text of ``docs/results.md``."""
    tables = [curves_table(each, root) if isinstance(each, Curves) else grid_table(each, root) for each in RESULTS]
    return "\n\n".join([_MADE, _RESULTS_HEAD, *tables]) + "\n"


def benchmarks_page(root: Path) -> str:
    """The text of ``docs/benchmarks.md``."""
    comparisons = benchmark_table(root / "results" / "benchmark.jsonl")
    by_device = devices_table(root / "results" / "devices.jsonl")
    return "\n\n".join([_MADE, _BENCHMARKS_HEAD, comparisons, _SEEDS, _DEVICES_HEAD, by_device]) + "\n"


PAGES: dict[str, Callable[[Path], str]] = {"docs/results.md": results_page, "docs/benchmarks.md": benchmarks_page}


def stale_pages(root: Path) -> list[str]:
    """The pages that are not what the rows say.

    Raises:
      UserError: if rows are missing or cannot be read.
    """
    stale = []
    for name, page in PAGES.items():
        path = root / name
        try:
            found = path.read_text(encoding="utf-8") if path.is_file() else ""
        except OSError as error:
            raise cannot_read(path, error) from error
        if found != page(root):
            stale.append(name)
    return stale


def write_pages(root: Path) -> list[str]:
    """Writes every page below ``root``; returns their names.

    Raises:
      UserError: if rows are missing, or a page cannot be written.
    """
    if not (root / "results").is_dir():
        raise UserError(f"{root} has no folder results: run this command in the root of the repository")
    for name, page in PAGES.items():
        write_atomic(root / name, page(root).encode())
    return list(PAGES)
