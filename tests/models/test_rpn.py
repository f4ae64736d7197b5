"""The region proposal network's head on whole maps, and on the cells around some anchors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.models.rpn import RPNHead

ANCHORS, SIDES = 2, ((3, 5), (2, 3), (1, 1))


@pytest.mark.parametrize("convolutions", [0, 1, 2])
def test_anchors_computed_from_their_cells_are_those_of_the_maps(convolutions):
    """Values and gradients, at every border: all anchors, in a random order that differs between images."""
    random = np.random.default_rng(convolutions)
    pyramid = [jnp.asarray(random.standard_normal((2, *side, 4)), jnp.float32) for side in SIDES]
    head = RPNHead(ANCHORS, convolutions)
    shapes = jax.eval_shape(head.init, jax.random.key(0), pyramid)
    variables = jax.tree.map(lambda leaf: jnp.asarray(random.standard_normal(leaf.shape), leaf.dtype), shapes)
    number = ANCHORS * sum(height * width for height, width in SIDES)
    index = jnp.asarray(np.stack([random.permutation(number) for _ in range(2)]))
    weights = jnp.asarray(random.standard_normal((2, number, 5)), jnp.float32)

    def dense(variables, pyramid):
        logits, deltas = (jnp.concatenate(levels, axis=1) for levels in head.apply(variables, pyramid))
        deltas = jnp.take_along_axis(deltas, index[..., None], axis=1)
        return weighted(jnp.take_along_axis(logits, index, axis=1), deltas)

    def at_anchors(variables, pyramid):
        return weighted(*head.apply(variables, pyramid, index, method="at_anchors"))

    def weighted(logits, deltas):
        return jnp.sum(weights[..., 0] * logits) + jnp.sum(weights[..., 1:] * deltas**2)

    (expected, expected_gradient), (value, gradient) = (
        jax.value_and_grad(function, argnums=(0, 1))(variables, pyramid) for function in (dense, at_anchors)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for ours, wanted in zip(*map(jax.tree.leaves, (gradient, expected_gradient)), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-4 * float(jnp.abs(wanted).max()))
