"""Sokoban in pure JAX: each room is generated from one key, on the device, by reverse play.

Rooms (``sokoban_rooms.py``) follow the recipe of Weber et al. 2017 ("Imagination-Augmented Agents for Deep
Reinforcement Learning", appendix on Sokoban level generation) as in Schrader 2018 (gym-sokoban): a random walk carves
the floor, boxes start *on* their targets, and a player who pulls them walks backwards from the solution. A pull played
backwards is a legal push, so the walk itself, read from its end, is a solution.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from envs.base import EnvironmentSpec, TimeStep
from envs.choices import require_known
from envs.native import sokoban_solver
from envs.native.sokoban_rooms import MOVES, SokobanState, grid, move, observe, render, to_text

_OBSERVATIONS = ("symbolic", "rgb")
_REWARDS = ("sparse", "dense")
# Cells carved around the walker in addition to its own: up, down, left, right.
_CARVED = ((0, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0, 1), (0, 1, 0, 1), (1, 1, 0, 0), (0, 0, 1, 1))
_TURN_PROBABILITY = 0.35
_PREFERENCE = 0.4
_MAX_ATTEMPTS = 256
# Weights of the parts of a room's score, an int32: first the boxes off target, then the difference between the pushes
# that the room needs and should need (at most 56), then a random number.
_OFF_TARGET = 1 << 27
_PUSH = 1 << 20
_MOST_PUSHES = 64
# After every so many attempts, the accepted difference from the drawn number of pushes grows by one.
_PATIENCE = 16
_LARGEST_LUCK = 100.0
# Rooms of demonstrations that are observed at a time.
_OBSERVE_CHUNK = 1024


@dataclass(frozen=True)
class Sokoban:
    """Sokoban as an ``Environment``; actions 0 to 3 are up, down, left, right.

    An action moves the player and pushes a box ahead if the cell behind the box is free; otherwise it does nothing.
    The episode terminates when every box is on a target. There is no time limit: wrap it in ``TimeLimit``.

    ``reset`` retries until every box is off every target. After 256 attempts, which only crowded rooms reach (4 boxes
    and inner walls on 6x6: one room in a thousand), it takes the best room found, or, if there is none, a fixed room
    that takes ``3 * num_boxes - 2`` moves. So it always ends, its room is never solved, and at most ``reverse_steps``
    moves solve it.

    Attributes:
      height, width: number of cells with the border, 6 to 10.
      num_boxes: number of boxes, 1 to 4.
      inner_walls: ``True``: a random walk carves the rooms; ``False``: the whole interior is floor.
      pushes_low, pushes_high: every room draws a number of pushes uniformly from this range, both ends included, and
        ``reset`` retries until ``least_pushes`` is that number; after every 16 attempts it accepts a difference of one
        more push. A wide range mixes easy rooms with hard ones, so that an agent with a sparse reward sometimes
        succeeds from the start. Both 0 (the default): no number is drawn. Otherwise ``num_boxes`` to
        ``num_boxes * (height + width - 6)``.
      reverse_steps: length of the reverse walk, which is an upper bound on the length of an optimal solution;
        ``3 * num_boxes - 2`` to 1000. ``None``: ``(height + width - 4) * (2 * num_boxes + 3) // 2``; 20 for 6x6 with
        one box, whose rooms then are about as hard as those where player, box and target are placed at random.
      observation: ``symbolic``: ``uint8 [H, W, 4]``, planes wall, target, box, player; ``rgb``:
        ``uint8 [H * pixels_per_cell, W * pixels_per_cell, 3]``.
      pixels_per_cell: side of a cell in the image, 1 to 64.
      reward: ``sparse``: 1 for the step that solves the room, else 0; ``dense`` (gym-sokoban): -0.1 per step,
        +1 for a box pushed onto a target, -1 for one pushed off, +10 for solving.

    Raises:
      TypeError, ValueError: an argument is out of its range.
    """

    height: int = 6
    width: int = 6
    num_boxes: int = 1
    inner_walls: bool = False
    reverse_steps: int | None = None
    pushes_low: int = 0
    pushes_high: int = 0
    observation: str = "symbolic"
    pixels_per_cell: int = 8
    reward: str = "sparse"

    def __post_init__(self):
        _check_integer("height", self.height, 6, 10)
        _check_integer("width", self.width, 6, 10)
        _check_integer("num_boxes", self.num_boxes, 1, 4)
        _check_integer("pixels_per_cell", self.pixels_per_cell, 1, 64)
        if self.reverse_steps is not None:
            _check_integer("reverse_steps", self.reverse_steps, 3 * self.num_boxes - 2, 1_000)
        if self.pushes_low or self.pushes_high:
            most = self.num_boxes * (self.height + self.width - 6)
            _check_integer("pushes_low", self.pushes_low, self.num_boxes, most)
            _check_integer("pushes_high", self.pushes_high, self.pushes_low, most)
        if not isinstance(self.inner_walls, bool):
            raise TypeError(f"inner_walls={self.inner_walls!r}: expected True or False")
        require_known("observation", self.observation, _OBSERVATIONS)
        require_known("reward", self.reward, _REWARDS)

    @property
    def max_solution_length(self) -> int:
        """The number of reverse steps: every room has a solution of at most this many moves."""
        if self.reverse_steps is not None:
            return self.reverse_steps
        return (self.height + self.width - 4) * (2 * self.num_boxes + 3) // 2

    @functools.cached_property
    def spec(self) -> EnvironmentSpec:
        """Spaces of one environment; ``info`` holds ``success``."""
        if self.observation == "symbolic":
            space = gymnasium.spaces.Box(0, 1, (self.height, self.width, 4), np.uint8)
        else:
            shape = (self.height * self.pixels_per_cell, self.width * self.pixels_per_cell, 3)
            space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        return EnvironmentSpec(space, gymnasium.spaces.Discrete(4), info=("success",))

    def observe(self, state: SokobanState) -> jax.Array:
        """The observation of ``state``, symbolic or RGB."""
        return observe(state) if self.observation == "symbolic" else render(state, self.pixels_per_cell)

    def draw_text(self, state: SokobanState) -> str:
        """The room in XSB notation."""
        return to_text(state)

    def draw_image(self, state: SokobanState) -> np.ndarray:
        """The room as the RGB observation shows it, with 16 pixels per cell."""
        return np.asarray(render(state, 16))

    def demonstrations(self, keys: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """The solver's shortest solutions of the rooms of ``keys [N]``; see ``envs.base.Demonstrator``.

        Raises:
          ValueError: ``keys`` is empty or has not exactly one axis.
        """
        if jnp.ndim(keys) != 1 or len(keys) == 0:
            raise ValueError(f"keys has shape {jnp.shape(keys)}: expected [N] with N at least 1")
        states, actions = sokoban_solver.demonstrations(_reset_all(self, keys))
        chunks = (slice(first, first + _OBSERVE_CHUNK) for first in range(0, len(actions), _OBSERVE_CHUNK))
        parts = [SokobanState(*(leaf[chunk] for leaf in states)) for chunk in chunks]
        return np.concatenate([np.asarray(_observe_all(self, part)) for part in parts]), actions

    def reset(self, key: jax.Array) -> tuple[SokobanState, jax.Array]:
        """Generates a room from ``key``."""
        drawn = jax.random.randint(
            jax.random.fold_in(key, _MAX_ATTEMPTS), (), self.pushes_low, self.pushes_high + 1, jnp.int32
        )
        best_score = self.num_boxes * _OFF_TARGET + (_MOST_PUSHES * _PUSH if self.pushes_high else 0)

        def unfinished(carry):
            attempt, score, _ = carry
            allowed = attempt // _PATIENCE * _PUSH if self.pushes_high else 0
            return (attempt < _MAX_ATTEMPTS) & (score < best_score - allowed)

        def retry(carry):
            attempt, best_score, best = carry
            score, room = self._generate(jax.random.fold_in(key, attempt), drawn)
            better = score > best_score
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), room, best)
            return attempt + 1, jnp.maximum(score, best_score), best

        start = (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), self._fixed_room())
        _, _, state = jax.lax.while_loop(unfinished, retry, start)
        return state, self.observe(state)

    def step(self, key: jax.Array, state: SokobanState, action: jax.Array) -> tuple[SokobanState, TimeStep]:
        """Moves the player; the environment is deterministic, ``key`` is unused."""
        del key
        after = move(state, action)
        on_target = jnp.sum(state.box & state.target, dtype=jnp.int32)
        on_target_after = jnp.sum(after.box & after.target, dtype=jnp.int32)
        solved = ~jnp.any(after.box & ~after.target)
        success = (solved & jnp.any(state.box & ~state.target)).astype(jnp.float32)
        if self.reward == "sparse":
            reward = success
        else:
            reward = (on_target_after - on_target).astype(jnp.float32) + 10.0 * success - 0.1
        observation = self.observe(after)
        return after, TimeStep(
            observation=observation,
            reward=reward,
            costs={},
            objectives={},
            terminated=solved,
            truncated=jnp.zeros((), bool),
            final_observation=observation,
            info={"success": success},
        )

    def _fixed_room(self) -> SokobanState:
        """Boxes in row 2 under targets in row 1: one push up each, two steps from one to the next."""
        rows, columns = grid(self.height, self.width)
        in_use = (columns >= 1) & (columns <= self.num_boxes)
        wall = ~_interior(self.height, self.width)
        return SokobanState(wall, (rows == 1) & in_use, (rows == 2) & in_use, jnp.array([3, 1], jnp.int32))

    def _generate(self, key: jax.Array, pushes: jax.Array) -> tuple[jax.Array, SokobanState]:
        """One attempt to generate a room that needs ``pushes`` pushes: its score, 0 if the attempt failed, and the
        room.

        The room is the state of the reverse walk with the highest score. More boxes off target score higher; among
        equals, so does a smaller ``|least_pushes - pushes|`` (where a number of pushes was drawn); among equals, so
        does a larger product of three factors: the sum of the boxes' distances from where they started, the number of
        times that another box or direction was pulled, and a random number. Without the random number every room would
        begin just before a push and as far away as possible, and rooms would repeat.
        Positions are flat cell indices here: a move adds an offset.
        """
        shape = (self.height, self.width)
        steps = self.max_solution_length
        draws = _draw(
            jax.random.fold_in(key, 0),
            target=(self.height * self.width,),
            player=(4,),
            direction=(steps, 4),
            pull=(steps,),
            box=(2 * self.num_boxes,),
            luck=(steps,),
        )
        floor = self._carve(jax.random.fold_in(key, 1)) if self.inner_walls else _interior(*shape)
        wall = ~floor.reshape(-1)
        offsets = jnp.array([row * self.width + column for row, column in MOVES], jnp.int32)

        lottery = jnp.where(wall, -1.0, draws["target"])
        targets = jax.lax.top_k(lottery, self.num_boxes)[1].astype(jnp.int32)
        enough_floor = jnp.sum(~wall) > 2 * self.num_boxes

        def is_free(cells, boxes):
            return ~wall[cells] & ~jnp.any(cells[:, None] == boxes, axis=-1)

        beside = targets[0] + offsets
        beside_free = is_free(beside, targets)
        lottery = jnp.where(beside_free, draws["player"], -1.0)
        player = beside[jnp.argmax(lottery)]

        distance = functools.partial(_distance, width=self.width)

        def reverse_step(carry, draw):
            player, boxes, last_pull, changes, best_score, best_player, best_boxes = carry
            off_target = ~jnp.any(boxes[:, None] == targets, axis=-1)
            # The walk turns to boxes that still are on a target, then to each in turn.
            sought = jnp.where(jnp.all(off_target), draw["box"], jnp.argmin(off_target))
            sought_box = boxes[sought]
            ahead, behind = player + offsets, player - offsets
            near = distance(player, sought_box)
            wanted = jnp.where(near == 1, behind == sought_box, distance(ahead, sought_box) < near)
            free = is_free(ahead, boxes)
            direction = jnp.argmax(jnp.where(free, draw["direction"] + _PREFERENCE * wanted, -1.0))
            can_move = free[direction]
            offset = offsets[direction]
            pulled = (boxes == behind[direction]) & can_move
            pulled &= (behind[direction] == sought_box) | draw["pull"]
            pull = jnp.where(jnp.any(pulled), jnp.argmax(pulled) * 4 + direction, last_pull).astype(jnp.int32)
            changes = changes + (pull != last_pull)
            boxes = boxes + jnp.where(pulled, offset, 0)
            player = player + jnp.where(can_move, offset, 0)

            off_target = ~jnp.any(boxes[:, None] == targets, axis=-1)
            hardness = draw["luck"] * jnp.sum(distance(boxes, targets)) * changes
            score = jnp.sum(off_target, dtype=jnp.int32) * _OFF_TARGET
            if self.pushes_high:
                score += (_MOST_PUSHES - jnp.abs(least_pushes(boxes, targets, self.width) - pushes)) * _PUSH
            score += jnp.minimum(hardness.astype(jnp.int32), _PUSH - 1)
            better = score > best_score
            best_score = jnp.where(better, score, best_score)
            best_player = jnp.where(better, player, best_player)
            best_boxes = jnp.where(better, boxes, best_boxes)
            return (player, boxes, pull, changes, best_score, best_player, best_boxes), None

        # Once every box is off target, each slice of the walk seeks one randomly drawn box.
        slices = jnp.arange(steps) * 2 * self.num_boxes // steps
        walk = {
            "direction": draws["direction"],
            "pull": draws["pull"] < 0.5,
            "box": _integers(draws["box"], self.num_boxes)[slices],
            "luck": draws["luck"] * _LARGEST_LUCK,
        }
        none, zero = jnp.full((), -1, jnp.int32), jnp.zeros((), jnp.int32)
        start = (player, targets, none, zero, zero, player, targets)
        (_, _, _, _, score, player, boxes), _ = jax.lax.scan(reverse_step, start, walk)

        cells = jnp.arange(wall.size)
        room = SokobanState(
            wall=wall.reshape(shape),
            target=jnp.any(cells[:, None] == targets, axis=-1).reshape(shape),
            box=jnp.any(cells[:, None] == boxes, axis=-1).reshape(shape),
            player=jnp.stack([player // self.width, player % self.width]),
        )
        return jnp.where(enough_floor & jnp.any(beside_free), score, 0), room

    def _carve(self, key: jax.Array) -> jax.Array:
        """``bool [H, W]``, the floor left by a random walk that carves a small rectangle at every step."""
        steps = int(2.5 * (self.height + self.width))
        draws = _draw(key, start=(2,), turn=(steps,), direction=(steps,), rectangle=(steps,))
        low, high = jnp.array([1, 1]), jnp.array([self.height - 2, self.width - 2])
        start = low + _integers(draws["start"], high - low + 1)
        turns = draws["turn"] < _TURN_PROBABILITY
        directions = _integers(draws["direction"], 4)
        moves = jnp.array(MOVES, jnp.int32)

        def walk(carry, draw):
            position, direction = carry
            turn, new_direction = draw
            direction = jnp.where(turn, new_direction, direction)
            position = jnp.clip(position + moves[direction], low, high)
            return (position, direction), position

        _, positions = jax.lax.scan(walk, (start, directions[0]), (turns, directions))
        rectangles = jnp.array(_CARVED, jnp.int32)[_integers(draws["rectangle"], len(_CARVED))]
        up, down, left, right = rectangles.T
        row, column = positions.T
        rows, columns = (axis[..., None] for axis in grid(self.height, self.width))
        carved = (rows >= row - up) & (rows <= row + down) & (columns >= column - left) & (columns <= column + right)
        return jnp.any(carved, axis=-1) & _interior(self.height, self.width)


@functools.partial(jax.jit, static_argnums=0)
def _reset_all(environment: Sokoban, keys: jax.Array) -> SokobanState:
    return jax.vmap(environment.reset)(keys)[0]


@functools.partial(jax.jit, static_argnums=0)
def _observe_all(environment: Sokoban, states: SokobanState) -> jax.Array:
    return jax.vmap(environment.observe)(states)


def least_pushes(boxes: jax.Array, targets: jax.Array, width: int) -> jax.Array:
    """A lower bound on the pushes that a room needs.

    min over assignments p of sum_i |row(boxes[i]) - row(targets[p(i)])| + |column(boxes[i]) - column(targets[p(i)])|

    A push moves one box by one cell, so that no solution has fewer pushes; walls and detours only add pushes.

    Args:
      boxes, targets: ``int32 [N]``, flat cell indices ``row * width + column``.
      width: cells in a row of the room.
    """
    assignments = np.array(list(itertools.permutations(range(len(boxes)))))
    return jnp.min(jnp.sum(_distance(boxes, targets[assignments], width), axis=-1, dtype=jnp.int32))


def _distance(cells: jax.Array, others: jax.Array, width: int) -> jax.Array:
    """Manhattan distance between flat cell indices."""
    return jnp.abs(cells // width - others // width) + jnp.abs(cells % width - others % width)


def _draw(key: jax.Array, **shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    """Uniform numbers in [0, 1) by name, split from the result of one call, because each call adds compile time."""
    ends = np.cumsum([np.prod(shape) for shape in shapes.values()])
    pieces = jnp.split(jax.random.uniform(key, (int(ends[-1]),)), ends[:-1])
    return {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}


def _integers(uniform: jax.Array, bound: jax.Array | int) -> jax.Array:
    """Integers from 0 to ``bound - 1`` from uniform numbers in [0, 1)."""
    return (uniform * bound).astype(jnp.int32)


def _interior(height: int, width: int) -> jax.Array:
    rows, columns = grid(height, width)
    return (rows > 0) & (rows < height - 1) & (columns > 0) & (columns < width - 1)


def _check_integer(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r}: expected an integer from {low} to {high}")
    if not low <= value <= high:
        raise ValueError(f"{name}={value}: expected {low} to {high}, nearest {min(max(value, low), high)}")
