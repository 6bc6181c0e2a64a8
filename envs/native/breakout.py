"""Breakout on a 10x10 grid in pure JAX, with the rules of MinAtar.

Source: Young and Tian, "MinAtar: An Atari-Inspired Testbed for Thorough and Reproducible Reinforcement Learning
Experiments", arXiv 1903.03176. Rules that the paper does not state (corners, several bricks in a row, an empty wall)
are those of the authors' implementation. The actions are its minimal set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from envs.base import EnvironmentSpec, TimeStep
from envs.native.drawing import image_of_planes

SIZE = 10
STAY, LEFT, RIGHT = range(3)
WALL = (1, 4)
"""The first row with bricks, and the first row below them."""


class BreakoutState(NamedTuple):
    """The state of one game.

    Attributes:
      ball, trail: ``int32 [2]``, row and column of the ball now and one step before.
      velocity: ``int32 [2]``, each 1 or -1: the ball moves along diagonals.
      paddle: ``int32``, the column of the paddle, which is in the lowest row.
      brick: ``bool [10, 10]``, the cells with a brick.
      struck: ``bool``: the last step broke a brick or went through one.
      last_action: ``int32``, the action executed in the last step.
    """

    ball: jax.Array
    trail: jax.Array
    velocity: jax.Array
    paddle: jax.Array
    brick: jax.Array
    struck: jax.Array
    last_action: jax.Array


@dataclass(frozen=True)
class Breakout:
    """Breakout as an ``Environment``; actions 0 to 2 are stay, left, right.

    The ball starts at the left or right edge and moves down and inwards. Walls, bricks and the paddle reflect it; from
    the corner of the paddle it goes straight back. A brick that is hit pays 1 and disappears, unless the ball met a
    brick in the previous step, too: then it passes through. Three new rows appear when the ball comes down and no brick
    is left. The episode terminates when the ball comes down and misses the paddle. There is no time limit: wrap it in
    ``TimeLimit``.

    The observation is ``uint8 [10, 10, 4]`` with the planes paddle, ball, trail and brick.

    Attributes:
      sticky: the probability that the previously executed action is repeated instead of the chosen one; before the
        first step that action is ``STAY``.

    Raises:
      ValueError: if ``sticky`` is not a probability.
    """

    sticky: float = 0.1

    def __post_init__(self):
        if not 0 <= self.sticky <= 1:
            raise ValueError(f"sticky={self.sticky}: expected a probability, from 0 to 1")

    @cached_property
    def spec(self) -> EnvironmentSpec:
        """Four planes, three actions."""
        planes = gymnasium.spaces.Box(0, 1, (SIZE, SIZE, 4), np.uint8)
        return EnvironmentSpec(planes, gymnasium.spaces.Discrete(3))

    def draw_text(self, state: BreakoutState) -> str:
        """``=`` the paddle, ``o`` the ball, ``'`` where it was, ``#`` a brick, ``.`` nothing."""
        shown = np.full((SIZE, SIZE), ".")
        # The ball is drawn over its trail.
        for plane, character in ((3, "#"), (2, "'"), (1, "o"), (0, "=")):
            shown[np.asarray(observe(state))[..., plane] > 0] = character
        return "\n".join("".join(line) for line in shown)

    def draw_image(self, state: BreakoutState) -> np.ndarray:
        """The paddle before the ball, its trail and the bricks."""
        return image_of_planes(np.asarray(observe(state)))

    def reset(self, key: jax.Array) -> tuple[BreakoutState, jax.Array]:
        """Starts with a complete wall, the paddle in column 4, and the ball in row 3 on a side drawn from ``key``."""
        right = jax.random.bernoulli(key).astype(jnp.int32)
        ball = jnp.array([3, 0], jnp.int32).at[1].set(right * (SIZE - 1))
        velocity = jnp.array([1, 1], jnp.int32).at[1].set(1 - 2 * right)
        zero = jnp.zeros((), jnp.int32)
        state = BreakoutState(ball, ball, velocity, zero + 4, _wall(), jnp.bool_(False), zero)
        return state, observe(state)

    def step(self, key: jax.Array, state: BreakoutState, action: jax.Array) -> tuple[BreakoutState, TimeStep]:
        """Moves the paddle, then the ball, which is tested against walls, ceiling, bricks and floor in this order."""
        repeats = jax.random.uniform(key) < self.sticky
        action = jnp.where(repeats, state.last_action, jnp.asarray(action, jnp.int32))
        shift = (action == RIGHT).astype(jnp.int32) - (action == LEFT).astype(jnp.int32)
        paddle = jnp.clip(state.paddle + shift, 0, SIZE - 1)

        row, column = state.ball + state.velocity
        outside = (column < 0) | (column >= SIZE)
        column = jnp.clip(column, 0, SIZE - 1)
        across = jnp.where(outside, -state.velocity[1], state.velocity[1])

        ceiling = row < 0
        row = jnp.maximum(row, 0)
        meets_brick = ~ceiling & state.brick[row, column]
        breaks = meets_brick & ~state.struck
        brick = state.brick.at[row, column].set(state.brick[row, column] & ~breaks)

        down = ~ceiling & ~meets_brick & (row == SIZE - 1)
        brick = jnp.where(down & ~jnp.any(brick), _wall(), brick)
        above = down & (state.ball[1] == paddle)
        corner = down & ~above & (column == paddle)
        terminated = down & ~above & ~corner

        turns = ceiling | breaks | above | corner
        stays = breaks | above | corner
        velocity = jnp.stack(
            [jnp.where(turns, -state.velocity[0], state.velocity[0]), jnp.where(corner, -across, across)]
        )
        ball = jnp.stack([jnp.where(stays, state.ball[0], row), column])
        state = BreakoutState(ball, state.ball, velocity, paddle, brick, meets_brick, action)
        observation = observe(state)
        reward = breaks.astype(jnp.float32)
        return state, TimeStep(observation, reward, {}, {}, terminated, jnp.bool_(False), observation, {})


def observe(state: BreakoutState) -> jax.Array:
    """``uint8 [10, 10, 4]``: paddle, ball, trail, brick."""
    empty = jnp.zeros((SIZE, SIZE), bool)
    planes = [
        empty.at[SIZE - 1, state.paddle].set(True),
        empty.at[state.ball[0], state.ball[1]].set(True),
        empty.at[state.trail[0], state.trail[1]].set(True),
        state.brick,
    ]
    return jnp.stack(planes, axis=-1).astype(jnp.uint8)


def _wall() -> jax.Array:
    rows = jnp.arange(SIZE)
    filled = (rows >= WALL[0]) & (rows < WALL[1])
    return jnp.broadcast_to(filled[:, None], (SIZE, SIZE))
