"""Convolutions and biases: values and gradients on CPU, and the operations of each platform's program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.models.layers import kernel_gradient as module
from mrcnn_jax.models.layers.bias import add_bias
from mrcnn_jax.models.layers.convolution import Conv, convolution
from mrcnn_jax.models.layers.kernel_gradient import winograd_kernel_gradient
from mrcnn_jax.runtime import compiling_for

SAME = ((1, 1), (1, 1))


def kernel_gradient_oracle(x, cotangent, size, padding, stride=1):
    """One product per tap."""
    _, height, width, _ = cotangent.shape
    x = np.pad(x.astype(np.float64), ((0, 0), *padding, (0, 0)))
    taps = [
        [
            x[:, row : row + stride * height : stride, column : column + stride * width : stride]
            for column in range(size)
        ]
        for row in range(size)
    ]
    return np.array([[np.einsum("nyxc,nyxo->co", tap, cotangent) for tap in row] for row in taps])


@pytest.fixture(params=["small", "large"])
def map_size(monkeypatch, request):
    """Small maps take their own operations, or those of large ones."""
    if request.param == "large":
        monkeypatch.setattr(module, "LARGE", 0)


@pytest.mark.parametrize(
    "shape, padding",
    [
        ((1, 1, 1, 3), SAME),
        ((3, 2, 9, 2), SAME),
        ((2, 13, 6, 3), ((0, 0), (0, 0))),
        ((1, 7, 5, 4), ((0, 2), (2, 1))),
        ((0, 8, 8, 2), SAME),
        ((2, 21, 700, 1), SAME),  # several strips of rows
    ],
)
def test_kernel_gradient_equals_one_product_per_tap(shape, padding):
    random = np.random.default_rng(shape[1])
    sides = [side + sum(edges) - 2 for side, edges in zip(shape[1:3], padding, strict=True)]
    x, cotangent = random.standard_normal(shape), random.standard_normal((shape[0], *sides, 5))
    expected = kernel_gradient_oracle(x, cotangent, 3, padding)
    with jax.enable_x64(True):
        gradient = winograd_kernel_gradient(x, cotangent, padding)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-10)


def test_float32_kernel_gradient_is_as_exact_as_its_sum():
    """ReLU features, whose sums grow, in a map of a real layer's size."""
    random = np.random.default_rng(0)
    x = np.maximum(random.standard_normal((1, 100, 168, 8)), 0).astype(np.float32)
    cotangent = random.standard_normal((1, 100, 168, 4)).astype(np.float32)
    error = winograd_kernel_gradient(x, cotangent, SAME) - kernel_gradient_oracle(x, cotangent, 3, SAME)
    assert np.linalg.norm(error) < 3e-6 * np.linalg.norm(kernel_gradient_oracle(x, cotangent, 3, SAME))


@pytest.mark.usefixtures("map_size")
@pytest.mark.parametrize(
    "size, stride, padding, dilation",
    [(3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 2, 2), (1, 1, 0, 1), (1, 2, 0, 1), (3, 1, 0, 1), (5, 1, 1, 1)],
)
def test_values_and_gradients_equal_those_of_jax(size, stride, padding, dilation):
    random = np.random.default_rng(size)
    x, kernel = random.standard_normal((2, 9, 7, 4)), random.standard_normal((size, size, 4, 6))
    options = (stride, stride), [(padding, padding)] * 2, (dilation, dilation)

    def jax_convolution(x, kernel):
        strides, edges, dilations = options
        return jax.lax.conv_general_dilated(
            x, kernel, strides, edges, rhs_dilation=dilations, dimension_numbers=module.DIMENSIONS
        )

    def ours(x, kernel):
        return convolution(x, kernel, *options)

    with jax.enable_x64(True):
        expected, jax_backward = jax.vjp(jax_convolution, x, kernel)
        y, backward = jax.vjp(jax.checkpoint(ours), x, kernel)
        np.testing.assert_allclose(y, expected, atol=1e-12)
        cotangent = random.standard_normal(expected.shape)
        for gradient, wanted in zip(backward(cotangent), jax_backward(cotangent), strict=True):
            np.testing.assert_allclose(gradient, wanted, atol=1e-11)


@pytest.mark.usefixtures("map_size")
@pytest.mark.parametrize("map_over", [jax.vmap, jax.pmap])
def test_gradients_under_vmap_and_pmap(map_over):
    random = np.random.default_rng(3)
    x = random.standard_normal((2, 3, 8, 6, 4)).astype(np.float32)
    kernel = random.standard_normal((3, 3, 4, 5)).astype(np.float32)

    def gradients(convolve):
        return lambda x: jax.grad(lambda x, k: (convolve(x, k) ** 2).sum(), argnums=(0, 1))(x, kernel)

    def jax_convolution(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), SAME, dimension_numbers=module.DIMENSIONS)

    mapped = map_over(gradients(lambda x, kernel: convolution(x, kernel, (1, 1), SAME)))(x)
    for index in range(2):
        alone = gradients(jax_convolution)(x[index])
        for ours, wanted in zip(mapped, alone, strict=True):
            np.testing.assert_allclose(ours[index], wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("platform, on_cpu", [("cpu", True), ("tpu", False), ("gpu", False)])
def test_only_cpu_has_its_own_operations(platform, on_cpu):
    x = jax.ShapeDtypeStruct((1, 128, 128, 96), jnp.float32)
    kernels = [jax.ShapeDtypeStruct((size, size, 96, 96), jnp.float32) for size in (1, 3)]

    def program(kernel, padding, dtype=jnp.float32):
        def loss(x, kernel):
            return (convolution(x.astype(dtype), kernel.astype(dtype), (1, 1), padding) ** 2).sum()

        with compiling_for(platform):
            traced = jax.jit(jax.grad(loss, argnums=1)).trace(x, kernel)
            return traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,)).as_text()

    one, three = program(kernels[0], ((0, 0), (0, 0))), program(kernels[1], SAME)
    assert ("stablehlo.convolution" in one) != on_cpu
    assert ("kernel_gradient" in three) == on_cpu
    assert "kernel_gradient" not in program(kernels[1], SAME, jnp.bfloat16)


def test_bias_gradient_is_the_sum_over_positions():
    random = np.random.default_rng(4)
    x, bias = random.standard_normal((2, 31, 17, 3)), random.standard_normal(3)
    cotangent = random.standard_normal(x.shape)
    with jax.enable_x64(True):
        y, backward = jax.vjp(add_bias, x, bias)
        np.testing.assert_allclose(y, x + bias, atol=1e-15)
        x_gradient, bias_gradient = backward(cotangent)
    np.testing.assert_array_equal(x_gradient, cotangent)
    np.testing.assert_allclose(bias_gradient, cotangent.sum(axis=(0, 1, 2)), atol=1e-11)


def test_layer_has_the_variables_and_values_of_flax():
    import flax.linen as nn

    x = np.random.default_rng(5).standard_normal((2, 9, 8, 6)).astype(np.float32)
    for options in ({"padding": 1}, {"padding": 2, "kernel_dilation": 2, "feature_group_count": 2},
                    {"padding": 1, "strides": (2, 2), "use_bias": False}):  # fmt: skip
        ours, flax = Conv(4, (3, 3), **options), nn.Conv(4, (3, 3), **options)
        variables = flax.init(jax.random.key(0), x)
        jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(0), x), variables)
        np.testing.assert_allclose(ours.apply(variables, x), flax.apply(variables, x), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_inside_conditionals_are_in_the_layout_xla_is_fast_in(dtype):
    """XLA only rearranges convolutions outside loops and conditionals."""
    x, kernel = jnp.zeros((2, 8, 8, 4), dtype), jnp.zeros((3, 3, 4, 6), dtype)

    def loss(x, kernel):
        return convolution(x, kernel, (1, 1), SAME).astype(jnp.float32).sum()

    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, kernel).as_text()
    fast = text.count("dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]")
    assert fast == text.count("stablehlo.convolution") > 0
