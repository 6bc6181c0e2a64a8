"""What environments draw: text and images of known states, and pictures of every step of a host."""

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.base import DrawnAsImage, DrawnAsText
from envs.hosts.gymnasium import GymnasiumHost
from envs.hosts.minigrid import MiniGridHost
from envs.native.breakout import Breakout
from envs.native.drawing import image_of_planes
from envs.native.maze import MAP, START, Maze
from envs.native.sokoban import Sokoban
from envs.native.sokoban_rooms import from_text
from envs.native.tabular import gridworld_environment
from envs.stock import StockHost
from envs.suites.functional import make_functional
from envs.suites.gymnax import CLASSIC_CONTROL, gymnax_environment
from envs.suites.jumanji import jumanji_environment
from envs.suites.xminigrid import xminigrid_environment
from envs.wrappers import ReportsStates, TimeLimit, innermost

ROOM = """#####
#@$.#
#   #
#####"""


def test_sokoban_is_drawn_in_its_own_notation():
    environment, state = Sokoban(), from_text(ROOM)
    assert environment.draw_text(state) == ROOM
    image = environment.draw_image(state)
    assert (image.shape, image.dtype) == ((64, 80, 3), np.uint8)
    # Floor has one colour, and a box another.
    assert (image[34, 18] == image[34, 34]).all() and (image[24, 40] != image[40, 40]).any()


def test_a_gridworld_shows_where_the_agent_is():
    environment = gridworld_environment(("S.+", "#.G"), slip=0.0)
    drawn = [environment.draw_text(jnp.int32(state)) for state in range(5)]
    assert drawn == ["@.+\n#.G", "S@+\n#.G", "S.@\n#.G", "S.+\n#@G", "S.+\n#.@"]
    assert environment.draw_image(jnp.int32(0)).shape == (32, 48, 3)
    state, time_step = environment.step(jax.random.key(0), jnp.int32(0), jnp.int32(2))
    assert environment.draw_text(state) == "S@+\n#.G" and not time_step.terminated


def test_the_maze_shows_agent_walls_blocks_and_the_trackers_that_are_left():
    environment = Maze()
    state, _ = environment.reset(jax.random.key(0))
    rows = environment.draw_text(state).splitlines()
    assert rows[START[0]][START[1]] == "@" and len(rows) == len(MAP)
    for shown, mapped in zip(rows, MAP, strict=True):
        assert [cell == "#" for cell in shown] == [cell == "#" for cell in mapped]
    letters = {cell for row in MAP for cell in row if cell.isalpha() and cell != "S"}
    assert "".join(rows).count("o") == len(letters)
    later = environment.draw_text(state._replace(trackers=jnp.int32(3)))
    assert ("1" in "".join(rows), "1" in later, "4" in later) == (True, False, True)
    assert environment.draw_image(state).shape == (16 * len(MAP), 16 * len(MAP[0]), 3)


def test_breakout_shows_paddle_ball_and_bricks():
    environment = Breakout()
    state, _ = environment.reset(jax.random.key(0))
    rows = environment.draw_text(state).splitlines()
    assert rows[9] == "....=....." and "o" in rows[3] and rows[1] == "#" * 10


def test_gymnasiums_functions_draw_themselves():
    environment = make_functional("CartPole-v1")
    inside, state = innermost(environment, environment.reset(jax.random.key(0))[0])
    upright, fallen = inside.draw_image(state), inside.draw_image(state.at[2].set(1.0))
    assert upright.shape == (400, 600, 3) and (upright != fallen).any()


def test_breakout_of_gymnax_looks_as_the_native_one():
    ours, theirs = Breakout(sticky=0.0), innermost(gymnax_environment("Breakout-MinAtar"))[0]
    drawn = []
    # The ball starts on a side that the key draws.
    keys = {int(theirs.reset(key)[0].ball_x): key for key in map(jax.random.key, range(8))}
    state, _ = ours.reset(jax.random.key(0))
    other, _ = theirs.reset(keys[int(state.ball[1])])
    for action in (2, 2, 1):
        state, other = (each.step(jax.random.key(0), own, action)[0] for each, own in ((ours, state), (theirs, other)))
        drawn.append(ours.draw_image(state))
        np.testing.assert_array_equal(theirs.draw_image(other), drawn[-1])
    assert drawn[0].shape == (160, 160, 3) and (drawn[0] != drawn[1]).any()


def test_planes_have_a_colour_each_and_the_first_is_in_front():
    image = image_of_planes(np.eye(10)[None], 1)
    assert len({tuple(pixel) for pixel in image[0].tolist()}) == 10
    assert (image_of_planes(np.ones((1, 1, 10)), 1) == image[0, 0]).all()
    with pytest.raises(ValueError, match="11 planes: expected at most 10"):
        image_of_planes(np.ones((1, 1, 11)))


@pytest.mark.parametrize("name", CLASSIC_CONTROL)
def test_classic_control_of_gymnax_looks_as_gymnasiums(name):
    drawn = gymnasium.make(name, render_mode="rgb_array")
    drawn.reset(seed=3)
    theirs: Any = drawn.unwrapped
    theirs.state = np.array([0.3, -0.5, 0.1, 0.2][: len(CLASSIC_CONTROL[name])])
    environment, state = innermost(gymnax_environment(name), gymnax_environment(name).reset(jax.random.key(0))[0])
    moved = state.replace(**dict(zip(CLASSIC_CONTROL[name], map(jnp.float32, theirs.state), strict=True)))
    expected = drawn.render()
    if name == "Pendulum-v1":
        # Without a torque there is no arrow: only the rod is compared.
        assert (environment.draw_image(moved) == expected).mean() > 0.99
    else:
        np.testing.assert_array_equal(environment.draw_image(moved), expected)
    assert (environment.draw_image(state) != expected).any()


def test_a_longer_pole_is_drawn_longer():
    short, long = (innermost(gymnax_environment("CartPole-v1", length=length))[0] for length in (0.5, 1.0))
    state, _ = short.reset(jax.random.key(0))
    assert (short.draw_image(state) != long.draw_image(state)).sum() > 1000


def test_the_agent_of_xland_minigrid_is_red_where_it_stands():
    environment = xminigrid_environment("MiniGrid-Empty-5x5")
    state, _ = environment.reset(jax.random.key(0))
    row, column = np.asarray(state.state.agent.position)
    image = environment.draw_image(jax.device_get(state))
    assert (image.shape, image.dtype) == ((5 * 32, 5 * 32, 3), np.uint8)
    middle = image[32 * row + 16, 32 * column + 16]
    assert middle[0] > 200 and middle[1:].max() < 120


def test_a_viewer_of_jumanji_opens_no_window(monkeypatch):
    from matplotlib import pyplot

    monkeypatch.setattr(pyplot, "figure", lambda *_, **__: pytest.fail("a figure for a window"))
    environment = innermost(jumanji_environment("Snake-v1"))[0]
    state, _ = environment.reset(jax.random.key(0))
    first = environment.draw_image(jax.device_get(state))
    again = environment.draw_image(jax.device_get(state))
    actions = np.flatnonzero(np.asarray(state.action_mask))
    moved = environment.draw_image(environment.step(jax.random.key(0), state, int(actions[0]))[0])
    assert (first.shape, first.dtype) == ((400, 400, 3), np.uint8)
    assert (first == again).all() and (first != moved).any()


def test_a_game_without_a_picture_says_what_has_one():
    environment = innermost(gymnax_environment("DeepSea-bsuite"))[0]
    with pytest.raises(
        NotImplementedError, match="gymnax: DeepSea-bsuite has no picture: expected MinAtar and classic"
    ):
        environment.draw_image(None)


def test_states_before_and_after_a_step_are_reported():
    environment = TimeLimit(gridworld_environment(("S.G",)), 5)
    reporting = ReportsStates(environment)
    state, _ = reporting.reset(jax.random.key(0))
    following, time_step = reporting.step(jax.random.key(1), state, jnp.int32(2))
    assert jax.tree.map(int, time_step.info) == jax.tree.map(int, {"state": state, "next_state": following})
    inside, own = innermost(reporting, time_step.info["next_state"])
    assert (inside, int(own)) == (environment.environment, 1)
    assert isinstance(inside, DrawnAsText) and isinstance(inside, DrawnAsImage)
    assert not isinstance(environment, DrawnAsText)


@pytest.mark.parametrize(
    ("make", "steps", "kind"),
    [
        (lambda: GymnasiumHost("FrozenLake-v1", 2, render="ansi"), 3, str),
        (lambda: StockHost(GymnasiumHost("CartPole-v1", 2, render="rgb_array"), 0.9, -1.0, 1.0), 12, np.ndarray),
        (lambda: MiniGridHost(2, task="MiniGrid-Empty-5x5-v0", render="ansi"), 3, str),
        (lambda: MiniGridHost(2, task="MiniGrid-Empty-5x5-v0", render="rgb_array"), 3, np.ndarray),
    ],
)
def test_a_host_keeps_a_picture_of_every_reset_and_step(make, steps, kind):
    host = make()
    host.reset([1, 2])
    ends = np.zeros(2, int)
    for _ in range(steps):
        time_step = host.step(np.ones(2, np.int32))
        ends += time_step.terminated | time_step.truncated
    pictures = host.frames()
    assert [len(each) for each in pictures] == (1 + steps + ends).tolist()
    assert all(isinstance(picture, kind) for each in pictures for picture in each)
    assert [len(each) for each in host.frames()] == [0, 0]
    host.close()


def test_what_a_host_cannot_draw_is_refused():
    with pytest.raises(ValueError, match="render='ansi': CartPole-v1 can be drawn as rgb_array"):
        GymnasiumHost("CartPole-v1", 1, render="ansi")

    def broken(env):
        env.render = lambda: 1 // 0
        return env

    with pytest.raises(ValueError, match=r"CartPole-v1 cannot be drawn here \(ZeroDivisionError"):
        GymnasiumHost("CartPole-v1", 1, wrappers=(broken,), render="rgb_array")
