"""Running statistics, compared with numpy and hand-computed numbers."""

import jax.numpy as jnp
import numpy as np

from rewards.moments import (
    discounted_sums,
    episode_starts,
    fading_deviation,
    no_fading,
    prioritised,
    update_fading,
)


def test_a_fading_average_forgets_and_starts_without_bias():
    mask = jnp.ones((1, 2))
    fading = update_fading(no_fading(), jnp.array([[1.0, 3.0]]), mask, 0.5)
    # Corrected for the start at 0: mean 2, mean square 5, standard deviation 1.
    np.testing.assert_allclose(fading_deviation(fading, 0.5), 1.0, rtol=1e-6)
    # x / sigma = (1, 3) with mean 2.
    np.testing.assert_allclose(prioritised(fading, jnp.array([[1.0, 3.0, 2.5]]), 0.5), [[0.0, 1.0, 0.5]], atol=1e-6)
    fading = update_fading(fading, jnp.array([[5.0, 5.0]]), mask, 0.5)
    # Weights 1/3 and 2/3: mean (2 + 10) / 3 = 4, mean square (5 + 50) / 3, variance 55 / 3 - 16 = 7 / 3.
    sigma = np.sqrt(7 / 3)
    np.testing.assert_allclose(fading_deviation(fading, 0.5), sigma, rtol=1e-5)
    # mu is the mean of 2 and 5 / sigma with weights 1/3 and 2/3.
    mu = (2 + 2 * 5 / sigma) / 3
    np.testing.assert_allclose(prioritised(fading, jnp.array([[6.0, 1.0]]), 0.5), [[6 / sigma - mu, 0.0]], rtol=1e-5)


def test_a_batch_without_a_valid_step_changes_no_average():
    fading = update_fading(no_fading(), jnp.array([[1.0, 3.0]]), jnp.ones((1, 2)), 0.9)
    assert update_fading(fading, jnp.array([[7.0, 7.0]]), jnp.zeros((1, 2)), 0.9) == fading
    masked = update_fading(fading, jnp.array([[7.0, 99.0]]), jnp.array([[1.0, 0.0]]), 0.9)
    np.testing.assert_allclose(masked.mean, 0.9 * fading.mean + 0.1 * 7.0, rtol=1e-6)


def test_discounted_sums_run_along_time_in_each_column():
    rewards = jnp.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    mask = jnp.array([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    # 8 / 2 + 1 = 5, 5 / 2 + 2 = 4.5, 4.5 / 2 + 4 = 6.25; the second column does not change at its masked row.
    found = discounted_sums(rewards, jnp.array([8.0, 0.0]), mask, 0.5)
    np.testing.assert_array_equal(found, [[5.0, 10.0], [4.5, 10.0], [6.25, 45.0]])


def test_episodes_start_after_ends_where_a_trajectory_has_no_starts(make_trajectory):
    trajectory = make_trajectory(env=np.zeros((3, 1)))
    trajectory = trajectory._replace(terminated=jnp.array([[True], [False], [False]]))
    np.testing.assert_array_equal(episode_starts(trajectory)[:, 0], [True, True, False])
    recorded = trajectory._replace(extras={"episode_start": jnp.array([[False], [True], [False]])})
    np.testing.assert_array_equal(episode_starts(recorded)[:, 0], [False, True, False])
