"""A network that reads the characters of a text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from agents.networks.layers import convolution, orthogonal
from envs.base import PyTree


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
            x = jax.nn.relu(convolution(x, weights["kernel"], (1, 1), "VALID", **options) + weights["bias"])
            count = x.shape[2] // pool
            x = jnp.max(x[:, :, : count * pool].reshape(*x.shape[:2], count, pool, x.shape[-1]), axis=3)
        x = x.reshape(x.shape[0], -1)
        for weights in params["dense"]:
            x = jax.nn.relu(x @ weights["kernel"] + weights["bias"])
        return (x @ params["output"]["kernel"] + params["output"]["bias"])[:, 0]

    return CharacterNetwork(init_fn, apply_fn)
