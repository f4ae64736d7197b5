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


@pytest.mark.parametrize("reduction, samples", [("average", 2), ("max", 0)])
def test_any_finite_box_gives_finite_features(reduction, samples):
    boxes = np.concatenate([HUGE, BOXES[len(HUGE) :]])
    pooled = roi_warp(IMAGE, boxes, (3, 5), 0.5, samples, reduction)
    assert np.isfinite(pooled).all() and not pooled[2].any() and pooled[4].any()
