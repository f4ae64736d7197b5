"""3x3 convolution with a quarter of the multiplications: Winograd's F(4x4, 3x3)."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.typing import Array, Float

# Toom-Cook at the points 0, +-1/sqrt(2), +-sqrt(2) and infinity: a quarter of the error of 0, +-1, +-2
ROOT_HALF, ROOT_TWO = math.sqrt(0.5), math.sqrt(2.0)
INPUT = np.array([
    [1, 0, -2.5, 0, 1, 0],
    [0, -ROOT_TWO, -2, ROOT_HALF, 1, 0],
    [0, ROOT_TWO, -2, -ROOT_HALF, 1, 0],
    [0, -ROOT_HALF, -0.5, ROOT_TWO, 1, 0],
    [0, ROOT_HALF, -0.5, -ROOT_TWO, 1, 0],
    [0, 1, 0, -2.5, 0, 1],
])  # fmt: skip
_KERNEL = np.array([
    [1, 0, 0],
    [-2 / 3, -ROOT_TWO / 3, -1 / 3],
    [-2 / 3, ROOT_TWO / 3, -1 / 3],
    [1 / 6, ROOT_TWO / 6, 1 / 3],
    [1 / 6, -ROOT_TWO / 6, 1 / 3],
    [0, 0, 1],
])  # fmt: skip
_OUTPUT = np.array([
    [1, 1, 1, 1, 1, 0],
    [0, ROOT_HALF, -ROOT_HALF, ROOT_TWO, -ROOT_TWO, 0],
    [0, 0.5, 0.5, 2, 2, 0],
    [0, ROOT_HALF / 2, -ROOT_HALF / 2, 2 * ROOT_TWO, -2 * ROOT_TWO, 1],
])  # fmt: skip
TILES = 340
"""Tiles in a strip: enough for fast matrix products, few enough to stay in cache."""


def winograd_convolution(
    x: Float[Array, "N H W C"], kernel: Float[Array, "3 3 C O"], padding: Sequence[tuple[int, int]],
    tiles: int = TILES,
) -> Float[Array, "N y x O"]:  # fmt: skip
    """Computes a 3x3 convolution of stride 1.

    Tiles of 6x6 inputs and the kernel are transformed, multiplied as 36 matrix products over channels, and
    transformed back to 4x4 outputs. This is done strip by strip, of several images or of several rows of
    tiles of one image, so that transformed tiles, 2.25 times as large as the input, do not go through memory.

    Args:
        x: features.
        kernel: of the convolution.
        padding: rows and columns of zeros, (before, after); the output has at least one of each.
        tiles: number of tiles in a strip, about.

    References:
        Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016.
    """
    (top, bottom), (left, right) = padding
    number, height, width, channels = x.shape
    out_height, out_width = height + top + bottom - 2, width + left + right - 2
    rows, columns = -(-out_height // 4), -(-out_width // 4)
    images, strip_rows = _strip(number, rows, max(tiles // columns, 1))
    groups, strips = -(-number // images), -(-rows // strip_rows)
    below, beside = 4 * strip_rows * strips + 2 - height - top, 4 * columns + 2 - width - left
    edges = (0, groups * images - number, 0), (top, below, 0), (left, beside, 0), (0, 0, 0)
    x, transformed = jax.lax.pad(x, jnp.zeros((), x.dtype), edges), _transform(_KERNEL, kernel)

    def convolve(index, y):
        start = index // strips * images, index % strips * 4 * strip_rows, 0, 0
        shape = images, 4 * strip_rows + 2, 4 * columns + 2, channels
        strip = _convolve_strip(jax.lax.dynamic_slice(x, start, shape), transformed)
        return jax.lax.dynamic_update_slice(y, strip, start)

    shape = groups * images, 4 * strip_rows * strips, 4 * columns, kernel.shape[-1]
    # all of it is overwritten; a constant would occupy memory from the beginning of the program
    y = jnp.broadcast_to(x[:1, :1, :1, :1], shape)
    return jax.lax.fori_loop(0, groups * strips, convolve, y)[:number, :out_height, :out_width]


def _strip(images: int, rows: int, limit: int) -> tuple[int, int]:
    """Returns images and rows of tiles in a strip: whole images, or rows of one, ``limit`` rows at most."""
    if rows <= limit:
        return -(-images // -(-images // min(images, limit // rows))), rows
    return 1, -(-rows // -(-rows // limit))


def _convolve_strip(x: Float[Array, "n h w C"], kernel: Float[Array, "6 6 C O"]) -> Float[Array, "n y x O"]:
    number, height, width, channels = x.shape
    rows, columns = height // 4, width // 4
    tiles = jnp.stack([x[:, i : i + 4 * rows - 3 : 4] for i in range(6)])
    tiles = jnp.stack([tiles[:, :, :, j : j + 4 * columns - 3 : 4] for j in range(6)], axis=1)
    tiles = _transform(INPUT, tiles).reshape(36, -1, channels)
    products = jnp.einsum("ptc,pco->pto", tiles, kernel.reshape(36, channels, -1))
    y = _transform(_OUTPUT, products.reshape(6, 6, number, rows, columns, -1))
    return y.transpose(2, 3, 0, 4, 1, 5).reshape(number, 4 * rows, 4 * columns, -1)


def _transform(matrix: np.ndarray, x: Float[Array, "m m *_"]) -> Float[Array, "k k *_"]:
    """Multiplies both leading axes by a matrix."""
    (rows, columns), rest = matrix.shape, x.shape[2:]
    both = jnp.asarray(np.kron(matrix, matrix), x.dtype)  # one product is faster than two with the matrix
    return (both @ x.reshape(columns**2, -1)).reshape(rows, rows, *rest)
