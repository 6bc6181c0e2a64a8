"""Default configurations that experiments start from, and choices that several experiments share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

# For each value-based method: the head of the agent, and what the head predicts.
HEADS = {
    "dqn": ("expected", "one value per action"),
    "c51": ("categorical", "a categorical return distribution"),
    "qrdqn": ("quantile", "quantiles of the return"),
    "iqn": ("implicit_quantile", "quantiles at sampled fractions"),
}
SWITCHES = {
    "double": "the online network chooses the action whose value the target network gives",
    "dueling": "value and advantage are separate heads",
    "prioritised": "transitions with larger errors are replayed more often",
}


# The world models of both BYOL variants, at an eighth of the papers' widths and one step ahead, to save time. With a
# target_decay of 1 the target network stays at its random start.
_LATENT = {"horizon": 1, "embedding_size": 64, "memory_size": 64, "hidden_size": 64, "target_decay": 0.99}
# An update sees every step twice, in minibatches of an eighth.
_FIT = {"updates": 16, "minibatches": 8}
# For each curiosity method: its description and its section of the configuration.
CURIOSITIES: dict[str, tuple[str, dict[str, Any]]] = {
    "hindsight": (
        "BYOL-Hindsight: the error of a world model that is given what cannot be predicted",
        {"kind": "byol_hindsight", **_LATENT, **_FIT},
    ),
    "explore": (
        "BYOL-Explore: the error of a world model in latent space",
        {"kind": "byol_explore", **_LATENT, **_FIT},
    ),
    "rnd": (
        "RND: the error in predicting a fixed random network",
        {"kind": "rnd", "embedding_size": 64, "learning_rate": 1e-3, **_FIT},
    ),
    "icm": (
        "ICM: the error of a forward model on features that predict the action",
        {"kind": "icm", "embedding_size": 64, **_FIT},
    ),
    "count": (
        "one over the square root of how often the observation was made",
        {"kind": "count_bonus", "identify": "hash"},
    ),
    "episodic": (
        "as count, with counts that start anew in every episode",
        {"kind": "count_bonus", "identify": "hash", "bits": 12, "episodic": True},
    ),
}

# For each Lagrangian method: its description and what it sets in the section of the transform ``lagrangian``.
CONSTRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "dual": (
        "PPO-Lagrangian: dual ascent by SGD (Ray, Achiam and Amodei, 2019)",
        {"multiplier": {"kind": "dual_ascent", "optimiser": "sgd", "learning_rate": 0.02}},
    ),
    "adam": (
        "as dual, with Adam",
        {"multiplier": {"kind": "dual_ascent", "optimiser": "adam", "learning_rate": 0.02}},
    ),
    "pid": (
        "PID-Lagrangian: a controller of three terms (Stooke et al., 2020) (the default)",
        {"multiplier": {"kind": "pid", "proportional": 0.2, "integral": 0.02, "derivative": 0.0, "smoothing": 0.5}},
    ),
    "rcpo": (
        "RCPO: one critic of the reward less the weighted costs (Tessler et al., 2019)",
        {"multiplier": {"kind": "dual_ascent", "optimiser": "sgd", "learning_rate": 0.02}, "channel": "env"},
    ),
    "barrier": (
        "the gradient of a logarithmic barrier (IPO: Liu et al., 2020)",
        {"multiplier": {"kind": "barrier", "sharpness": 20.0}},
    ),
    "cpo": (
        "CPO: a trust region in which the limit holds (Achiam et al., 2017)",
        {"multiplier": {"kind": "fixed", "value": 0.0}, "mixing": "sum"},
    ),
    "unconstrained": ("costs are measured and weigh nothing", {"multiplier": {"kind": "fixed", "value": 0.0}}),
}


# For each MiniGrid task, by a short name: its identifier, and what the agent has to handle.
MINIGRID_TASKS = {
    "key_corridor": ("KeyCorridorS3R3", "key, locked door, ball (the default)"),
    "door_key": ("DoorKey-8x8", "key, locked door, goal"),
    "multi_room": ("MultiRoom-N4-S5", "four rooms in a chain"),
    "obstacles": ("Dynamic-Obstacles-8x8", "a goal behind balls that wander"),
}


# gymnax's identifiers of MinAtar's games, by variant.
MINATAR = {
    "breakout": "Breakout-MinAtar",
    "asterix": "Asterix-MinAtar",
    "freeway": "Freeway-MinAtar",
    "space_invaders": "SpaceInvaders-MinAtar",
}


def episodes_evaluator(count: int, *, greedy: bool) -> dict[str, Any]:
    """The section of an evaluator that plays ``count`` whole episodes; ``cut`` ends each after that many steps."""
    return {"kind": "episodes", "count": count, "greedy": greedy, "cut": config_dict.placeholder(int)}


def stock_evaluator(objectives: dict[str, dict[str, Any]], candidates: int, count: int) -> dict[str, Any]:
    """The section of an evaluator that plays ``count`` episodes for each objective of a stock-augmented agent.

    The initial stock of an objective is the best of ``candidates`` by the network's prediction.
    """
    return {
        "kind": "stock_objectives",
        "objectives": objectives,
        "candidates": candidates,
        "count": count,
        "greedy": True,
    }


def policy_gradient_config() -> ConfigDict:
    """A configuration of the policy-gradient family; the environment, credit and rewards are left empty."""
    return ConfigDict(
        {
            "iterations": 100,
            "evaluate_every": 10,
            "seeds": 1,
            "environment": {},
            "rollout": {"start_states": config_dict.placeholder(int)},
            "data": {"kind": "unroll", "length": 128, "batch": 16, "group_size": 1},
            "network": {
                "hidden": (128, 128),
                "activation": "tanh",
                "channels": (),
                "strides": (),
                "recurrent_size": 0,
                "layer_norm": False,
            },
            "agent": {
                "family": "policy_gradient",
                "shared_critic": False,
                "continuous": "gaussian",
                "surrogate": "clip",
                "clip": 0.2,
                "clip_high": config_dict.placeholder(float),
                "dual_clip": config_dict.placeholder(float),
                "epochs": 2,
                "minibatches": 1,
                "learning_rate": 1e-3,
                "schedule": "constant",
                "warmup": 0.0,
                "adam_epsilon": 1e-5,
                "max_gradient_norm": 0.5,
                "entropy_weight": 0.01,
                "value_weight": 0.5,
                "value_clip": config_dict.placeholder(float),
                "reduction": "steps",
                "whiten": "none",
            },
            "credit": {},
            "rewards": {},
            "warm_start": {"demonstrations": 0, "steps": 100, "batch": 256, "learning_rate": 1e-3},
            "evaluators": {"episodes": episodes_evaluator(256, greedy=False)},
            "evaluation": {"metric": "return"},
        }
    )


def ppo_as_released(
    config: ConfigDict,
    *,
    learning_rate: float,
    epochs: int,
    minibatches: int,
    discount: float = 0.99,
    gae_lambda: float = 0.95,
    clip: float = 0.2,
    **agent: Any,
) -> None:
    """Makes the policy-gradient ``config`` the PPO that CleanRL and PureJaxRL release.

    Advantages are normalised in every minibatch, values are clipped as far as ratios, and the learning rate falls
    linearly to 0 (Huang et al., 2022, "The 37 implementation details of proximal policy optimization").

    Args:
      config: it keeps its environment, its network and its data.
      learning_rate, epochs, minibatches, clip: of the agent.
      discount, gae_lambda: of generalised advantage estimation.
      agent: further keys of the section ``agent``.
    """
    config.credit.env = entry("gae", discount=discount, gae_lambda=gae_lambda)
    config.agent.update(
        {
            "learning_rate": learning_rate,
            "schedule": "linear",
            "epochs": epochs,
            "minibatches": minibatches,
            "clip": clip,
            "value_clip": clip,
            "whiten": "minibatch",
        }
        | agent
    )


def value_based_config() -> ConfigDict:
    """A configuration of the value-based family; the environment and rewards are left empty."""
    return ConfigDict(
        {
            "iterations": 1000,
            "evaluate_every": 100,
            "seeds": 1,
            "environment": {},
            "rollout": {"start_states": config_dict.placeholder(int)},
            "data": {"kind": "replay", "length": 4, "batch": 1, "group_size": 1},
            "network": {
                "hidden": (128, 128),
                "activation": "relu",
                "channels": (),
                "strides": (),
                "recurrent_size": 0,
                "layer_norm": False,
            },
            "agent": {
                "family": "value_based",
                "head": "expected",
                "channels": {"env": 1.0},
                "functional": {"kind": "mean"},
                "return_scale": 1.0,
                "use_stock": True,
                "stock_features": 0,
                "stock_edits": 0,
                "discount": 0.99,
                "n_step": 1,
                "double": False,
                "dueling": False,
                "quantiles": 32,
                "atoms": 51,
                "value_low": -10.0,
                "value_high": 10.0,
                "huber": 1.0,
                "capacity": 100_000,
                "batch_size": 64,
                "updates": 1,
                "learning_starts": 1_000,
                "prioritised": False,
                "priority_exponent": 0.6,
                "importance_exponent": 0.4,
                "target_rate": 0.005,
                "target_period": config_dict.placeholder(int),
                "epsilon_start": 1.0,
                "epsilon_end": 0.05,
                "epsilon_steps": 10_000.0,
                "learning_rate": 1e-3,
                "adam_epsilon": 1e-5,
                "max_gradient_norm": 10.0,
            },
            "rewards": {},
            "evaluators": {"episodes": episodes_evaluator(64, greedy=True)},
            "evaluation": {"metric": "return"},
        }
    )


def tabular_config() -> ConfigDict:
    """A configuration of the tabular family, one episode per iteration; the environment and rewards are left empty."""
    return _without_network(
        {"kind": "episodes", "length": 1, "batch": 1, "group_size": 1},
        {
            "family": "tabular",
            "safety": "none",
            "threshold": config_dict.placeholder(float),
            "confidence": 0.1,
            "bonus_scale": 1.0,
            "reward_noise": True,
            "early_ends": True,
        },
    )


def bandit_config() -> ConfigDict:
    """A configuration of the bandit family, one step per iteration; the environment and rewards are left empty."""
    return _without_network(
        {"kind": "unroll", "length": 1, "batch": 1, "group_size": 1},
        {
            "family": "bandit",
            "rule": "ofs",
            "confidence": 0.1,
            "bonus_scale": 1.0,
            "multiplier_step": 0.05,
            "largest_multiplier": 10.0,
        },
    )


def _without_network(data: dict[str, Any], agent: dict[str, Any]) -> ConfigDict:
    return ConfigDict(
        {
            "iterations": 10_000,
            "evaluate_every": 1000,
            "seeds": 1,
            "environment": {},
            "rollout": {"start_states": config_dict.placeholder(int)},
            "data": data,
            "network": {},
            "agent": agent,
            "rewards": {},
            "evaluators": {},
            "evaluation": {"metric": "return"},
        }
    )


def value_based_variants(default: str) -> dict[str, str]:
    """The variants that choose a value-based method, with their descriptions; ``default`` is marked as the default."""
    heads = {name: description for name, (_, description) in HEADS.items()}
    return heads | {default: f"{heads[default]} (the default)"} | SWITCHES


def choose_value_based(config: ConfigDict, tokens: Iterable[str], default: str) -> str:
    """Sets in ``config.agent`` the head and the switches that ``tokens`` name; returns the method's name.

    Raises:
      ValueError: ``tokens`` name two methods.
    """
    tokens = tuple(tokens)
    method = one_of(tokens, HEADS, default)
    config.agent.head = HEADS[method][0]
    for switch in SWITCHES:
        config.agent[switch] = switch in tokens
    return method


def learn_from_unrolls(config: ConfigDict, *, steps: int, length: int, batch: int, **agent: Any) -> None:
    """Makes the value-based ``config`` PQN (Gallici et al., 2024): fresh unrolls in place of a replay buffer.

    Args:
      config: it keeps its environment and its evaluators.
      steps: environment steps of the run.
      length, batch: of an unroll.
      agent: keys of the section ``agent``.
    """
    config.data = {"kind": "unroll", "length": length, "batch": batch, "group_size": 1}
    config.iterations = steps // (length * batch)
    # In place of a target network, layer normalisation keeps the values from diverging.
    config.network.layer_norm = True
    config.agent.update(
        {
            "head": "expected",
            "n_step": 1,
            "updates": 1,
            # Half the squared error, as errors are smaller.
            "huber": 1e3,
            "optimiser": "radam",
            "adam_epsilon": 1e-8,
            "schedule": "linear",
            "max_gradient_norm": 10.0,
            **agent,
        }
    )


def pqn_for_minatar(config: ConfigDict) -> None:
    """Makes the value-based ``config`` PQN with its authors' settings for MinAtar; 9,994,240 environment steps."""
    network = config.network
    network.channels, network.strides, network.hidden = (16,), (1,), (128,)
    network.activation, network.image_norm = "relu", True
    learn_from_unrolls(config, steps=9_994_240, length=32, batch=128, epochs=2, minibatches=32)
    config.agent.update({"trace_decay": 0.65, "learning_rate": 5e-4})
    config.agent.update({"epsilon_end": 0.05, "epsilon_steps": 1_000_000.0})


def curiosity_variants(default: str, without: str) -> dict[str, str]:
    """The variants that choose an intrinsic reward, with their descriptions, and ``ppo``, which has none.

    ``without`` describes what happens without an intrinsic reward.
    """
    described = {name: description for name, (description, _) in CURIOSITIES.items()}
    return described | {default: f"{described[default]} (the default)", "ppo": f"no intrinsic reward: {without}"}


def choose_curiosity(config: ConfigDict, tokens: Iterable[str], default: str, weight: float = 1.0) -> str:
    """Adds the intrinsic reward that ``tokens`` name and its value head to ``config``; returns the method's name.

    The value head is not episodic: its return continues into the next episode, where novelty can still be found.

    Raises:
      ValueError: ``tokens`` name two methods.
    """
    method = one_of(tokens, (*CURIOSITIES, "ppo"), default)
    if method != "ppo":
        config.rewards.curiosity = CURIOSITIES[method][1]
        config.credit.curiosity = entry("gae", "curiosity", weight, discount=0.99, gae_lambda=0.95, episodic=False)
        config.agent.whiten = "batch"
    return method


# How the numbers of a multiplier rule change with the unit of the cost: those of Adam do not.
_PER_UNIT = ("proportional", "integral", "derivative", "sharpness")


def constrain(config: ConfigDict, limits: Mapping[str, tuple[str, float]], method: str, *, unit: float = 1.0) -> None:
    """Adds limits, by name ``(channel, limit)``, to a policy-gradient ``config`` by a method of ``CONSTRAINED``.

    Each limit gets a credit entry like that of ``env``, with a critic of its own, unless ``method`` writes the weighted
    costs into the reward. ``unit`` is a cost of ordinary size, by which gains and learning rates are divided.
    """
    section = {"kind": "lagrangian", "mixing": "normalised", **CONSTRAINED[method][1]}
    rule = dict(section["multiplier"])
    scaled = (*_PER_UNIT, "learning_rate") if rule.get("optimiser") == "sgd" else _PER_UNIT
    section["multiplier"] = rule | {name: rule[name] / unit for name in scaled if name in rule}
    if method == "cpo":
        if len(limits) != 1:
            raise ValueError(f"cpo has one limit, got {len(limits)} ({', '.join(limits)}): expected one")
        trust_region_agent(config, *limits)
    section["constraints"] = {name: {"channel": channel, "limit": limit} for name, (channel, limit) in limits.items()}
    config.rewards.lagrangian = section
    if "channel" not in section:
        for name, (channel, _) in limits.items():
            config.credit[name] = config.credit.env.to_dict() | {"channel": channel}


def trust_region_config() -> ConfigDict:
    """A configuration of the trust-region family, without a constraint; the environment and rewards are left empty."""
    config = policy_gradient_config()
    trust_region_agent(config, None)
    return config


def trust_region_agent(config: ConfigDict, constraint: str | None) -> None:
    """Makes the agent of a policy-gradient ``config`` one of a trust region, with a limit on a credit entry.

    The critic keeps its epochs, its minibatches and a constant learning rate of the agent's size.
    """
    old = config.agent
    config.agent = ConfigDict(
        {
            "family": "trust_region",
            "continuous": old.continuous,
            "constraint": config_dict.placeholder(str) if constraint is None else constraint,
            "divergence": 0.01,
            "damping": 0.1,
            "directions": 15,
            "epochs": old.epochs,
            "minibatches": old.minibatches,
            "learning_rate": old.learning_rate,
            "schedule": "constant",
            "whiten": "batch",
        }
    )


def entry(estimator: str, channel: str = "env", weight: float = 1.0, **arguments: Any) -> dict[str, Any]:
    """One entry of ``config.credit``."""
    return {"channel": channel, "estimator": estimator, "weight": weight, **arguments}


def one_of(tokens: Iterable[str], choices: Iterable[str], default: str) -> str:
    """The token that is one of ``choices``, or ``default``.

    Raises:
      ValueError: ``tokens`` name two of ``choices``.
    """
    found = [token for token in tokens if token in tuple(choices)]
    if len(found) > 1:
        raise ValueError(f"{' and '.join(found)} exclude each other")
    return found[0] if found else default


def tail_objectives(kind: str, levels: Iterable[float]) -> dict[str, dict[str, Any]]:
    """One objective of ``kind`` per level, a share of the returns.

    The names have no dots, so that ``--config`` can override their keys.
    """
    return {f"tau_{round(100 * level)}": {"kind": kind, "level": level} for level in levels}


def ignore_stock(agent: ConfigDict) -> None:
    """Makes the agent of the section ``agent`` ignore the stock, as a baseline."""
    agent.use_stock, agent.stock_features, agent.stock_edits = False, 0, 0
