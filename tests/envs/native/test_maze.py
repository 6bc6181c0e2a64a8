"""The maze: its map is searched, its dynamics compared with a plain simulator, its noise tested by frequencies."""

import functools
from collections import deque
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.base import Environment
from envs.native import maze
from envs.native.maze import (
    CHANNELS,
    MAP,
    MOVES,
    NO_OP,
    PATHS,
    SETTINGS,
    START,
    TRACKERS,
    WALLS,
    Maze,
    unpacked,
    visits,
)
from envs.rollout import episode_statistics, start_unroll, unroll
from envs.wrappers import TimeLimit

KEY = jax.random.key(0)
BATCH, LENGTH = 64, 500
FREE = {(row, column) for row, line in enumerate(MAP) for column, symbol in enumerate(line) if symbol != "#"}
WALL, FLOOR, BLOCK, TRACKER, NOISE = range(5)
# Few environments that serve several tests each: most of the time of this file is spent compiling.
PLAIN = Maze(sticky=0.1, reward="trackers")
BROWNIAN = Maze(noise="brownian")
PIXEL = Maze(noise="pixel", sticky=0.1, pixel_probability=0.4)
ON_DEMAND = Maze(noise="on_demand", sticky=0.1)


# Small programs that run once: compiling without optimising saves most of the time.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Run(NamedTuple):
    """States and frames ``[T + 1, B, ...]`` from the start on, the chosen actions ``[T, B]`` and their time steps."""

    states: maze.MazeState
    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    info: dict[str, np.ndarray]


@functools.cache
def player(environment):
    """Random actions in ``BATCH`` environments, compiled."""

    def play(key):
        def step(state, t):
            chosen = jax.random.randint(jax.random.fold_in(key, 2 * t), (BATCH,), 0, 5)
            keys = jax.random.split(jax.random.fold_in(key, 2 * t + 1), BATCH)
            state, timestep = jax.vmap(environment.step)(keys, state, chosen)
            return state, (state, timestep.observation, chosen, timestep.reward, timestep.info)

        state, first = jax.vmap(environment.reset)(jax.random.split(jax.random.fold_in(key, 10**6), BATCH))
        _, (states, frames, *rest) = jax.lax.scan(step, state, jnp.arange(LENGTH))
        states = jax.tree.map(lambda one, many: jnp.concatenate([one[None], many]), state, states)
        return Run(states, jnp.concatenate([first[None], frames]), *rest)

    return compiled(play)


def fresh_run(environment, seed=1):
    return jax.device_get(player(environment)(jax.random.key(seed)))


run = functools.cache(fresh_run)


def blocks(states):
    """Row and column of the blocks, ``[..., blocks, 2]``, from their paths."""
    return PATHS[np.arange(len(PATHS)), states.offset]


class Simulator:
    """A second implementation of the maze with oscillating blocks, in tuples and sets."""

    def __init__(self, cell=tuple(START), phases=None):
        self.cell, self.visited, self.reached = tuple(map(int, cell)), {tuple(map(int, START))}, 0
        self.phases = list(phases or [(index % 3, 1) for index in range(len(PATHS))])

    def blocks(self):
        return [tuple(map(int, PATHS[index][offset])) for index, (offset, _) in enumerate(self.phases)]

    def step(self, action):
        ahead = self.cell[0] + MOVES[action][0], self.cell[1] + MOVES[action][1]
        if ahead in FREE and ahead not in self.blocks():
            self.cell = ahead
        for index, (offset, direction) in enumerate(self.phases):
            if not 0 <= offset + direction <= 2:
                direction = -direction
            target = tuple(map(int, PATHS[index][offset + direction]))
            self.phases[index] = (offset if target == self.cell else offset + direction, direction)
        self.visited.add(self.cell)
        if self.reached < 4 and self.cell == tuple(TRACKERS[self.reached]):
            self.reached += 1

    def view(self):
        """``[5, 5]``, the channel of each cell around the agent."""
        shown, moving = np.full((5, 5), WALL), self.blocks()
        for i in range(5):
            for j in range(5):
                place = self.cell[0] + i - 2, self.cell[1] + j - 2
                if place in FREE:
                    shown[i, j] = BLOCK if place in moving else TRACKER if MAP[place[0]][place[1]] in "1234" else FLOOR
        return shown


def reachable(start, free):
    found, frontier = {start}, deque([start])
    while frontier:
        row, column = frontier.popleft()
        for down, right in MOVES:
            place = row + down, column + right
            if place in free and place not in found:
                found.add(place)
                frontier.append(place)
    return found


def test_the_map():
    assert len({len(line) for line in MAP}) == 1
    assert {symbol for line in MAP for symbol in line} == set("#.S1234abcdefghi")
    assert WALLS[[0, -1]].all() and WALLS[:, [0, -1]].all()
    assert len(FREE) == 133 == (~WALLS).sum()
    assert reachable(tuple(START), FREE) == FREE
    assert PATHS.shape == (9, 3, 2) and len({tuple(cell) for path in PATHS for cell in path}) == 27
    assert (np.abs(np.diff(PATHS, axis=1)).sum(-1) == 1).all()
    assert (PATHS[:, 1] - PATHS[:, 0] == PATHS[:, 2] - PATHS[:, 1]).all()


def test_trackers_are_reached_in_sequence_because_of_the_map():
    """If tracker k's cell is closed, the later trackers are out of reach and the earlier ones are not."""
    for number in range(4):
        without = reachable(tuple(START), FREE - {tuple(TRACKERS[number])})
        assert [tuple(other) in without for other in TRACKERS] == [index < number for index in range(4)]


# The door cells on either side of each corridor; no block's path crosses them.
DOORS = [((3, 6), (3, 10)), ((6, 13), (10, 13)), ((13, 10), (13, 6))]


@pytest.mark.parametrize("number", range(3))
def test_every_corridor_can_be_passed_in_time_from_every_phase(number):
    """Breadth-first search over (cell, phases of the corridor's blocks), by the plain simulator."""
    own = range(3 * number, 3 * number + 3)
    entrance, way_out = DOORS[number]
    inside = {entrance, way_out} | {tuple(map(int, cell)) for index in own for cell in PATHS[index]}
    assert {entrance, way_out} <= FREE
    still = [(0, 1)] * len(PATHS)

    def successors(state):
        for action in range(5):
            simulator = Simulator(state[0], [*still[: 3 * number], *state[1], *still[3 * number + 3 :]])
            simulator.step(action)
            if simulator.cell in inside:
                yield simulator.cell, tuple(simulator.phases[3 * number : 3 * number + 3])

    # The possible phases: those of undisturbed blocks, and those after a block waited for an agent.
    edges, frontier = {}, deque([(entrance, tuple((index % 3, 1) for index in own))])
    while frontier:
        state = frontier.popleft()
        if state not in edges:
            edges[state] = set(successors(state))
            frontier.extend(edges[state])
    into = {state: [] for state in edges}
    for state, following in edges.items():
        for other in following:
            into[other].append(state)
    steps = {state: 0 for state in edges if state[0] == way_out}
    frontier = deque(steps)
    while frontier:
        state = frontier.popleft()
        for other in into[state]:
            if other not in steps:
                steps[other] = steps[state] + 1
                frontier.append(other)
    assert steps.keys() == edges.keys(), "the agent can be walled in"
    # Four steps without blocks.
    assert 4 <= max(length for state, length in steps.items() if state[0] == entrance) <= 12
    assert max(steps.values()) <= 12


def test_dynamics_views_coverage_and_trackers_agree_with_a_plain_simulator():
    played = run(PLAIN)
    trackers = []
    # The environments that reached the most and the fewest trackers.
    for environment in np.argsort(played.info["trackers"][-1], stable=True)[[-1, 0]]:
        simulator = Simulator()
        cells, moving, views, covered, reached = [simulator.cell], [simulator.blocks()], [simulator.view()], [], [0]
        for action in played.states.action[1:, environment].tolist():
            simulator.step(action)
            cells.append(simulator.cell)
            moving.append(simulator.blocks())
            views.append(simulator.view())
            covered.append(len(simulator.visited))
            reached.append(simulator.reached)
        states, frames = jax.tree.map(
            lambda leaf, environment=environment: leaf[:, environment], (played.states, played.frames)
        )
        np.testing.assert_array_equal(states.cell, cells)
        np.testing.assert_array_equal(blocks(states), moving)
        np.testing.assert_array_equal(frames[..., :NOISE], np.array(views)[..., None] == np.arange(NOISE))
        assert not frames[..., NOISE].any()
        np.testing.assert_allclose(played.info["coverage"][:, environment], np.array(covered) / len(FREE), rtol=1e-6)
        np.testing.assert_array_equal(played.info["trackers"][:, environment], reached[1:])
        for number in (1, 2, 3, 4):
            np.testing.assert_array_equal(
                played.info[f"tracker_{number}"][:, environment], np.array(reached[1:]) >= number
            )
        np.testing.assert_array_equal(played.rewards[:, environment], np.diff(reached))
        np.testing.assert_array_equal(np.argwhere(unpacked(states.visited[-1])), sorted(simulator.visited))
        np.testing.assert_array_equal(np.argwhere(unpacked(states.visited[0])), [START])
        trackers.append(simulator.reached)
    assert trackers[0] >= 2 and trackers[1] <= 1


def test_the_blocks_stand_in_the_way():
    """Random agents run into blocks, and blocks wait for agents."""
    played = run(PLAIN)
    before, after = blocks(jax.tree.map(lambda leaf: leaf[:-1], played.states)), played.states.cell[1:]
    ahead = played.states.cell[:-1] + np.array(MOVES)[played.states.action[1:]]
    ran_into = (before == ahead[:, :, None]).all(-1).any(-1)
    assert ran_into.sum() > 20
    np.testing.assert_array_equal(after[ran_into], played.states.cell[:-1][ran_into])
    still = played.states.offset[1:] == played.states.offset[:-1]
    assert still.sum() > 20
    # No block is ever where the agent is.
    assert not (blocks(played.states) == played.states.cell[:, :, None]).all(-1).any()


def test_a_walk_past_all_four_trackers():
    """Walks straight to one corner of the path after the other and waits for blocks in the way."""
    environment = Maze(reward="trackers")
    step = compiled(environment.step)
    state, _ = compiled(environment.reset)(KEY)
    route, timesteps, cells = [(3, 1), (3, 13), (13, 13), (13, 1)], [], [tuple(START)]
    while route and len(timesteps) < 80:
        down, right = np.sign(np.subtract(route[0], cells[-1])).tolist()
        state, timestep = step(KEY, state, jnp.int32(MOVES.index((down, right))))
        timesteps.append(timestep)
        cells.append(tuple(np.asarray(state.cell).tolist()))
        route = route[cells[-1] == route[0] :]
    assert not route
    # 2 + 12 + 10 + 12 cells, and at least one block stood in the way.
    assert len(set(cells)) == 37 and len(timesteps) > 36
    paid = [cells[t + 1] for t, timestep in enumerate(timesteps) if timestep.reward == 1]
    assert paid == [tuple(tracker) for tracker in TRACKERS]
    assert sum(float(timestep.reward) for timestep in timesteps) == 4
    assert timesteps[-1].info["trackers"] == 4 and timesteps[-1].info["tracker_4"] == 1
    assert timesteps[-1].info["coverage"] == pytest.approx(37 / 133)


def within(count, trials, probability, sigmas=5):
    """Whether ``count`` of ``trials`` is within ``sigmas`` standard deviations of its binomial mean."""
    spread = (trials * probability * (1 - probability)) ** 0.5
    return abs(count - trials * probability) < sigmas * spread


def test_brownian_blocks():
    played = run(BROWNIAN)
    offset, cell = played.states.offset, played.states.cell
    change = offset[1:] - offset[:-1]
    assert np.abs(change).max() == 1 and offset.min() == 0 and offset.max() == 2
    # Far from agents a block in the middle moves by a fair coin, and one at an end stays with probability 3/4.
    path_cells = PATHS[np.arange(9), :, :]
    near = (np.abs(path_cells - cell[1:, :, None, None]).sum(-1) == 0).any(-1)
    for start, ways in ((0, {1: 1 / 4, 0: 3 / 4}), (1, {-1: 1 / 4, 0: 1 / 2, 1: 1 / 4}), (2, {-1: 1 / 4, 0: 3 / 4})):
        where = (offset[:-1] == start) & ~near
        assert where.sum() > 50_000
        for way, probability in ways.items():
            assert within((change[where] == way).sum(), where.sum(), probability)
    # Blocks of one environment move independently, and those of two environments too.
    moved = change[:, :, :] != 0
    assert abs(np.corrcoef(moved.reshape(-1, 9).T)[~np.eye(9, dtype=bool)]).max() < 0.05
    assert abs(np.corrcoef(moved[:, :, 0].T)[~np.eye(BATCH, dtype=bool)]).max() < 0.35
    # Occasionally one waits: it never enters the agent's cell.
    assert not (blocks(played.states) == cell[:, :, None]).all(-1).any()


def shown(played):
    """Which frames ``[T + 1, B]`` show noise; 25 fair bits are all 0 in one of 33 million."""
    return played.frames[..., NOISE].any((-1, -2))


def test_pixel_noise():
    played, probability = run(PIXEL), 0.4
    noisy = shown(played)
    assert within(noisy.sum(), noisy.size, probability)
    assert within(noisy[0].sum(), BATCH, probability), "the first frame is like the others"
    # Independent of the frame before, and of whether the action was sticky.
    assert within((noisy[1:] & noisy[:-1]).sum(), noisy[1:].size, probability**2, sigmas=6)
    stuck = played.states.action[1:] != played.actions
    assert within(noisy[1:][stuck].sum(), stuck.sum(), probability)
    bits = played.frames[noisy][..., NOISE].reshape(-1, 25)
    assert within(bits.sum(), bits.size, 1 / 2)
    assert all(within(bits[:, place].sum(), len(bits), 1 / 2) for place in range(25))
    assert abs(np.corrcoef(bits.T)[~np.eye(25, dtype=bool)]).max() < 6 / len(bits) ** 0.5
    assert len(np.unique(bits, axis=0)) > 0.99 * len(bits)
    assert Maze(noise="pixel").pixel_probability == 0.25


def test_noise_on_demand():
    """The executed action decides, which is not always the chosen one."""
    played = run(ON_DEMAND)
    noisy = shown(played)
    np.testing.assert_array_equal(noisy[1:], played.states.action[1:] == NO_OP)
    assert ((played.actions == NO_OP) != noisy[1:]).sum() > 100
    assert not noisy[0].any()
    bits = played.frames[noisy][..., NOISE]
    assert within(bits.sum(), bits.size, 1 / 2)


def test_sticky_actions():
    played = run(PLAIN)
    done, before = played.states.action[1:], played.states.action[:-1]
    assert (played.states.action[0] == NO_OP).all()
    assert ((done == played.actions) | (done == before)).all()
    differs = before != played.actions
    assert within((done == before)[differs].sum(), differs.sum(), 0.1)
    without = run(BROWNIAN)
    np.testing.assert_array_equal(without.states.action[1:], without.actions)


def test_noise_changes_its_part_of_the_observation_and_nothing_else():
    plain = run(PLAIN)
    for noisy in (run(PIXEL), run(ON_DEMAND)):
        jax.tree.map(np.testing.assert_array_equal, noisy.states, plain.states)
        np.testing.assert_array_equal(noisy.frames[..., :NOISE], plain.frames[..., :NOISE])
        assert not noisy.rewards.any()
    assert not run(BROWNIAN).frames[..., NOISE].any()


@pytest.mark.parametrize("environment", [BROWNIAN, PIXEL], ids=["brownian", "pixel"])
def test_the_same_key_gives_the_same_episode(environment):
    first, again, other = run(environment), fresh_run(environment), fresh_run(environment, seed=2)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first.frames, other.frames)
    # An environment does not depend on its batch.
    key = jax.random.key(1)
    keys = jax.random.split(jax.random.fold_in(key, 1), BATCH)
    state = jax.tree.map(lambda leaf: leaf[0, 3], first.states)
    _, timestep = compiled(environment.step)(keys[3], state, first.actions[0, 3])
    np.testing.assert_array_equal(timestep.observation, first.frames[1, 3])


def random_policy(carry, observation, key):
    return jax.random.randint(key, (observation.shape[0],), 0, 5), carry, {}


@pytest.fixture(scope="module")
def trajectory():
    environment = TimeLimit(Maze(noise="brownian", report_cell=True), 30)

    def collect(key):
        state = start_unroll(environment, key, 8, ())
        return unroll(environment, random_policy, state, key, length=70, initial_carry=())[1]

    return jax.device_get(compiled(collect)(KEY))


def test_the_time_limit_truncates_and_the_episode_starts_anew(trajectory):
    assert not trajectory.terminated.any()
    np.testing.assert_array_equal(np.flatnonzero(trajectory.truncated.any(1)), [29, 59])
    assert trajectory.truncated[[29, 59]].all()
    coverage = trajectory.extras["info"]["coverage"] * len(FREE)
    assert (coverage[[0, 30, 60]] <= 2 + 1e-4).all() and (coverage[29] > 2).any()
    sums = episode_statistics(trajectory)
    np.testing.assert_allclose(sums["coverage"], (coverage[29] + coverage[59]).sum() / len(FREE), rtol=1e-5)
    assert sums["episodes"] == 16


def test_visits_count_the_cells_of_the_real_steps(trajectory):
    counts = np.asarray(visits(trajectory))
    assert counts.sum() == 70 * 8 and counts.shape == WALLS.shape
    assert {tuple(map(int, cell)) for cell in np.argwhere(counts)} <= FREE
    cells = trajectory.extras["info"]["cell"].astype(int)
    # Within an episode, coverage is the number of different cells of the count and the start.
    seen = [len({*column, START[0] * 17 + START[1]}) for column in cells[:30].T]
    np.testing.assert_allclose(trajectory.extras["info"]["coverage"][29] * len(FREE), seen, rtol=1e-5)
    by_hand = np.zeros(WALLS.shape, int)
    for cell in cells[:5, :2].ravel():
        by_hand[divmod(cell, 17)] += 1
    mask = np.zeros((70, 8), np.float32)
    mask[:5, :2] = 1
    np.testing.assert_array_equal(visits(trajectory._replace(mask=mask)), by_hand)


def test_visits_need_the_cell(trajectory):
    info = {name: value for name, value in trajectory.extras["info"].items() if name in Maze().spec.info}
    with pytest.raises(ValueError, match=r"info has coverage, tracker_1, .*use Maze\(report_cell=True\)"):
        visits(trajectory._replace(extras={"info": info}))


@pytest.mark.parametrize("setting", SETTINGS)
def test_contract(setting):
    environment = Maze(**SETTINGS[setting])
    assert isinstance(environment, Environment)
    assert hash(environment) == hash(Maze(**SETTINGS[setting]))
    assert environment.spec.observation_space == gymnasium.spaces.Box(0, 1, (5, 5, len(CHANNELS)), np.uint8)
    assert environment.spec.action_space == gymnasium.spaces.Discrete(5)
    assert environment.spec.max_episode_steps is None
    traces = []

    @compiled
    def step(key, state, action):
        traces.append(1)
        return environment.step(key, state, action)

    state, observation = compiled(environment.reset)(KEY)
    for action in range(5):
        assert environment.spec.observation_space.contains(np.asarray(observation))
        state, timestep = step(jax.random.key(action), state, jnp.int32(action))
        observation = timestep.observation
        np.testing.assert_array_equal(observation, timestep.final_observation)
        assert sorted(timestep.info) == sorted(environment.spec.info)
        assert all(value.shape == () and value.dtype == jnp.float32 for value in timestep.info.values())
        assert timestep.reward.shape == timestep.terminated.shape == timestep.truncated.shape == ()
        assert timestep.reward.dtype == jnp.float32
        assert timestep.terminated.dtype == timestep.truncated.dtype == bool
        assert (timestep.costs, timestep.objectives) == ({}, {})
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(noise="brown"), ValueError, "unknown noise 'brown', did you mean 'brownian'.*known: none, "),
        (dict(noise="sticky"), ValueError, "unknown noise 'sticky'"),
        (dict(reward="tracker"), ValueError, "unknown reward 'tracker', did you mean 'trackers'"),
        (dict(sticky=1.5), ValueError, "sticky=1.5: expected a probability from 0 to 1, nearest 1"),
        (dict(sticky=float("nan")), ValueError, "sticky=nan"),
        (dict(sticky="0.1"), TypeError, "sticky='0.1'"),
        (dict(pixel_probability=-0.1), ValueError, "pixel_probability=-0.1: .* nearest 0"),
        (dict(report_cell=1), TypeError, "report_cell=1: expected True or False"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Maze(**arguments)
