"""The stem's max pooling and its gradient against XLA's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.models.layers.max_pool import max_pool


def windows(x):
    return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 7, 5, 2), (1, 1, 2, 1)])
def test_gradient_goes_to_the_first_maximum(shape):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.integers(0, 3, shape), jnp.float32)  # many windows have several maxima
    expected, pull_expected = jax.vjp(windows, x)
    y, pull = jax.vjp(max_pool, x)
    cotangent = jnp.asarray(random.normal(size=y.shape), jnp.float32)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(pull(cotangent)[0], pull_expected(cotangent)[0], rtol=1e-6, atol=1e-6)


def test_every_cotangent_arrives_once():
    x = jnp.zeros((1, 9, 10, 1))  # as after ReLU, where all inputs of a window are 0
    y, pull = jax.vjp(max_pool, x)
    gradient = pull(jnp.ones_like(y))[0]
    assert float(gradient.sum()) == y.size and float(gradient[0, 0, 0, 0]) == 1
