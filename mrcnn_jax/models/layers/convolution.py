"""The convolution of every layer, with the operations that are fastest for the platform."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.models.layers.bias import add_bias
from mrcnn_jax.models.layers.grouped_convolution import grouped_convolution
from mrcnn_jax.models.layers.kernel_gradient import DIMENSIONS, kernel_gradient
from mrcnn_jax.models.layers.strips import WHOLE, Strips
from mrcnn_jax.models.layers.winograd import winograd_convolution
from mrcnn_jax.runtime import target_platform
from mrcnn_jax.typing import Array, Float

WINOGRAD_CHANNELS, WINOGRAD_CELLS = 256, 4_000
"""Channels, and cells of all maps, from which ``winograd_convolution`` is clearly faster."""


def convolution(
    x: Float[Array, "N H W C"], kernel: Float[Array, "h w c O"], strides: tuple[int, int],
    padding: Sequence[tuple[int, int]], rhs_dilation: tuple[int, int] = (1, 1), feature_group_count: int = 1,
) -> Float[Array, "N y x O"]:  # fmt: skip
    """Computes ``jax.lax.conv_general_dilated``.

    On CPU, convolutions of 1x1, and of patches as large as the kernel, are matrix products, because XLA
    rearranges maps for kernel gradients one number at a time, and others of stride 1 have
    ``kernel_gradient``, but no forward-mode derivative. Large ones, and large gradients of their inputs, are
    ``winograd_convolution``.
    """
    options = {"rhs_dilation": rhs_dilation, "dimension_numbers": DIMENSIONS}
    if feature_group_count > 1:
        options["feature_group_count"] = feature_group_count
        return grouped_convolution(x, kernel, strides, padding, **options)

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)

    padding, size = tuple((low, high) for low, high in padding), kernel.shape[:2]
    if target_platform() != "cpu":
        return convolve(x, kernel)
    as_product = padding == ((0, 0), (0, 0)) and x.dtype in (jnp.float32, jnp.float64)
    if as_product and size == x.shape[1:3] and rhs_dilation == (1, 1):  # of patches
        flat = kernel.reshape(-1, kernel.shape[-1])
        return (x.reshape(len(x), len(flat)) @ flat)[:, None, None]
    if as_product and size == (1, 1):
        x = x[:, :: strides[0], :: strides[1]]
        # flat, as XLA would transpose maps of several axes for the gradient of the kernel
        return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])
    if strides != (1, 1) or rhs_dilation != (1, 1):
        return convolve(x, kernel)

    def multiply(x, kernel, padding):
        """Computes a convolution of stride 1."""
        cells, large = x.size // x.shape[-1], min(kernel.shape[2:]) >= WINOGRAD_CHANNELS
        if size == (3, 3) and x.dtype == jnp.float32 and large and cells >= WINOGRAD_CELLS:
            return winograd_convolution(x, kernel, padding)
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)

    def forward(x, kernel):
        return multiply(x, kernel, padding), (x, kernel)

    def backward(operands, cotangent):
        x, kernel = operands
        edges = [(side - 1 - low, side - 1 - high) for side, (low, high) in zip(size, padding, strict=True)]
        x_gradient = multiply(cotangent, kernel[::-1, ::-1].swapaxes(2, 3), edges)
        return x_gradient, kernel_gradient(x, cotangent, size, padding)

    with_gradient = jax.custom_vjp(lambda x, kernel: multiply(x, kernel, padding))
    with_gradient.defvjp(forward, backward)
    return with_gradient(x, kernel)


class Conv(nn.Module):
    """``flax.linen.Conv`` of images, with ``convolution`` and ``add_bias``."""

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: int = 0
    kernel_dilation: int = 1
    feature_group_count: int = 1
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "N H W _c"], strips: Strips = WHOLE) -> Float[Array, "N h w C"]:
        """Convolves images, or their strips, and adds the bias."""
        shape = (*self.kernel_size, x.shape[-1] // self.feature_group_count, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x, padding = x.astype(self.dtype), [(self.padding, self.padding)] * 2
        if strips.number > 1 and self.padding:
            x, padding[strips.axis - 1] = strips.pad(x, self.padding), (0, 0)
        dilation = self.kernel_dilation, self.kernel_dilation
        y = convolution(
            x, kernel.astype(self.dtype), self.strides, padding, dilation, self.feature_group_count
        )
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return add_bias(y, bias.astype(self.dtype))
