"""Intrinsic rewards from language feedback on MiniGrid: three models of how an annotator labels messages.

Compares with "Online intrinsic rewards for decision making agents from large language model feedback" (ONI: Zheng et
al., 2024, arXiv 2410.23022), which trains on NetHack. The environments here are MiniGrid's, and the messages describe
events in them ("You picked up the yellow key"). A scripted annotator takes the place of the language model and answers
DELAY messages late; with http the annotator is a model behind any endpoint with OpenAI's protocol.

Command:
    sagax run oni_minigrid:MODEL,DELAY,TASK --seeds=5
    sagax run oni_minigrid:MODEL,partial --seeds=5
    sagax summary oni_minigrid --results --metric=train/success --threshold=0.5
    sagax ratings runs/oni_minigrid/MODEL,partial --append --out=results/oni_minigrid_ratings.jsonl
    SAGAX_ANNOTATOR_URL=http://localhost:8000/v1 SAGAX_ANNOTATOR_MODEL=NAME sagax run oni_minigrid:http

The extra minigrid installs MiniGrid. With http, SAGAX_ANNOTATOR_KEY is sent if it is set; labels are kept in
annotations.jsonl in the run folder, or in the file that annotator.cache names. The seeds of a run share that file and
the budget: a later seed gets the labels that an earlier one asked for. To compare seeds, run each with its own
--first-seed and annotator.cache.

Expected on KeyCorridorS3R3, share of training episodes that succeed, mean over a run, from results/oni_minigrid.jsonl
(5 seeds, 409,600 steps; ppo has 0.001 [0.000, 0.005]):
                      delay_0              delay_100            delay_1000           partial
    retrieval         0.28 [0.19, 0.42]    0.28 [0.12, 0.43]    0.16 [0.02, 0.33]    0.03 [0.02, 0.04]
    classification    0.28 [0.19, 0.42]    0.41 [0.20, 0.49]    0.22 [0.14, 0.38]    0.25 [0.15, 0.49]
    ranking           0.60 [0.32, 0.70]    0.68 [0.54, 0.71]    0.53 [0.42, 0.60]    0.66 [0.58, 0.73]
With delay_0 classification and retrieval are equal, bit for bit: there are 42 messages, and all are labelled at once.
partial measures generalisation: both networks pay for messages without labels much as they pay for the others; ranking
pays nothing for opened doors, which the script likes least, with or without a label
(results/oni_minigrid_ratings.jsonl, notebooks/language_feedback.ipynb). Nothing was tuned.

Time: 2 to 3 minutes per seed on one of two busy cores. Speed of the whole loop as a share of plain PPO's, by wall-clock
and by processor time (``sagax benchmark minigrid``): retrieval 0.93 and 0.93, classification 0.90 and 0.89, ranking
0.75 and 0.69. An annotator that takes a second per reply does not slow the loop down: its speed is 1.02 (1.00 to 1.08)
times that with an annotator that answers at once (``sagax benchmark annotator``).
"""

from __future__ import annotations

from ml_collections import ConfigDict, config_dict

from experiments.configs._common import MINIGRID_TASKS, entry, one_of, policy_gradient_config

MODELS = {
    "retrieval": "a message pays its label as soon as it has one (the default)",
    "classification": "a network predicts the label of every message",
    "ranking": "a network predicts which of two messages is better",
    "ppo": "no intrinsic reward",
}
DELAYS = {
    "delay_0": "labels come at once (the default)",
    "delay_100": "labels come 100 messages late",
    "delay_1000": "labels come 1000 messages late",
    "http": "labels come from the language model that environment variables name, see the run card",
}
# For each MiniGrid task: its goal, for the prompt, and the messages that the scripted annotator likes, best first.
GOALS = {
    "key_corridor": (
        "Find the key behind one of the doors, unlock the locked door with it and pick up the ball in the room behind.",
        ("picked up the .* ball", "You unlocked", "picked up the .* key", "door opens"),
    ),
    "door_key": (
        "Pick up the key, unlock the door with it and walk to the green goal in the other room.",
        ("You reached", "You unlocked", "picked up the .* key"),
    ),
    "multi_room": (
        "Open the doors between the rooms one after the other and walk to the green goal in the last one.",
        ("You reached", "door opens"),
    ),
}
FLAWS = {
    "noisy": "a tenth of the scripted labels is flipped",
    "partial": "messages with grey, purple or yellow in them, half of the colours, are never labelled",
}
VARIANTS = (
    MODELS
    | DELAYS
    | FLAWS
    | {name: f"{MINIGRID_TASKS[name][0]}: {MINIGRID_TASKS[name][1]}" for name in GOALS}
    | {"smoke": "seconds: a few iterations of a small batch"}
)
REPRODUCES = "ONI (arXiv 2410.23022): retrieval, classification and ranking from asynchronous labels, on MiniGrid"


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of ``variant``; 409,600 environment steps.

    Raises:
      ValueError: if two variants exclude each other.
    """
    tokens = [token for token in variant.split(",") if token]
    model, delay = one_of(tokens, MODELS, "retrieval"), one_of(tokens, DELAYS, "delay_0")
    task = one_of(tokens, GOALS, "key_corridor")
    flaws = [token for token in tokens if token in FLAWS]
    goal, phrases = GOALS[task]
    config = policy_gradient_config()
    config.iterations, config.evaluate_every = 200, 20
    config.environment = {"kind": "minigrid", "task": MINIGRID_TASKS[task][0], "messages": True}
    config.data = {"kind": "unroll", "length": 128, "batch": 16, "group_size": 1}
    config.network.hidden = (64, 64)
    config.agent.update({"epochs": 4, "minibatches": 4, "learning_rate": 1e-3, "whiten": "batch"})
    config.credit.env = entry("gae", discount=0.99, gae_lambda=0.95)
    if model != "ppo":
        config.credit.language = entry("gae", "language", 0.4, discount=0.99, gae_lambda=0.95)
        config.rewards.language = {
            "kind": "language_feedback",
            "model": model,
            "beta": 3.0,
            "capacity": 2048,
            "threshold": 0.5,
            "cutoff": -0.5,
            "embedding_size": 16,
            "channels": 32,
            "kernels": (5, 3),
            "pools": (3, 3),
            "hidden": (64,),
            "updates": 32,
            "small": 25_000,
            "batch_size": 64,
            "learning_rate": 1e-3,
            "max_gradient_norm": 10.0,
        }
        asked = {"labels": 32, "pairs": 16, "recent": 1000}
        config.annotator = asked | (_http(goal) if delay == "http" else _scripted(phrases, delay, tokens))
    elif flaws or delay != "delay_0":
        raise ValueError("ppo reads no labels")
    if delay == "http" and flaws:
        raise ValueError(f"http and {flaws[0]} exclude each other")
    config.evaluators.episodes.count, config.evaluation.metric = 16, "success"
    if "smoke" in tokens:
        config.iterations, config.evaluate_every = 4, 2
        config.data.length, config.data.batch = 16, 4
        config.environment.max_episode_steps = 20
        config.evaluators.episodes.count = 4
    return config


def _scripted(phrases: tuple[str, ...], delay: str, tokens: list[str]) -> dict:
    return {
        "kind": "scripted",
        "phrases": phrases,
        "delay": int(delay.removeprefix("delay_")),
        "noise": 0.1 if "noisy" in tokens else 0.0,
        "withheld": ("grey", "purple", "yellow") if "partial" in tokens else (),
    }


def _http(goal: str) -> dict:
    return {
        "kind": "http",
        "goal": goal,
        "batch": 20,
        "queue": 10_000,
        "timeout": 60.0,
        "attempts": 4,
        "shortest_wait": 1.0,
        "longest_wait": 60.0,
        "max_requests": 1_000,
        "max_cost": 1.0,
        "prompt_price": 0.0,
        "completion_price": 0.0,
        "temperature": 0.1,
        "max_tokens": 1024,
        "cache": config_dict.placeholder(str),
    }


def get_sweep() -> dict[str, list]:
    """How fast rewards fall with repetition, and the weight of the intrinsic reward."""
    return {"rewards.language.beta": [1.0, 3.0], "credit.language.weight": [0.1, 0.4, 1.0]}
