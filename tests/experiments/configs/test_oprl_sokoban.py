"""The rooms of ``oprl_sokoban:hard`` are as hard as its run card says."""

import jax
import numpy as np

from envs.native.sokoban_solver import solve
from envs.rollout import episodes
from experiments.assembly import registry
from experiments.assembly.build import build_environment

NUM_ROOMS = 96


def test_hard_rooms_take_8_pushes_and_fit_into_an_episode():
    config = registry.load("oprl_sokoban:hard,ppo").config
    environment = build_environment(config).pure
    keys = jax.random.split(jax.random.key(3), NUM_ROOMS)
    states, _ = jax.device_get(jax.jit(jax.vmap(environment.reset))(keys))
    rooms = [jax.tree.map(lambda leaf, room=room: leaf[room], states.environment) for room in range(NUM_ROOMS)]
    pushes = np.array([solve(room, metric="pushes").num_pushes for room in rooms])
    moves = np.array([solve(room).num_moves for room in rooms])
    assert np.median(pushes) >= 8
    assert np.quantile(pushes, 0.25) <= 5, "a sparse reward needs easy rooms to begin with"
    assert moves.max() < environment.spec.max_episode_steps
    assert config.data.length == environment.spec.max_episode_steps


def test_random_actions_solve_1_to_2_percent_of_hard_rooms():
    config = registry.load("oprl_sokoban:hard,ppo").config
    environment, batch = build_environment(config).pure, 8192

    def at_random(carry, observation, key):
        return jax.random.randint(key, (batch,), 0, environment.spec.action_space.n), carry, {}

    def successes(key):
        length = config.data.length
        # A room costs more than to play in it.
        played = episodes(environment, at_random, key, length=length, batch=batch, group_size=8, initial_carry=())
        return played.rewards["env"].sum(0)

    # The standard error is about 0.002.
    assert 0.01 < np.mean(jax.jit(successes)(jax.random.key(0))) < 0.02
