"""The environments that a configuration can name as ``environment.kind``.

A factory that takes ``num_envs`` makes a ``VectorHost``, which is stepped from Python; any other makes a pure
``Environment``, which runs inside jit. The section's key ``time_limit`` is handled in one place for all pure
environments (``experiments.assembly.build``); a factory that has a parameter ``time_limit`` handles it itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from envs.hosts.atari import atari_host
from envs.hosts.envpool import EnvPoolHost, boxoban_host
from envs.hosts.gymnasium import GymnasiumHost
from envs.hosts.minigrid import MiniGridHost
from envs.kinds import Kind
from envs.native.breakout import Breakout
from envs.native.maze import Maze
from envs.native.navigation import Navigation
from envs.native.noisy_line import noisy_line_environment
from envs.native.random_model import random_model_environment
from envs.native.selection import Selection
from envs.native.sokoban import Sokoban
from envs.native.tabular import gridworld_environment, gymnasium_table
from envs.suites.functional import make_functional
from envs.suites.gymnax import craftax_environment, gymnax_environment
from envs.suites.jumanji import jumanji_environment
from envs.suites.navix import navix_environment
from envs.suites.playground import playground_environment
from envs.suites.xminigrid import xminigrid_environment

# ``pixel_probability`` has an effect only if frames with noise are drawn, and not chosen by the agent.
_PIXEL = {"pixel_probability": {"noise": ("pixel",)}}

# By kind: a factory, or a ``Kind`` that declares more.
ENVIRONMENTS: dict[str, Kind | Callable[..., Any]] = {
    # Pure.
    "sokoban": Kind(Sokoban, needs={"pixels_per_cell": {"observation": ("rgb",)}}),
    "breakout": Breakout,
    "functional": make_functional,
    "gridworld": gridworld_environment,
    "gymnasium_table": gymnasium_table,
    "maze": Kind(Maze, needs=_PIXEL),
    "navigation": Navigation,
    "noisy_line": noisy_line_environment,
    "random_model": random_model_environment,
    "selection": Selection,
    # Pure, of other libraries.
    "craftax": craftax_environment,
    "gymnax": gymnax_environment,
    "jumanji": jumanji_environment,
    "navix": navix_environment,
    "playground": playground_environment,
    "xminigrid": xminigrid_environment,
    # Host.
    "gymnasium": GymnasiumHost,
    "envpool": EnvPoolHost,
    "boxoban": boxoban_host,
    "minigrid": Kind(MiniGridHost, needs=_PIXEL),
    "atari": atari_host,
}
