"""XLand-MiniGrid's environments (extra ``xminigrid``).

The suite tells the end of a task and of the time apart (``discount`` is 0 only after the former), so that nothing has
to be recovered. Its time limit is also in the reward, ``1 - 0.9 step / max_steps`` at the goal, and therefore stays
the suite's parameter ``max_steps``. The environments that start with ``XLand`` have no goal without a rule set, and the
benchmarks of rule sets are downloaded; they are made by an own factory, see ``Suite``.

Source: Nikulin et al., "XLand-MiniGrid: Scalable Meta-Reinforcement Learning Environments in JAX", NeurIPS 2024, arXiv
2312.12044.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np

from envs.base import Environment
from envs.choices import require_known
from envs.suites.adapter import Game, Step, Suite, box, require_parameters, suite_module


def xminigrid_environment(environment_id: str, **parameters: Any) -> Environment:
    """XLand-MiniGrid's ``environment_id``, such as ``MiniGrid-DoorKey-8x8``.

    The observation is ``uint8 [view_size, view_size, 2]``, tile and colour of each cell in view; the actions are
    forward, left, right, pick up, put down and toggle.

    Args:
      environment_id: the suite's name.
      **parameters: fields of the environment's ``EnvParams``: ``max_steps``, ``view_size``, ``height``, ``width``.

    Raises:
      ImportError: the extra ``xminigrid`` is not installed.
      ValueError: an unknown environment, or one that has no goal without a rule set.
      TypeError: the environment does not have a parameter.
    """
    suite = suite_module("xminigrid", "xminigrid", "XLand-MiniGrid")
    require_known("environment of XLand-MiniGrid", environment_id, suite.registered_environments())
    if environment_id.startswith("XLand"):
        raise ValueError(
            f"{environment_id} has no goal without a rule set, and the suite downloads its rule sets: expected one of "
            "the environments MiniGrid-*, or a factory of your own by import path"
        )
    return _made(environment_id, tuple(sorted(parameters.items())))


@lru_cache
def _made(environment_id: str, parameters: tuple[tuple[str, Any], ...]) -> Suite:
    suite = suite_module("xminigrid", "xminigrid", "XLand-MiniGrid")
    tiles = suite_module("xminigrid.core.constants", "xminigrid", "XLand-MiniGrid")
    rendering = suite_module("xminigrid.rendering.rgb_render", "xminigrid", "XLand-MiniGrid")
    environment, defaults = suite.make(environment_id)
    require_parameters(environment_id, dict(parameters), [field.name for field in dataclasses.fields(defaults)])
    params = defaults.replace(**dict(parameters))

    def start(key):
        step = environment.reset(params, key)
        return step, step.observation

    def step(key, state, action):
        del key  # the state holds one of its own
        step = environment.step(params, state, action)
        terminated = step.last() & (step.discount == 0)
        return Step(step, step.observation, step.reward, terminated, step.last() & ~terminated)

    def draw(state):
        # The suite's function for the form "rgb_array"; its own ``render`` reads the form in the parameters.
        return rendering.render(np.asarray(state.state.grid), state.state.agent, params.view_size)

    shape = environment.observation_shape(params)
    last = max(tiles.NUM_TILES, tiles.NUM_COLORS) - 1
    return Suite(
        Game(
            f"XLand-MiniGrid: {environment_id}",
            start,
            step,
            box(0, last, tuple(shape), np.uint8),
            gymnasium.spaces.Discrete(environment.num_actions(params)),
            int(params.max_steps),
            draw,
        )
    )
