"""The families of agents that a configuration can name as ``agent.family``, and the ranges of their numbers.

Estimators are listed in ``agents.estimators``, functionals in ``agents.functionals``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from agents.base import Agent
from agents.constrained_bandit import constrained_bandit
from agents.policy_gradient import policy_gradient
from agents.tabular_optimism import tabular
from agents.trust_region import trust_region
from agents.value_based import value_based
from envs.kinds import Needs
from envs.ranges import POSITIVE, SHARE, ZERO_UP, Range

# The numbers of an optimiser, wherever there is one. With a norm or an epsilon of 0 a gradient of zeros is 0 / 0.
OPTIMISER = {"learning_rate": ZERO_UP, "adam_epsilon": POSITIVE, "max_gradient_norm": POSITIVE}


class Family(NamedTuple):
    """One entry of the catalogue.

    Attributes:
      factory: ``(spec, *, data, network_config, ...) -> Agent``. Its keyword arguments are the keys of the section
        ``agent``; ``data`` and ``network_config`` are built from the sections ``data`` and ``network``, ``credit`` from
        the section ``credit``, ``functional`` from ``agent.functional``.
      optimiser_steps: the counts whose product is the number of optimiser steps of one update; a learning rate can be
        scheduled over the run by it.
      sections: sections of the configuration that this family alone reads.
      ranges, needs: see ``envs.kinds.Kind``.
    """

    factory: Callable[..., Agent]
    optimiser_steps: tuple[str, ...]
    sections: tuple[str, ...] = ()
    ranges: Mapping[str, Range] = {}
    needs: Needs = {}  # noqa: RUF012  (never written)


_CLIPPED = {"surrogate": ("clip",)}
_CATEGORICAL = {"head": ("categorical",)}
_PRIORITISED = {"prioritised": (True,)}
_PROBABILITY = Range(0, 1, low_open=True, high_open=True)

FAMILIES: dict[str, Family] = {
    "policy_gradient": Family(
        policy_gradient,
        optimiser_steps=("epochs", "minibatches"),
        sections=("credit", "warm_start"),
        ranges=OPTIMISER
        | {"clip": ZERO_UP, "clip_high": ZERO_UP, "dual_clip": Range(1, low_open=True)}
        | {"value_clip": ZERO_UP, "value_weight": ZERO_UP, "initial_std": POSITIVE}
        | {"popart_step_size": Range(0, 1, low_open=True, high_open=True)},
        needs={"clip": _CLIPPED, "clip_high": _CLIPPED, "dual_clip": _CLIPPED}
        | {"popart_step_size": {"popart": (True,)}},
    ),
    "trust_region": Family(
        trust_region,
        optimiser_steps=("epochs", "minibatches"),
        sections=("credit", "warm_start"),
        ranges=OPTIMISER
        | {"initial_std": POSITIVE, "divergence": POSITIVE, "damping": ZERO_UP}
        | {"shrink": Range(0, 1, low_open=True, high_open=True)},
    ),
    "value_based": Family(
        value_based,
        # The counts that are not for the kind of data are 1.
        optimiser_steps=("updates", "epochs", "minibatches"),
        ranges=OPTIMISER
        | {"discount": SHARE, "return_scale": POSITIVE, "huber": ZERO_UP, "learning_starts": ZERO_UP}
        | {"munchausen": SHARE, "temperature": POSITIVE, "log_policy_floor": Range(-math.inf, 0)}
        | {"trace_decay": SHARE, "target_rate": SHARE, "priority_exponent": ZERO_UP, "importance_exponent": SHARE}
        | {"epsilon_start": SHARE, "epsilon_end": SHARE, "epsilon_steps": Range(0, 2**31 - 1)},
        needs={
            "quantiles": {"head": ("quantile", "implicit_quantile")},
            "huber": {"head": ("expected", "quantile", "implicit_quantile")},
            "atoms": _CATEGORICAL,
            "value_low": _CATEGORICAL,
            "value_high": _CATEGORICAL,
            "priority_exponent": _PRIORITISED,
            "importance_exponent": _PRIORITISED,
        },
    ),
    "tabular": Family(
        tabular,
        optimiser_steps=(),
        ranges={"confidence": _PROBABILITY, "bonus_scale": ZERO_UP, "threshold": ZERO_UP},
        # A threshold is also what an agent without safety is measured by.
        needs={"baseline": {"safety": ("step_mix", "eps_mix", "baseline")}},
    ),
    "bandit": Family(
        constrained_bandit,
        optimiser_steps=(),
        ranges={"confidence": _PROBABILITY, "bonus_scale": ZERO_UP}
        | {"multiplier_step": ZERO_UP, "largest_multiplier": ZERO_UP},
        needs={name: {"rule": ("primal_dual",)} for name in ("multiplier_step", "largest_multiplier")},
    ),
}
