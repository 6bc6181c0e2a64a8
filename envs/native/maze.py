"""A maze to explore without reward: four rooms in a chain, blocks in the corridors, and several kinds of noise.

It follows the Pycolab maze of Jarrett et al. 2022 ("Curiosity in Hindsight", arXiv 2211.10515, section 5.1), whose
map is not published. The map ``MAP``, the paths of the blocks and the positions of the trackers were made for sagax.

    room 1  ->  blocks  ->  room 2
                              |
                            blocks
                              |
    room 4  <-  blocks  <-  room 3

A tracker is the last cell of its room on the way to the next room (in room 4, the cell opposite its door). An agent
that enters room k + 1 has stood on trackers 1 to k, so that trackers are always reached in order.

The agent sees the 5x5 cells around itself. They are stored as words of 25 bits, one bit per cell, and visited cells as
one bit per cell of the map, so that a step only looks up one entry in each of two small tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from envs.base import EnvironmentSpec, TimeStep, Trajectory
from envs.choices import require_known
from envs.native.drawing import image_of

NO_OP, UP, DOWN, LEFT, RIGHT = range(5)
MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
"""Row and column change of the actions no-op, up, down, left, right."""

MAP = (
    "#################",
    "#S....#####.....#",
    "#.....#abc#.....#",
    "#....1.abc......#",
    "#.....#abc#.....#",
    "#.....#####..2..#",
    "#############.###",
    "############ddd##",
    "############eee##",
    "############fff##",
    "#############.###",
    "#.....#####.....#",
    "#.....#ghi#.....#",
    "#4.....ghi.3....#",
    "#.....#ghi#.....#",
    "#.....#####.....#",
    "#################",
)
"""``#`` wall, ``.`` free, ``S`` the start, ``1`` to ``4`` the trackers, a letter the cells on the path of one block."""

CHANNELS = ("wall", "free", "block", "tracker", "noise")
"""Channels of the observation; of the first four exactly one is 1 in every cell."""

NOISES = ("none", "brownian", "pixel", "on_demand")
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {"noise": "none"},
    "brownian": {"noise": "brownian"},
    "pixel": {"noise": "pixel"},
    "on_demand": {"noise": "on_demand"},
    "sticky": {"noise": "none", "sticky": 0.1},
}
"""The settings of the experiments by name, as arguments of ``Maze``; 0.1 is what the paper's Atari games use."""

_REWARDS = ("none", "trackers")
_COLOURS = {"#": (60, 60, 60), ".": (240, 240, 240), "o": (200, 60, 60), "@": (40, 90, 200)} | dict.fromkeys(
    "1234", (240, 190, 40)
)
_HEIGHT, _WIDTH = len(MAP), len(MAP[0])
_RADIUS = 2
_SIDE = 2 * _RADIUS + 1
_WORD = 32


def _cells(symbols: str) -> np.ndarray:
    """Row and column, ``int32 [N, 2]``, of the cells of ``MAP`` with one of ``symbols``, in their order."""
    return np.array(
        [
            (row, column)
            for symbol in symbols
            for row, line in enumerate(MAP)
            for column, found in enumerate(line)
            if found == symbol
        ],
        np.int32,
    )


def _views(marked: np.ndarray, outside: bool) -> np.ndarray:
    """For every cell of the map, the 5x5 neighbourhood in ``marked [H, W]`` as one word, ``uint32 [H * W]``.

    Bit ``5 i + j`` is the value of the cell ``(i - 2, j - 2)`` away, or ``outside`` beyond the map.
    """
    padded = np.pad(marked, _RADIUS, constant_values=outside)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (_SIDE, _SIDE)).reshape(_HEIGHT * _WIDTH, -1)
    return (windows.astype(np.uint32) << np.arange(_SIDE**2, dtype=np.uint32)).sum(-1, dtype=np.uint32)


WALLS = np.array([[symbol == "#" for symbol in line] for line in MAP])
"""``bool [H, W]``."""
TRACKERS = _cells("1234")
"""Row and column of the trackers, ``int32 [4, 2]``."""
START = _cells("S")[0]
"""Row and column of the first cell of every episode."""
PATHS = np.stack([_cells(letter) for letter in sorted({c for line in MAP for c in line if c.isalpha() and c != "S"})])
"""The cells of every block's path in order, ``int32 [blocks, cells, 2]``."""

_LAST = PATHS.shape[1] - 1
_ALONG = PATHS[:, 1] - PATHS[:, 0]
_WALL_VIEWS = _views(WALLS, outside=True)
_TRACKER_VIEWS = _views(
    np.isin(np.arange(_HEIGHT * _WIDTH), TRACKERS @ [_WIDTH, 1]).reshape(WALLS.shape), outside=False
)
# Neighbouring blocks are in different phases, so that no corridor opens and closes as a whole.
_FIRST_OFFSETS = np.arange(len(PATHS), dtype=np.int32) % PATHS.shape[1]


class MazeState(NamedTuple):
    """The state of one environment.

    Attributes:
      cell: ``int32 [2]``, row and column of the agent.
      offset: ``int32 [blocks]``, the position of each block on its path.
      direction: ``int32 [blocks]``, 1 or -1, the direction in which an oscillating block moves next.
      visited: ``uint32 [words]``, bit ``row * width + column`` of a visited cell is 1; ``unpacked`` reads it.
      trackers: ``int32``, how many trackers were reached in this episode.
      action: ``int32``, the last action that was executed.
    """

    cell: jax.Array
    offset: jax.Array
    direction: jax.Array
    visited: jax.Array
    trackers: jax.Array
    action: jax.Array


@dataclass(frozen=True)
class Maze:
    """The maze as an ``Environment``; actions 0 to 4 are no-op, up, down, left, right.

    In a step the agent moves unless a wall or a block is ahead. Then every block moves one cell on its path of three
    cells, or waits if the agent stands in its way. Oscillating blocks turn at the ends of their path. All episodes
    start in the same state, and nothing ends them: wrap the maze in ``TimeLimit`` (500 steps in the paper).

    The observation ``uint8 [5, 5, 5]`` shows the cells around the agent, which is in the middle and always faces up, by
    channel (``CHANNELS``). A tracker stays visible after it was reached. Cells beyond the map are walls. The channel
    ``noise`` is 0 in frames without noise, so that one network fits every setting.

    ``info``: ``trackers`` reached in this episode (0 to 4), ``tracker_1`` to ``tracker_4`` (0 or 1), and ``coverage``,
    the share of the cells without a wall that the agent has visited in this episode.

    Attributes:
      noise: ``none``; ``brownian``: each block moves forwards or backwards on its path with probability 1/4 each, else
        stays, and stays at the end of its path instead of leaving it; ``pixel``: the channel ``noise`` shows 25 fair
        random bits with ``pixel_probability``, independently in every frame; ``on_demand``: it shows them after every
        step whose executed action was the no-op, and not in the first frame.
      sticky: probability that the previously executed action is repeated instead of the chosen one; before the first
        step that action is the no-op.
      pixel_probability: the probability that a frame shows noise if ``noise`` is ``pixel``.
      reward: ``none``: always 0; ``trackers``: 1 for each tracker reached, in order.
      report_cell: whether to add ``cell`` to ``info``, the agent's cell as ``row * 17 + column``, for ``visits``. Leave
        it out for training: evaluations would report it as if it were a metric of the episode.

    Raises:
      TypeError, ValueError: an argument is out of its range.
    """

    noise: str = "none"
    sticky: float = 0.0
    pixel_probability: float = 0.25
    reward: str = "none"
    report_cell: bool = False

    def __post_init__(self):
        for name, value, known in (("noise", self.noise, NOISES), ("reward", self.reward, _REWARDS)):
            require_known(name, value, known)
        _check_probability("sticky", self.sticky)
        _check_probability("pixel_probability", self.pixel_probability)
        if not isinstance(self.report_cell, bool):
            raise TypeError(f"report_cell={self.report_cell!r}: expected True or False")

    @cached_property
    def spec(self) -> EnvironmentSpec:
        """Spaces of one environment, and the names in ``info``."""
        flags = tuple(f"tracker_{number}" for number in range(1, len(TRACKERS) + 1))
        return EnvironmentSpec(
            gymnasium.spaces.Box(0, 1, (_SIDE, _SIDE, len(CHANNELS)), np.uint8),
            gymnasium.spaces.Discrete(len(MOVES)),
            info=("trackers", "coverage", *flags, *(("cell",) if self.report_cell else ())),
        )

    def reset(self, key: jax.Array) -> tuple[MazeState, jax.Array]:
        """Starts an episode; ``key`` draws the noise of the first frame only."""
        state = MazeState(
            cell=jnp.asarray(START),
            offset=jnp.asarray(_FIRST_OFFSETS),
            direction=jnp.ones(len(PATHS), jnp.int32),
            visited=_bit(jnp.asarray(START)),
            trackers=jnp.zeros((), jnp.int32),
            action=jnp.asarray(NO_OP, jnp.int32),
        )
        return state, self._observe(state, _words(key), first=True)

    def step(self, key: jax.Array, state: MazeState, action: jax.Array) -> tuple[MazeState, TimeStep]:
        """Moves the agent, then the blocks; never resets, terminates or truncates."""
        words = _words(key)
        action = jnp.where(_chance(words[0], self.sticky), state.action, action).astype(jnp.int32)
        ahead = state.cell + jnp.asarray(MOVES, jnp.int32)[action]
        blocked = jnp.asarray(WALLS)[ahead[0], ahead[1]] | jnp.any(_on(_blocks(state.offset), ahead))
        cell = jnp.where(blocked, state.cell, ahead)
        offset, direction = self._move_blocks(words[1], state, cell)
        visited = state.visited | _bit(cell)
        reached = jnp.any(_on(jnp.asarray(TRACKERS), cell) & (jnp.arange(len(TRACKERS)) == state.trackers))
        trackers = state.trackers + reached
        after = MazeState(cell, offset, direction, visited, trackers, action)
        observation = self._observe(after, words, first=False)
        return after, TimeStep(
            observation=observation,
            reward=reached.astype(jnp.float32) if self.reward == "trackers" else jnp.zeros((), jnp.float32),
            costs={},
            objectives={},
            terminated=jnp.zeros((), bool),
            truncated=jnp.zeros((), bool),
            final_observation=observation,
            info=self._info(after),
        )

    def draw_text(self, state: MazeState) -> str:
        """``#`` wall, ``.`` free, ``o`` a block, ``1`` to ``4`` the trackers that were not reached, ``@`` the agent."""
        shown = np.where(WALLS, "#", ".")
        for row, column in np.asarray(_blocks(state.offset)):
            shown[row, column] = "o"
        for number, (row, column) in enumerate(TRACKERS, 1):
            if number > state.trackers:
                shown[row, column] = str(number)
        shown[tuple(np.asarray(state.cell))] = "@"
        return "\n".join("".join(line) for line in shown)

    def draw_image(self, state: MazeState) -> np.ndarray:
        """``draw_text`` in colours."""
        return image_of(self.draw_text(state), _COLOURS)

    def _move_blocks(self, word: jax.Array, state: MazeState, cell: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self.noise == "brownian":
            bits = (word >> jnp.arange(2 * len(PATHS), dtype=jnp.uint32)) & 1
            ways = bits.astype(jnp.int32).reshape(-1, 2)
            direction = state.direction
            wanted = jnp.clip(state.offset + ways[:, 0] - ways[:, 1], 0, _LAST)
        else:
            ends = (state.offset + state.direction < 0) | (state.offset + state.direction > _LAST)
            direction = jnp.where(ends, -state.direction, state.direction)
            wanted = state.offset + direction
        waits = _on(_blocks(wanted), cell)
        return jnp.where(waits, state.offset, wanted), direction

    def _observe(self, state: MazeState, words: jax.Array, *, first: bool) -> jax.Array:
        index = state.cell[0] * _WIDTH + state.cell[1]
        wall, tracker = jnp.asarray(_WALL_VIEWS)[index], jnp.asarray(_TRACKER_VIEWS)[index]
        rows, columns = (_blocks(state.offset) - state.cell + _RADIUS).T
        seen = (rows >= 0) & (rows < _SIDE) & (columns >= 0) & (columns < _SIDE)
        # A shift by more than the word has bits is undefined, even where its result is not used.
        places = jnp.where(seen, rows * _SIDE + columns, 0).astype(jnp.uint32)
        # Every block has a path of its own, so that no bit is added twice.
        block = jnp.sum(jnp.where(seen, jnp.uint32(1) << places, 0), dtype=jnp.uint32)
        if self.noise == "pixel":
            noise = jnp.where(_chance(words[2], self.pixel_probability), words[1], 0)
        elif self.noise == "on_demand" and not first:
            noise = jnp.where(state.action == NO_OP, words[1], 0)
        else:
            noise = jnp.zeros((), jnp.uint32)
        channels = jnp.stack([wall, ~(wall | block | tracker), block, tracker, noise])
        bits = (channels >> jnp.arange(_SIDE**2, dtype=jnp.uint32)[:, None]) & 1
        return bits.astype(jnp.uint8).reshape(_SIDE, _SIDE, len(CHANNELS))

    def _info(self, state: MazeState) -> dict[str, jax.Array]:
        covered = jnp.sum(jax.lax.population_count(state.visited), dtype=jnp.int32)
        info = {
            "trackers": state.trackers.astype(jnp.float32),
            "coverage": covered.astype(jnp.float32) / int((~WALLS).sum()),
        }
        for number in range(1, len(TRACKERS) + 1):
            info[f"tracker_{number}"] = (state.trackers >= number).astype(jnp.float32)
        if self.report_cell:
            info["cell"] = (state.cell[0] * _WIDTH + state.cell[1]).astype(jnp.float32)
        return info


def unpacked(visited: jax.Array) -> jax.Array:
    """``bool [..., H, W]``, the cells visited in an episode, from ``MazeState.visited [..., words]``."""
    bits = (visited[..., None] >> jnp.arange(_WORD, dtype=jnp.uint32)) & 1
    flat = bits.reshape(*visited.shape[:-1], -1)[..., : _HEIGHT * _WIDTH]
    return flat.reshape(*visited.shape[:-1], _HEIGHT, _WIDTH).astype(bool)


def visits(trajectory: Trajectory) -> jax.Array:
    """How often the agent was on each cell after a step, ``int32 [H, W]``, without padding: a heat map.

    It reads ``info`` of a ``Maze(report_cell=True)``, because two cells can have the same observation.

    Args:
      trajectory: ``[T, B]``, from any rollout.

    Raises:
      ValueError: the trajectory does not have ``info["cell"]``.
    """
    info = trajectory.extras["info"]
    if "cell" not in info:
        raise ValueError(
            f"info has {', '.join(sorted(info)) or 'nothing'}, expected 'cell': use Maze(report_cell=True)"
        )
    cells = jnp.asarray(info["cell"]).astype(jnp.int32).reshape(-1)
    real = (jnp.asarray(trajectory.mask) > 0).astype(jnp.int32).reshape(-1)
    return jnp.zeros(_HEIGHT * _WIDTH, jnp.int32).at[cells].add(real).reshape(_HEIGHT, _WIDTH)


def _blocks(offset: jax.Array) -> jax.Array:
    """Row and column of the blocks, ``int32 [blocks, 2]``."""
    return jnp.asarray(PATHS[:, 0]) + offset[:, None] * jnp.asarray(_ALONG)


def _on(cells: jax.Array, cell: jax.Array) -> jax.Array:
    """Which of ``cells [N, 2]`` are ``cell``, ``bool [N]``."""
    return (cells[:, 0] == cell[0]) & (cells[:, 1] == cell[1])


def _bit(cell: jax.Array) -> jax.Array:
    """The words of ``MazeState.visited`` in which only the bit of ``cell`` is set."""
    index = cell[0] * _WIDTH + cell[1]
    number_of_words = -(-_HEIGHT * _WIDTH // _WORD)
    bit = jnp.uint32(1) << (index % _WORD).astype(jnp.uint32)
    return jnp.where(jnp.arange(number_of_words) == index // _WORD, bit, 0)


def _words(key: jax.Array) -> jax.Array:
    """The random bits of one step, ``uint32 [3]``: for sticky actions, for blocks or noise, and for noisy frames."""
    return jax.random.bits(key, (3,), jnp.uint32)


def _chance(word: jax.Array, probability: float) -> jax.Array:
    """True with ``probability``, to a precision of ``2 ** -24``."""
    return (word >> 8).astype(jnp.float32) * 2.0**-24 < probability


def _check_probability(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r}: expected a probability from 0 to 1")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: expected a probability from 0 to 1, nearest {min(max(value, 0), 1)}")
