"""navix's environments (extra ``navix``): MiniGrid in JAX.

The suite tells termination and truncation apart, so that nothing has to be recovered; its ``step`` resets in the step
after an episode's end, which is avoided here. Time limits are the suite's own parameter ``max_steps``, which is in the
reward of some environments.

Source: Pignatelli et al., "NAVIX: Scaling MiniGrid Environments with JAX", 2024, arXiv 2407.19396.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np

from envs.base import Environment
from envs.choices import require_known
from envs.suites.adapter import Game, Step, Suite, box, suite_module

OBSERVATIONS = (
    "categorical",
    "categorical_first_person",
    "rgb",
    "rgb_first_person",
    "symbolic",
    "symbolic_first_person",
)


def navix_environment(
    environment_id: str, *, observation: str = "symbolic_first_person", max_steps: int = 100, **parameters: Any
) -> Environment:
    """navix's ``environment_id``, such as ``Navix-DoorKey-8x8-v0``.

    Args:
      environment_id: the suite's name.
      observation: one of ``OBSERVATIONS``; ``symbolic_first_person`` is what MiniGrid shows.
      max_steps: steps after which an episode is truncated.
      **parameters: further arguments of the environment, such as ``gamma``.

    Raises:
      ImportError: the extra ``navix`` is not installed.
      ValueError: an unknown environment or observation, or a limit below 1.
      TypeError: the environment does not have a parameter.
    """
    suite = suite_module("navix", "navix", "navix")
    require_known("environment of navix", environment_id, suite.registry())
    require_known("observation", observation, OBSERVATIONS)
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps}: expected at least 1")
    return _made(environment_id, observation, max_steps, tuple(sorted(parameters.items())))


@lru_cache
def _made(environment_id: str, observation: str, max_steps: int, parameters: tuple[tuple[str, Any], ...]) -> Suite:
    suite = suite_module("navix", "navix", "navix")
    observe = getattr(suite.observations, observation)
    environment = suite.make(environment_id, max_steps=max_steps, observation_fn=observe, **dict(parameters))

    def start(key):
        step = environment.reset(key)
        return step, step.observation

    def step(key, state, action):
        del key  # the state holds one of its own
        step = environment._step(state, action)
        return Step(step, step.observation, step.reward, step.is_termination(), step.is_truncation())

    # The suite says that a symbolic observation is below 9, and colours and states are; tiles are not.
    high = 255 if environment.observation_space.dtype == np.uint8 else int(environment.observation_space.maximum)
    return Suite(
        Game(
            f"navix: {environment_id}",
            start,
            step,
            box(0, high, tuple(environment.observation_space.shape), environment.observation_space.dtype),
            gymnasium.spaces.Discrete(int(environment.action_space.n)),
            max_steps,
        )
    )
