"""Rooms of Sokoban: their cells, the moves in them, and how they look as planes, as images and as text.

A room is a grid with a closed border. The player walks in four directions and pushes one box at a time; the room is
solved when every box is on a target. ``sokoban.py`` generates rooms and makes an environment of them,
``sokoban_solver.py`` solves them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

UP, DOWN, LEFT, RIGHT = range(4)
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Row and column change of the actions up, down, left, right."""

SYMBOLS = " #.$*@+"
"""XSB notation by cell code: floor, wall, target, box, box on target, player, player on target."""

_CELL_COLOURS = (
    (236, 228, 212),  # floor
    (72, 72, 88),  # wall
    (220, 60, 60),  # target
    (170, 110, 40),  # box
    (40, 160, 70),  # box on target
    (40, 90, 220),  # player
    (150, 60, 200),  # player on target
)


class SokobanState(NamedTuple):
    """The state of one room.

    Attributes:
      wall, target, box: ``bool [H, W]``.
      player: ``int32 [2]``, row and column.
    """

    wall: jax.Array
    target: jax.Array
    box: jax.Array
    player: jax.Array


def move(state: SokobanState, action: jax.Array) -> SokobanState:
    """The room after ``action`` (0 to 3): the player walks or pushes, or stays if neither is possible."""
    change = jnp.array(MOVES, jnp.int32)[action]
    ahead = state.player + change
    beyond = ahead + change
    # The border is wall, so ``ahead`` is on the grid; ``beyond`` may be off the grid only if ``ahead`` is a wall.
    beyond = jnp.clip(beyond, 0, jnp.array(state.wall.shape, jnp.int32) - 1)
    box_ahead = state.box[ahead[0], ahead[1]]
    blocked_beyond = state.wall[beyond[0], beyond[1]] | state.box[beyond[0], beyond[1]]
    can_move = ~state.wall[ahead[0], ahead[1]] & ~(box_ahead & blocked_beyond)
    pushes = can_move & box_ahead
    rows, columns = grid(*state.wall.shape)
    leaves = pushes & (rows == ahead[0]) & (columns == ahead[1])
    enters = pushes & (rows == beyond[0]) & (columns == beyond[1])
    return state._replace(box=(state.box & ~leaves) | enters, player=jnp.where(can_move, ahead, state.player))


def observe(state: SokobanState) -> jax.Array:
    """Symbolic observation, ``uint8 [H, W, 4]``: planes wall, target, box, player."""
    rows, columns = grid(*state.wall.shape)
    player = (rows == state.player[0]) & (columns == state.player[1])
    return jnp.stack([state.wall, state.target, state.box, player], axis=-1).astype(jnp.uint8)


def cell_codes(state: SokobanState) -> jax.Array:
    """``int32 [H, W]``, indices into ``SYMBOLS``."""
    rows, columns = grid(*state.wall.shape)
    player = (rows == state.player[0]) & (columns == state.player[1])
    content = jnp.where(state.box, 3, jnp.where(player, 5, 0)) + state.target
    content = jnp.where(state.target & ~state.box & ~player, 2, content)
    return jnp.where(state.wall, 1, content)


def render(state: SokobanState, pixels_per_cell: int = 8) -> jax.Array:
    """Image, ``uint8 [H * pixels_per_cell, W * pixels_per_cell, 3]``.

    Cell ``(row, column)`` is the tile ``cell_tiles(pixels_per_cell)[cell_codes(state)[row, column]]``.
    """
    height, width = state.wall.shape
    tiles = jnp.asarray(cell_tiles(pixels_per_cell))[cell_codes(state)]
    return tiles.transpose(0, 2, 1, 3, 4).reshape(height * pixels_per_cell, width * pixels_per_cell, 3)


def cell_tiles(pixels_per_cell: int) -> np.ndarray:
    """One image per cell code, ``uint8 [7, pixels_per_cell, pixels_per_cell, 3]``, in the order of ``SYMBOLS``.

    A wall fills its cell; the rest is drawn on floor: a target as a small square, a box as a large one, the
    player as a plus sign. Below four pixels every tile is one colour.
    """
    side = pixels_per_cell
    colours = np.array(_CELL_COLOURS, np.uint8)
    if side < 4:
        return np.broadcast_to(colours[:, None, None], (7, side, side, 3)).copy()
    margin = max(1, side // 8)
    centre = (np.arange(side) >= side * 3 // 8) & (np.arange(side) < side - side * 3 // 8)
    inside = (np.arange(side) >= margin) & (np.arange(side) < side - margin)
    nothing, everything = np.zeros((side, side), bool), np.ones((side, side), bool)
    small, large = centre[:, None] & centre, inside[:, None] & inside
    plus = (centre[:, None] | centre) & large
    drawn = np.stack([nothing, everything, small, large, large, plus, plus])
    return np.where(drawn[..., None], colours[:, None, None], colours[0])


def from_text(rows: str) -> SokobanState:
    """Reads a room in XSB notation, one line per row; short lines are filled with wall.

    ``#`` wall, space floor, ``.`` target, ``$`` box, ``*`` box on target, ``@`` player, ``+`` player on target.

    Raises:
      ValueError: an unknown character, not exactly one player, no box, another number of boxes than targets,
        or a floor from which the player could leave the grid.
    """
    lines = [line.rstrip() for line in rows.strip("\n").splitlines()]
    if not any(lines):
        raise ValueError("the room is empty: expected lines of XSB notation, such as '#####'")
    codes = np.full((len(lines), max(map(len, lines))), SYMBOLS.index("#"))
    for row, line in enumerate(lines):
        for column, symbol in enumerate(line):
            if symbol not in SYMBOLS:
                raise ValueError(
                    f"unknown character {symbol!r} in row {row}, column {column}: expected one of {SYMBOLS!r}"
                )
            codes[row, column] = SYMBOLS.index(symbol)
    wall, target = codes == 1, np.isin(codes, (2, 4, 6))
    box, player = np.isin(codes, (3, 4)), np.argwhere(codes >= 5)
    if len(player) != 1:
        raise ValueError(f"{len(player)} players (@ or +): expected 1")
    if box.sum() != target.sum() or not box.any():
        raise ValueError(
            f"{box.sum()} boxes ($ or *) and {target.sum()} targets (. * +): expected equally many, at least 1"
        )
    reached, frontier = set(), [tuple(player[0])]
    while frontier:
        row, column = frontier.pop()
        if not (0 <= row < wall.shape[0] and 0 <= column < wall.shape[1]):
            raise ValueError(
                f"the room is open at row {row}, column {column}: expected walls around the player's floor"
            )
        if (row, column) not in reached and not wall[row, column]:
            reached.add((row, column))
            frontier += [(row + down, column + right) for down, right in MOVES]
    return SokobanState(*map(jnp.asarray, (wall, target, box, player[0].astype(np.int32))))


def to_text(state: SokobanState) -> str:
    """The room in XSB notation, one line per row; inverse of ``from_text``."""
    return "\n".join("".join(SYMBOLS[code] for code in row) for row in np.asarray(cell_codes(state)))


def grid(height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """The row ``[H, 1]`` and the column ``[1, W]`` of every cell."""
    return jnp.arange(height)[:, None], jnp.arange(width)[None, :]
