"""RoI operations over a pyramid: each RoI as from its own level and image alone; levels as the libraries assign them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rois import PYRAMID, STRIDES, boxes_and_levels, reference

from mrcnn_jax import ops
from mrcnn_jax.ops import assign_levels

pytestmark = pytest.mark.usefixtures("strict_promotion")
pool_rois = jax.jit(ops.pool_rois, static_argnames=("strides", "output_size", "operation", "reduction", "sampling_ratio", "aligned"))

KINDS = [("align", "average", 2), ("align", "average", 0), ("align", "max", 0), ("pool", "max", 2), ("warp", "average", 2), ("warp", "max", 2)]


@pytest.fixture(scope="module")
def per_image():
    return boxes_and_levels()


@pytest.mark.parametrize(
    "operation, reduction, samples, aligned", [("warp", "average", 2, True), ("warp", "max", 2, True), ("align", "average", 1, False)]
)  # the others in every form: test_roi_forms.py
def test_is_the_operation_on_each_level_and_image(per_image, operation, reduction, samples, aligned):
    boxes, levels = per_image
    pooled = pool_rois(PYRAMID, boxes, levels, STRIDES, (3, 5), operation, reduction, samples, aligned)
    assert pooled.shape == (2, boxes.shape[1], 3, 5, 2)
    for i in range(2):
        for level, stride in enumerate(STRIDES):
            own = levels[i] == level
            assert own.any()
            expected = reference(PYRAMID[level][i], boxes[i, own], 1 / stride, operation, reduction, samples, aligned)
            np.testing.assert_allclose(pooled[i, own], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("operation, reduction, samples", [("align", "average", 2), ("pool", "max", 2)])
def test_a_single_level_is_a_pyramid(per_image, operation, reduction, samples):
    boxes, levels = per_image
    pooled = pool_rois(PYRAMID[:1], boxes, levels * 0, STRIDES[:1], (3, 5), operation, reduction, samples)
    for i in range(2):
        np.testing.assert_allclose(pooled[i], reference(PYRAMID[0][i], boxes[i], 0.5, operation, reduction, samples, True), atol=2e-5, rtol=0)


def test_equals_torchvision(golden):
    arrays = golden("fpn_levels")
    pyramid = [arrays[f"feat{level}"].transpose(0, 2, 3, 1) for level in range(4)]
    levels = assign_levels(arrays["boxes"]) - 2
    pooled = pool_rois(pyramid, arrays["boxes"][None], levels[None], (4, 8, 16, 32), 7, aligned=False)
    np.testing.assert_allclose(pooled[0], arrays["tv_pool_7x7_sr2"].transpose(0, 2, 3, 1), atol=3e-5, rtol=0)


def test_no_boxes():
    for operation, reduction, samples in KINDS[1:5:2]:
        pooled = pool_rois(PYRAMID, jnp.zeros((2, 0, 4)), jnp.zeros((2, 0), jnp.int32), STRIDES, 7, operation, reduction, samples)
        assert pooled.shape == (2, 0, 7, 7, 2)


def test_what_does_not_exist_is_refused(per_image):
    boxes, levels = per_image
    with pytest.raises(ValueError, match="'average'"):
        pool_rois(PYRAMID, boxes, levels, STRIDES, 7, "pool")
    with pytest.raises(ValueError, match="'crop'"):
        pool_rois(PYRAMID, boxes, levels, STRIDES, 7, "crop")
    with pytest.raises(ValueError, match="'min'"):
        pool_rois(PYRAMID, boxes, levels, STRIDES, 7, "warp", "min")


def test_levels_equal_the_libraries(golden):
    arrays = golden("fpn_levels")
    np.testing.assert_array_equal(assign_levels(arrays["boxes"]) - 2, arrays["tv_levels"])
    np.testing.assert_array_equal(assign_levels(arrays["boxes"], epsilon=0.0) - 2, arrays["d2_levels"])


def test_levels_by_hand():
    sides = np.float32([224, 448, 112, 111, 447, 1, 10000])
    boxes = np.stack([sides * 0, sides * 0, sides, sides], axis=1)
    np.testing.assert_array_equal(assign_levels(boxes), [4, 5, 3, 2, 4, 2, 5])
    np.testing.assert_array_equal(assign_levels(boxes, lowest=3, highest=6, canonical_size=112.0), [5, 6, 4, 3, 5, 3, 6])
    elongated = jnp.asarray([[0.0, 0.0, 112.0, 448.0], [0.0, 0.0, 56.0, 896.0]])  # the area counts
    np.testing.assert_array_equal(assign_levels(elongated), [4, 4])


def test_levels_of_boxes_without_area():
    boxes = jnp.asarray([[5.0, 5.0, 5.0, 5.0], [9.0, 9.0, 2.0, 2.0], [0.0, 0.0, 900.0, 0.0], [500.0, 0.0, 0.0, 500.0]])
    np.testing.assert_array_equal(assign_levels(boxes), [2, 2, 2, 2])
