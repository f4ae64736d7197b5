"""RoIPool: by hand, against the oracle, and against torchvision forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from rois import BOXES, GRID, HUGE, IMAGE, assert_equals_golden

from mrcnn_jax.ops import roi_pool
from mrcnn_jax.ops.roi.bins import round_to_cells

pytestmark = pytest.mark.usefixtures("strict_promotion")


def test_bins_of_a_grid_by_hand():
    box = jnp.asarray([[0.6, 1.4, 3.4, 3.0]])  # cells 1 to 3 in both directions
    # 2 bins over 3 cells: 1 to 2 and 2 to 3, the middle cell is in both
    pooled = roi_pool(GRID, box, 2)
    np.testing.assert_array_equal(pooled[0, :, :, 0], [[12, 13], [17, 18]])
    np.testing.assert_array_equal(roi_pool(GRID, box * 4, (3, 1), 0.25)[0, :, 0, 0], [8, 13, 18])


def test_bins_without_a_cell_are_zero():
    pooled = roi_pool(GRID - 100, jnp.asarray([[-3.0, -3.0, 2.0, 2.0], [9.0, 9.0, 12.0, 12.0]]), 2)
    np.testing.assert_array_equal(pooled[0, :, :, 0], [[0, 0], [0, -88]])
    assert not pooled[1].any()


def test_halves_are_rounded_away_from_zero():
    values = np.float32(
        [[-2.5, -1.5, -0.5, 0.5], [1.5, 2.5, 0.49999997, -0.49999997], [8388607.5, -7.2, 3.6, np.inf]]
    )
    expected = [[-3, -2, -1, 1], [2, 3, 0, 0], [8388608, -7, 4, np.inf]]
    np.testing.assert_array_equal(round_to_cells(jnp.asarray(values)), expected)


@pytest.mark.parametrize("output_size, scale", [((1, 1), 0.5), ((3, 5), 0.25)])
def test_equals_the_oracle(output_size, scale):
    pooled = roi_pool(IMAGE, BOXES, output_size, scale)
    assert pooled.dtype == jnp.float32
    np.testing.assert_array_equal(pooled, oracles.roi_pool(IMAGE, BOXES, output_size, scale))


def test_last_of_seven_bins_includes_the_last_cell():
    row = jnp.arange(130, dtype=jnp.float32).reshape(1, 130, 1)
    boxes = np.float32(
        [[0, 0, last, 0] for last in range(128)]
    )  # in float32, 31 cells / 7 * 7 are more than 31
    np.testing.assert_array_equal(roi_pool(row, boxes, (1, 7))[:, 0, -1, 0], np.arange(128))


@pytest.mark.parametrize("scale, size", [("1", "7x7"), ("0.0625", "3x5")])
def test_equals_torchvision_forward_and_backward(golden, scale, size):
    assert_equals_golden(roi_pool, golden("roi_pool"), scale, size, "", 0, 1e-5)


def test_gradient_goes_to_the_first_largest_cell_only():
    box = jnp.asarray([[1.0, 1.0, 4.0, 4.0]])
    gradient = jax.grad(lambda features: roi_pool(features, box, 2).sum())(jnp.ones((5, 5, 1)))
    expected = np.zeros((5, 5))
    expected[np.ix_([1, 3], [1, 3])] = 1
    np.testing.assert_array_equal(gradient[..., 0], expected)


def test_first_of_equal_cells_in_different_blocks_gets_the_gradient():
    # the second cell, row by row, lies in the block that is visited first
    image = jnp.zeros((10, 10, 1)).at[1, 9].set(3.0).at[2, 0].set(3.0)
    box = jnp.asarray([[0.0, 0.0, 9.0, 9.0]])
    gradient = jax.grad(lambda features: roi_pool(features, box, 1).sum())(image)
    np.testing.assert_array_equal(np.argwhere(gradient), [[1, 9, 0]])


def test_gradient_with_64_bits():
    def total(image):
        return roi_pool(image, np.zeros((1, 4)), 1).sum()

    with jax.enable_x64(True):
        assert jax.eval_shape(jax.grad(total), jnp.ones((2, 2, 1))).dtype == jnp.float64


def test_boxes_get_no_gradient():
    assert not jax.grad(lambda boxes: roi_pool(IMAGE, boxes, (3, 5), 0.25).sum())(jnp.asarray(BOXES)).any()


def test_any_box_gives_finite_features_and_gradients():
    strange = np.float32([[-np.inf, -np.inf, np.inf, np.inf], [np.nan, 0, np.nan, 9]])
    boxes = np.concatenate([HUGE, strange])
    pooled, backward = jax.vjp(lambda image: roi_pool(image, boxes, 7, 0.5), jnp.asarray(IMAGE))
    assert np.isfinite(pooled).all() and np.isfinite(backward(pooled)[0]).all()
    np.testing.assert_array_equal(
        pooled[5, 3, 3], IMAGE.max(axis=(0, 1))
    )  # the bin in the middle contains the map
    assert not pooled[2].any()


def test_zero_boxes():
    pooled, backward = jax.vjp(lambda image: roi_pool(image, jnp.zeros((0, 4)), 7), jnp.asarray(IMAGE))
    assert pooled.shape == (0, 7, 7, 2)
    assert not backward(pooled)[0].any()


def test_low_precision_features_keep_their_dtype():
    image = jnp.asarray(IMAGE, jnp.bfloat16)
    pooled, backward = jax.vjp(lambda image: roi_pool(image, BOXES, (3, 5), 0.25), image)
    assert pooled.dtype == jnp.bfloat16 and backward(pooled)[0].dtype == jnp.bfloat16
    expected = roi_pool(image.astype(jnp.float32), BOXES, (3, 5), 0.25)
    np.testing.assert_array_equal(pooled.astype(jnp.float32), expected)


def test_nan_feature_appears_in_its_bin():
    spoiled = IMAGE.copy()
    spoiled[6, 8, 0] = np.nan
    pooled = roi_pool(spoiled, jnp.asarray([[0.0, 0.0, 32.0, 24.0]]), 1, 0.5)
    assert np.isnan(pooled[0, 0, 0, 0]) and np.isfinite(pooled[0, 0, 0, 1])


def test_bins_of_minus_infinity_are_not_empty_bins():
    box = jnp.asarray([[0.0, 0.0, 4.0, 4.0]])
    assert (roi_pool(jnp.full((5, 5, 1), -jnp.inf), box, 2) == -jnp.inf).all()


def test_other_boxes_do_not_recompile():
    compiled = roi_pool.lower(IMAGE, BOXES, (3, 5), 0.25).compile()  # which cannot be traced again
    for boxes in (BOXES / 8, BOXES * 0):
        np.testing.assert_array_equal(compiled(IMAGE, boxes), oracles.roi_pool(IMAGE, boxes, (3, 5), 0.25))
