"""Convolutions in groups (ResNeXt), with a gradient that a CPU can compute."""

from functools import partial

import jax
import jax.numpy as jnp

from mrcnn_jax.typing import Array, Float


def grouped_convolution(x: Float[Array, "B H W C"], kernel: Float[Array, "h w i O"], *arguments, feature_group_count: int = 1, **settings) -> Float[Array, "B y x O"]:
    """``jax.lax.conv_general_dilated``, for ``conv_general_dilated`` of ``flax.linen.Conv``; C = i * feature_group_count.

    On CPU, XLA has naive loops for the gradient of a kernel in groups, 50 to 130 times as slow as a convolution for each group. Training takes these there;
    without gradients, and on accelerators, there is one operation, which is compiled sooner.
    """
    if feature_group_count == 1:
        return jax.lax.conv_general_dilated(x, kernel, *arguments, **settings)

    def whole(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, *arguments, feature_group_count=feature_group_count, **settings)

    def by_group(x, kernel):
        parts = zip(*(jnp.split(operand, feature_group_count, axis=-1) for operand in (x, kernel)), strict=True)
        return jnp.concatenate([jax.lax.conv_general_dilated(*part, *arguments, **settings) for part in parts], axis=-1)

    def forward(*operands):
        return jax.lax.platform_dependent(*operands, cpu=by_group, default=whole), operands

    def backward(operands, cotangent):
        return jax.lax.platform_dependent(*operands, cotangent, cpu=partial(_gradients, by_group), default=partial(_gradients, whole))

    convolve = jax.custom_vjp(whole)
    convolve.defvjp(forward, backward)
    return convolve(x, kernel)


def _gradients(form, x, kernel, cotangent):
    return jax.vjp(form, x, kernel)[1](cotangent)
