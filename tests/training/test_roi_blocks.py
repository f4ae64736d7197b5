"""Losses over RoI slots, block by block: values, gradients, and what is left out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.runtime import compiling_for
from mrcnn_jax.training.roi_blocks import BLOCK, sum_over_rois


class Head(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(nn.Dense(3, name="layer")(x.reshape(len(x), -1)))


def squared_error(head, features, targets, weights):
    return jnp.sum((head(features) - targets) ** 2 * weights[:, None])


def problem(images, slots, filled):
    """Features, targets, valid slots, and variables."""
    random = np.random.default_rng(slots)
    features = random.standard_normal((images, slots, 2, 2, 4)).astype(np.float32)
    targets = random.standard_normal((images, slots, 3)).astype(np.float32)
    valid = np.arange(slots) < np.reshape(filled, (-1, 1))
    return features, targets, valid, Head().init(jax.random.key(0), features[0])


def value_and_gradients(features, targets, valid, variables):
    def loss(variables, features):
        def total(head):
            return sum_over_rois(squared_error, head, features, (targets, valid.astype(jnp.float32)), valid)

        return 3 * nn.apply(total, Head())(variables)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables, features)


@pytest.mark.parametrize(
    "images, slots, filled",
    [(1, BLOCK, [0]), (1, 3 * BLOCK, [BLOCK + 1]), (2, 20, [3, 0]), (3, 5, [5, 1, 2]), (2, BLOCK, [16, 16])],
)
def test_value_and_gradients_are_those_of_all_rois_at_once(images, slots, filled):
    given = problem(images, slots, filled)
    value, gradients = value_and_gradients(*given)
    with compiling_for("tpu"):
        expected, expected_gradients = value_and_gradients(*given)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for ours, wanted in zip(*map(jax.tree.leaves, (gradients, expected_gradients)), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-4)
    assert (value > 0) == (sum(filled) > 0)


def test_blocks_without_a_valid_roi_are_not_computed():
    """NaN would spread, as it does if all RoIs are computed at once."""
    features, *rest = problem(1, 3 * BLOCK, [BLOCK])
    features[:, BLOCK:] = np.nan
    value, gradients = value_and_gradients(features, *rest)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert not gradients[1][:, BLOCK:].any()
    with compiling_for("tpu"):
        assert np.isnan(value_and_gradients(features, *rest)[0])
