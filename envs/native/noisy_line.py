"""A noisy TV on a line: a known model with known noise, for which the limits of curiosity rewards can be computed.

An agent walks on a line of ``length`` cells and observes its cell and some bits. While the noise is on the bits are
drawn anew in every step; while it is off they are 0. It is a tabular counterpart of ``envs.native.maze``. The error
that remains to a perfect model is ``next_state_entropy`` (log loss, in nats) or ``least_squared_error`` (squared
loss). A curiosity reward that pays the prediction error converges to these numbers; one that pays only for what can
be learned converges to 0.
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
    """The line as a model with the actions no-op, left and right. Rewards are 0, and no state ends an episode.

    The state is ``cell * 2 ** bits + pattern``; an episode starts in cell 0 with pattern 0. A move past either end of
    the line leaves the agent where it is. While the noise is on, a pattern with ``n`` of its bits set has the
    probability ``probability ** n * (1 - probability) ** (bits - n)``.

    Args:
      length: number of cells, 1 to 100.
      bits: number of noise bits, 1 to 8.
      noise: when the noise is on. ``none``: never; ``always``: in every step; ``on_demand``: in steps with the action
        no-op; ``at_end``: in steps that end in the last cell, so that the noise has a place.
      probability: the probability that a bit is 1.
      horizon: time limit in steps, or ``None``.

    Raises:
      TypeError, ValueError: an argument has the wrong type or is out of its range.
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

    It is the least expected log loss of any prediction of the next state.
    """
    probability = transition(model)
    logarithm = np.log(probability, out=np.zeros_like(probability), where=probability > 0)
    return -(probability * logarithm).sum(-1)


def least_squared_error(model: TabularModel, features: Sequence[Any] | np.ndarray) -> np.ndarray:
    """The least expected squared error of any prediction of the next state's features, ``[S, A]``.

        min_x E |x - f(s')|^2 = E |f(s')|^2 - |E f(s')|^2

    Args:
      features: ``f [S, d]``; use the identity matrix for one-hot states.

    Raises:
      ValueError: ``features`` is not a matrix with one row per state.
    """
    array = np.asarray(features, np.float64)
    if array.ndim != 2 or len(array) != model.num_states:
        raise ValueError(f"features has shape {array.shape}, expected ({model.num_states}, d), one row per state")
    probability = transition(model)
    mean = probability @ array
    return np.maximum(probability @ (array**2).sum(-1) - (mean**2).sum(-1), 0.0)


def transition(model: TabularModel) -> np.ndarray:
    """The dense matrix ``P(s' | s, a)``, ``[S, A, S]``; outcomes with the same next state are summed."""
    dense = np.zeros((model.num_states, model.num_actions, model.num_states))
    states, actions, _ = np.indices(model.probability.shape)
    np.add.at(dense, (states, actions, model.next_state), model.probability)
    return dense
