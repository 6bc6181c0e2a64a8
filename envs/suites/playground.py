"""MuJoCo Playground's environments (extra ``playground``): control suite, locomotion and manipulation on MJX.

The suite's environments have no time limit; its training scripts truncate after the configuration's
``episode_length``, and so does ``TimeLimit`` here. What the environment calls ``done`` is ``terminated``. The
environments of locomotion and manipulation download models of robots when they are first made.

Source: Zakka et al., "MuJoCo Playground", 2025, arXiv 2502.08844.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np

from envs.base import Environment
from envs.choices import require_known
from envs.suites.adapter import OWN_LIMIT, Game, Step, box, limited, require_parameters, suite_module


def playground_environment(
    environment_id: str,
    *,
    time_limit: int | None = OWN_LIMIT,
    observation: str | None = None,
    **parameters: Any,
) -> Environment:
    """MuJoCo Playground's ``environment_id``, such as ``CartpoleBalance``; actions in [-1, 1].

    Physics compiles for half a minute and more on two cores.

    Args:
      environment_id: the suite's name.
      time_limit: steps after which an episode is truncated; ``episode_length`` of the environment's configuration
        where it is not given, ``None`` for none.
      observation: which of several observations the policy sees, such as ``state``, where ``privileged_state`` is for
        critics in simulation; all of them if ``None``.
      **parameters: keys of the environment's configuration, such as ``ctrl_dt``.

    Raises:
      ImportError: the extra ``playground`` is not installed.
      ValueError: an unknown environment or observation.
      TypeError: the environment's configuration does not have a key.
    """
    suite = suite_module("mujoco_playground", "playground", "MuJoCo Playground")
    require_known("environment of MuJoCo Playground", environment_id, suite.registry.ALL_ENVS)
    require_parameters(environment_id, parameters, suite.registry.get_default_config(environment_id))
    game, own = _game(environment_id, observation, tuple(sorted(parameters.items())))
    return limited(game, own, time_limit)


# Cached, so that the same arguments make the same object, see ``adapter.limited``.
@lru_cache
def _game(
    environment_id: str, observation: str | None, parameters: tuple[tuple[str, Any], ...]
) -> tuple[Game, int | None]:
    suite = suite_module("mujoco_playground", "playground", "MuJoCo Playground")
    # Warp, the suite's default, needs a GPU of NVIDIA's.
    environment = suite.registry.load(environment_id, config_overrides={"impl": "jax"} | dict(parameters))
    sizes = environment.observation_size
    if observation is not None:
        require_known(f"observation of {environment_id}", observation, sizes if isinstance(sizes, Mapping) else ())

    def shown(state):
        return state.obs if observation is None else state.obs[observation]

    def start(key):
        state = environment.reset(key)
        return state, shown(state)

    def step(key, state, action):
        del key  # the state holds one of its own
        state = environment.step(state, action)
        return Step(state, shown(state), state.reward, state.done > 0, False)

    def space(size) -> gymnasium.Space:
        if isinstance(size, Mapping):
            return gymnasium.spaces.Dict({name: space(part) for name, part in size.items()})
        return box(-np.inf, np.inf, (size,) if isinstance(size, int) else tuple(size), np.float32)

    observations = space(sizes if observation is None else sizes[observation])
    actions = box(-1.0, 1.0, (environment.action_size,), np.float32)
    limit = environment._config.get("episode_length")
    return Game(f"MuJoCo Playground: {environment_id}", start, step, observations, actions), limit
