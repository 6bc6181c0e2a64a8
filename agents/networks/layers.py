"""Initial weights, dense layers and convolutions that the networks share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


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


def dense(width: int, scale: float, name: str) -> nn.Dense:
    """A dense layer with orthogonal weights of gain ``scale``; called inside a compact module only."""
    return nn.Dense(width, kernel_init=orthogonal(scale), name=name)


def convolution(images: jax.Array, kernel: jax.Array, window_strides, padding, **options) -> jax.Array:
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
