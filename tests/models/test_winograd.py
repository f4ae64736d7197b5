"""Winograd convolutions: values of odd shapes, accuracy, gradients, and where programs use them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.models.layers import convolution as module
from mrcnn_jax.models.layers.convolution import convolution
from mrcnn_jax.models.layers.winograd import winograd_convolution
from mrcnn_jax.runtime import compiling_for

LAYOUT = ("NHWC", "HWIO", "NHWC")
SAME = [(1, 1), (1, 1)]


def operands(shape, outputs, dtype=np.float64):
    random = np.random.default_rng(outputs)
    kernel = random.standard_normal((3, 3, shape[-1], outputs)) / np.sqrt(9 * shape[-1])
    return random.standard_normal(shape).astype(dtype), kernel.astype(dtype)


def oracle(x, kernel, padding):
    """One product per tap, in float64."""
    x = np.pad(x.astype(np.float64), ((0, 0), *padding, (0, 0)))
    height, width = x.shape[1] - 2, x.shape[2] - 2
    taps = [(i, j) for i in range(3) for j in range(3)]
    return sum(x[:, i : i + height, j : j + width] @ kernel[i, j].astype(np.float64) for i, j in taps)


@pytest.fixture
def small(monkeypatch):
    """Lets small convolutions be Winograd's."""
    monkeypatch.setattr(module, "WINOGRAD_CHANNELS", 4)
    monkeypatch.setattr(module, "WINOGRAD_CELLS", 16)


@pytest.mark.parametrize(
    "shape, outputs, padding, tiles",
    [
        ((1, 13, 9, 5), 3, SAME, 340),  # one strip
        ((1, 29, 18, 4), 6, SAME, 10),  # strips of two rows of tiles
        ((1, 29, 18, 4), 6, SAME, 1),  # strips narrower than the map
        ((3, 7, 6, 5), 2, SAME, 8),  # strips of two images, and of one
        ((2, 21, 5, 3), 4, [(0, 0), (2, 1)], 4),  # several strips an image
        ((1, 1, 1, 3), 2, SAME, 340),  # smaller than a tile
        ((2, 3, 2, 1), 1, [(0, 0), (1, 0)], 340),  # one output
        ((1, 8, 16, 2), 2, [(5, 0), (0, 7)], 3),
    ],
)
def test_values_are_those_of_the_definition(shape, outputs, padding, tiles):
    x, kernel = operands(shape, outputs)
    with jax.enable_x64(True):
        found = winograd_convolution(jnp.asarray(x), jnp.asarray(kernel), padding, tiles)
    np.testing.assert_allclose(found, oracle(x, kernel, padding), atol=1e-13)


def test_error_in_float32_is_a_few_times_that_of_the_direct_convolution():
    x, kernel = operands((1, 17, 18, 256), 64, np.float32)
    x = np.maximum(x, 0)
    expected = oracle(x, kernel, SAME)
    direct = jax.lax.conv_general_dilated(x, kernel, (1, 1), SAME, dimension_numbers=LAYOUT)

    def error(found):
        return np.sqrt(np.mean((np.asarray(found) - expected) ** 2)) / expected.std()

    assert error(direct) < 5e-7
    assert error(winograd_convolution(jnp.asarray(x), jnp.asarray(kernel), SAME)) < 2e-6


def test_gradients_are_those_of_the_direct_convolution(small):
    x, kernel = operands((2, 9, 7, 4), 5, np.float32)

    def direct(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), SAME, dimension_numbers=LAYOUT)

    def fast(x, kernel):
        return convolution(x, kernel, (1, 1), SAME)

    assert "while" in jax.jit(fast).lower(x, kernel).as_text()
    np.testing.assert_allclose(fast(x, kernel), direct(x, kernel), atol=1e-5)
    assert "while" in jax.jit(jax.grad(lambda *given: fast(*given).sum())).lower(x, kernel).as_text()
    value, backward = jax.vjp(fast, x, kernel)
    expected, expected_backward = jax.vjp(direct, x, kernel)
    np.testing.assert_allclose(value, expected, atol=1e-5)
    for found, wanted in zip(backward(value), expected_backward(value), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)


def uses_winograd(x, kernel, platform="cpu", strides=(1, 1), **settings) -> bool:
    def program(x, kernel):
        return convolution(x, kernel, strides, SAME, **settings)

    with compiling_for(platform):
        text = str(jax.make_jaxpr(program)(x, kernel))
    return "scan" in text or "while" in text


def test_only_large_ordinary_convolutions_of_float32_on_cpu_use_it(small):
    x, kernel = operands((1, 4, 4, 4), 4, np.float32)
    assert uses_winograd(x, kernel)
    assert not uses_winograd(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert not uses_winograd(x, kernel, platform="gpu")
    assert not uses_winograd(x, kernel, platform="tpu")
    assert not uses_winograd(x, kernel, strides=(1, 2))
    assert not uses_winograd(x, kernel, rhs_dilation=(2, 2))
    assert not uses_winograd(x, kernel[:2])
    assert not uses_winograd(x, kernel[..., :3])
    assert not uses_winograd(x[..., :3], kernel[:, :, :3])
    assert not uses_winograd(x[:, :3], kernel)
    assert not uses_winograd(x, kernel[:, :, :2], feature_group_count=2)


def test_convolutions_below_256_channels_or_of_small_maps_are_direct():
    x, kernel = operands((1, 40, 100, 256), 256, np.float32)
    assert uses_winograd(x, kernel)
    assert not uses_winograd(x[:, :39], kernel)
    assert not uses_winograd(x[..., :255], kernel[:, :, :255])
