"""gymnax's environments (extra ``gymnax``) and Craftax (extra ``craftax``), which has the same interface.

Both merge the end of a game with their time limit into one ``done``. Here the suite's own limit is raised until it
never ends an episode, what is left of ``done`` is ``terminated``, and ``TimeLimit`` truncates where the suite would.
Three bandits and chains of gymnax have a horizon that belongs to the task, because the observation or the reward
depends on the time that is left (``HORIZON``): there the limit stays, and its end is ``terminated``.

Sources: Lange, "gymnax: A JAX-based Reinforcement Learning Environment Library", 2022; Matthews et al., "Craftax: A
Lightning-Fast Benchmark for Open-Ended Reinforcement Learning", ICML 2024, arXiv 2402.16801.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from functools import lru_cache
from typing import Any

import gymnasium
import jax
import numpy as np

from envs.base import Environment
from envs.choices import require_known
from envs.native.drawing import image_of_planes
from envs.suites.adapter import (
    NO_LIMIT,
    OWN_LIMIT,
    Drawing,
    Game,
    Step,
    arguments_of,
    box,
    limited,
    require_parameters,
    suite_errors,
    suite_module,
)

HORIZON = ("BernoulliBandit-misc", "DiscountingChain-bsuite", "GaussianBandit-misc")
# The environments that gymnasium has, too, by the same names: the parts of a state of gymnasium's.
CLASSIC_CONTROL = {
    "Acrobot-v1": ("joint_angle1", "joint_angle2", "velocity_1", "velocity_2"),
    "CartPole-v1": ("x", "x_dot", "theta", "theta_dot"),
    "MountainCar-v0": ("position", "velocity"),
    "MountainCarContinuous-v0": ("position", "velocity"),
    "Pendulum-v1": ("theta", "theta_dot"),
}
CRAFTAX = ("Craftax-Classic-Pixels-v1", "Craftax-Classic-Symbolic-v1", "Craftax-Pixels-v1", "Craftax-Symbolic-v1")


def gymnax_environment(environment_id: str, *, time_limit: int | None = OWN_LIMIT, **parameters: Any) -> Environment:
    """gymnax's ``environment_id``, such as ``Breakout-MinAtar`` or ``DeepSea-bsuite``.

    MinAtar's games are those of Young and Tian (arXiv 1903.03176) without sticky actions and without a rising
    difficulty; the observation is ``float32 [10, 10, channels]``. ``sagax``'s own ``breakout`` has sticky actions.

    Args:
      environment_id: gymnax's name.
      time_limit: steps after which an episode is truncated; the suite's own where it is not given, ``None`` for none.
      **parameters: fields of the environment's ``EnvParams``; any other is an argument of its constructor.

    Raises:
      ImportError: the extra ``gymnax`` is not installed.
      ValueError: an unknown environment; a time limit for one of ``HORIZON``; an environment that gymnax fails to make,
        such as one whose data it cannot download.
      TypeError: the environment does not have a parameter.
    """
    gymnax = suite_module("gymnax", "gymnax", "gymnax")
    require_known("environment of gymnax", environment_id, gymnax.registered_envs)
    game, own = _gymnax_game(environment_id, tuple(sorted(parameters.items())))
    if environment_id in HORIZON and time_limit != OWN_LIMIT:
        raise ValueError(
            f"time_limit={time_limit}: the horizon of {environment_id} belongs to the task; expected "
            "max_steps_in_episode, or nothing"
        )
    return limited(game, own, time_limit)


def craftax_environment(environment_id: str, *, time_limit: int | None = OWN_LIMIT, **parameters: Any) -> Environment:
    """Craftax's ``environment_id``: one of ``CRAFTAX``.

    PPO on it compiles for about a minute on two cores.

    Args:
      environment_id: Craftax's name, without ``AutoReset``.
      time_limit: steps after which an episode is truncated; 10,000 where it is not given, ``None`` for none.
      **parameters: fields of the environment's ``EnvParams``.

    Raises:
      ImportError: the extra ``craftax`` is not installed.
      ValueError: an unknown environment.
      TypeError: the environment does not have a parameter.
    """
    suite_module("craftax.craftax_env", "craftax", "Craftax")
    require_known("environment of Craftax", environment_id, CRAFTAX)
    game, own = _craftax_game(environment_id, tuple(sorted(parameters.items())))
    return limited(game, own, time_limit)


# Cached, so that the same arguments make the same object, see ``adapter.limited``.
@lru_cache
def _gymnax_game(environment_id: str, parameters: tuple[tuple[str, Any], ...]) -> tuple[Game, int | None]:
    gymnax = suite_module("gymnax", "gymnax", "gymnax")
    name = f"gymnax: {environment_id}"
    with suite_errors(name):
        environment, defaults = gymnax.make(environment_id)
    fields = {field.name for field in dataclasses.fields(defaults)}
    given = dict(parameters)
    require_parameters(environment_id, given, fields | arguments_of(type(environment)))
    arguments = {name: value for name, value in given.items() if name not in fields}
    environment, params = gymnax.make(environment_id, **arguments)
    params = params.replace(**{name: value for name, value in given.items() if name in fields})
    draw: Drawing | None = None
    if environment_id in CLASSIC_CONTROL:
        draw = _as_gymnasium_draws(environment_id, params)
    elif environment_id.endswith("-MinAtar"):
        draw = _planes(environment, params)
    limit = int(params.max_steps_in_episode)
    if environment_id in HORIZON:
        return _game(name, environment, params, horizon=limit), None
    return _game(name, environment, params.replace(max_steps_in_episode=NO_LIMIT), draw), limit


@lru_cache
def _craftax_game(environment_id: str, parameters: tuple[tuple[str, Any], ...]) -> tuple[Game, int | None]:
    suite = suite_module("craftax.craftax_env", "craftax", "Craftax")
    environment = suite.make_craftax_env_from_name(environment_id, auto_reset=False)
    params = environment.default_params
    require_parameters(environment_id, dict(parameters), [field.name for field in dataclasses.fields(params)])
    params = params.replace(**dict(parameters))
    name = f"Craftax: {environment_id}"
    draw = _as_craftax_draws("craftax_classic" if "Classic" in environment_id else "craftax")
    return _game(name, environment, params.replace(max_timesteps=NO_LIMIT), draw), int(params.max_timesteps)


def _planes(environment: Any, params: Any) -> Drawing:
    observe = jax.jit(lambda state: environment.get_obs(state, params))
    return lambda state: image_of_planes(np.asarray(observe(state)))


def _as_gymnasium_draws(environment_id: str, params: Any) -> Drawing:
    def draw(state):
        drawn: Any = gymnasium.make(environment_id, render_mode="rgb_array").unwrapped
        # What has a name of its own there, such as the length of a pole.
        for name in vars(drawn).keys() & {field.name for field in dataclasses.fields(params)}:
            setattr(drawn, name, getattr(params, name))
        drawn.state = [float(getattr(state, name)) for name in CLASSIC_CONTROL[environment_id]]
        # The torque of Pendulum, which is drawn as an arrow.
        drawn.last_u = getattr(state, "last_u", None)
        try:
            return drawn.render()
        finally:
            drawn.close()

    return draw


def _as_craftax_draws(package: str) -> Drawing:
    return lambda state: np.asarray(_craftax_renderer(package)(state)).astype(np.uint8).repeat(2, 0).repeat(2, 1)


# Cached, so that it compiles once, and only where something is drawn.
@lru_cache
def _craftax_renderer(package: str) -> Any:
    renderer = suite_module(f"craftax.{package}.renderer", "craftax", "Craftax")
    constants = suite_module(f"craftax.{package}.constants", "craftax", "Craftax")
    # The suite says on the standard output that it loads its textures.
    with contextlib.redirect_stdout(sys.stderr):
        return jax.jit(renderer.make_craftax_pixel_renderer(constants.BLOCK_PIXEL_SIZE_IMG))


def _game(name: str, environment: Any, params: Any, draw: Drawing | None = None, horizon: int | None = None) -> Game:
    """An environment with gymnax's interface, whose ``done`` under ``params`` is the end of a game alone."""

    def start(key):
        observation, state = environment.reset_env(key, params)
        return state, observation

    def step(key, state, action):
        observation, state, reward, done, _ = environment.step_env(key, state, action, params)
        return Step(state, observation, reward, done, False)

    observations, actions = (
        _space(name, space) for space in (environment.observation_space(params), environment.action_space(params))
    )
    return Game(name, start, step, observations, actions, horizon, draw)


def _space(name: str, space: Any) -> gymnasium.Space:
    if hasattr(space, "n"):
        return gymnasium.spaces.Discrete(int(space.n))
    if hasattr(space, "low"):
        return box(space.low, space.high, tuple(space.shape), space.dtype)
    if hasattr(space, "spaces"):
        return gymnasium.spaces.Dict({key: _space(name, part) for key, part in space.spaces.items()})
    raise TypeError(f"{name}: the space {space!r} is none of Box, Discrete and Dict")
