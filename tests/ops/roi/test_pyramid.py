"""RoI operations over a pyramid: each RoI as from its level and image alone, and as in the libraries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rois import PYRAMID, STRIDES, boxes_and_levels, oracle_bins

from mrcnn_jax import ops

pytestmark = pytest.mark.usefixtures("strict_promotion")
OPTIONS = ("strides", "output_size", "operation", "reduction", "sampling_ratio", "half_pixel")
pool_rois = jax.jit(ops.pool_rois, static_argnames=OPTIONS)
BOXES, LEVELS = boxes_and_levels()
DETECTRON2_POOLERS = {
    "ROIAlign": {"half_pixel": False, "sampling_ratio": 0},
    "ROIAlignV2": {"half_pixel": True, "sampling_ratio": 0},
    "ROIPool": {"operation": "pool", "reduction": "max"},
}


# the other operations in every implementation: test_implementations.py
@pytest.mark.parametrize(
    "operation, reduction, samples, half_pixel",
    [("warp", "average", 2, True), ("warp", "max", 2, True), ("align", "average", 1, False)],
)
def test_pools_each_roi_from_its_level_and_image(operation, reduction, samples, half_pixel):
    pooled = pool_rois(PYRAMID, BOXES, LEVELS, STRIDES, (3, 5), operation, reduction, samples, half_pixel)
    assert pooled.shape == (2, BOXES.shape[1], 3, 5, 2)
    for image, level in np.ndindex(2, len(STRIDES)):
        own, scale = LEVELS[image] == level, 1 / STRIDES[level]
        assert own.any()
        features, boxes = PYRAMID[level][image], BOXES[image, own]
        expected = oracle_bins(features, boxes, scale, operation, reduction, samples, half_pixel)
        np.testing.assert_allclose(pooled[image, own], expected, atol=2e-5, rtol=0)


def test_levels_of_narrow_integers():
    """Of 70 images and 4 levels there are more pairs than int8 can count."""
    pyramid = [jnp.full((70, 1, 1, 1), level, jnp.float32) for level in range(4)]
    levels = np.arange(4, dtype=np.int8)[None].repeat(70, axis=0)
    boxes = jnp.ones((70, 4, 4))
    pooled = ops.pool_rois(pyramid, boxes, levels, (1,) * 4, 1, implementation="matmul")
    np.testing.assert_array_equal(pooled[..., 0, 0, 0], levels)


@pytest.mark.parametrize("operation, reduction, samples", [("align", "average", 2), ("pool", "max", 2)])
def test_single_level_is_a_pyramid(operation, reduction, samples):
    pooled = pool_rois(PYRAMID[:1], BOXES, LEVELS * 0, STRIDES[:1], (3, 5), operation, reduction, samples)
    for image in range(2):
        expected = oracle_bins(PYRAMID[0][image], BOXES[image], 0.5, operation, reduction, samples, True)
        np.testing.assert_allclose(pooled[image], expected, atol=2e-5, rtol=0)


def libraries_inputs(arrays, epsilon):
    pyramid = [jnp.asarray(arrays[f"feat{level}"].transpose(0, 2, 3, 1)) for level in range(4)]
    boxes = jnp.asarray(arrays["boxes"])
    return pyramid, boxes[None], ops.assign_levels(boxes, epsilon=epsilon)[None] - 2, (4, 8, 16, 32), 7


def test_equals_torchvision(golden):
    arrays = golden("fpn_levels")
    pooled = pool_rois(*libraries_inputs(arrays, 1e-6), half_pixel=False)
    np.testing.assert_allclose(pooled[0], arrays["tv_pool_7x7_sr2"].transpose(0, 2, 3, 1), atol=3e-5, rtol=0)


@pytest.mark.parametrize("name", DETECTRON2_POOLERS)
def test_equals_detectron2(golden, name):
    arrays = golden("fpn_levels")
    pooled = pool_rois(*libraries_inputs(arrays, 0.0), **DETECTRON2_POOLERS[name])
    expected = arrays[f"d2_pool_7x7_sr0_{name}"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pooled[0], expected, atol=3e-5, rtol=0)


@pytest.mark.parametrize("operation, reduction", [("align", "average"), ("pool", "max"), ("warp", "max")])
def test_zero_boxes(operation, reduction):
    boxes, levels = jnp.zeros((2, 0, 4)), jnp.zeros((2, 0), jnp.int32)
    pooled = pool_rois(PYRAMID, boxes, levels, STRIDES, 7, operation, reduction)
    assert pooled.shape == (2, 0, 7, 7, 2)


@pytest.mark.parametrize(
    "options, message",
    [
        (("pool", "average"), "reduction of RoIPool must be \"max\", not 'average'"),
        (("crop", "average"), "operation must be \"align\", \"pool\" or \"warp\", not 'crop'"),
        (("warp", "min"), "reduction must be \"average\" or \"max\", not 'min'"),
    ],
)
def test_unknown_operations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pool_rois(PYRAMID, BOXES, LEVELS, STRIDES, 7, *options)


WRONG_ARGUMENTS = {
    "a stride too few": ({"strides": (2, 4)}, "strides must be 3, one for each map of pyramid, not 2"),
    "one image without batch axis": (
        {"pyramid": [features[0] for features in PYRAMID]},
        r"pyramid\[0\] must have shape \[B, H, W, C\], not \[12, 16, 2\]; channels last",
    ),
    "channels first": (
        {"pyramid": [features.transpose(0, 3, 1, 2) for features in PYRAMID]},
        r"pyramid\[1\] must have shape \[2, H, W, 16\], not \[2, 2, 7, 8\]; channels last",
    ),
    "image index in boxes": (
        {"boxes": np.zeros((2, 9, 5), np.float32)}, r"boxes must have shape \[2, N, 4\], not \[2, 9, 5\]"
    ),
    "boxes without batch axis": ({"boxes": BOXES[0]}, r"boxes must have shape \[2, N, 4\]"),
    "levels of other shape": (
        {"levels": LEVELS[:, :3]}, rf"levels must have shape \[2, {BOXES.shape[1]}\], not \[2, 3\]"
    ),
    "levels not integers": (
        {"levels": LEVELS.astype(np.float32)}, "levels must be integers that count from 0, not float32"
    ),
    "empty pyramid": ({"pyramid": [], "strides": ()}, "pyramid must have at least one feature map"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_ARGUMENTS)
def test_wrong_arguments_are_refused_by_name(without_type_checks, name):
    change, message = WRONG_ARGUMENTS[name]
    arguments = {"pyramid": PYRAMID, "boxes": BOXES, "levels": LEVELS, "strides": STRIDES} | change
    with pytest.raises(ValueError, match=message):
        ops.pool_rois(**arguments, output_size=7)
