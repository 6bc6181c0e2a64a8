"""Selection by a threshold in a closed loop: who is accepted today decides who applies tomorrow.

Two groups apply, say for loans, with scores from a Beta distribution each; the score is the probability to repay. In
each period the decision maker accepts everybody with a score of at least ``theta``, and observes, with noise,

    reward        = sum_g mix_g E[(score - break_even) 1(score >= theta)]
    cost/parity   = |accepted_0 - accepted_1| - tolerance,      accepted_g = P(score >= theta) in group g
    cost/service  = service - sum_g mix_g accepted_g

Costs are residuals, at most 0 where the demand is met. The share of the first group moves towards a value that favours
the group that is accepted more often,

    mix_0  <- mix_0 + rate (target(theta) - mix_0)
    target  = clip(start + feedback (accepted_0 - accepted_1), 0.05, 0.95)

which is a contraction by ``1 - rate``: under a fixed threshold the population settles at ``target(theta)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from envs.base import EnvironmentSpec, TimeStep

COSTS = ("parity", "service")
_LEAST_SHARE = 0.05


class Outcome(NamedTuple):
    """What is expected of a period: ``reward`` and ``residuals [..., 2]``, in the order of ``COSTS``."""

    reward: jax.Array
    residuals: jax.Array


@dataclass(frozen=True)
class Selection:
    """The population as a pure environment; an action is the index of a threshold, an observation the share of the
    first group, ``Box [1]``. Its state is the same number, ``[]``; no episode ends by itself.

    Attributes:
      thresholds: how many there are, from 0 to 1 at equal distances.
      first_scores, second_scores: parameters of each group's Beta distribution, both above 0.
      start: the share of the first group in the first period, above 0 and below 1.
      feedback: how far acceptance moves the population.
      rate: by how much of the way it moves in a period, above 0 and at most 1.
      break_even: the score at which a loan pays nothing.
      tolerance: the largest difference between the groups' acceptance rates that is allowed.
      service: the smallest share of applicants that has to be accepted.
      noise: the standard deviation of what is observed around what is expected.

    Raises:
      ValueError: a number outside of its range.
    """

    thresholds: int = 41
    first_scores: Sequence[float] = (5.0, 3.0)
    second_scores: Sequence[float] = (4.0, 4.0)
    start: float = 0.5
    feedback: float = 0.5
    rate: float = 0.1
    break_even: float = 0.5
    tolerance: float = 0.15
    service: float = 0.5
    noise: float = 0.05

    def __post_init__(self):
        if self.thresholds < 2:
            raise ValueError(f"thresholds={self.thresholds}: expected at least 2")
        for name in ("first_scores", "second_scores"):
            pair = getattr(self, name)
            if len(pair) != 2 or not min(pair) > 0:
                raise ValueError(f"{name}={pair}: expected two numbers above 0")
            object.__setattr__(self, name, tuple(pair))
        if not 0 < self.start < 1:
            raise ValueError(f"start={self.start}: expected a share above 0 and below 1")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate={self.rate}: expected a number above 0 and at most 1")
        for name in ("feedback", "noise", "tolerance", "service"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 0")

    @cached_property
    def spec(self) -> EnvironmentSpec:
        """One number to observe, and an action for every threshold."""
        return EnvironmentSpec(
            spaces.Box(0, 1, (1,), np.float32), spaces.Discrete(self.thresholds), costs=COSTS, info=("theta",)
        )

    @cached_property
    def theta(self) -> np.ndarray:
        """The thresholds ``[A]``."""
        return np.linspace(0.0, 1.0, self.thresholds)

    @cached_property
    def accepted(self) -> np.ndarray:
        """``accepted_g`` by group and threshold, ``[2, A]``."""
        return np.stack([_above(a, b, self.theta) for a, b in (self.first_scores, self.second_scores)])

    @cached_property
    def gain(self) -> np.ndarray:
        """``E[(score - break_even) 1(score >= theta)]`` by group and threshold, ``[2, A]``."""
        groups = (self.first_scores, self.second_scores)
        scores = np.stack([a / (a + b) * _above(a + 1, b, self.theta) for a, b in groups])
        return scores - self.break_even * self.accepted

    @cached_property
    def target(self) -> np.ndarray:
        """The share of the first group at which the population settles, by threshold, ``[A]``."""
        moved = self.start + self.feedback * (self.accepted[0] - self.accepted[1])
        return np.clip(moved, _LEAST_SHARE, 1 - _LEAST_SHARE)

    def expected(self, mix: jax.Array | np.ndarray, action: jax.Array | np.ndarray) -> Outcome:
        """What is expected of a period with the share ``mix [...]`` and the threshold of index ``action [...]``."""
        accepted, gain = jnp.asarray(self.accepted, jnp.float32), jnp.asarray(self.gain, jnp.float32)
        first, second = accepted[0, action], accepted[1, action]
        parity = jnp.abs(first - second) - self.tolerance
        service = self.service - (mix * first + (1 - mix) * second)
        return Outcome(mix * gain[0, action] + (1 - mix) * gain[1, action], jnp.stack([parity, service], -1))

    def reset(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The population before any decision; ``key`` is not used."""
        del key
        mix = jnp.float32(self.start)
        return mix, mix[None]

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, TimeStep]:
        """One period."""
        outcome = self.expected(state, action)
        seen = self.noise * jax.random.normal(key, (1 + len(COSTS),))
        residuals = outcome.residuals + seen[1:]
        mix = state + self.rate * (jnp.asarray(self.target, jnp.float32)[action] - state)
        false = jnp.zeros((), bool)
        return mix, TimeStep(
            observation=mix[None],
            reward=outcome.reward + seen[0],
            costs={name: residuals[index] for index, name in enumerate(COSTS)},
            objectives={},
            terminated=false,
            truncated=false,
            final_observation=mix[None],
            info={"theta": jnp.asarray(self.theta, jnp.float32)[action]},
        )


def _above(a: float, b: float, score: np.ndarray) -> np.ndarray:
    """The probability that a Beta distribution is above ``score``."""
    # Imported here: other environments need not wait for it.
    from scipy.special import betainc

    return 1 - betainc(a, b, score)
