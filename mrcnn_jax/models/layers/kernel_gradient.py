"""Gradient of the kernel of a convolution of stride 1, for a CPU."""

import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.models.layers.winograd import INPUT, ROOT_HALF, ROOT_TWO
from mrcnn_jax.typing import Array, Float

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
LARGE = 2**25
"""Products per tap from which ``winograd_kernel_gradient`` is faster than XLA's convolution."""
TILE = 4
TILES = 320
"""Tiles of a strip, about: enough for fast matrix products, few enough to stay in cache."""
_COTANGENT = np.array([
    [1, 0, 0, 0], [1, ROOT_HALF, 0.5, ROOT_HALF / 2], [1, -ROOT_HALF, 0.5, -ROOT_HALF / 2],
    [1, ROOT_TWO, 2, 2 * ROOT_TWO], [1, -ROOT_TWO, 2, -2 * ROOT_TWO], [0, 0, 0, 1],
])  # fmt: skip
_KERNEL = np.array([
    [6, -4, -4, 1, 1, 0], [0, -2 * ROOT_TWO, 2 * ROOT_TWO, ROOT_TWO, -ROOT_TWO, 0], [0, -2, -2, 2, 2, 6],
]) / 6  # fmt: skip


def kernel_gradient(
    x: Float[Array, "N H W C"], cotangent: Float[Array, "N y x O"], size: tuple[int, int],
    padding: tuple[tuple[int, int], ...],
) -> Float[Array, "h w C O"]:  # fmt: skip
    """Computes the gradient of the kernel of a convolution.

    Small maps and bfloat16 are a convolution in XLA's preferred layout, which it would only find by itself
    outside loops and conditionals; inside, it takes a naive loop.

    Args:
        x: input of the convolution.
        cotangent: gradient of its output.
        size: of the kernel.
        padding: rows and columns of zeros (before, after).
    """
    products = x.size * cotangent.shape[-1]
    if size == (3, 3) and x.dtype in (jnp.float32, jnp.float64) and products >= LARGE:
        return winograd_kernel_gradient(x, cotangent, padding)
    x, cotangent = x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3)
    y = jax.lax.conv_general_dilated(x, cotangent, (1, 1), padding, dimension_numbers=DIMENSIONS)
    return y.transpose(1, 2, 0, 3)


@jax.jit(static_argnames="padding")
def winograd_kernel_gradient(
    x: Float[Array, "N H W C"], cotangent: Float[Array, "N h w O"], padding: tuple[tuple[int, int], ...]
) -> Float[Array, "3 3 C O"]:
    """Computes ``kernel_gradient`` of a 3x3 kernel with a quarter of the products: F(4x4, 3x3), transposed.

    Tiles of 6x6 inputs and of 4x4 cotangents are transformed to 36 positions and multiplied, one matrix
    product over tiles each; only the sum over tiles is transformed to the 3x3 kernel. Strips of rows of
    tiles follow one another, so that transformed tiles do not go through memory.

    References:
        Lavin & Gray, 2016, "Fast Algorithms for Convolutional Neural Networks".
    """
    images, height, width, _ = cotangent.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    strips = -(-rows // max(TILES // max(images * columns, 1), 1))
    rows = -(-rows // strips)  # of a strip
    size = rows * strips * TILE, columns * TILE
    x = _pad(x, [before for before, _ in padding], [side + 2 for side in size])
    cotangent = _pad(cotangent, (0, 0), size)

    def add_strip(index, total):
        def tiles(array, matrix, halo):
            strip = jax.lax.dynamic_slice_in_dim(array, index * rows * TILE, rows * TILE + halo, axis=1)
            strip = _transform(matrix, _transform(matrix, strip, 1, rows), 3, columns)
            return strip.reshape(len(matrix) ** 2, -1, array.shape[-1])

        return total + jnp.einsum("ptc,pto->pco", tiles(x, INPUT, 2), tiles(cotangent, _COTANGENT, 0))

    zeros = jnp.zeros((len(INPUT) ** 2, x.shape[-1], cotangent.shape[-1]), x.dtype)
    total = jax.lax.fori_loop(0, strips, add_strip, zeros)
    total = total.reshape(len(INPUT), len(INPUT), *total.shape[1:])  # positions along columns, rows
    for _ in range(2):  # a tiny matrix product would be slower
        total = _combine(_KERNEL, list(total.swapaxes(0, 1)))
    return total.swapaxes(0, 1)


def _pad(x, before, size):
    edges = [(low, full - low - side, 0) for low, full, side in zip(before, size, x.shape[1:3], strict=True)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))


def _transform(matrix, x, axis, tiles):
    """Multiplies each tile along an axis by a matrix; the products are a new first axis."""
    starts, length = range(matrix.shape[1]), TILE * (tiles - 1) + 1
    return _combine(matrix, [jax.lax.slice_in_dim(x, i, i + length, TILE, axis) for i in starts])


def _combine(matrix, parts):
    """Stacks the linear combinations of arrays by each row of a matrix."""
    terms = [[float(f) * part for f, part in zip(row, parts, strict=True) if f] for row in matrix]
    return jnp.stack([sum(row[1:], row[0]) for row in terms])
