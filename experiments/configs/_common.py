"""Defaults that every experiment starts from; a key that no experiment may set does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict, config_dict


def policy_gradient_config() -> ConfigDict:
    """A complete configuration of the policy-gradient family, without world, credit and rewards."""
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
                "shared_critic": False,
                "continuous": "gaussian",
                "surrogate": "clip",
                "clip": 0.2,
                "clip_high": config_dict.placeholder(float),
                "dual_clip": config_dict.placeholder(float),
                "epochs": 2,
                "minibatches": 1,
                "learning_rate": 1e-3,
                "anneal": False,
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
            "warm_start": {"rooms": 0, "steps": 100, "batch": 256, "learning_rate": 1e-3},
            "evaluation": {"episodes": 256, "length": 100, "greedy": False, "metric": "return"},
        }
    )


def entry(estimator: str, channel: str = "env", weight: float = 1.0, **arguments: Any) -> dict[str, Any]:
    """One entry of ``config.credit``."""
    return {"channel": channel, "estimator": estimator, "weight": weight, **arguments}


def one_of(tokens: Iterable[str], choices: Iterable[str], default: str) -> str:
    """The token that is one of ``choices``, or ``default``.

    Raises:
      ValueError: if there are two.
    """
    found = [token for token in tokens if token in tuple(choices)]
    if len(found) > 1:
        raise ValueError(f"{' and '.join(found)} exclude each other")
    return found[0] if found else default
