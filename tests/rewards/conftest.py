"""Trajectories written by hand, for the tests of reward transforms."""

import jax.numpy as jnp
import numpy as np
import pytest

from envs.base import Transition


@pytest.fixture(scope="session")
def make_trajectory():
    """A factory of trajectories ``[T, B]`` from reward channels ``[T, B]`` and a mask (all valid by default)."""

    def make(mask=None, extras=None, **channels):
        rewards = {name: jnp.asarray(value, jnp.float32) for name, value in channels.items()}
        shape = next(iter(rewards.values())).shape
        mask = jnp.ones(shape) if mask is None else jnp.asarray(mask, jnp.float32)
        ends = jnp.asarray(np.arange(shape[0])[:, None] == np.asarray(mask.sum(0)) - 1)
        zeros = jnp.zeros(shape)
        return Transition(zeros, zeros, rewards, ends, jnp.zeros_like(ends), zeros, mask, extras or {})

    return make
