"""The stem of a ResNet on blocks of 4x4 pixels, for processors that compute on vectors of channels.

Three channels of an image fill 3 lanes of 128. A cell is therefore a block of 4x4 pixels, in which the
convolution has 2x2 outputs and the pooling one.
"""

import jax
import jax.numpy as jnp

from mrcnn_jax.typing import Array, Float


def convolve_blocks(
    images: Float[Array, "B H W C"], kernel: Float[Array, "7 7 C O"], *_, **__
) -> Float[Array, "B h w O4"]:
    """Computes a 7x7 convolution of stride 2 and padding 3, for ``flax.linen.Conv``.

    Args:
        images: of sides that are multiples of 4.
        kernel: as of the ordinary convolution.

    Returns:
        The outputs of each block, row by row: O4 = 4 O, h = H / 4 and w = W / 4.
    """
    batch, height, width, channels = images.shape
    rows, columns, outputs = height // 4, width // 4, 4 * kernel.shape[-1]
    # a product with a permutation splits columns into blocks; as a transpose it takes several times as long
    place = 4 * jnp.arange(columns)[None, None] + jnp.arange(4)[None, :, None]
    permutation = (jnp.arange(width)[:, None, None] == place).astype(images.dtype)
    pixels = images.reshape(batch, rows, 4, width, channels)
    pixels = jnp.einsum("byiwc,wjx->bycijx", pixels, permutation, precision="highest")
    pixels = pixels.reshape(batch, rows, -1, columns).transpose(0, 1, 3, 2)
    # three rows of blocks as channels and rows as the batch: a convolution over columns, as of many images
    pixels = jnp.concatenate([_shift(pixels, 1, step) for step in (1, 0, -1)], axis=-1)
    pixels = pixels.reshape(batch * rows, columns, -1)
    out = jax.lax.conv_general_dilated(
        pixels, _block_kernel(kernel), (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    return out.reshape(batch, rows, columns, outputs)


def pool_blocks(top_left: Array, top_right: Array, low_left: Array, low_right: Array) -> Array:
    """Max-pools windows of 3x3 with stride 2 and padding 1: one output [B, h, w, O] of each block.

    Args:
        top_left, top_right, low_left, low_right: the values of each block, not negative.
    """
    top, low = (
        jnp.maximum(jnp.maximum(left, right), _shift(right, 2, 1))
        for left, right in ((top_left, top_right), (low_left, low_right))
    )
    return jnp.maximum(jnp.maximum(top, low), _shift(low, 1, 1))


def _block_kernel(kernel):
    """The kernel over three blocks of a row, from the pixels of three rows of blocks to 2x2 outputs."""
    channels = kernel.shape[2]

    def place(y, x):  # the first output begins 3 pixels before its block: at the 2nd of 12
        return jnp.pad(kernel, ((1 + 2 * y, 4 - 2 * y), (1 + 2 * x, 4 - 2 * x), (0, 0), (0, 0)))

    placed = jnp.concatenate([place(y, x) for y in range(2) for x in range(2)], axis=-1)
    placed = placed.reshape(3, 4, 3, 4, channels, -1).transpose(2, 0, 4, 1, 3, 5)
    return placed.reshape(3, 48 * channels, -1)


def _shift(x, axis, step):
    """Moves entries by ``step`` places along an axis; 0 moves in."""
    padding = [(step, -step, 0) if each == axis else (0, 0, 0) for each in range(x.ndim)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), padding)
