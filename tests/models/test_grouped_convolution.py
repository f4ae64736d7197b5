"""Grouped convolutions: values, gradients, and the operations of each platform's program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.models.layers.grouped_convolution import grouped_convolution
from mrcnn_jax.runtime import compiling_for

LAYOUT = ("NHWC", "HWIO", "NHWC")


def operands(groups: int, dtype=np.float64):
    random, shapes = np.random.default_rng(groups), ((2, 9, 7, 12), (3, 3, 12 // groups, 24))
    return tuple(random.standard_normal(shape).astype(dtype) for shape in shapes)


def oracle(x, kernel, groups, stride, dilation):
    """One product per tap and group."""
    padded = np.pad(x, ((0, 0), (dilation, dilation), (dilation, dilation), (0, 0)))
    height, width = (-(-size // stride) for size in x.shape[1:3])
    y = np.zeros((len(x), height, width, kernel.shape[-1]))
    inputs, outputs = x.shape[-1] // groups, kernel.shape[-1] // groups
    for row in range(3):
        for column in range(3):
            read = padded[:, row * dilation :: stride, column * dilation :: stride][:, :height, :width]
            for group in range(groups):
                source = slice(group * inputs, (group + 1) * inputs)
                target = slice(group * outputs, (group + 1) * outputs)
                y[..., target] += read[..., source] @ kernel[row, column, :, target]
    return y


@pytest.mark.parametrize("groups, stride, dilation", [(1, 1, 1), (4, 1, 1), (12, 2, 1), (3, 1, 2), (2, 2, 1)])
def test_values_and_gradients_are_those_of_each_group(groups, stride, dilation):
    x, kernel = operands(groups)

    def convolve(x, kernel):
        return grouped_convolution(
            x, kernel, (stride, stride), [(dilation, dilation)] * 2, rhs_dilation=(dilation, dilation),
            dimension_numbers=LAYOUT, feature_group_count=groups,
        )  # fmt: skip

    with jax.enable_x64(True):
        expected = oracle(x, kernel, groups, stride, dilation)
        np.testing.assert_allclose(convolve(x, kernel), expected, atol=1e-12)
        trained, backward = jax.vjp(convolve, x, kernel)
        np.testing.assert_allclose(trained, expected, atol=1e-12)
        cotangent = np.random.default_rng(1).standard_normal(expected.shape)
        x_gradient, kernel_gradient = map(np.asarray, backward(cotangent))
    # linear in each operand, so that the derivative along a direction is the operation on that direction
    random = np.random.default_rng(2)
    dx, dkernel = random.standard_normal(x.shape), random.standard_normal(kernel.shape)
    for gradient, direction, operands_ in (
        (x_gradient, dx, (dx, kernel)),
        (kernel_gradient, dkernel, (x, dkernel)),
    ):
        expected = (cotangent * oracle(*operands_, groups, stride, dilation)).sum()
        np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=1e-11)


@pytest.mark.parametrize("platform, convolutions", [("cpu", 4), ("tpu", 1), ("gpu", 1)])
def test_only_cpu_differentiates_group_by_group(platform, convolutions):
    """A CPU must not get the kernel's gradient as one operation; the forward pass is one everywhere."""

    def convolve(x, kernel):
        return grouped_convolution(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT, feature_group_count=4)

    def gradient(x, kernel):
        return jax.grad(lambda kernel: jnp.square(convolve(x, kernel)).sum())(kernel)

    def program(function):
        with compiling_for(platform):
            traced = jax.jit(function).trace(*operands(4, np.float32))
            return traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,)).as_text()

    assert program(convolve).count("stablehlo.convolution") == 1
    text = program(gradient)
    assert text.count("stablehlo.convolution") == 2 * convolutions  # forward, and the kernel's gradient
    assert ("batch_group_count = 4" in text) == (platform != "cpu")
