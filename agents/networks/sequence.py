"""The network of kind ``sequence``: an encoder for any observation space, dense layers, an optional GRU over time, and
one linear head per output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp

from agents.networks.base import Head, Network, NetworkBuilder
from agents.networks.encoders import blank, encodable_leaves, encode_leaf
from agents.networks.layers import convolution, dense, orthogonal
from agents.networks.normaliser import ObservationNormaliser, observation_normaliser, with_normaliser
from envs.base import PyTree
from envs.choices import require_known

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "elu": jax.nn.elu, "gelu": jax.nn.gelu, "silu": jax.nn.silu}


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of a network of kind ``sequence``; static. Called, it builds the network, see ``network``.

    Attributes:
      hidden: widths of the dense layers after the encoder.
      activation: one of ``ACTIVATIONS``.
      channels: widths of convolutions for image leaves (three-dimensional Box, ``[H, W, C]``, or ``[C, H, W]``
        where ``2 C < min(H, W)``); ``()`` flattens images.
      strides: one per convolution; empty means 1 throughout.
      kernels: height and width of each convolution's window, one per convolution; empty means 3 throughout.
      recurrent_size: width of a GRU after the dense layers; 0 for a feed-forward network.
      layer_norm: normalise after every dense layer, before the activation.
      image_norm: normalise over the channels after every convolution, before the activation.
      normalise_observations: divide every number of the observation by its running standard deviation, see
        ``agents.networks.normaliser``. Use it where the parts of an observation have different and unknown units, as
        in MuJoCo. Images and discrete parts pass as they are.
      observation_limit: normalised numbers are clipped to this many standard deviations.

    Raises:
      ValueError: an unknown activation, strides or kernels that do not match the channels, sizes below 1, or a limit
        that is not above 0.
    """

    hidden: tuple[int, ...] = (128, 128)
    activation: str = "tanh"
    channels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    kernels: tuple[int, ...] = ()
    recurrent_size: int = 0
    layer_norm: bool = False
    image_norm: bool = False
    normalise_observations: bool = False
    observation_limit: float = 10.0

    def __post_init__(self):
        require_known("activation", self.activation, ACTIVATIONS)
        for name in ("strides", "kernels"):
            given = getattr(self, name)
            if given and len(given) != len(self.channels):
                raise ValueError(f"{name}={given}: expected one per channel width {self.channels}")
        for name in ("hidden", "channels", "strides", "kernels"):
            if any(width < 1 for width in getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)}: expected numbers of at least 1")
        if self.recurrent_size < 0:
            raise ValueError(f"recurrent_size={self.recurrent_size}: expected at least 0")
        if not isinstance(self.observation_limit, jax.core.Tracer) and not self.observation_limit > 0:
            raise ValueError(f"observation_limit={self.observation_limit}: expected above 0")

    def __call__(self, observation_space: gymnasium.Space, heads: Mapping[str, Head]) -> Network:
        return network(observation_space, heads, self)


def require_sequence(config: NetworkBuilder, what: str) -> NetworkConfig:
    """``config``, for ``what`` makes networks of its own of the numbers of a ``NetworkConfig``.

    Raises:
      ValueError: for a builder of another kind, which has no such numbers.
    """
    if not isinstance(config, NetworkConfig):
        raise ValueError(f"{what} makes networks of its own, got {config}: expected network.kind='sequence'")
    return config


def own_numbers(config: NetworkBuilder, what: str) -> NetworkConfig:
    """The numbers of ``config`` for feed-forward networks that ``what`` makes for itself, on observations as they are.

    Raises:
      ValueError: see ``require_sequence``.
    """
    return replace(require_sequence(config, what), recurrent_size=0, normalise_observations=False)


def normaliser_of(space: gymnasium.Space, config: NetworkConfig) -> ObservationNormaliser | None:
    """What normalises observations of ``space`` as ``config`` says; ``None`` where it does not.

    Raises:
      ValueError: where it should, and the space has nothing to normalise.
      UnsupportedSpaceError: a space that cannot be encoded.
    """
    if not config.normalise_observations:
        return None
    normaliser = observation_normaliser(space, limit=config.observation_limit)
    if not normaliser.init():
        raise ValueError(
            f"normalise_observations=True: the observation space {space} has no Box but images: expected False"
        )
    return normaliser


def hidden_features(spaces: tuple[gymnasium.Space, ...], config: NetworkConfig, observation: PyTree) -> jax.Array:
    """Encoder and dense layers, ``[T B, features]``; called inside a compact module only.

    The two leading axes are one: XLA's products of matrices are faster on the CPU than those of arrays ``[T, B, ...]``,
    and most of all the ones in the gradient, which sum over both axes.
    """
    activation = ACTIVATIONS[config.activation]
    gain = math.sqrt(2.0)
    features = []
    for index, (space, leaf) in enumerate(zip(spaces, jax.tree.leaves(observation), strict=True)):
        x = encode_leaf(space, leaf)
        x = x.reshape(-1, *x.shape[2:])
        if x.ndim == 4:
            for layer, width in enumerate(config.channels):
                stride = config.strides[layer] if config.strides else 1
                size = config.kernels[layer] if config.kernels else 3
                x = nn.Conv(
                    width,
                    (size, size),
                    strides=stride,
                    kernel_init=orthogonal(gain),
                    conv_general_dilated=convolution,
                    name=f"conv_{index}_{layer}",
                )(x)
                if config.image_norm:
                    x = nn.LayerNorm(name=f"image_norm_{index}_{layer}")(x)
                x = activation(x)
            x = x.reshape(x.shape[0], -1)
        features.append(x)
    x = jnp.concatenate(features, axis=-1) if len(features) > 1 else features[0]
    for layer, width in enumerate(config.hidden):
        x = dense(width, gain, f"dense_{layer}")(x)
        if config.layer_norm:
            x = nn.LayerNorm(name=f"norm_{layer}")(x)
        x = activation(x)
    return x


class _SequenceModule(nn.Module):
    spaces: tuple[gymnasium.Space, ...]
    config: NetworkConfig
    heads: tuple[tuple[str, int, float, int], ...]

    @nn.compact
    def __call__(self, observation, carry, episode_start):
        config = self.config
        time_batch = jax.tree.leaves(observation)[0].shape[:2]
        x = hidden_features(self.spaces, config, observation)
        if config.recurrent_size:
            x = x.reshape(*time_batch, -1)
            cell = nn.GRUCell(config.recurrent_size, recurrent_kernel_init=orthogonal(1.0), name="gru")

            def step(cell, carry, inputs):
                x, start = inputs
                carry = jnp.where(start[:, None], 0.0, carry)
                return cell(carry, x)

            scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
            if episode_start is None:
                episode_start = jnp.zeros(time_batch, bool)
            carry, x = scan(cell, carry, (x, episode_start))
            x = x.reshape(-1, config.recurrent_size)
        outputs = {}
        for name, size, scale, num_free in self.heads:
            output = dense(size - num_free, scale, f"head_{name}")(x)
            if num_free:
                free = self.param(f"free_{name}", nn.initializers.zeros, (num_free,))
                output = jnp.concatenate([output, jnp.broadcast_to(free, (*output.shape[:-1], num_free))], axis=-1)
            outputs[name] = output.reshape(*time_batch, -1)
        return outputs, carry


def network(observation_space: gymnasium.Space, heads: Mapping[str, Head], config: NetworkConfig) -> Network:
    """Builds a network for ``observation_space`` with one output per head.

    Hidden weights are orthogonal with gain sqrt(2), heads orthogonal with their own scale, biases zero
    (Andrychowicz et al., 2021, "What matters for on-policy deep actor-critic methods?").

    Integer Boxes are divided by their upper bound (not by the bound of their type, which says nothing about the
    values), Discrete leaves are one-hot, and images with the channels first are transposed.

    Raises:
      UnsupportedSpaceError: if a leaf of the space cannot be encoded.
      ValueError: observations to normalise that have nothing to normalise.
    """
    normaliser = normaliser_of(observation_space, config)
    leaves = encodable_leaves(observation_space if normaliser is None else normaliser.space)
    specification = tuple((name, head.size, head.scale, head.num_free) for name, head in heads.items())
    module = _SequenceModule(leaves, config, specification)
    recurrent = config.recurrent_size > 0

    def initial_carry(batch):
        return jnp.zeros((batch, config.recurrent_size)) if recurrent else ()

    def init_fn(key):
        return module.init(key, blank(leaves), initial_carry(1), None)["params"]

    def apply_fn(params, observation, carry=(), episode_start=None):
        return module.apply({"params": params}, observation, carry, episode_start)

    def rescale(params, head, scale, shift):
        layer = params[f"head_{head}"]
        changed = {f"head_{head}": {"kernel": scale * layer["kernel"], "bias": scale * layer["bias"] + shift}}
        if heads[head].num_free:
            changed[f"free_{head}"] = scale * params[f"free_{head}"] + shift
        return params | changed

    if normaliser is None:
        return Network(init_fn, apply_fn, initial_carry, recurrent, rescale=rescale)
    made = with_normaliser(normaliser, init_fn, apply_fn)
    return Network(made.init, made.apply, initial_carry, recurrent, made.observe, made.learned, rescale)
