"""RoIAlign: by hand, against the float64 oracle, torchvision and a float64 program, forward and backward."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads
from rois import BOXES, GRID, HUGE, IMAGE, SOLID, assert_equals_golden

from mrcnn_jax.ops import roi_align, roi_pool, roi_warp

pytestmark = pytest.mark.usefixtures("strict_promotion")

REDUCE = {"average": np.mean, "max": np.max}
KINDS = [("average", 2), ("average", 0), ("max", 2), ("max", 0)]
BINS = (3, 5)
every_kind = pytest.mark.parametrize("reduction, samples", KINDS)


@partial(jax.jit, static_argnames=("reduction", "samples"))
def pool_and_differentiate(image, boxes, cotangent, reduction, samples):
    """Returns bins at half the image's size and the gradients of features and boxes; shared by most tests."""

    def pool(image, boxes):
        return roi_align(image, boxes, BINS, 0.5, samples, True, reduction)

    pooled, backward = jax.vjp(pool, image, boxes)
    return pooled, *backward(cotangent)


COTANGENT = np.random.default_rng(8).standard_normal((len(BOXES), *BINS, 2), dtype=np.float32)


def test_bins_of_a_plane_by_hand():
    box = jnp.asarray([[1.0, 1.0, 3.0, 3.0]])  # 4 x 4 bins of half a pixel: centres at 1.25, 1.75, 2.25, 2.75
    whole_pixel = [[7.5, 8, 8.5, 9], [10, 10.5, 11, 11.5], [12.5, 13, 13.5, 14], [15, 15.5, 16, 16.5]]
    pooled = roi_align(GRID, box, 4, half_pixel=False)[0, :, :, 0]
    np.testing.assert_allclose(pooled, whole_pixel, rtol=1e-6)
    # cell i's value lies at i + 0.5: all samples are half a cell earlier in x and y, 5 * 0.5 + 0.5 less
    pooled = roi_align(GRID, box, 4, half_pixel=True)[0, :, :, 0]
    np.testing.assert_allclose(pooled, np.subtract(whole_pixel, 3), rtol=1e-6)


def test_bin_of_one_cell_has_its_value():
    whole = roi_align(GRID, jnp.asarray([[0.0, 0.0, 5.0, 5.0]]), 5, sampling_ratio=1)
    np.testing.assert_array_equal(whole[0], GRID)


@every_kind
def test_two_bins_by_hand(reduction, samples):
    """Bins two cells tall and one or two cells wide: adaptive sampling takes 2 x 1 and 2 x 2 samples."""
    boxes = jnp.asarray([[1.0, 1.0, 3.0, 3.0], [1.0, 1.0, 5.0, 3.0]])
    narrow, broad = roi_align(GRID, boxes, (1, 2), 1.0, samples, True, reduction)[:, 0, :, 0]
    average = np.float32([8.5, 9.5]), np.float32([9, 11])
    last_sample = (2.75, 3.0) if samples == 2 else (2.5, 3.0)  # at 3/4 of the bin, or at its middle
    expected = (
        average if reduction == "average" else (average[0] + last_sample[0], average[1] + last_sample[1])
    )
    np.testing.assert_allclose(narrow, expected[0], rtol=1e-6)
    np.testing.assert_allclose(broad, expected[1], rtol=1e-6)


def test_output_size_is_height_then_width():
    pooled = roi_align(GRID, jnp.asarray([[1.0, 0.0, 3.0, 4.0]]), (4, 2), sampling_ratio=1)
    np.testing.assert_allclose(pooled[0, :, :, 0], [[1, 2], [6, 7], [11, 12], [16, 17]], rtol=1e-6)


def test_boxes_are_in_image_pixels():
    pooled = roi_align(
        GRID, jnp.asarray([[4.0, 0.0, 12.0, 16.0]]), (4, 2), spatial_scale=0.25, sampling_ratio=1
    )
    np.testing.assert_allclose(pooled[0, :, :, 0], [[1, 2], [6, 7], [11, 12], [16, 17]], rtol=1e-6)


def test_samples_up_to_one_cell_outside_have_the_border_value():
    ones = jnp.ones((5, 5, 1))
    # one row of samples at y = 2 of the map; x at -1.25, -1, 0, 4.5, 5, 5.25 by boxes one cell wide
    for position, expected in [(-1.25, 0), (-1, 1), (0, 1), (4.5, 1), (5, 1), (5.25, 0)]:
        box = jnp.asarray([[position, 2.0, position + 1, 3.0]])
        for options in (
            {"sampling_ratio": 1},
            {"sampling_ratio": 0},
            {"sampling_ratio": 0, "reduction": "max"},
        ):
            assert roi_align(ones, box, 1, **options)[0, 0, 0, 0] == expected, (position, options)


def test_outside_samples_are_zeros_in_the_maximum():
    # one bin with eight columns of adaptive samples, the first three outside
    box = jnp.asarray([[-4.0, 1.0, 4.0, 3.0]])
    for samples in (0, 2):
        assert roi_align(-1 - GRID, box, 1, 1.0, samples, True, "max")[0, 0, 0, 0] == 0
        assert roi_align(GRID, box, 1, 1.0, samples, True, "max")[0, 0, 0, 0] > 0


def test_boxes_without_half_pixel_are_at_least_one_cell_wide():
    empty, one_cell = jnp.asarray([[1.0, 2.0, 1.0, 2.0]]), jnp.asarray([[1.0, 2.0, 2.0, 3.0]])
    pooled, expected = (roi_align(GRID, box, 2, half_pixel=False) for box in (empty, one_cell))
    np.testing.assert_array_equal(pooled, expected)
    assert (
        roi_align(GRID, empty, 2, half_pixel=True) == 2 * 5 + 1 - 3
    ).all()  # a point, sampled at (1.5, 0.5)


@pytest.mark.parametrize(
    "output_size, samples, scale, half_pixel",
    [((1, 1), 4, 0.5, False), ((7, 7), 2, 0.5, True), ((3, 5), 1, 0.5, False), ((3, 5), 4, 0.25, True)],
)
def test_equals_the_oracle(output_size, samples, scale, half_pixel):
    pooled = roi_align(IMAGE, BOXES, output_size, scale, samples, half_pixel)
    assert pooled.shape == (len(BOXES), *output_size, 2) and pooled.dtype == jnp.float32
    expected = oracles.roi_align(IMAGE, BOXES, output_size, scale, samples, half_pixel)
    np.testing.assert_allclose(pooled, expected, atol=2e-5, rtol=0)


@every_kind
def test_every_reduction_and_sampling_equals_the_oracle(reduction, samples):
    pooled, _, _ = pool_and_differentiate(IMAGE, BOXES, COTANGENT, reduction, samples)
    expected = oracles.roi_align(IMAGE, BOXES, BINS, 0.5, samples, True, REDUCE[reduction])
    if samples == 0:  # where there is no height or no width there is no sample
        assert 0 < (~SOLID).sum() < 10
        expected[~SOLID] = 0
    np.testing.assert_allclose(pooled, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("reduction", ["average", "max"])
def test_bin_of_hundreds_of_samples_equals_the_oracle(reduction):
    pooled = roi_align(IMAGE, BOXES, 1, 0.5, 0, False, reduction)
    expected = oracles.roi_align(IMAGE, BOXES, (1, 1), 0.5, 0, False, REDUCE[reduction])
    np.testing.assert_allclose(pooled, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "scale, size, half_pixel, samples",
    [
        ("1", "7x7", False, 2), ("1", "3x5", True, 2), ("0.25", "7x7", True, 2), ("0.25", "3x5", False, 2),
        ("0.25", "7x7", True, 0), ("1", "3x5", False, 0),
    ],
)  # fmt: skip
def test_equals_torchvision_forward_and_backward(golden, scale, size, half_pixel, samples):
    operation = partial(roi_align, sampling_ratio=samples, half_pixel=half_pixel)
    variant = f"aligned{int(half_pixel)}_sr{samples}"
    assert_equals_golden(operation, golden("roi_align"), scale, size, variant, 2e-5, 5e-5)


@pytest.mark.parametrize("scale, size, half_pixel", [("1", "7x7", False), ("0.25", "3x5", True)])
def test_maximum_equals_the_float64_program_forward_and_backward(golden, scale, size, half_pixel):
    operation = partial(roi_align, half_pixel=half_pixel, reduction="max")
    variant = f"aligned{int(half_pixel)}"
    assert_equals_golden(operation, golden("roi_align_max"), scale, size, variant, 1e-5, 2e-5)


def test_gradient_without_half_pixel_equals_the_numerical_one():
    def pool(image):  # linear, so a long step is as exact as a short one
        return roi_align(image, BOXES, (3, 5), 0.5, 2, half_pixel=False)

    check_grads(pool, (jnp.asarray(IMAGE),), order=1, modes=["rev"], eps=1.0, atol=1e-3, rtol=1e-3)


@every_kind
def test_gradients_equal_the_numerical_ones(reduction, samples):
    solid = np.arange(20)  # the others have samples on kinks of the interpolation
    cotangent = np.where(np.arange(len(BOXES))[:, None, None, None] < 20, COTANGENT, np.float32(0))
    _, to_image, to_boxes = pool_and_differentiate(IMAGE, BOXES, cotangent, reduction, samples)

    def oracle(image, boxes):
        bins = oracles.roi_align(image, boxes, BINS, 0.5, samples, True, REDUCE[reduction])
        return (bins * cotangent[:20]).sum(axis=(1, 2, 3))

    boxes, image = np.float64(BOXES[:20]), np.float64(IMAGE)
    for coordinate in range(4):
        step = 1e-6 * np.eye(4)[coordinate]
        expected = (oracle(image, boxes + step) - oracle(image, boxes - step)) / 2e-6
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(to_boxes[solid, coordinate], expected, atol=2e-4, rtol=1e-4)
    direction = np.random.default_rng(9).standard_normal(image.shape)
    expected = (oracle(image + 1e-6 * direction, boxes) - oracle(image - 1e-6 * direction, boxes)).sum()
    expected /= 2e-6
    np.testing.assert_allclose((to_image * direction).sum(), expected, rtol=1e-4)


@every_kind
def test_any_finite_box_gives_finite_features_and_gradients(reduction, samples):
    boxes = np.concatenate([HUGE, BOXES[len(HUGE) :]])
    pooled, to_image, _ = pool_and_differentiate(IMAGE, boxes, COTANGENT, reduction, samples)
    assert np.isfinite(pooled).all() and np.isfinite(to_image).all()
    assert not pooled[2].any()
    assert pooled[4].any() == (samples > 0)  # adaptive sampling takes no samples of a RoI without area


@every_kind
def test_nan_box_affects_only_itself(reduction, samples):
    broken = BOXES.copy()
    broken[3], broken[9] = np.nan, (-np.inf, 0, np.inf, np.inf)
    pooled, _, _ = pool_and_differentiate(IMAGE, broken, COTANGENT, reduction, samples)
    expected, _, _ = pool_and_differentiate(IMAGE, BOXES, COTANGENT, reduction, samples)
    others = np.delete(np.arange(len(BOXES)), [3, 9])
    np.testing.assert_array_equal(pooled[others], expected[others])


@every_kind
def test_nan_feature_appears_in_bins_that_sample_it(reduction, samples):
    spoiled, boxes = IMAGE.copy(), BOXES.copy()
    spoiled[6, 8, 0] = np.nan
    boxes[0], boxes[1] = (12, 8, 22, 18), (0, 0, 8, 8)
    pooled, _, _ = pool_and_differentiate(spoiled, boxes, COTANGENT, reduction, samples)
    assert np.isnan(pooled[0, ..., 0]).any()
    assert np.isfinite(pooled[0, ..., 1]).all() and np.isfinite(pooled[1]).all()


@pytest.mark.parametrize("reduction, samples", [("average", 2), ("average", 0)])
def test_zero_boxes(reduction, samples):
    none = jnp.zeros((0, *BINS, 2))
    pooled, to_image, to_boxes = pool_and_differentiate(IMAGE, jnp.zeros((0, 4)), none, reduction, samples)
    assert pooled.shape == none.shape and to_boxes.shape == (0, 4) and not to_image.any()


@pytest.mark.parametrize("reduction, samples", [("average", 2), ("average", 0)])
def test_low_precision_features_keep_their_dtype(reduction, samples):
    image = jnp.asarray(IMAGE, jnp.bfloat16)
    pooled, to_image, to_boxes = pool_and_differentiate(
        image, BOXES, COTANGENT.astype(jnp.bfloat16), reduction, samples
    )
    assert pooled.dtype == to_image.dtype == jnp.bfloat16 and to_boxes.dtype == jnp.float32
    expected = pool_and_differentiate(image.astype(jnp.float32), BOXES, COTANGENT, reduction, samples)
    np.testing.assert_allclose(pooled.astype(jnp.float32), expected[0], atol=0.05)
    np.testing.assert_allclose(
        to_image.astype(jnp.float32), expected[1], atol=0.05 * np.abs(expected[1]).max()
    )


@every_kind
def test_other_boxes_do_not_recompile(reduction, samples):
    pool_and_differentiate(IMAGE, BOXES, COTANGENT, reduction, samples)
    programs = pool_and_differentiate._cache_size()
    for boxes in (BOXES / 8, BOXES * 0):
        pooled, _, _ = pool_and_differentiate(IMAGE, boxes, COTANGENT, reduction, samples)
        expected = oracles.roi_align(IMAGE, boxes, BINS, 0.5, samples, True, REDUCE[reduction])
        if samples == 0:
            expected[(boxes[:, 2:] <= boxes[:, :2]).any(axis=1)] = 0
        np.testing.assert_allclose(pooled, expected, atol=2e-5, rtol=0)
    assert pool_and_differentiate._cache_size() == programs


@pytest.mark.parametrize(
    "options, message",
    [
        ({"reduction": "median"}, "reduction must be \"average\" or \"max\", not 'median'"),
        ({"sampling_ratio": -1}, "sampling_ratio must be 0 .adaptive. or a positive whole number, not -1"),
        ({"sampling_ratio": 2.5}, "sampling_ratio must be .* or a positive whole number, not 2.5"),
        ({"output_size": 0}, "output_size must be one or two positive numbers, not 0"),
        ({"output_size": 7.0}, "output_size must be one or two positive numbers, not 7.0"),
        ({"features": np.zeros((5, 5, 1), np.uint8)}, "features must be floating point numbers, not uint8"),
    ],
)
def test_unknown_options_are_refused(without_type_checks, options, message):
    with pytest.raises(ValueError, match=message):
        roi_align(**{"features": GRID, "boxes": jnp.zeros((1, 4)), "output_size": 7, **options})


@pytest.mark.parametrize("output_size", [np.int64(2), (np.int32(2), 2)])
def test_numbers_of_numpy_are_sizes(without_type_checks, output_size):
    assert roi_align(GRID, jnp.zeros((1, 4)), output_size).shape == (1, 2, 2, 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_boxes_of_half_precision_are_computed_in_float32(dtype):
    """Samples of a long RoI lie at positions that the dtype cannot hold."""
    features, boxes = jnp.arange(300.0).reshape(1, 300, 1), jnp.asarray([[128, 0, 256, 1]], dtype)
    pooled = roi_align(features, boxes, (1, 7))
    np.testing.assert_allclose(pooled[0, 0, :, 0], 127.5 + 128 / 7 * (np.arange(7) + 0.5), rtol=1e-6)


@pytest.mark.parametrize("operation", [roi_align, roi_pool, roi_warp])
@pytest.mark.parametrize(
    "features, boxes, message",
    [
        ((1, 5, 5, 3), (2, 4), r"boxes must have shape \[N, 5\], not \[2, 4\]; image, x1, y1, x2, y2"),
        ((5, 5), (2, 4), r"features must have shape \[H, W, C\], not \[5, 5\]"),
        ((5, 5, 3), (2, 5), r"boxes must have shape \[N, 4\], not \[2, 5\]; x1, y1, x2, y2"),
        ((5, 5, 3), (1, 2, 4), r"boxes must have shape \[N, 4\], not \[1, 2, 4\]"),
    ],
)
def test_wrong_shapes_are_refused_by_name(without_type_checks, operation, features, boxes, message):
    with pytest.raises(ValueError, match=message):
        operation(jnp.zeros(features), jnp.zeros(boxes), 7)
