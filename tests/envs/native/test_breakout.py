"""Breakout: each rule is tested by hand from a state in which only this rule matters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.base import Environment
from envs.native.breakout import LEFT, RIGHT, STAY, Breakout, BreakoutState, observe

ENVIRONMENT = Breakout(sticky=0.0)
STEP = jax.jit(ENVIRONMENT.step)
KEY = jax.random.key(0)


def wall():
    bricks = np.zeros((10, 10), bool)
    bricks[1:4] = True
    return bricks


def game(ball, velocity, paddle=4, brick=None, struck=False):
    """A state with the given bricks only."""
    ball = jnp.asarray(ball, jnp.int32)
    brick = np.zeros((10, 10), bool) if brick is None else brick
    return BreakoutState(
        ball,
        ball,
        jnp.asarray(velocity, jnp.int32),
        jnp.int32(paddle),
        jnp.asarray(brick),
        jnp.bool_(struck),
        jnp.int32(0),
    )


def one_brick(row, column):
    bricks = np.zeros((10, 10), bool)
    bricks[row, column] = True
    return bricks


def test_it_is_an_environment():
    assert isinstance(ENVIRONMENT, Environment)
    _, observation = ENVIRONMENT.reset(KEY)
    assert ENVIRONMENT.spec.observation_space.contains(np.asarray(observation))
    assert ENVIRONMENT.spec.action_space.n == 3


def test_a_game_starts_at_either_side():
    starts = set()
    for seed in range(16):
        state, observation = ENVIRONMENT.reset(jax.random.key(seed))
        starts.add((*state.ball.tolist(), *state.velocity.tolist()))
        assert int(state.paddle) == 4 and np.array_equal(state.brick, wall())
        assert np.array_equal(observation, observe(state))
    assert starts == {(3, 0, 1, 1), (3, 9, 1, -1)}


def test_the_planes_show_paddle_ball_trail_and_bricks():
    _, step = STEP(KEY, game((5, 5), (1, -1), paddle=7, brick=wall()), RIGHT)
    planes = np.asarray(step.observation)
    assert [np.argwhere(planes[..., plane]).tolist() for plane in range(3)] == [[[9, 8]], [[6, 4]], [[5, 5]]]
    assert np.array_equal(planes[..., 3], wall())
    assert planes.dtype == np.uint8 and planes.sum() == 33


@pytest.mark.parametrize(
    ("paddle", "action", "after"), [(4, LEFT, 3), (4, RIGHT, 5), (4, STAY, 4), (0, LEFT, 0), (9, RIGHT, 9)]
)
def test_the_paddle_moves_within_the_walls(paddle, action, after):
    state, _ = STEP(KEY, game((5, 5), (1, 1), paddle=paddle), action)
    assert int(state.paddle) == after and int(state.last_action) == action


@pytest.mark.parametrize(
    ("ball", "velocity", "ball_after", "velocity_after"),
    [
        # Free flight; side walls, where the ball stays in the outermost column; the ceiling; a corner.
        ((5, 5), (1, 1), (6, 6), (1, 1)),
        ((5, 9), (1, 1), (6, 9), (1, -1)),
        ((5, 0), (-1, -1), (4, 0), (-1, 1)),
        ((0, 5), (-1, 1), (0, 6), (1, 1)),
        ((0, 9), (-1, 1), (0, 9), (1, -1)),
    ],
)
def test_walls_and_ceiling_reflect(ball, velocity, ball_after, velocity_after):
    state, step = STEP(KEY, game(ball, velocity), STAY)
    assert state.ball.tolist() == list(ball_after) and state.velocity.tolist() == list(velocity_after)
    assert state.trail.tolist() == list(ball)
    assert float(step.reward) == 0 and not step.terminated and not step.truncated


def test_a_brick_pays_is_gone_and_turns_the_ball():
    state, step = STEP(KEY, game((4, 4), (-1, 1), brick=wall()), STAY)
    assert float(step.reward) == 1 and bool(state.struck)
    # The column is the new one, the row the old one.
    assert state.ball.tolist() == [4, 5] and state.velocity.tolist() == [1, 1]
    assert np.argwhere(wall() != np.asarray(state.brick)).tolist() == [[3, 5]]


def test_after_a_brick_the_ball_goes_through_the_next():
    before = game((2, 4), (-1, 1), brick=one_brick(1, 5), struck=True)
    state, step = STEP(KEY, before, STAY)
    assert float(step.reward) == 0 and bool(state.struck)
    assert state.ball.tolist() == [1, 5] and state.velocity.tolist() == [-1, 1] and bool(state.brick[1, 5])
    # A step without a brick makes the next one count again.
    state, _ = STEP(KEY, state, STAY)
    assert state.ball.tolist() == [0, 6] and not state.struck


def test_the_paddle_turns_the_ball_and_its_corner_sends_it_back():
    above, step = STEP(KEY, game((8, 4), (1, 1), paddle=4, brick=one_brick(1, 1)), STAY)
    assert above.ball.tolist() == [8, 5] and above.velocity.tolist() == [-1, 1] and not step.terminated
    corner, step = STEP(KEY, game((8, 4), (1, 1), paddle=5, brick=one_brick(1, 1)), STAY)
    assert corner.ball.tolist() == [8, 5] and corner.velocity.tolist() == [-1, -1] and not step.terminated
    # The paddle moves before the ball does.
    moved, step = STEP(KEY, game((8, 4), (1, 1), paddle=6, brick=one_brick(1, 1)), LEFT)
    assert moved.velocity.tolist() == [-1, -1] and not step.terminated
    assert np.array_equal(moved.brick, one_brick(1, 1))


def test_a_ball_beside_the_paddle_ends_the_game():
    state, step = STEP(KEY, game((8, 4), (1, 1), paddle=6, brick=one_brick(1, 1)), STAY)
    assert bool(step.terminated) and not step.truncated and float(step.reward) == 0
    assert state.ball.tolist() == [9, 5]
    assert np.array_equal(step.final_observation, step.observation)


def test_a_wall_without_bricks_is_built_again_when_the_ball_comes_down():
    state, _ = STEP(KEY, game((7, 4), (1, 1), paddle=5), STAY)
    assert not np.any(state.brick)
    state, _ = STEP(KEY, state, STAY)
    assert np.array_equal(state.brick, wall())


def test_a_sticky_action_is_the_last_one_with_its_probability():
    sticky = Breakout(sticky=0.25)
    state = game((5, 5), (1, 1), paddle=4)._replace(last_action=jnp.int32(RIGHT))
    after, _ = jax.jit(jax.vmap(sticky.step, (0, None, None)))(jax.random.split(KEY, 4000), state, LEFT)
    assert set(after.paddle.tolist()) == {3, 5}
    # Four standard errors of a share of 4000.
    assert abs(np.mean(np.asarray(after.paddle) == 5) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    assert np.array_equal(np.asarray(after.last_action) == RIGHT, np.asarray(after.paddle) == 5)


@pytest.mark.parametrize("sticky", [-0.1, 1.5, float("nan")])
def test_a_probability_out_of_range_is_refused(sticky):
    with pytest.raises(ValueError, match="expected a probability, from 0 to 1"):
        Breakout(sticky=sticky)
