"""Grouped convolution (ResNeXt) whose gradient is fast on a CPU."""

import jax
import jax.numpy as jnp

from mrcnn_jax.runtime import target_platform
from mrcnn_jax.typing import Array, Float


def grouped_convolution(
    x: Float[Array, "N H W C"], kernel: Float[Array, "h w c O"], *args, feature_group_count: int = 1, **kwargs
) -> Float[Array, "N y x O"]:
    """Computes ``jax.lax.conv_general_dilated``, as ``conv_general_dilated`` of ``flax.linen.Conv``.

    XLA has naive loops for the kernel's gradient of a grouped convolution on CPU, 50 to 130 times as slow as
    one convolution per group. Programs for CPU therefore differentiate the latter. Without a gradient, and on
    accelerators, there is one operation, which compiles sooner.

    Args:
        x: features, C = c * feature_group_count.
        kernel: of all groups.
        *args: window strides and padding.
        feature_group_count: number of groups.
        **kwargs: further arguments of ``conv_general_dilated``.
    """
    conv = jax.lax.conv_general_dilated

    def grouped(x, kernel):
        return conv(x, kernel, *args, feature_group_count=feature_group_count, **kwargs)

    def group_by_group(x, kernel):
        groups = zip(*(jnp.split(array, feature_group_count, axis=-1) for array in (x, kernel)), strict=True)
        return jnp.concatenate([conv(*group, *args, **kwargs) for group in groups], axis=-1)

    if feature_group_count == 1 or target_platform() != "cpu":
        return grouped(x, kernel)

    def forward(x, kernel):
        return group_by_group(x, kernel), (x, kernel)

    def backward(operands, cotangent):
        return jax.vjp(group_by_group, *operands)[1](cotangent)

    convolve = jax.custom_vjp(grouped)
    convolve.defvjp(forward, backward)
    return convolve(x, kernel)
