"""Convolutions in groups: what they compute, and of which operations their gradients are made on each platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.models.layers.grouped_convolution import grouped_convolution

LAYOUT = ("NHWC", "HWIO", "NHWC")


def operands(groups: int, dtype=np.float64):
    random = np.random.default_rng(groups)
    return random.standard_normal((2, 9, 7, 12)).astype(dtype), random.standard_normal((3, 3, 12 // groups, 24)).astype(dtype)


def oracle(x, kernel, groups, stride, dilation):
    """A product for each tap and group."""
    padded = np.pad(x, ((0, 0), (dilation, dilation), (dilation, dilation), (0, 0)))
    height, width = (-(-size // stride) for size in x.shape[1:3])
    y = np.zeros((len(x), height, width, kernel.shape[-1]))
    inputs, outputs = x.shape[-1] // groups, kernel.shape[-1] // groups
    for row in range(3):
        for column in range(3):
            read = padded[:, row * dilation :: stride, column * dilation :: stride][:, :height, :width]
            for group in range(groups):
                of, to = slice(group * inputs, (group + 1) * inputs), slice(group * outputs, (group + 1) * outputs)
                y[..., to] += read[..., of] @ kernel[row, column, :, to]
    return y


@pytest.mark.parametrize("groups, stride, dilation", [(1, 1, 1), (4, 1, 1), (12, 2, 1), (3, 1, 2), (2, 2, 1)])
def test_it_and_its_gradients_are_those_of_each_group(groups, stride, dilation):
    x, kernel = operands(groups)

    def convolve(x, kernel):
        return grouped_convolution(x, kernel, (stride, stride), [(dilation, dilation)] * 2, rhs_dilation=(dilation, dilation), dimension_numbers=LAYOUT, feature_group_count=groups)

    with jax.enable_x64(True):
        expected = oracle(x, kernel, groups, stride, dilation)
        np.testing.assert_allclose(convolve(x, kernel), expected, atol=1e-12)
        trained, backward = jax.vjp(convolve, x, kernel)
        np.testing.assert_allclose(trained, expected, atol=1e-12)
        cotangent = np.random.default_rng(1).standard_normal(expected.shape)
        of_x, of_kernel = map(np.asarray, backward(cotangent))
    # it is linear in each operand, so the gradient along a direction is the operation on that direction
    random = np.random.default_rng(2)
    along_x, along_kernel = random.standard_normal(x.shape), random.standard_normal(kernel.shape)
    np.testing.assert_allclose((of_x * along_x).sum(), (cotangent * oracle(along_x, kernel, groups, stride, dilation)).sum(), rtol=1e-11)
    np.testing.assert_allclose((of_kernel * along_kernel).sum(), (cotangent * oracle(x, along_kernel, groups, stride, dilation)).sum(), rtol=1e-11)


@pytest.mark.parametrize("platform, convolutions", [("cpu", 4), ("tpu", 1), ("cuda", 1)])
def test_a_cpu_trains_group_by_group(platform, convolutions):
    """The kernel's gradient as one operation (batch groups) is what a CPU must not be given; without gradients there is one convolution everywhere."""

    def convolve(x, kernel):
        return grouped_convolution(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT, feature_group_count=4)

    def gradient(x, kernel):
        return jax.grad(lambda kernel: jnp.square(convolve(x, kernel)).sum())(kernel)

    def program(function):
        return jax.jit(function).trace(*operands(4, np.float32)).lower(lowering_platforms=(platform,)).as_text()

    assert program(convolve).count("stablehlo.convolution") == 1
    text = program(gradient)
    assert text.count("stablehlo.convolution") == 2 * convolutions  # forwards, and the kernel's gradient
    assert ("batch_group_count = 4" in text) == (platform != "cpu")
