"""A noisy television on a line: a known model with known noise, in which the limits of curiosity can be computed.

An agent walks on a line of ``length`` cells and sees its cell and some bits, which are drawn anew in every step where
the noise is on and are 0 where it is off. It is the tabular twin of ``envs.native.maze``: the error that a perfect
model is left with is ``next_state_entropy`` in nats, or ``least_squared_error`` for a squared loss. A curiosity that
pays for errors of prediction tends to these numbers, one that pays only for what can be learnt tends to 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from envs.choices import require_known
from envs.native.tabular import Outcome, TabularEnvironment, TabularModel, from_outcomes

NO_OP, LEFT, RIGHT = range(3)
NOISES = ("none", "always", "on_demand", "at_end")


def noisy_line(
    length: int = 5,
    bits: int = 1,
    *,
    noise: str = "on_demand",
    probability: float = 0.5,
    horizon: int | None = None,
) -> TabularModel:
    """The line as a model with the actions no-op, left and right; rewards are 0, and no state ends an episode.

    State ``cell * 2 ** bits + pattern``; an episode starts in cell 0 with pattern 0. A move beyond the line stays. With
    ``n`` of ``bits`` bits set, a pattern follows with ``probability ** n * (1 - probability) ** (bits - n)`` where the
    noise is on.

    Args:
      length: cells.
      bits: of noise, at most 8.
      noise: ``none``; ``always``: in every step; ``on_demand``: where the action is the no-op; ``at_end``: where the
        step ends in the last cell, so that the noise has a place.
      probability: of a bit being 1.
      horizon: time limit.

    Raises:
      TypeError, ValueError: an argument out of its range.
    """
    for name, value, low, high in (("length", length, 1, 100), ("bits", bits, 1, 8)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}={value!r}: expected an integer from {low} to {high}")
        if not low <= value <= high:
            raise ValueError(f"{name}={value}: expected {low} to {high}, nearest {min(max(value, low), high)}")
    require_known("noise", noise, NOISES)
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability}: expected a probability from 0 to 1")
    patterns = range(2**bits)
    distribution = [probability**n * (1 - probability) ** (bits - n) for n in map(int.bit_count, patterns)]

    def outcomes_of(cell: int, action: int) -> list[Outcome]:
        following = min(max(cell + (0, -1, 1)[action], 0), length - 1)
        on = {
            "none": False,
            "always": True,
            "on_demand": action == NO_OP,
            "at_end": following == length - 1,
        }[noise]
        return [
            (distribution[pattern] if on else float(pattern == 0), following * 2**bits + pattern, 0.0, False)
            for pattern in patterns
        ]

    outcomes = [[outcomes_of(cell, action) for action in range(3)] for cell in range(length) for _ in patterns]
    initial = np.zeros(length * 2**bits)
    initial[0] = 1.0
    return from_outcomes(outcomes, initial, horizon)


def noisy_line_environment(
    length: int = 5,
    bits: int = 1,
    *,
    noise: str = "on_demand",
    probability: float = 0.5,
    observation: str = "index",
) -> TabularEnvironment:
    """The line as an environment, without a time limit; arguments as of ``noisy_line`` and ``TabularEnvironment``."""
    return TabularEnvironment(noisy_line(length, bits, noise=noise, probability=probability), observation)


def next_state_entropy(model: TabularModel) -> np.ndarray:
    """Conditional entropy of the next state in nats, ``[S, A]``.

        H(s, a) = - sum_{s'} P(s' | s, a) log P(s' | s, a)

    The least expected log loss of a prediction of what follows, where the observation is the state.
    """
    probability = transition(model)
    logarithm = np.log(probability, out=np.zeros_like(probability), where=probability > 0)
    return -(probability * logarithm).sum(-1)


def least_squared_error(model: TabularModel, features: Sequence[Any] | np.ndarray) -> np.ndarray:
    """The least expected squared error of a prediction of the next state's features, ``[S, A]``.

        min_x E |x - f(s')|^2 = E |f(s')|^2 - |E f(s')|^2

    Args:
      features: ``f [S, d]``; the identity matrix for one-hot states.

    Raises:
      ValueError: ``features`` has another shape.
    """
    array = np.asarray(features, np.float64)
    if array.ndim != 2 or len(array) != model.num_states:
        raise ValueError(f"features has shape {array.shape}, expected ({model.num_states}, d), one row per state")
    probability = transition(model)
    mean = probability @ array
    return np.maximum(probability @ (array**2).sum(-1) - (mean**2).sum(-1), 0.0)


def transition(model: TabularModel) -> np.ndarray:
    """``P(s' | s, a)``, dense, ``[S, A, S]``; outcomes of one next state are added up."""
    dense = np.zeros((model.num_states, model.num_actions, model.num_states))
    states, actions, _ = np.indices(model.probability.shape)
    np.add.at(dense, (states, actions, model.next_state), model.probability)
    return dense
