"""A recurrent cell for world models, split so that as much as possible is computed outside the loop over time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from agents.networks.layers import orthogonal
from envs.base import PyTree


class Recurrence(NamedTuple):
    """A recurrent cell as pure functions: ``project`` does not need the carry and runs once for all steps, ``step``
    runs inside the loop over time.

    Attributes:
      init: ``(key) -> params``.
      project: ``(params, inputs [..., features]) -> projected [..., 3 * size]``.
      step: ``(params, carry [..., size], projected [..., 3 * size]) -> carry``.
    """

    init: Callable[[jax.Array], PyTree]
    project: Callable[[PyTree, jax.Array], jax.Array]
    step: Callable[[PyTree, jax.Array, jax.Array], jax.Array]


def gated_recurrence(features: int, size: int) -> Recurrence:
    """A gated recurrent unit (Cho et al., 2014) with ``size`` units over inputs of ``features`` numbers.

        r, z, n' = split(W_i x + b_i),   hr, hz, hn = split(W_h h)
        r, z = sigmoid(r + hr), sigmoid(z + hz);   n = tanh(n' + r (hn + b_n));   h <- (1 - z) n + z h

    Input weights start Gaussian with standard deviation ``1 / sqrt(features)``, the three recurrent matrices
    orthogonal, biases 0.
    """

    def init_fn(key):
        input_key, recurrent_key = jax.random.split(key)
        matrices = [orthogonal(1.0)(gate_key, (size, size)) for gate_key in jax.random.split(recurrent_key, 3)]
        return {
            "input": jax.random.normal(input_key, (features, 3 * size)) / math.sqrt(features),
            "input_bias": jnp.zeros(3 * size),
            "recurrent": jnp.concatenate(matrices, axis=-1),
            "recurrent_bias": jnp.zeros(size),
        }

    def project(params, inputs):
        return inputs @ params["input"] + params["input_bias"]

    def step(params, carry, projected):
        reset, update, candidate = jnp.split(projected, 3, axis=-1)
        from_reset, from_update, from_candidate = jnp.split(carry @ params["recurrent"], 3, axis=-1)
        reset, update = jax.nn.sigmoid(reset + from_reset), jax.nn.sigmoid(update + from_update)
        candidate = jnp.tanh(candidate + reset * (from_candidate + params["recurrent_bias"]))
        return (1.0 - update) * candidate + update * carry

    return Recurrence(init_fn, project, step)
