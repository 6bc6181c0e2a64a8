"""The solver, compared with breadth-first search and known rooms; generated rooms are solvable; demonstrations."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.native.sokoban import Sokoban, least_pushes
from envs.native.sokoban_rooms import from_text, to_text
from envs.native.sokoban_solver import SearchBudgetExceededError, demonstrations, solve
from envs.wrappers import TimeLimit, demonstrator

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
GENERATED = [
    (dict(), 60),
    (dict(inner_walls=True), 60),
    (dict(height=7, width=8, num_boxes=2, inner_walls=True), 50),
    (dict(height=8, width=8, num_boxes=3, inner_walls=True), 30),
    (dict(height=6, width=6, num_boxes=4), 20),
    (dict(height=10, width=10, num_boxes=4, inner_walls=True), 20),
]


def take(states, index):
    return jax.tree.map(lambda leaf: leaf[index], states)


@functools.cache
def rooms(environment, number):
    keys = jax.random.split(jax.random.key(11), number)
    return jax.device_get(jax.jit(jax.vmap(environment.reset))(keys)[0])


def shortest(text, weigh):
    """The least cost of a solution by Dijkstra's algorithm over single moves, or None; ``weigh(is_push) -> 0 or 1``."""
    cells = {(row, column): symbol for row, line in enumerate(text.split("\n")) for column, symbol in enumerate(line)}
    walls = {cell for cell, symbol in cells.items() if symbol == "#"}
    targets = frozenset(cell for cell, symbol in cells.items() if symbol in ".*+")
    boxes = frozenset(cell for cell, symbol in cells.items() if symbol in "$*")
    (player,) = (cell for cell, symbol in cells.items() if symbol in "@+")
    queue, seen = collections.deque([(0, player, boxes)]), set()
    while queue:
        cost, player, boxes = queue.popleft()
        if (player, boxes) in seen:
            continue
        seen.add((player, boxes))
        if boxes == targets:
            return cost
        for down, right in MOVES:
            ahead = player[0] + down, player[1] + right
            beyond = ahead[0] + down, ahead[1] + right
            if ahead in walls or (ahead in boxes and (beyond in walls or beyond in boxes)):
                continue
            is_push = ahead in boxes
            after = boxes - {ahead} | {beyond} if is_push else boxes
            if weigh(is_push):
                queue.append((cost + 1, ahead, after))
            else:
                queue.appendleft((cost, ahead, after))
    return None


def random_text(rng):
    """A room of at most 5x5 floor cells with random walls, and one or two boxes anywhere."""
    height, width = rng.integers(4, 6, 2)
    cells = np.where(rng.random((height, width)) < 0.1, "#", " ")
    num_boxes = rng.integers(1, 3)
    floor = rng.permutation(np.argwhere(cells == " "))
    if len(floor) < 2 * num_boxes + 1:
        return random_text(rng)
    for symbol, cell in zip("@" + "$" * num_boxes + "." * num_boxes, floor, strict=False):
        cells[tuple(cell)] = symbol
    edge = "#" * (width + 2)
    return "\n".join([edge, *("#" + "".join(row) + "#" for row in cells), edge])


def test_agrees_with_breadth_first_search():
    rng = np.random.default_rng(0)
    texts = [random_text(rng) for _ in range(150)]
    solvable = 0
    for text in texts:
        state = jax.device_get(from_text(text))
        moves, pushes = solve(state), solve(state, metric="pushes")
        expected = shortest(text, lambda is_push: True)
        assert (moves.num_moves if moves else None) == expected, text
        assert (pushes.num_pushes if pushes else None) == shortest(text, lambda is_push: is_push), text
        solvable += expected is not None
    assert 30 < solvable < 120


CORRIDOR = "######\n#@$ .#\n######"
BESIDE = "######\n#    #\n#.$  #\n#@   #\n######"
TWO_BOXES = "#######\n#     #\n# @$ .#\n#.$   #\n#     #\n#######"


def test_known_rooms():
    solution = solve(from_text(CORRIDOR))
    assert (solution.num_moves, solution.num_pushes, solution.actions.tolist()) == (2, 2, [3, 3])
    # Two steps along the wall and one up to the far side of the box, then one push.
    around = solve(from_text(BESIDE))
    assert (around.num_moves, around.num_pushes, around.actions.tolist()) == (4, 1, [3, 3, 0, 2])
    # Two pushes right, one step back and one down to the far side of the other box, one push left.
    for metric in ("moves", "pushes"):
        two = solve(from_text(TWO_BOXES), metric=metric)
        assert (two.num_moves, two.num_pushes, two.actions.tolist()) == (5, 3, [3, 3, 2, 1, 2])
    solved = solve(from_text("#####\n#@* #\n#####"))
    assert (solved.num_moves, solved.num_pushes, solved.actions.shape) == (0, 0, (0,))


@pytest.mark.parametrize(
    "text",
    [
        "#####\n#$ .#\n# @ #\n#####",
        "######\n#@ $ #\n#   .#\n######",
        "#######\n#@$ #.#\n#   # #\n#######",
        "######\n#@ $$#\n#  ..#\n#    #\n######",
        "#######\n#  #. #\n#@ # $#\n#  #  #\n#######",
    ],
    ids=["corner", "edge", "walled off", "frozen", "box out of reach"],
)
@pytest.mark.parametrize("metric", ["moves", "pushes"])
def test_unsolvable(text, metric):
    assert shortest(text, lambda is_push: True) is None
    assert solve(from_text(text), metric=metric) is None


@pytest.mark.parametrize(("arguments", "number"), GENERATED)
def test_every_generated_room_is_solvable_within_the_reverse_steps(arguments, number):
    environment = Sokoban(**arguments)
    states = rooms(environment, number)
    solutions = [solve(take(states, room)) for room in range(number)]
    lengths = np.array([solution.num_moves for solution in solutions])
    assert (lengths <= environment.max_solution_length).all()
    assert lengths.min() >= 1
    padded = np.stack([np.pad(solution.actions, (0, lengths.max() - len(solution.actions))) for solution in solutions])

    @jax.jit
    @jax.vmap
    def replay(state, actions):
        def step(state, action):
            state, timestep = environment.step(jax.random.key(0), state, action)
            return state, (timestep.info["success"], timestep.terminated)

        return jax.lax.scan(step, state, actions)[1]

    success, terminated = jax.device_get(replay(states, padded))
    for room, length in enumerate(lengths):
        assert success[room, :length].tolist() == [0] * (length - 1) + [1]
        assert terminated[room, :length].tolist() == [False] * (length - 1) + [True]


def test_default_rooms_are_neither_trivial_nor_too_long_for_20_steps():
    lengths = [solve(take(rooms(Sokoban(), 60), room)).num_moves for room in range(60)]
    assert max(lengths) <= 20
    assert np.mean(lengths) > 4
    assert np.mean(np.array(lengths) <= 2) < 0.3


def flat_cells(mask):
    return jnp.flatnonzero(mask).astype(jnp.int32)


@pytest.mark.parametrize(("arguments", "number"), [GENERATED[0], GENERATED[2], GENERATED[4]])
def test_least_pushes_is_a_lower_bound(arguments, number):
    environment = Sokoban(**arguments)
    states = rooms(environment, number)
    for room in range(number):
        state = take(states, room)
        bound = least_pushes(flat_cells(state.box), flat_cells(state.target), environment.width)
        assert 0 < bound <= solve(state, metric="pushes").num_pushes


def test_least_pushes_of_a_known_room():
    """The boxes are exchanged: 1 + 2 pushes by the best assignment, 3 + 4 by the order of the cells."""
    boxes, targets = jnp.array([10, 14], jnp.int32), jnp.array([16, 11], jnp.int32)
    assert least_pushes(boxes, targets, 7) == 1 + 2


def test_rooms_need_the_pushes_that_were_drawn():
    environment = Sokoban(height=7, width=7, num_boxes=2, reverse_steps=60, pushes_low=3, pushes_high=8)
    states = rooms(environment, 32)
    bounds, pushes = [], []
    for room in range(32):
        state = take(states, room)
        bounds.append(int(least_pushes(flat_cells(state.box), flat_cells(state.target), environment.width)))
        pushes.append(solve(state, metric="pushes").num_pushes)
    assert set(bounds) == {3, 4, 5, 6, 7, 8}
    assert all(bound <= number <= bound + 6 for bound, number in zip(bounds, pushes, strict=True))


def test_metrics_weigh_what_they_say():
    states = rooms(Sokoban(**GENERATED[3][0]), GENERATED[3][1])
    differ = 0
    for room in range(GENERATED[3][1]):
        moves, pushes = solve(take(states, room)), solve(take(states, room), metric="pushes")
        assert moves.num_moves <= pushes.num_moves
        assert pushes.num_pushes <= moves.num_pushes
        differ += moves.num_moves < pushes.num_moves
    assert differ > 0


def test_demonstrations():
    environment = Sokoban(num_boxes=2, inner_walls=True, observation="rgb", pixels_per_cell=4)
    keys = jax.random.split(jax.random.key(5), 9)
    observations, actions = demonstrator(TimeLimit(environment, 3)).demonstrations(keys)
    assert isinstance(observations, np.ndarray)
    assert observations.shape == (len(actions), *environment.spec.observation_space.shape)
    assert (observations.dtype, actions.dtype) == (np.uint8, np.int32)
    states, first = jax.device_get(jax.jit(jax.vmap(environment.reset))(keys))
    step = jax.jit(functools.partial(environment.step, keys[0]))
    place = 0
    for room in range(len(keys)):
        state, seen = take(states, room), first[room]
        length = solve(state).num_moves
        for index in range(length):
            np.testing.assert_array_equal(observations[place], seen)
            state, timestep = step(state, jnp.int32(actions[place]))
            seen, place = timestep.observation, place + 1
            assert bool(timestep.terminated) == (index == length - 1)
    assert place == len(actions)


def test_budget():
    state = take(rooms(Sokoban(height=10, width=10, num_boxes=4, inner_walls=True), 20), 0)
    with pytest.raises(SearchBudgetExceededError, match="max_expansions=2"):
        solve(state, max_expansions=2)
    assert solve(state, max_expansions=solve(state).expanded) is not None


def test_bad_arguments():
    state = from_text(CORRIDOR)
    with pytest.raises(ValueError, match=r"unknown metric 'pushs', did you mean 'pushes'\? \(known: moves, pushes\)"):
        solve(state, metric="pushs")
    with pytest.raises(ValueError, match="max_expansions=0"):
        solve(state, max_expansions=0)
    with pytest.raises(ValueError, match=r"shape \(60, 6, 6\): expected one room"):
        solve(rooms(Sokoban(), 60))
    with pytest.raises(ValueError, match=r"shape \(6, 6\): expected \[N, H, W\]"):
        demonstrations(take(rooms(Sokoban(), 60), 0))
    with pytest.raises(ValueError, match=r"unknown metric 'pushs'"):
        demonstrations(rooms(Sokoban(), 60), metric="pushs")
    with pytest.raises(ValueError, match="expected \\[N\\]"):
        Sokoban().demonstrations(jax.random.key(0))
    assert to_text(state) == CORRIDOR
