"""RoIAlign: by hand, against a slow float64 reference, against torchvision and a float64 program forward and backward."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads
from rois import BOXES, GRID, HUGE, IMAGE, SOLID, assert_equals_golden

from mrcnn_jax.ops import roi_align

pytestmark = pytest.mark.usefixtures("strict_promotion")

REDUCE = {"average": np.mean, "max": np.max}
KINDS = [("average", 2), ("average", 0), ("max", 2), ("max", 0)]
BINS = (3, 5)
every_kind = pytest.mark.parametrize("reduction, samples", KINDS)


@partial(jax.jit, static_argnames=("reduction", "samples"))
def pool_and_differentiate(image, boxes, cotangent, reduction, samples):
    """Most tests share this program: aligned, at half the image's size. The features, their gradient and the boxes'."""
    pooled, backward = jax.vjp(lambda image, boxes: roi_align(image, boxes, BINS, 0.5, samples, True, reduction), image, boxes)
    return pooled, *backward(cotangent)


COTANGENT = np.random.default_rng(8).standard_normal((len(BOXES), *BINS, 2), dtype=np.float32)


def test_bins_of_a_plane_by_hand():
    box = jnp.asarray([[1.0, 1.0, 3.0, 3.0]])  # 4 x 4 bins of half a pixel: centres at 1.25, 1.75, 2.25, 2.75
    as_read = [[7.5, 8, 8.5, 9], [10, 10.5, 11, 11.5], [12.5, 13, 13.5, 14], [15, 15.5, 16, 16.5]]
    np.testing.assert_allclose(roi_align(GRID, box, 4, aligned=False)[0, :, :, 0], as_read, rtol=1e-6)
    # cell i's value lies at i + 0.5: everything is read half a cell earlier in x and y, 5 * 0.5 + 0.5 less
    np.testing.assert_allclose(roi_align(GRID, box, 4, aligned=True)[0, :, :, 0], np.subtract(as_read, 3), rtol=1e-6)


def test_a_bin_that_covers_one_cell_gives_its_value():
    whole = roi_align(GRID, jnp.asarray([[0.0, 0.0, 5.0, 5.0]]), 5, sampling_ratio=1)
    np.testing.assert_array_equal(whole[0], GRID)


@every_kind
def test_two_bins_by_hand(reduction, samples):
    """Bins two cells tall and one or two cells wide, so that 0 samples are 2 x 1 (the one at the bin's centre) and 2 x 2."""
    narrow, broad = (
        roi_align(GRID, jnp.asarray([[1.0, 1.0, right, 3.0]]), (1, 2), 1.0, samples, True, reduction)[0, 0, :, 0] for right in (3.0, 5.0)
    )
    average = np.float32([8.5, 9.5]), np.float32([9, 11])
    to_the_last = (2.75, 3.0) if samples == 2 else (2.5, 3.0)  # samples at 1/4 and 3/4 of the bin, or at its middle
    expected = average if reduction == "average" else (average[0] + to_the_last[0], average[1] + to_the_last[1])
    np.testing.assert_allclose(narrow, expected[0], rtol=1e-6)
    np.testing.assert_allclose(broad, expected[1], rtol=1e-6)


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
        assert roi_align(ones, box, 1, sampling_ratio=0)[0, 0, 0, 0] == expected, position
        assert roi_align(ones, box, 1, sampling_ratio=0, reduction="max")[0, 0, 0, 0] == expected, position


def test_an_outside_sample_is_a_zero_in_the_maximum():
    box = jnp.asarray([[-4.0, 1.0, 4.0, 3.0]])  # one bin, of whose eight columns of adaptive samples the first three are outside
    for samples in (0, 2):
        assert roi_align(-1 - GRID, box, 1, 1.0, samples, True, "max")[0, 0, 0, 0] == 0
        assert roi_align(GRID, box, 1, 1.0, samples, True, "max")[0, 0, 0, 0] > 0


def test_unaligned_boxes_are_at_least_one_cell_wide():
    empty, one_cell = jnp.asarray([[1.0, 2.0, 1.0, 2.0]]), jnp.asarray([[1.0, 2.0, 2.0, 3.0]])
    np.testing.assert_array_equal(roi_align(GRID, empty, 2, aligned=False), roi_align(GRID, one_cell, 2, aligned=False))
    assert (roi_align(GRID, empty, 2, aligned=True) == 2 * 5 + 1 - 3).all()  # a point, read at (1.5, 0.5)


@pytest.mark.parametrize("output_size, samples, scale", [((1, 1), 4, 0.5), ((7, 7), 2, 0.5), ((3, 5), 1, 0.5), ((3, 5), 4, 0.25)])
@pytest.mark.parametrize("aligned", [False, True])
def test_equals_the_oracle(output_size, samples, scale, aligned):
    pooled = roi_align(IMAGE, BOXES, output_size, scale, samples, aligned)
    assert pooled.shape == (len(BOXES), *output_size, 2) and pooled.dtype == jnp.float32
    np.testing.assert_allclose(pooled, oracles.roi_align(IMAGE, BOXES, output_size, scale, samples, aligned), atol=2e-5, rtol=0)


@every_kind
def test_every_kind_equals_the_oracle(reduction, samples):
    pooled, _, _ = pool_and_differentiate(IMAGE, BOXES, COTANGENT, reduction, samples)
    expected = oracles.roi_align(IMAGE, BOXES, BINS, 0.5, samples, True, REDUCE[reduction])
    if samples == 0:  # where there is no height or no width there is no sample
        assert 0 < (~SOLID).sum() < 10
        expected[~SOLID] = 0
    np.testing.assert_allclose(pooled, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("reduction", ["average", "max"])
def test_a_bin_of_hundreds_of_samples_equals_the_oracle(reduction):
    pooled = roi_align(IMAGE, BOXES, 1, 0.5, 0, False, reduction)
    np.testing.assert_allclose(pooled, oracles.roi_align(IMAGE, BOXES, (1, 1), 0.5, 0, False, REDUCE[reduction]), atol=2e-5, rtol=0)


@pytest.mark.parametrize("scale, size", [("1", "7x7"), ("1", "3x5"), ("0.25", "7x7"), ("0.25", "3x5")])
@pytest.mark.parametrize("aligned", [False, True])
def test_equals_torchvision_forward_and_backward(golden, scale, size, aligned):
    operation = lambda *given: roi_align(*given, 2, aligned)
    assert_equals_golden(operation, golden("roi_align"), scale, size, f"aligned{int(aligned)}_sr2", 2e-5, 5e-5)


@pytest.mark.parametrize("scale, size, aligned", [("0.25", "7x7", True), ("1", "3x5", False)])
def test_adaptive_sampling_equals_torchvision_forward_and_backward(golden, scale, size, aligned):
    operation = lambda *given: roi_align(*given, 0, aligned)
    assert_equals_golden(operation, golden("roi_align"), scale, size, f"aligned{int(aligned)}_sr0", 2e-5, 5e-5)


@pytest.mark.parametrize("scale, size, aligned", [("1", "7x7", False), ("0.25", "3x5", True)])
def test_maximum_equals_the_recorded_one_forward_and_backward(golden, scale, size, aligned):
    operation = lambda *given: roi_align(*given, 2, aligned, "max")
    assert_equals_golden(operation, golden("roi_align_max"), scale, size, f"aligned{int(aligned)}", 1e-5, 2e-5)


@pytest.mark.parametrize("aligned", [False, True])
def test_gradient_is_the_numerical_one(aligned):
    def pool(image):  # linear, so a long step is as exact as a short one
        return roi_align(image, BOXES, (3, 5), 0.5, 2, aligned)

    check_grads(pool, (jnp.asarray(IMAGE),), order=1, modes=["rev"], eps=1.0, atol=1e-3, rtol=1e-3)


@every_kind
def test_gradients_are_the_numerical_ones(reduction, samples):
    solid = np.arange(20)  # the others have samples just where the reading has a kink
    cotangent = np.where(np.arange(len(BOXES))[:, None, None, None] < 20, COTANGENT, np.float32(0))
    _, to_image, to_boxes = pool_and_differentiate(IMAGE, BOXES, cotangent, reduction, samples)

    def oracle(image, boxes):
        return (oracles.roi_align(image, boxes, BINS, 0.5, samples, True, REDUCE[reduction]) * cotangent[:20]).sum(axis=(1, 2, 3))

    boxes, image = np.float64(BOXES[:20]), np.float64(IMAGE)
    for coordinate in range(4):
        step = 1e-6 * np.eye(4)[coordinate]
        expected = (oracle(image, boxes + step) - oracle(image, boxes - step)) / 2e-6
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(to_boxes[solid, coordinate], expected, atol=2e-4, rtol=1e-4)
    direction = np.random.default_rng(9).standard_normal(image.shape)
    expected = (oracle(image + 1e-6 * direction, boxes) - oracle(image - 1e-6 * direction, boxes)).sum() / 2e-6
    np.testing.assert_allclose((to_image * direction).sum(), expected, rtol=1e-4)


@every_kind
def test_any_finite_box_gives_finite_features_and_gradients(reduction, samples):
    boxes = np.concatenate([HUGE, BOXES[len(HUGE) :]])
    pooled, to_image, _ = pool_and_differentiate(IMAGE, boxes, COTANGENT, reduction, samples)
    assert np.isfinite(pooled).all() and np.isfinite(to_image).all()
    assert not pooled[2].any() and pooled[4].any() == (samples > 0)  # the last has no area, which adaptive sampling leaves without samples


@every_kind
def test_a_box_that_is_not_a_number_harms_only_itself(reduction, samples):
    broken = BOXES.copy()
    broken[3], broken[9] = np.nan, (-np.inf, 0, np.inf, np.inf)
    pooled, expected = (pool_and_differentiate(IMAGE, boxes, COTANGENT, reduction, samples)[0] for boxes in (broken, BOXES))
    others = np.delete(np.arange(len(BOXES)), [3, 9])
    np.testing.assert_array_equal(pooled[others], expected[others])


@every_kind
def test_a_feature_that_is_not_a_number_is_seen_where_it_is_read(reduction, samples):
    spoiled, boxes = IMAGE.copy(), BOXES.copy()
    spoiled[6, 8, 0] = np.nan
    boxes[0], boxes[1] = (12, 8, 22, 18), (0, 0, 8, 8)
    pooled, _, _ = pool_and_differentiate(spoiled, boxes, COTANGENT, reduction, samples)
    assert np.isnan(pooled[0, ..., 0]).any() and np.isfinite(pooled[0, ..., 1]).all() and np.isfinite(pooled[1]).all()


@pytest.mark.parametrize("reduction, samples", [("average", 2), ("average", 0)])
def test_no_boxes(reduction, samples):
    none = jnp.zeros((0, *BINS, 2))
    pooled, to_image, to_boxes = pool_and_differentiate(IMAGE, jnp.zeros((0, 4)), none, reduction, samples)
    assert pooled.shape == none.shape and to_boxes.shape == (0, 4) and not to_image.any()


@pytest.mark.parametrize("reduction, samples", [("average", 2), ("average", 0)])  # of the maximum, RoIPool's test speaks
def test_low_precision_features_keep_their_dtype(reduction, samples):
    image = jnp.asarray(IMAGE, jnp.bfloat16)
    pooled, to_image, to_boxes = pool_and_differentiate(image, BOXES, COTANGENT.astype(jnp.bfloat16), reduction, samples)
    assert pooled.dtype == to_image.dtype == jnp.bfloat16 and to_boxes.dtype == jnp.float32
    expected = pool_and_differentiate(image.astype(jnp.float32), BOXES, COTANGENT, reduction, samples)
    np.testing.assert_allclose(pooled.astype(jnp.float32), expected[0], atol=0.05)
    np.testing.assert_allclose(to_image.astype(jnp.float32), expected[1], atol=0.05 * np.abs(expected[1]).max())


@every_kind
def test_other_boxes_run_the_same_program(reduction, samples):
    pool_and_differentiate(IMAGE, BOXES, COTANGENT, reduction, samples)
    programs = pool_and_differentiate._cache_size()
    for boxes in (BOXES / 8, BOXES * 0):
        pooled, _, _ = pool_and_differentiate(IMAGE, boxes, COTANGENT, reduction, samples)
        expected = oracles.roi_align(IMAGE, boxes, BINS, 0.5, samples, True, REDUCE[reduction])
        if samples == 0:
            expected[(boxes[:, 2:] <= boxes[:, :2]).any(axis=1)] = 0
        np.testing.assert_allclose(pooled, expected, atol=2e-5, rtol=0)
    assert pool_and_differentiate._cache_size() == programs


def test_what_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="'median'"):
        roi_align(GRID, jnp.zeros((1, 4)), 7, reduction="median")
    with pytest.raises(ValueError, match="-1"):
        roi_align(GRID, jnp.zeros((1, 4)), 7, sampling_ratio=-1)
