"""RoIAlign: by hand, against a slow float64 reference, against torchvision forward and backward, and level by level."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

from mrcnn_jax import ops
from mrcnn_jax.ops import assign_levels, roi_align

multilevel_roi_align = jax.jit(ops.multilevel_roi_align, static_argnames=("strides", "output_size", "sampling_ratio", "aligned"))
pytestmark = pytest.mark.usefixtures("strict_promotion")

GRID = jnp.arange(25, dtype=jnp.float32).reshape(5, 5, 1)  # the value at row y, column x is 5 y + x
HUGE = np.float32(
    [[-1e30, -1e30, 1e30, 1e30], [1e30, 1e30, -1e30, -1e30], [3e38, 0, 3.4e38, 5], [-3.4e38, -3.4e38, 3.4e38, 3.4e38], [0, 0, 1e-40, 1e-40]]
)


@pytest.fixture(scope="module")
def boxes():
    """Over a 24 x 32 pixel image: inside, over an edge, outside, empty, inverted, larger than the image."""
    rng = np.random.default_rng(4)
    corner = rng.uniform(-8, 28, (20, 2))
    random = np.concatenate([corner, corner + rng.uniform(0.2, 24, (20, 2))], axis=1)
    special = [
        [0, 0, 32, 24], [-40, -40, 80, 80], [40, 5, 60, 9], [-30, -30, -20, -20], [-3, -3, 3, 3], [30, 22, 36, 27], [5, 5, 5, 5],
        [7, 3, 7, 20], [20, 15, 10, 4], [3.25, 4.5, 3.5, 4.75], [-500, 6, 900, 8], [31.5, 23.5, 32.5, 24.5],
    ]  # fmt: skip
    return np.concatenate([random, special]).astype(np.float32)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(5).standard_normal((12, 16, 2), dtype=np.float32)


def test_bins_of_a_plane_by_hand():
    box = jnp.asarray([[1.0, 1.0, 3.0, 3.0]])  # 4 x 4 bins of half a pixel: centres at 1.25, 1.75, 2.25, 2.75
    as_read = [[7.5, 8, 8.5, 9], [10, 10.5, 11, 11.5], [12.5, 13, 13.5, 14], [15, 15.5, 16, 16.5]]
    np.testing.assert_allclose(roi_align(GRID, box, 4, aligned=False)[0, :, :, 0], as_read, rtol=1e-6)
    # cell i's value lies at i + 0.5: everything is read half a cell earlier in x and y, 5 * 0.5 + 0.5 less
    np.testing.assert_allclose(roi_align(GRID, box, 4, aligned=True)[0, :, :, 0], np.subtract(as_read, 3), rtol=1e-6)


def test_a_bin_that_covers_one_cell_gives_its_value():
    whole = roi_align(GRID, jnp.asarray([[0.0, 0.0, 5.0, 5.0]]), 5, sampling_ratio=1)
    np.testing.assert_array_equal(whole[0], GRID)


def test_output_height_comes_first():
    pooled = roi_align(GRID, jnp.asarray([[1.0, 0.0, 3.0, 4.0]]), (4, 2), sampling_ratio=1)
    np.testing.assert_allclose(pooled[0, :, :, 0], [[1, 2], [6, 7], [11, 12], [16, 17]], rtol=1e-6)


def test_boxes_are_in_image_pixels():
    pooled = roi_align(GRID, jnp.asarray([[4.0, 0.0, 12.0, 16.0]]), (4, 2), spatial_scale=0.25, sampling_ratio=1)
    np.testing.assert_allclose(pooled[0, :, :, 0], [[1, 2], [6, 7], [11, 12], [16, 17]], rtol=1e-6)


def test_border_is_read_up_to_one_cell_outside():
    ones = jnp.ones((5, 5, 1))
    # one row of samples at y = 2 of the map; x at -1.25, -1, 0, 4.5, 5, 5.25 by boxes one cell wide
    for position, expected in [(-1.25, 0), (-1, 1), (0, 1), (4.5, 1), (5, 1), (5.25, 0)]:
        box = jnp.asarray([[position, 2.0, position + 1, 3.0]])
        assert roi_align(ones, box, 1, sampling_ratio=1)[0, 0, 0, 0] == expected, position


def test_unaligned_boxes_are_at_least_one_cell_wide():
    empty, one_cell = jnp.asarray([[1.0, 2.0, 1.0, 2.0]]), jnp.asarray([[1.0, 2.0, 2.0, 3.0]])
    np.testing.assert_array_equal(roi_align(GRID, empty, 2, aligned=False), roi_align(GRID, one_cell, 2, aligned=False))
    assert (roi_align(GRID, empty, 2, aligned=True) == 2 * 5 + 1 - 3).all()  # a point, read at (1.5, 0.5)


@pytest.mark.parametrize("output_size, samples, scale", [((1, 1), 4, 0.5), ((7, 7), 2, 0.5), ((3, 5), 1, 0.5), ((3, 5), 4, 0.25)])
@pytest.mark.parametrize("aligned", [False, True])
def test_equals_the_oracle(image, boxes, output_size, samples, scale, aligned):
    pooled = roi_align(image, boxes, output_size, scale, samples, aligned)
    assert pooled.shape == (len(boxes), *output_size, 2) and pooled.dtype == jnp.float32
    np.testing.assert_allclose(pooled, oracles.roi_align(image, boxes, output_size, scale, samples, aligned), atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", ["7x7", "3x5"])
@pytest.mark.parametrize("scale", ["1", "0.25"])
@pytest.mark.parametrize("aligned", [False, True])
def test_equals_torchvision_forward_and_backward(golden, scale, size, aligned):
    arrays = golden("roi_align")
    rois, case = arrays[f"rois_s{scale}"], f"s{scale}_{size}_aligned{int(aligned)}_sr2"
    output_size = tuple(int(side) for side in size.split("x"))

    def pool_both(features):  # [2, H, W, C]: every RoI from both images, then its own
        pooled = jnp.stack([roi_align(image, rois[:, 1:], output_size, float(scale), 2, aligned) for image in features])
        return pooled[rois[:, 0].astype(int), np.arange(len(rois))]

    pooled, backward = jax.vjp(pool_both, jnp.asarray(arrays["x"].transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(pooled, arrays[f"out_{case}"].transpose(0, 2, 3, 1), atol=2e-5, rtol=0)
    (gradient,) = backward(jnp.asarray(arrays[f"cot_s{scale}_{size}"].transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(gradient, arrays[f"gradx_{case}"].transpose(0, 2, 3, 1), atol=5e-5, rtol=0)


@pytest.mark.parametrize("aligned", [False, True])
def test_gradient_is_the_numerical_one(image, boxes, aligned):
    def pool(image):  # linear, so a long step is as exact as a short one
        return roi_align(image, boxes, (3, 5), 0.5, 2, aligned)

    check_grads(pool, (jnp.asarray(image),), order=1, modes=["rev"], eps=1.0, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("aligned", [False, True])
def test_any_finite_box_gives_finite_features_and_gradients(image, aligned):
    pooled, backward = jax.vjp(lambda image: roi_align(image, HUGE, 7, 0.5, 2, aligned), jnp.asarray(image))
    assert np.isfinite(pooled).all() and np.isfinite(backward(pooled)[0]).all()
    assert not pooled[2].any() and pooled[4].any()


def test_a_box_that_is_not_a_number_harms_only_itself(image, boxes):
    broken = boxes.copy()
    broken[3] = np.nan
    pooled, expected = roi_align(image, broken, 7, 0.5), roi_align(image, boxes, 7, 0.5)
    others = np.arange(len(boxes)) != 3
    np.testing.assert_array_equal(pooled[others], expected[others])


def test_no_boxes(image):
    assert roi_align(image, jnp.zeros((0, 4)), 7).shape == (0, 7, 7, 2)


def test_low_precision_features_keep_their_dtype(image, boxes):
    pooled = roi_align(jnp.asarray(image, jnp.bfloat16), boxes, 7, 0.5)
    assert pooled.dtype == jnp.bfloat16
    np.testing.assert_allclose(pooled.astype(jnp.float32), roi_align(image, boxes, 7, 0.5), atol=0.05)


@pytest.fixture(scope="module")
def pyramid():
    """Two images, three levels of strides 2, 4, 8, whose sides are not multiples of each other."""
    rng = np.random.default_rng(6)
    return [rng.standard_normal((2, *side, 2), dtype=np.float32) for side in [(12, 16), (7, 8), (3, 5)]]


@pytest.fixture(scope="module")
def per_image(boxes):
    rng = np.random.default_rng(7)
    return np.stack([boxes, boxes[rng.permutation(len(boxes))]]), rng.integers(0, 3, (2, len(boxes))).astype(np.int32)


@pytest.mark.parametrize("samples, aligned", [(2, True), (1, False)])
def test_multilevel_is_roi_align_of_each_level_and_image(pyramid, per_image, samples, aligned):
    boxes, levels = per_image
    pooled = multilevel_roi_align(pyramid, boxes, levels, (2, 4, 8), (3, 5), sampling_ratio=samples, aligned=aligned)
    assert pooled.shape == (2, boxes.shape[1], 3, 5, 2)
    for i in range(2):
        for level, stride in enumerate((2, 4, 8)):
            expected = roi_align(pyramid[level][i], boxes[i], (3, 5), 1 / stride, samples, aligned)
            own = levels[i] == level
            assert own.any()
            np.testing.assert_allclose(pooled[i, own], expected[own], atol=1e-5, rtol=0)


def test_multilevel_reads_nothing_of_other_levels_and_images(pyramid, per_image):
    boxes, _ = per_image
    levels = np.ones(boxes.shape[:2], np.int32)
    expected = multilevel_roi_align(pyramid, boxes, levels, (2, 4, 8), (3, 5))
    spoiled = [np.full_like(pyramid[0], np.nan), pyramid[1].copy(), np.full_like(pyramid[2], np.nan)]
    spoiled[1][1] = np.nan
    pooled = multilevel_roi_align(spoiled, boxes, levels, (2, 4, 8), (3, 5))
    np.testing.assert_array_equal(pooled[0], expected[0])
    assert np.isnan(pooled[1]).any()


def test_multilevel_gradient_reaches_the_own_level_and_image_alone(pyramid, per_image):
    boxes, _ = per_image
    levels = np.ones(boxes.shape[:2], np.int32)
    only_second = np.float32([0, 1]).reshape(2, 1, 1, 1, 1)
    gradient = jax.jit(jax.grad(lambda pyramid: (only_second * multilevel_roi_align(pyramid, boxes, levels, (2, 4, 8), (3, 5))).sum()))(pyramid)
    assert not gradient[0].any() and not gradient[2].any() and not gradient[1][0].any()
    expected = jax.grad(lambda image: roi_align(image, boxes[1], (3, 5), 0.25).sum())(jnp.asarray(pyramid[1][1]))
    assert expected.any()
    np.testing.assert_allclose(gradient[1][1], expected, atol=1e-4, rtol=0)


def test_multilevel_equals_torchvision(golden):
    arrays = golden("fpn_levels")
    pyramid = [arrays[f"feat{level}"].transpose(0, 2, 3, 1) for level in range(4)]
    levels = assign_levels(arrays["boxes"]) - 2
    pooled = multilevel_roi_align(pyramid, arrays["boxes"][None], levels[None], (4, 8, 16, 32), 7, aligned=False)
    np.testing.assert_allclose(pooled[0], arrays["tv_pool_7x7_sr2"].transpose(0, 2, 3, 1), atol=3e-5, rtol=0)


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
