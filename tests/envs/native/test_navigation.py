"""Navigation: dynamics and lidars by hand, placement by many resets, and what it pays and costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.native import navigation
from envs.native.navigation import FENCE, HAZARD_RADIUS, Navigation, NavigationState

KEY = jax.random.key(0)
ENVIRONMENT = Navigation(hazards=2, bins=8)
STEP = jax.jit(ENVIRONMENT.step)


def state_at(position, *, velocity=(0.0, 0.0), heading=0.0, goal=(1.0, 0.0), hazards=((0.0, 1.5), (0.0, -1.5))):
    occupied = jnp.zeros(navigation.CELLS**2, bool).at[jnp.array([0, 5])].set(True)
    place = [jnp.asarray(each, jnp.float32) for each in (position, velocity, heading, goal, hazards)]
    return NavigationState(*place, occupied)


def test_resets_place_everything_apart():
    environment = Navigation()
    states, observations = jax.jit(jax.vmap(environment.reset))(jax.random.split(KEY, 500))
    places = np.concatenate([states.position[:, None], states.goal[:, None], states.hazards], axis=1)
    between = np.linalg.norm(places[:, :, None] - places[:, None], axis=-1) + 9 * np.eye(10)
    assert between.min() >= navigation.WIDTH - 2 * navigation.JITTER - 1e-6
    assert abs(places).max() < FENCE
    # All cells are used, and the robot starts outside of every hazard.
    assert (np.asarray(states.occupied).mean(0) > 0.3).all()
    assert (np.linalg.norm(states.hazards - states.position[:, None], axis=-1) > HAZARD_RADIUS).all()
    assert all(environment.spec.observation_space.contains(np.asarray(each)) for each in observations[:50])


def test_a_step_drives_and_turns():
    state, found = STEP(KEY, state_at((0.0, 0.0)), jnp.array([1.0, 0.5]))
    heading = 0.1 * 2.0 * 0.5
    velocity = 0.1 * np.array([np.cos(heading), np.sin(heading)])
    assert float(state.heading) == pytest.approx(heading)
    np.testing.assert_allclose(state.velocity, velocity, rtol=1e-5)
    np.testing.assert_allclose(state.position, 0.1 * velocity, rtol=1e-5)
    expected = 1.0 - np.linalg.norm(np.array([1.0, 0.0]) - 0.1 * velocity)
    assert float(found.reward) == pytest.approx(expected, rel=1e-3) and not bool(found.terminated)
    # Along the heading, across it, and the turn.
    np.testing.assert_allclose(found.observation[-3:], [0.1, 0.0, 0.5], atol=1e-6)
    # Without throttle, drag alone.
    state, _ = STEP(KEY, state_at((0.0, 0.0), velocity=(0.4, 0.0)), jnp.zeros(2))
    np.testing.assert_allclose(state.velocity, [0.4 * (1 - 0.15), 0.0], rtol=1e-5)


def test_lidars_see_the_nearest_by_sector():
    hazards = ((0.0, 0.6), (0.0, 1.2))
    observation = ENVIRONMENT.observe(state_at((0.0, 0.0), heading=-0.1, hazards=hazards), jnp.float32(0.0))
    goal, seen = np.asarray(observation[:8]), np.asarray(observation[8:16])
    # The goal is 0.1 to the left of straight ahead: the first sector. Hazards are a quarter turn to the left.
    assert goal[0] == pytest.approx(1 - 1.0 / 3) and goal[1:].max() == 0
    assert seen[2] == pytest.approx(1 - 0.6 / 3) and np.delete(seen, 2).max() == 0
    far = ENVIRONMENT.observe(state_at((-1.9, 0.0), goal=(1.2, 0.0)), jnp.float32(0.0))
    assert np.asarray(far[:8]).max() == 0


def test_a_goal_pays_and_moves_to_a_free_cell():
    moved = []
    for seed in range(40):
        start = state_at((0.7, 0.0), velocity=(0.1, 0.0))
        state, found = STEP(jax.random.key(seed), start, jnp.zeros(2))
        nearer = 0.3 - float(jnp.linalg.norm(start.goal - state.position))
        assert float(found.reward) == pytest.approx(1 + nearer, rel=1e-4)
        moved.append(np.asarray(state.goal))
        cell = int(np.argmin(np.linalg.norm(navigation.CENTRES - moved[-1], axis=-1)))
        assert cell not in (0, 5)
        # In another cell than the robot's: beyond half a cell, less the jitter along both axes.
        distance = np.linalg.norm(moved[-1] - np.asarray(state.position))
        assert distance > navigation.WIDTH / 2 - np.sqrt(2) * navigation.JITTER
    assert len({tuple(np.round(each, 3)) for each in moved}) == 40


def test_hazards_cost_and_the_fence_stops():
    inside = state_at((0.0, 1.4), hazards=((0.0, 1.5), (0.0, -1.5)))
    _, found = STEP(KEY, inside, jnp.zeros(2))
    assert float(found.costs["hazards"]) == 1
    _, found = STEP(KEY, state_at((0.0, 0.0)), jnp.zeros(2))
    assert float(found.costs["hazards"]) == 0
    state, _ = STEP(KEY, state_at((FENCE - 0.01, 0.0), velocity=(0.6, 0.1)), jnp.zeros(2))
    assert float(state.position[0]) == FENCE and float(state.velocity[0]) == 0 and float(state.velocity[1]) > 0


def test_a_picture_shows_robot_goal_and_hazards():
    image = ENVIRONMENT.draw_image(state_at((0.0, 0.0)))
    assert image.shape == (160, 160, 3) and image.dtype == np.uint8
    colours = {tuple(colour) for colour in image.reshape(-1, 3)}
    assert {(90, 110, 220), (110, 190, 110), (200, 70, 60), (40, 40, 40)} <= colours
    # The goal is to the right of the centre, the hazards above and below.
    assert tuple(image[80, 120]) == (110, 190, 110) and tuple(image[20, 80]) == (90, 110, 220)


def test_bad_arguments_name_what_was_expected():
    with pytest.raises(ValueError, match="hazards=13: expected from 1 to 12"):
        Navigation(hazards=13)
    with pytest.raises(ValueError, match="bins=3"):
        Navigation(bins=3)
