"""Curiosity in a world of known noise: a blind prediction's error tends to what the noise makes of the best one, in
hindsight nothing is left of it."""

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from agents.base import DataSpec
from agents.networks import Head, NetworkConfig, network
from envs.types import EnvironmentSpec, Transition
from rewards.latent_prediction import byol_explore, byol_hindsight, unit
from tests.rewards.curious import KEY, jit

ROOMS, NOISE = 2, 3
SPEC = EnvironmentSpec(spaces.Box(0, 1, (ROOMS + NOISE,), np.float32), spaces.Discrete(2))
CONFIG = NetworkConfig(hidden=(16,), activation="relu")
# A target that never moves, so that the best prediction is known; raw losses, so that their size is.
WEIGHT = 10.0
ARGUMENTS = {
    "network_config": CONFIG,
    "embedding_size": 8,
    "memory_size": 16,
    "hidden_size": 32,
    "latent_size": 4,
    "noise_size": 4,
    "horizon": 1,
    "learning_rate": 2e-3,
    "critic_learning_rate": 1e-2,
    "target_decay": 1.0,
    "normalised": False,
    "reconstruction_weight": WEIGHT,
}


def seen(room, noise):
    return jnp.concatenate([jax.nn.one_hot(room, ROOMS), jax.nn.one_hot(noise, NOISE)], axis=-1)


def wander(key, length, batch):
    """The action names the next room; in room 1 the noise is drawn anew, in room 0 it is 0."""
    room_key, noise_key = jax.random.split(key)
    room = jax.random.randint(room_key, (length + 1, batch), 0, ROOMS)
    noise = jnp.where(room == 1, jax.random.randint(noise_key, room.shape, 0, NOISE), 0)
    view, nothing, env = seen(room, noise), jnp.zeros((length, batch), bool), {"env": jnp.zeros((length, batch))}
    return Transition(view[:-1], room[1:], env, nothing, nothing, view[1:], jnp.ones((length, batch)), {})


def lived(factory, iterations):
    """Mean reward of a step into the quiet and into the noisy room, after training; the ideal error; the metrics."""
    transform = factory(SPEC, data=DataSpec("unroll", 8, 16), **ARGUMENTS)

    def step(state, key):
        return transform.update(state, wander(key, 8, 16), key)

    def live(key):
        state, metrics = jax.lax.scan(step, transform.init(key), jax.random.split(key, iterations))
        trajectory = wander(jax.random.fold_in(key, 1), 8, 128)
        losses = transform.apply(state, trajectory)[0].rewards["curiosity"]
        noisy = trajectory.next_observation[..., 1]
        means = [jnp.sum(losses * part) / jnp.sum(part) for part in (1 - noisy, noisy)]
        target = network(SPEC.observation_space, {"embedding": Head(8)}, CONFIG)
        views = seen(jnp.ones(NOISE, int), jnp.arange(NOISE))[None]
        views = unit(target.apply(state.params.target, views)[0]["embedding"])[0]
        # Of all vectors of length 1, the mean's own direction is nearest on average: 2 - 2 |mean|.
        return means, 2 - 2 * jnp.linalg.norm(jnp.mean(views, axis=0)), metrics

    means, ideal, metrics = jit(live)(KEY)
    return *(float(x) / WEIGHT for x in means), float(ideal), {name: np.asarray(x) for name, x in metrics.items()}


def test_a_blind_prediction_keeps_the_error_of_the_best_one():
    quiet, noisy, ideal, _ = lived(byol_explore, 300)
    assert ideal > 0.2
    assert abs(noisy / ideal - 1) < 0.1
    assert quiet < 0.02 * ideal


def test_in_hindsight_nothing_is_left():
    quiet, noisy, ideal, metrics = lived(byol_hindsight, 700)
    assert ideal > 0.2
    assert abs(noisy) < 0.05 * ideal and abs(quiet) < 0.05 * ideal
    # Not because nothing was told: the noise is reconstructed, and what tells it tells nothing of the room.
    assert metrics["reconstruction"][-100:].mean() < 0.03 * ideal
    assert abs(metrics["information"][-100:].mean()) < 0.1
