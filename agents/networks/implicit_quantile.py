"""A network of the quantile function, which takes the fraction as an input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp

from agents.networks.base import Head, observe_nothing
from agents.networks.encoders import blank, encodable_leaves
from agents.networks.layers import dense
from agents.networks.normaliser import with_normaliser
from agents.networks.sequence import NetworkConfig, hidden_features, normaliser_of
from envs.base import PyTree


class _ImplicitQuantileModule(nn.Module):
    spaces: tuple[gymnasium.Space, ...]
    config: NetworkConfig
    head: tuple[int, float]
    cosines: int

    @nn.compact
    def __call__(self, observation, fractions):
        size, scale = self.head
        x = hidden_features(self.spaces, self.config, observation)
        # Rows of matrices throughout, as there.
        waves = jnp.cos(jnp.pi * jnp.arange(self.cosines) * fractions.reshape(-1, 1))
        embedding = jax.nn.relu(dense(x.shape[-1], math.sqrt(2.0), "fraction")(waves))
        product = x[:, None] * embedding.reshape(x.shape[0], -1, x.shape[-1])
        output = dense(size, scale, "head_quantile")(product.reshape(-1, x.shape[-1]))
        return output.reshape(*fractions.shape, -1)


class QuantileNetwork(NamedTuple):
    """A quantile function as pure functions.

    Attributes:
      init: ``(key) -> params``.
      apply: ``(params, observation [T, B, ...], fractions [T, B, N]) -> [T, B, N, size]``, the quantiles at the
        fractions.
      observe: as in ``agents.networks.base.Network``.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree, PyTree, jax.Array], jax.Array]
    observe: Callable[[PyTree, PyTree, jax.Array], PyTree] = observe_nothing


def implicit_quantile_network(
    observation_space: gymnasium.Space, head: Head, config: NetworkConfig, *, cosines: int = 64
) -> QuantileNetwork:
    """A network that predicts any quantile (Dabney et al., 2018, "Implicit quantile networks", section 3.1).

        Z_tau(x) = W (psi(x) * phi(tau)) + b,  phi_j(tau) = relu(sum_{i < cosines} cos(pi i tau) w_ij + b_j)

    with ``psi`` the encoder and the dense layers of ``config``, and ``*`` element-wise. Weights start as in
    ``network``.

    Raises:
      UnsupportedSpaceError: if a leaf of the space cannot be encoded.
      ValueError: for a recurrent ``config`` or a head with free parameters.
    """
    if config.recurrent_size or head.num_free:
        raise ValueError(
            f"recurrent_size={config.recurrent_size}, num_free={head.num_free}: an implicit quantile network is "
            "feed-forward, expected 0"
        )
    normaliser = normaliser_of(observation_space, config)
    leaves = encodable_leaves(observation_space if normaliser is None else normaliser.space)
    module = _ImplicitQuantileModule(leaves, config, (head.size, head.scale), cosines)

    def init_fn(key):
        return module.init(key, blank(leaves), jnp.zeros((1, 1, 1)))["params"]

    def apply_fn(params, observation, fractions):
        return module.apply({"params": params}, observation, fractions)

    if normaliser is None:
        return QuantileNetwork(init_fn, apply_fn)
    made = with_normaliser(normaliser, init_fn, apply_fn)
    return QuantileNetwork(made.init, made.apply, made.observe)
