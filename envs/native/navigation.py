"""Navigation among hazards: a robot that is paid for reaching goals and pays for driving through hazards, inside jit.

What users know from Safety Gym's ``PointGoal`` (Ray, Achiam and Amodei, 2019, "Benchmarking safe exploration in deep
reinforcement learning"): a robot that turns and drives, goals that appear anew, hazards, and lidars in place of
positions. The dynamics, the layout and its numbers are our own, so that no published figure compares with this one.
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

# The floor is a square of this many cells of this width, around the origin. Cells keep what is placed apart.
CELLS, WIDTH = 4, 0.75
_AXIS = (np.arange(CELLS, dtype=np.float32) - (CELLS - 1) / 2) * WIDTH
# The centres of the cells, ``[CELLS^2, 2]``.
CENTRES = np.stack(np.meshgrid(_AXIS, _AXIS), axis=-1).reshape(-1, 2).astype(np.float32)
# How far from the centre of its cell something is placed, along each axis.
JITTER = 0.15
# Beyond the cells, the robot is stopped at this distance from the origin along each axis.
FENCE = 2.0
GOAL_RADIUS, HAZARD_RADIUS = 0.3, 0.2
# Seconds per step; acceleration at full throttle; share of the velocity lost per second; turn at full lock per second.
TIME_STEP, THRUST, DRAG, TURN = 0.1, 1.0, 1.5, 2.0
# What lies farther away is not seen.
RANGE = 3.0


class NavigationState(NamedTuple):
    """Positions in metres, ``[2]`` each but where noted.

    Attributes:
      position, velocity: of the robot.
      heading: ``[]``, in radians.
      goal: the present one.
      hazards: ``[H, 2]``, the same in the whole episode.
      occupied: ``bool [CELLS^2]``, the cells of the hazards.
    """

    position: jax.Array
    velocity: jax.Array
    heading: jax.Array
    goal: jax.Array
    hazards: jax.Array
    occupied: jax.Array


@dataclass(frozen=True)
class Navigation:
    """A pure ``Environment``; it has no time limit of its own, ``TimeLimit`` gives it one.

    An action ``[2]`` in [-1, 1] is throttle and steering. A step pays by how many metres it brings the robot nearer to
    the goal, and 1 more for entering it, which moves the goal to another cell; the reward of the distance does not
    count the move. A step that ends inside a hazard has a cost of 1, ``cost/hazards``. Nothing ends an episode.

    An observation ``[2 * bins + 3]``: a lidar of the goal and one of the hazards, and velocity along and across the
    heading and the last turn. Bin ``b`` of a lidar is ``1 - distance / 3`` of the nearest object whose direction,
    relative to the heading, lies in the ``b``-th of ``bins`` equal sectors, and 0 where there is none within 3 metres.

    Attributes:
      hazards: how many, from 1 to 12.
      bins: of each lidar, at least 4.

    Raises:
      ValueError: a number out of its range.
    """

    hazards: int = 8
    bins: int = 16

    def __post_init__(self):
        if not 1 <= self.hazards <= CELLS**2 - 4:
            raise ValueError(f"hazards={self.hazards}: expected from 1 to {CELLS**2 - 4}")
        if self.bins < 4:
            raise ValueError(f"bins={self.bins}: expected at least 4")

    @cached_property
    def spec(self) -> EnvironmentSpec:
        """A Box of observations, a Box of two actions, and the cost ``hazards``."""
        spaces = gymnasium.spaces
        low = np.concatenate([np.zeros(2 * self.bins), np.full(3, -np.inf)]).astype(np.float32)
        high = np.concatenate([np.ones(2 * self.bins), np.full(3, np.inf)]).astype(np.float32)
        return EnvironmentSpec(
            spaces.Box(low, high, dtype=np.float32), spaces.Box(-1.0, 1.0, (2,), np.float32), costs=("hazards",)
        )

    def reset(self, key: jax.Array) -> tuple[NavigationState, jax.Array]:
        """Places robot, goal and hazards in different cells, all equally likely."""
        order_key, jitter_key, heading_key = jax.random.split(key, 3)
        cells = jax.random.permutation(order_key, CELLS**2)[: self.hazards + 2]
        places = jnp.asarray(CENTRES)[cells] + jax.random.uniform(
            jitter_key, (len(cells), 2), minval=-JITTER, maxval=JITTER
        )
        heading = jax.random.uniform(heading_key, minval=-jnp.pi, maxval=jnp.pi)
        occupied = jnp.zeros(CELLS**2, bool).at[cells[2:]].set(True)
        state = NavigationState(places[0], jnp.zeros(2), heading, places[1], places[2:], occupied)
        return state, self.observe(state, jnp.zeros(()))

    def step(self, key: jax.Array, state: NavigationState, action: jax.Array) -> tuple[NavigationState, TimeStep]:
        """Turns, drives, and moves the goal where it was reached."""
        throttle, steering = jnp.clip(action, -1.0, 1.0)
        heading = jnp.mod(state.heading + TIME_STEP * TURN * steering + jnp.pi, 2 * jnp.pi) - jnp.pi
        ahead = jnp.stack([jnp.cos(heading), jnp.sin(heading)])
        velocity = state.velocity + TIME_STEP * (THRUST * throttle * ahead - DRAG * state.velocity)
        free = state.position + TIME_STEP * velocity
        position = jnp.clip(free, -FENCE, FENCE)
        velocity = jnp.where(position == free, velocity, 0.0)
        before, after = (jnp.linalg.norm(state.goal - place) for place in (state.position, position))
        reached = after <= GOAL_RADIUS
        inside = jnp.min(jnp.linalg.norm(state.hazards - position, axis=-1)) <= HAZARD_RADIUS
        goal = jnp.where(reached, self._next_goal(key, state, position), state.goal)
        state = state._replace(position=position, velocity=velocity, heading=heading, goal=goal)
        observation = self.observe(state, steering)
        return state, TimeStep(
            observation=observation,
            reward=(before - after + reached).astype(jnp.float32),
            costs={"hazards": inside.astype(jnp.float32)},
            objectives={},
            terminated=jnp.bool_(False),
            truncated=jnp.bool_(False),
            final_observation=observation,
            info={},
        )

    def _next_goal(self, key: jax.Array, state: NavigationState, position: jax.Array) -> jax.Array:
        """A place in a cell without a hazard, and not the nearest to the robot."""
        cell_key, jitter_key = jax.random.split(key)
        near = jnp.argmin(jnp.linalg.norm(CENTRES - position, axis=-1))
        free = ~state.occupied & (jnp.arange(CELLS**2) != near)
        cell = jax.random.categorical(cell_key, jnp.where(free, 0.0, -jnp.inf))
        return jnp.asarray(CENTRES)[cell] + jax.random.uniform(jitter_key, (2,), minval=-JITTER, maxval=JITTER)

    def observe(self, state: NavigationState, steering: jax.Array) -> jax.Array:
        """The observation of ``state`` after a turn of ``steering``."""
        ahead = jnp.stack([jnp.cos(state.heading), jnp.sin(state.heading)])
        across = jnp.stack([-ahead[1], ahead[0]])
        own = jnp.stack([ahead @ state.velocity, across @ state.velocity, steering])
        lidars = [self._lidar(state, state.goal[None]), self._lidar(state, state.hazards)]
        return jnp.concatenate([*lidars, own]).astype(jnp.float32)

    def _lidar(self, state: NavigationState, objects: jax.Array) -> jax.Array:
        """``[bins]``: how near the nearest of ``objects [N, 2]`` is in each sector."""
        offset = objects - state.position
        distance = jnp.linalg.norm(offset, axis=-1)
        direction = jnp.mod(jnp.arctan2(offset[:, 1], offset[:, 0]) - state.heading, 2 * jnp.pi)
        sector = jnp.minimum(jnp.floor(direction / (2 * jnp.pi) * self.bins).astype(jnp.int32), self.bins - 1)
        nearness = jnp.maximum(1.0 - distance / RANGE, 0.0)
        return jnp.max(jnp.where(sector == jnp.arange(self.bins)[:, None], nearness, 0.0), axis=-1)

    def draw_image(self, state: NavigationState) -> np.ndarray:
        """The floor from above, ``uint8 [160, 160, 3]``: hazards, goal, and the robot with its nose."""
        pixels = 160
        axis = (np.arange(pixels) + 0.5) / pixels * 2 * FENCE - FENCE
        points = np.stack(np.meshgrid(axis, -axis), axis=-1)
        image = np.full((pixels, pixels, 3), 245, np.uint8)

        def disc(centre, radius, colour):
            image[np.linalg.norm(points - np.asarray(centre), axis=-1) <= radius] = colour

        for hazard in np.asarray(state.hazards):
            disc(hazard, HAZARD_RADIUS, (90, 110, 220))
        disc(state.goal, GOAL_RADIUS, (110, 190, 110))
        disc(state.position, 0.1, (200, 70, 60))
        nose = np.asarray(state.position) + 0.1 * np.array([np.cos(state.heading), np.sin(state.heading)])
        disc(nose, 0.04, (40, 40, 40))
        return image
