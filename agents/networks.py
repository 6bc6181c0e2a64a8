"""Networks: pure ``init`` and ``apply`` over plain parameter pytrees. The only module that imports flax.linen.

One network serves every purpose: an encoder for any observation space, an optional GRU over time, and one linear head
per output. It is always called time-major, ``[T, B, ...]``; acting is a call with ``T = 1``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from envs.base import PyTree, UnsupportedSpaceError
from envs.choices import require_known
from envs.rollout import bounded_action
from envs.spaces import from_indices

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "elu": jax.nn.elu, "gelu": jax.nn.gelu, "silu": jax.nn.silu}


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of a network; static.

    Attributes:
      hidden: widths of the dense layers after the encoder.
      activation: one of ``ACTIVATIONS``.
      channels: widths of 3x3 convolutions for image leaves (three-dimensional Box, ``[H, W, C]``, or ``[C, H, W]``
        where ``2 C < min(H, W)``); ``()`` flattens images.
      strides: one per convolution; empty means 1 throughout.
      recurrent_size: width of a GRU after the dense layers; 0 for a feed-forward network.
      layer_norm: normalise after every dense layer, before the activation.

    Raises:
      ValueError: an unknown activation, strides that do not match the channels, or sizes below 1.
    """

    hidden: tuple[int, ...] = (128, 128)
    activation: str = "tanh"
    channels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    recurrent_size: int = 0
    layer_norm: bool = False

    def __post_init__(self):
        require_known("activation", self.activation, ACTIVATIONS)
        if self.strides and len(self.strides) != len(self.channels):
            raise ValueError(f"strides={self.strides}: expected one per channel width {self.channels}")
        for name in ("hidden", "channels", "strides"):
            if any(width < 1 for width in getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)}: expected numbers of at least 1")
        if self.recurrent_size < 0:
            raise ValueError(f"recurrent_size={self.recurrent_size}: expected at least 0")


class Network(NamedTuple):
    """A network as pure functions.

    Attributes:
      init: ``(key) -> params``.
      apply: ``(params, observation [T, B, ...], carry [B, ...], episode_start [T, B] or None)
        -> (outputs, carry)`` with ``outputs`` a dictionary of ``[T, B, size]`` by head. The carry is set to
        its initial value before every step whose ``episode_start`` is set.
      initial_carry: ``(batch) -> carry``; ``()`` for a feed-forward network.
      recurrent: whether there is a carry.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[..., tuple[dict[str, jax.Array], PyTree]]
    initial_carry: Callable[[int], PyTree]
    recurrent: bool


def orthogonal(gain: float) -> Callable[..., jax.Array]:
    """An initialiser: ``gain`` times a uniformly distributed matrix with orthonormal rows or columns.

    It is the polar factor of a Gaussian matrix, found by Newton-Schulz iterations, ``X <- 1.5 X - 0.5 X X^T X``. The
    usual QR decomposition has the same distribution, but batched over seeds its LAPACK calls wait for threads that they
    occupy themselves, and XLA's thread pool hangs on two cores (jaxlib 0.10.2). Matrix products cannot hang.
    """

    def initialise(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        columns = shape[-1]
        rows = math.prod(shape[:-1])
        tall = jax.random.normal(key, (max(rows, columns), min(rows, columns)), dtype)
        # The singular values of a Gaussian matrix lie below sqrt(rows) + sqrt(columns), and exceed it by far less than
        # the factor sqrt(3) at which the iteration would diverge. Small ones grow by 1.5 per step until they are near
        # 1.
        x = tall / (math.sqrt(rows) + math.sqrt(columns))
        # Full float32: reduced-precision products on a GPU would leave the result as far from orthonormal.
        times = functools.partial(jnp.matmul, precision="highest")
        x = jax.lax.fori_loop(0, 60, lambda _, x: 1.5 * x - times(0.5 * x, times(x.T, x)), x)
        x = x if rows >= columns else x.T
        return gain * x.reshape(shape)

    return initialise


def _dense(width: int, scale: float, name: str) -> nn.Dense:
    """A dense layer with orthogonal weights of gain ``scale``; called inside a compact module only."""
    return nn.Dense(width, kernel_init=orthogonal(scale), name=name)


def _convolution(images: jax.Array, kernel: jax.Array, window_strides, padding, **options) -> jax.Array:
    """``[N, H, W, C]`` and ``[h, w, C, F]`` to ``[N, H', W', F]``, in place of ``jax.lax.conv_general_dilated``.

    On the CPU it multiplies patches by a matrix: XLA's own convolution is slow there inside a scan, and for kernels
      with a batch axis, such as ``vmap`` over seeds makes.
    """
    height, width = kernel.shape[:2]
    vertical, horizontal = window_strides

    def native(images, kernel):
        return jax.lax.conv_general_dilated(images, kernel, window_strides, padding, **options)

    def patches(images, kernel):
        pads = jax.lax.padtype_to_pads(images.shape[1:3], (height, width), window_strides, padding)
        padded = jnp.pad(images, ((0, 0), *pads, (0, 0)))
        rows, columns = (padded.shape[1] - height) // vertical + 1, (padded.shape[2] - width) // horizontal + 1
        shifted = [
            padded[:, i : i + vertical * (rows - 1) + 1 : vertical, j : j + horizontal * (columns - 1) + 1 : horizontal]
            for i in range(height)
            for j in range(width)
        ]
        flat = jnp.concatenate(shifted, axis=-1).reshape(-1, height * width * images.shape[-1])
        return (flat @ kernel.reshape(flat.shape[-1], -1)).reshape(images.shape[0], rows, columns, -1)

    return jax.lax.platform_dependent(images, kernel, cpu=patches, default=native)


# An integer bound of at least this size says what the type can hold, not what the environment shows.
_NO_BOUND = 2.0**30


def _scale(space: gymnasium.spaces.Box) -> np.ndarray:
    """What each component of an integer Box is divided by: ``max(high, 1)``, or 1 where there is no real bound."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    bounded = np.maximum(np.abs(low), np.abs(high)) < _NO_BOUND
    return np.where(bounded, np.maximum(high, 1.0), 1.0).astype(np.float32)


def _is_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an image is ``[C, H, W]``: fewer than half as many entries on the first axis as on either other one."""
    return 2 * shape[0] < min(shape[1:])


def _encode_leaf(space: gymnasium.Space, x: jax.Array) -> jax.Array:
    """One leaf as floats: ``[T, B, features]``, or ``[T, B, H, W, C]`` for an image.

    Components of an integer Box are divided by their upper bound, except where a bound is that of the type (2^30 or
    more in magnitude): such values pass as they are. Images ``[C, H, W]`` become ``[H, W, C]``.
    """
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Discrete):
        return jax.nn.one_hot(x - int(space.start), int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        parts = [jax.nn.one_hot(x[..., i] - int(space.start[i]), int(n)) for i, n in enumerate(space.nvec)]
        return jnp.concatenate(parts, axis=-1)
    if isinstance(space, spaces.MultiBinary):
        return x.astype(jnp.float32).reshape(*x.shape[:2], -1)
    x = x.astype(jnp.float32)
    if np.issubdtype(space.dtype, np.integer):
        x = x / _scale(space)
    if len(space.shape) != 3:
        return x.reshape(*x.shape[:2], -1)
    return jnp.moveaxis(x, 2, -1) if _is_channels_first(space.shape) else x


def space_leaves(space: gymnasium.Space) -> list[tuple[tuple, gymnasium.Space]]:
    """``(path, leaf space)`` of an observation space, in the order of ``jax.tree.leaves``.

    Raises:
      UnsupportedSpaceError: for a leaf that is not Box, Discrete, MultiDiscrete or MultiBinary.
    """
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Dict):
        return [((name, *p), leaf) for name in sorted(space.spaces) for p, leaf in space_leaves(space.spaces[name])]
    if isinstance(space, spaces.Tuple):
        return [((i, *p), leaf) for i, part in enumerate(space.spaces) for p, leaf in space_leaves(part)]
    flat_choices = isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1
    if flat_choices or isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiBinary)):
        return [((), space)]
    raise UnsupportedSpaceError(
        f"no encoder for the observation space {space}: expected Box, Discrete, one-dimensional MultiDiscrete, "
        "MultiBinary, or a Dict or Tuple of these"
    )


def _features(spaces: tuple[gymnasium.Space, ...], config: NetworkConfig, observation: PyTree) -> jax.Array:
    """Encoder and dense layers, ``[T, B, features]``; called inside a compact module only."""
    activation = ACTIVATIONS[config.activation]
    gain = math.sqrt(2.0)
    features = []
    for index, (space, leaf) in enumerate(zip(spaces, jax.tree.leaves(observation), strict=True)):
        x = _encode_leaf(space, leaf)
        if x.ndim == 5:
            time_batch = x.shape[:2]
            x = x.reshape(-1, *x.shape[2:])
            for layer, width in enumerate(config.channels):
                stride = config.strides[layer] if config.strides else 1
                name = f"conv_{index}_{layer}"
                x = nn.Conv(
                    width,
                    (3, 3),
                    strides=stride,
                    kernel_init=orthogonal(gain),
                    conv_general_dilated=_convolution,
                    name=name,
                )(x)
                x = activation(x)
            x = x.reshape(*time_batch, -1)
        features.append(x)
    x = jnp.concatenate(features, axis=-1) if len(features) > 1 else features[0]
    for layer, width in enumerate(config.hidden):
        x = _dense(width, gain, f"dense_{layer}")(x)
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
        x = _features(self.spaces, config, observation)
        if config.recurrent_size:
            cell = nn.GRUCell(config.recurrent_size, recurrent_kernel_init=orthogonal(1.0), name="gru")

            def step(cell, carry, inputs):
                x, start = inputs
                carry = jnp.where(start[:, None], 0.0, carry)
                return cell(carry, x)

            scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
            if episode_start is None:
                episode_start = jnp.zeros(x.shape[:2], bool)
            carry, x = scan(cell, carry, (x, episode_start))
        outputs = {}
        for name, size, scale, num_free in self.heads:
            output = _dense(size - num_free, scale, f"head_{name}")(x)
            if num_free:
                free = self.param(f"free_{name}", nn.initializers.zeros, (num_free,))
                output = jnp.concatenate([output, jnp.broadcast_to(free, (*output.shape[:-1], num_free))], axis=-1)
            outputs[name] = output
        return outputs, carry


class _ImplicitQuantileModule(nn.Module):
    spaces: tuple[gymnasium.Space, ...]
    config: NetworkConfig
    head: tuple[int, float]
    cosines: int

    @nn.compact
    def __call__(self, observation, fractions):
        size, scale = self.head
        x = _features(self.spaces, self.config, observation)
        waves = jnp.cos(jnp.pi * jnp.arange(self.cosines) * fractions[..., None])
        embedding = jax.nn.relu(_dense(x.shape[-1], math.sqrt(2.0), "fraction")(waves))
        return _dense(size, scale, "head_quantile")(x[..., None, :] * embedding)


@dataclass(frozen=True)
class Head:
    """A linear output.

    Attributes:
      size: numbers per step.
      scale: gain of the initial weights.
      num_free: how many of the last numbers are free parameters, which do not depend on the observation.
    """

    size: int
    scale: float = 1.0
    num_free: int = 0


def _encodable_leaves(observation_space: gymnasium.Space) -> tuple[gymnasium.Space, ...]:
    leaves = tuple(leaf for _, leaf in space_leaves(observation_space))
    if not leaves:
        raise UnsupportedSpaceError(f"no encoder for the observation space {observation_space}: it has no parts")
    return leaves


def _blank(leaves: tuple[gymnasium.Space, ...]) -> list[jax.Array]:
    """One observation of zeros, ``[1, 1, ...]``, from which the shapes of the parameters follow."""
    return [jnp.zeros((1, 1, *leaf.shape), jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in leaves]


def network(observation_space: gymnasium.Space, heads: Mapping[str, Head], config: NetworkConfig) -> Network:
    """Builds a network for ``observation_space`` with one output per head.

    Hidden weights are orthogonal with gain sqrt(2), heads orthogonal with their own scale, biases zero
    (Andrychowicz et al., 2021, "What matters for on-policy deep actor-critic methods?").

    Integer Boxes are divided by their upper bound (not by the bound of their type, which says nothing about the
    values), Discrete leaves are one-hot, and images with the channels first are transposed.

    Raises:
      UnsupportedSpaceError: if a leaf of the space cannot be encoded.
    """
    leaves = _encodable_leaves(observation_space)
    specification = tuple((name, head.size, head.scale, head.num_free) for name, head in heads.items())
    module = _SequenceModule(leaves, config, specification)
    recurrent = config.recurrent_size > 0

    def initial_carry(batch):
        return jnp.zeros((batch, config.recurrent_size)) if recurrent else ()

    def init_fn(key):
        return module.init(key, _blank(leaves), initial_carry(1), None)["params"]

    def apply_fn(params, observation, carry=(), episode_start=None):
        return module.apply({"params": params}, observation, carry, episode_start)

    return Network(init_fn, apply_fn, initial_carry, recurrent)


class QuantileNetwork(NamedTuple):
    """A quantile function as pure functions.

    Attributes:
      init: ``(key) -> params``.
      apply: ``(params, observation [T, B, ...], fractions [T, B, N]) -> [T, B, N, size]``, the quantiles at the
        fractions.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree, PyTree, jax.Array], jax.Array]


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
    leaves = _encodable_leaves(observation_space)
    module = _ImplicitQuantileModule(leaves, config, (head.size, head.scale), cosines)

    def init_fn(key):
        return module.init(key, _blank(leaves), jnp.zeros((1, 1, 1)))["params"]

    def apply_fn(params, observation, fractions):
        return module.apply({"params": params}, observation, fractions)

    return QuantileNetwork(init_fn, apply_fn)


@dataclass(frozen=True)
class CharacterConfig:
    """The shape of a network that reads characters; static.

    Attributes:
      embedding_size: numbers per character.
      channels: width of every convolution.
      kernels: how many characters each convolution sees.
      pools: width of the maximum pooling after each convolution; 1 for none.
      hidden: widths of the dense layers after the convolutions.
    """

    embedding_size: int = 16
    channels: int = 32
    kernels: tuple[int, ...] = (5, 3)
    pools: tuple[int, ...] = (3, 3)
    hidden: tuple[int, ...] = (64,)

    def __post_init__(self):
        if len(self.kernels) != len(self.pools) or not self.kernels:
            raise ValueError(f"kernels={self.kernels}, pools={self.pools}: expected one pool per kernel, at least one")
        if min(self.embedding_size, self.channels, *self.kernels, *self.pools, *self.hidden) < 1:
            raise ValueError(f"{self}: expected numbers of at least 1")

    def width(self, length: int) -> int:
        """How many positions the convolutions leave of a text of ``length``; below 1 if the text is too short."""
        for kernel, pool in zip(self.kernels, self.pools, strict=True):
            length = (length - kernel + 1) // pool
        return length


class CharacterNetwork(NamedTuple):
    """A network that maps a text to one number, as pure functions.

    Attributes:
      init: ``(key) -> params``.
      apply: ``(params, text [N, length] uint8) -> [N]``.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree, jax.Array], jax.Array]


def character_network(length: int, config: CharacterConfig) -> CharacterNetwork:
    """A convolutional network over the bytes of a text (Zhang, Zhao and LeCun, 2015), with one output.

    An embedding; per layer a convolution without padding, a rectifier and maximum pooling, which drops a remainder at
    the end; then dense layers. Hidden weights start orthogonal with gain sqrt(2), the output's with gain 0.1,
    embeddings Gaussian, biases 0.

    Raises:
      ValueError: the layers leave nothing of ``length`` characters.
    """
    width = config.width(length)
    if width < 1:
        raise ValueError(
            f"kernels={config.kernels}, pools={config.pools} leave nothing of {length} characters: "
            "expected fewer or smaller kernels and pools"
        )
    inputs = (config.embedding_size, *[config.channels] * (len(config.kernels) - 1))
    kernels = [(1, kernel, size, config.channels) for kernel, size in zip(config.kernels, inputs, strict=True)]
    sizes = (width * config.channels, *config.hidden)
    dense = list(zip(sizes, config.hidden, strict=False))

    def init_fn(key):
        keys = iter(jax.random.split(key, 2 + len(kernels) + len(dense)))

        def layer(shape, gain):
            return {"kernel": orthogonal(gain)(next(keys), shape), "bias": jnp.zeros(shape[-1])}

        return {
            "embedding": jax.random.normal(next(keys), (256, config.embedding_size)),
            "convolutions": [layer(shape, math.sqrt(2.0)) for shape in kernels],
            "dense": [layer(shape, math.sqrt(2.0)) for shape in dense],
            "output": layer((sizes[-1], 1), 0.1),
        }

    def apply_fn(params, text):
        # The layout that flax uses.
        options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        x = params["embedding"][text.astype(jnp.int32)][:, None]
        for weights, pool in zip(params["convolutions"], config.pools, strict=True):
            x = jax.nn.relu(_convolution(x, weights["kernel"], (1, 1), "VALID", **options) + weights["bias"])
            count = x.shape[2] // pool
            x = jnp.max(x[:, :, : count * pool].reshape(*x.shape[:2], count, pool, x.shape[-1]), axis=3)
        x = x.reshape(x.shape[0], -1)
        for weights in params["dense"]:
            x = jax.nn.relu(x @ weights["kernel"] + weights["bias"])
        return (x @ params["output"]["kernel"] + params["output"]["bias"])[:, 0]

    return CharacterNetwork(init_fn, apply_fn)


def action_features(space: gymnasium.Space, action: PyTree) -> jax.Array:
    """Actions ``[T, B, ...]`` as floats ``[T, B, features]``, after what the environment does to them.

    Discrete parts are one-hot, Box parts are clipped to their bounds and flattened, and the parts of a Dict or Tuple
    are joined.

    Raises:
      UnsupportedSpaceError: for a part that is not Box, Discrete, MultiDiscrete or MultiBinary.
    """
    return observation_features(space, from_indices(space, bounded_action(space, action)))


def observation_features(space: gymnasium.Space, observation: PyTree) -> jax.Array:
    """Observations ``[T, B, ...]`` as floats ``[T, B, features]``, encoded as for a network but with images flattened.

    Raises:
      UnsupportedSpaceError: if a leaf of the space cannot be encoded.
    """
    leaves = zip(_encodable_leaves(space), jax.tree.leaves(observation), strict=True)
    parts = [_encode_leaf(leaf, x) for leaf, x in leaves]
    return jnp.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=-1)


def action_size(space: gymnasium.Space) -> int:
    """The number of features of ``action_features``."""

    def size(leaf):
        if isinstance(leaf, gymnasium.spaces.Discrete):
            return int(leaf.n)
        if isinstance(leaf, gymnasium.spaces.MultiDiscrete):
            return int(np.sum(leaf.nvec))
        return math.prod(leaf.shape)

    return sum(map(size, _encodable_leaves(space)))
