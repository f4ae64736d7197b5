"""RoIWarp: against the oracle and a recorded float64 program, forward and backward."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from rois import BOXES, HUGE, IMAGE, assert_equals_golden

from mrcnn_jax.ops import roi_align, roi_warp

pytestmark = pytest.mark.usefixtures("strict_promotion")


def test_equals_roi_align_of_rounded_boxes():
    boxes = jnp.asarray([[2.5, 3.4, 9.6, 8.5], [-1.5, -0.5, 4.4, 6.0]])
    rounded = jnp.asarray([[3.0, 3.0, 10.0, 9.0], [-2.0, -1.0, 4.0, 6.0]])
    expected = roi_align(IMAGE, rounded, 7, half_pixel=False)
    np.testing.assert_array_equal(roi_warp(IMAGE, boxes, 7), expected)


@pytest.mark.parametrize("reduction, samples", [("average", 2), ("max", 0)])
def test_equals_the_oracle(reduction, samples):
    pooled = roi_warp(IMAGE, BOXES, (3, 5), 0.5, samples, reduction)
    reduce = {"average": np.mean, "max": np.max}[reduction]
    expected = oracles.roi_warp(IMAGE, BOXES, (3, 5), 0.5, samples, reduce)
    np.testing.assert_allclose(pooled, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "scale, size, reduction, variant",
    [("0.25", "7x7", "max", "warp_max"), ("1", "3x5", "average", "warp_avg")],
)
def test_equals_the_float64_program_forward_and_backward(golden, scale, size, reduction, variant):
    operation = partial(roi_warp, reduction=reduction)
    assert_equals_golden(operation, golden("roi_warp"), scale, size, variant, 1e-5, 2e-5)


def test_boxes_get_no_gradient():
    assert not jax.grad(lambda boxes: roi_warp(IMAGE, boxes, (3, 5), 0.5).sum())(jnp.asarray(BOXES)).any()


def test_a_straight_through_gradient_equals_the_numerical_one_of_unrounded_boxes():
    rng = np.random.default_rng(3)
    corner, size = rng.integers(-2, 10, (12, 2)), rng.choice([3, 5, 6, 7, 9], (12, 2))
    rounded = np.float64(np.concatenate([corner, corner + size], axis=1))  # no sample lies on a cell
    boxes = np.float32(2 * (rounded + rng.uniform(-0.4, 0.4, rounded.shape)))
    cotangent = rng.standard_normal((12, 3, 5, 2))

    def pool(boxes, implementation=None):
        return roi_warp(IMAGE, boxes, (3, 5), 0.5, 2, "max", True, implementation)

    @jax.jit
    def differentiate(boxes, change):
        pooled, backward = jax.vjp(pool, boxes)
        _, forward = jax.jvp(partial(pool, implementation="reference"), (boxes,), (change,))
        return pooled, backward(np.float32(cotangent))[0], forward

    change = np.float32(rng.standard_normal((12, 4)))
    pooled, gradient, forward = differentiate(boxes, change)
    np.testing.assert_array_equal(pooled, roi_warp(IMAGE, boxes, (3, 5), 0.5, 2, "max"))
    np.testing.assert_allclose((forward * cotangent).sum(), (gradient * change).sum(), rtol=1e-4)

    def oracle(boxes):
        bins = oracles.roi_align(np.float64(IMAGE), boxes, (3, 5), 1.0, 2, False, np.max)
        return (bins * cotangent).sum(axis=(1, 2, 3))

    for coordinate in range(4):
        step = 1e-6 * np.eye(4)[coordinate]
        expected = 0.5 * (oracle(rounded + step) - oracle(rounded - step)) / 2e-6
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(gradient[:, coordinate], expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("reduction, samples", [("average", 2), ("max", 0)])
def test_any_finite_box_gives_finite_features(reduction, samples):
    boxes = np.concatenate([HUGE, BOXES[len(HUGE) :]])
    pooled = roi_warp(IMAGE, boxes, (3, 5), 0.5, samples, reduction)
    assert np.isfinite(pooled).all() and not pooled[2].any() and pooled[4].any()
