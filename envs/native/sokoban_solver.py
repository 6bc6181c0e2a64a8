"""Optimal Sokoban solutions on the host: A* over pushes, and expert demonstrations from them.

Sets of cells are Python integers, one bit per cell, so that a flood fill and the search for possible pushes take
a few shifts each. The heuristic is the cheapest assignment of boxes to targets; the cost of a box and a target is the
number of pushes between them in a room without other boxes. No box is pushed onto a cell from which, alone in the
room, it could not reach any target (see Junghanns and Schaeffer 2001, "Sokoban: Enhancing general single-agent search
methods using domain knowledge").
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from envs.choices import require_known
from envs.native.sokoban_rooms import MOVES, SokobanState, move

_METRICS = ("moves", "pushes")
_UNREACHABLE = 1 << 20
_REPLAY_LENGTH_MULTIPLE = 32


Node = tuple[int, int]
Parents = dict[Node, tuple[Node, int, int] | None]


class SearchBudgetExceededError(RuntimeError):
    """The search expanded ``max_expansions`` states without solving the room or proving it unsolvable."""


class Solution(NamedTuple):
    """A shortest solution.

    Attributes:
      actions: ``int32 [num_moves]``, indices into up, down, left, right.
      num_moves: number of moves of the player, pushes included.
      num_pushes: number of moves that push a box.
      expanded: number of states that the search expanded.
    """

    actions: np.ndarray
    num_moves: int
    num_pushes: int
    expanded: int


def solve(state: SokobanState, *, metric: str = "moves", max_expansions: int = 1_000_000) -> Solution | None:
    """A shortest solution of one room, or ``None`` if the room is proved unsolvable.

    The search is A* over pushes: an edge is a walk followed by one push. With ``metric="moves"`` a node is
    ``(player, boxes)`` and an edge costs the length of its walk plus 1. With ``"pushes"`` a node is
    ``(region the player can reach, boxes)`` and an edge costs 1; the walks between the pushes that were found are
    shortest walks. The heuristic is admissible and consistent for both metrics, because a move changes the distance of
    at most one box by at most one.

    Args:
      state: one room, without a batch axis, as from ``Sokoban.reset`` or ``from_text``.
      metric: what to minimise, ``moves`` or ``pushes``.
      max_expansions: the largest number of states to expand.

    Raises:
      SearchBudgetExceededError: the search expanded ``max_expansions`` states without an answer.
      ValueError: the metric is unknown, the state has a batch axis, or ``max_expansions < 1``.
    """
    require_known("metric", metric, _METRICS)
    if max_expansions < 1:
        raise ValueError(f"max_expansions={max_expansions}: expected at least 1")
    if np.ndim(state.wall) != 2:
        raise ValueError(f"state.wall has shape {np.shape(state.wall)}: expected one room, [H, W]")
    room = _Room(state)
    by_moves = metric == "moves"
    estimate = room.estimate(room.boxes)
    if estimate >= _UNREACHABLE:
        return None

    order = itertools.count()
    start = (room.player if by_moves else room.region(room.player, room.boxes), room.boxes)
    # Among equal estimates the deeper state goes first: it is nearer to a solution.
    queue = [(estimate, 0, next(order), start, room.player)]
    costs = {start: 0}
    parents: Parents = {start: None}
    closed: set[Node] = set()
    while queue:
        _, negative_cost, _, node, player = heapq.heappop(queue)
        if node in closed:
            continue
        boxes = node[1]
        if boxes & ~room.targets == 0:
            return room.solution(node, parents, len(closed))
        if len(closed) >= max_expansions:
            raise SearchBudgetExceededError(
                f"no {metric}-optimal solution within max_expansions={max_expansions} states; allow more"
            )
        closed.add(node)
        for walk, pusher, direction in room.pushes(player, boxes):
            pushed = room.shift(pusher, direction)
            new_boxes = boxes ^ pushed | room.shift(pushed, direction)
            new_node = (pushed if by_moves else room.region(pushed, new_boxes), new_boxes)
            new_cost = -negative_cost + (walk + 1 if by_moves else 1)
            if new_node in closed or new_cost >= costs.get(new_node, new_cost + 1):
                continue
            estimate = room.estimate(new_boxes)
            if estimate >= _UNREACHABLE:
                continue
            costs[new_node] = new_cost
            parents[new_node] = (node, pusher, direction)
            heapq.heappush(queue, (new_cost + estimate, -new_cost, next(order), new_node, pushed))
    return None


def demonstrations(
    starts: SokobanState, *, metric: str = "moves", max_expansions: int = 1_000_000
) -> tuple[SokobanState, np.ndarray]:
    """Expert transitions for behaviour cloning: a shortest solution of each room.

    Args:
      starts: rooms ``[N, ...]``, as from ``Sokoban.reset`` under ``jax.vmap``.
      metric, max_expansions: see ``solve``.

    Returns:
      The states ``[M, ...]`` that the solutions pass and the actions ``int32 [M]`` in them, room after room; ``M`` is
      the sum of the solutions' lengths.

    Raises:
      SearchBudgetExceededError: see ``solve``.
      ValueError: ``metric`` is unknown, or ``starts`` has no axis of rooms or no room.
    """
    require_known("metric", metric, _METRICS)
    if np.ndim(starts.wall) != 3 or len(starts.wall) == 0:
        raise ValueError(f"starts.wall has shape {np.shape(starts.wall)}: expected [N, H, W] with N at least 1")
    on_host = jax.device_get(starts)
    solutions = []
    for room in range(len(starts.wall)):
        solution = solve(_take(on_host, room), metric=metric, max_expansions=max_expansions)
        if solution is None:
            raise RuntimeError(f"room {room} has no solution: the environment's generation is broken")
        solutions.append(solution.actions)
    lengths = np.array([len(actions) for actions in solutions])
    # Padded to a multiple of 32, so that calls with other rooms mostly reuse the compiled replay.
    longest = -(-lengths.max() // _REPLAY_LENGTH_MULTIPLE) * _REPLAY_LENGTH_MULTIPLE
    padded = np.stack([np.pad(actions, (0, longest - len(actions))) for actions in solutions])
    real = np.arange(longest) < lengths[:, None]
    return _take(jax.device_get(_replay(starts, padded)), real), np.concatenate(solutions)


def _take(states: SokobanState, index: int | np.ndarray) -> SokobanState:
    return jax.tree.map(lambda leaf: leaf[index], states)


@jax.jit
@jax.vmap
def _replay(start: SokobanState, actions: jax.Array) -> SokobanState:
    """The state before each action, ``[N, L, ...]`` from starts ``[N, ...]`` and actions ``[N, L]``."""
    return jax.lax.scan(lambda state, action: (move(state, action), state), start, actions)[1]


class _Room:
    """One room as bit sets: bit ``row * width + column``; a position is a set of one cell."""

    def __init__(self, state: SokobanState):
        wall, target, box = (np.asarray(plane, bool) for plane in (state.wall, state.target, state.box))
        row, column = (int(index) for index in np.asarray(state.player))
        width = wall.shape[1]
        self.shifts = tuple(down * width + right for down, right in MOVES)
        self.targets, self.boxes = _bits(target), _bits(box)
        self.player = 1 << (row * width + column)
        self.floor = _bits(~wall)
        # Cells that the player could not reach even without boxes do not matter.
        self.floor = self.region_mask(self.player, 0)
        distances = [self._push_distances(cell) for cell in _cells(self.targets)]
        self.push_distances = {
            cell: [table.get(cell, _UNREACHABLE) for table in distances]
            for cell in set(_cells(self.floor | self.boxes))
        }
        self.alive = sum(
            cell for cell, row in self.push_distances.items() if min(row, default=_UNREACHABLE) < _UNREACHABLE
        )
        self.estimates: dict[int, int] = {}

    def shift(self, cells: int, direction: int) -> int:
        """The cells moved by one in ``direction``."""
        offset = self.shifts[direction]
        return cells << offset if offset > 0 else cells >> -offset

    def frontiers(self, player: int, boxes: int) -> Iterator[int]:
        """The cells the player can walk to, by the length of the walk: 0, 1, 2, ..."""
        unseen, frontier = self.floor & ~boxes & ~player, player
        right, down = self.shifts[3], self.shifts[1]
        while frontier:
            yield frontier
            frontier = (frontier << right | frontier >> right | frontier << down | frontier >> down) & unseen
            unseen &= ~frontier

    def region_mask(self, player: int, boxes: int) -> int:
        """All cells the player can walk to."""
        region = 0
        for frontier in self.frontiers(player, boxes):
            region |= frontier
        return region

    def region(self, player: int, boxes: int) -> int:
        """A name for the region the player can walk to: its first cell."""
        region = self.region_mask(player, boxes)
        return region & -region

    def pushes(self, player: int, boxes: int) -> Iterator[tuple[int, int, int]]:
        """Every push after a shortest walk: ``(length of the walk, cell it ends on, direction)``."""
        free = self.alive & ~boxes
        pushers = [self.shift(self.shift(free, opposite) & boxes, opposite) for opposite in (1, 0, 3, 2)]
        any_pusher = pushers[0] | pushers[1] | pushers[2] | pushers[3]
        for walk, frontier in enumerate(self.frontiers(player, boxes)):
            if frontier & any_pusher:
                for direction in range(4):
                    for cell in _cells(frontier & pushers[direction]):
                        yield walk, cell, direction

    def estimate(self, boxes: int) -> int:
        """A lower bound on the pushes left; ``_UNREACHABLE`` or more if no assignment exists."""
        # It takes a second to import, and most commands solve no room.
        from scipy.optimize import linear_sum_assignment

        if boxes not in self.estimates:
            costs = np.array([self.push_distances[cell] for cell in _cells(boxes)])
            self.estimates[boxes] = int(costs[linear_sum_assignment(costs)].sum())
        return self.estimates[boxes]

    def solution(self, node: Node, parents: Parents, expanded: int) -> Solution:
        """The moves that lead to ``node``."""
        pushes = []
        while (push := parents[node]) is not None:
            node, pusher, direction = push
            pushes.append((node[1], pusher, direction))
        actions, player = [], self.player
        for boxes, pusher, direction in reversed(pushes):
            actions += [*self._walk(player, pusher, boxes), direction]
            player = self.shift(pusher, direction)
        return Solution(np.array(actions, np.int32), len(actions), len(pushes), expanded)

    def _walk(self, player: int, goal: int, boxes: int) -> list[int]:
        """Moves of a shortest walk."""
        frontiers = list(itertools.takewhile(lambda cells: not cells & goal, self.frontiers(player, boxes)))
        actions, cell = [], goal
        for frontier in reversed(frontiers):
            direction = next(move for move in range(4) if self.shift(frontier, move) & cell)
            actions.append(direction)
            cell = self.shift(cell, (1, 0, 3, 2)[direction])
        return actions[::-1]

    def _push_distances(self, target: int) -> dict[int, int]:
        """Pushes a lone box needs from each cell to ``target``, found by pulling it away from the target."""
        distances, frontier = {target: 0}, [target]
        for distance in itertools.count(1):
            if not frontier:
                return distances
            following = []
            for cell, pull in itertools.product(frontier, range(4)):
                pulled = self.shift(cell, pull) & self.floor
                if pulled and pulled not in distances and self.shift(pulled, pull) & self.floor:
                    distances[pulled] = distance
                    following.append(pulled)
            frontier = following
        return distances


def _bits(mask: np.ndarray) -> int:
    return sum(1 << int(cell) for cell in np.flatnonzero(mask))


def _cells(cells: int) -> Iterator[int]:
    while cells:
        cell = cells & -cells
        yield cell
        cells ^= cell
