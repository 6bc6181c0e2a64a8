"""What environments draw: text and images of known states, and pictures of every step of a host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.base import DrawnAsImage, DrawnAsText
from envs.hosts.gymnasium import GymnasiumHost
from envs.hosts.minigrid import MiniGridHost
from envs.native.breakout import Breakout
from envs.native.maze import MAP, START, Maze
from envs.native.sokoban import Sokoban
from envs.native.sokoban_rooms import from_text
from envs.native.tabular import gridworld_environment
from envs.stock import StockHost
from envs.suites.functional import make_functional
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
