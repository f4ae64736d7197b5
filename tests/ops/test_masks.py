"""Mask targets: by hand, against the oracle, the libraries, and the mask of the whole image."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from example_records import crop
from pycocotools import mask as coco_mask

from mrcnn_jax import ops

pytestmark = pytest.mark.usefixtures("strict_promotion")

crop_masks = jax.jit(ops.crop_masks, static_argnames=("size", "sampling_ratio", "half_pixel", "border"))
HALF = jnp.asarray([[[0, 1], [0, 1]]], jnp.uint8)  # its right half is set


def test_a_box_equal_to_the_frame_gives_the_mask_itself():
    mask = np.random.default_rng(8).integers(0, 2, (1, 7, 7))
    box = jnp.asarray([[3.0, 4.0, 31.0, 11.0]])
    np.testing.assert_allclose(crop_masks(mask, box, box, 7, sampling_ratio=1), mask, atol=1e-6)


def test_bins_by_hand():
    square = jnp.asarray([[0.0, 0.0, 2.0, 2.0]])
    # columns of samples at 1/4, 3/4, 5/4, 7/4; the cells' centres lie at 1/2 and 3/2, so they read 0, 1/4,
    # 3/4, 1
    np.testing.assert_allclose(crop_masks(HALF, square, square, 2), [[[0.125, 0.875]] * 2], rtol=1e-6)
    np.testing.assert_allclose(crop_masks(HALF, square, square, 1), [[[0.5]]], rtol=1e-6)
    # half a cell further: samples at 3/4, 5/4, 7/4 and, beyond the frame, 9/4
    np.testing.assert_allclose(
        crop_masks(HALF, square, square, 2, half_pixel=False), [[[0.5, 0.5], [0.25, 0.25]]], rtol=1e-6
    )
    np.testing.assert_allclose(
        crop_masks(HALF, square, square, 2, half_pixel=False, border=0.5), [[[0.5, 1]] * 2], rtol=1e-6
    )


def test_rows_are_y():
    square = jnp.asarray([[0.0, 0.0, 2.0, 2.0]])
    np.testing.assert_allclose(
        crop_masks(HALF.swapaxes(1, 2), square, square, 2), [[[0.125] * 2, [0.875] * 2]], rtol=1e-6
    )


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_a_full_mask_ends_at_its_frame(sampling_ratio):
    ones, frame = jnp.ones((1, 8, 8)), jnp.asarray([[10.0, 10.0, 26.0, 26.0]])
    boxes = jnp.asarray([[-6.0, 10.0, 26.0, 42.0]])  # its right upper quarter is the frame
    np.testing.assert_allclose(
        crop_masks(ones, frame, boxes, 4, sampling_ratio)[0],
        np.kron([[0, 1], [0, 0]], np.ones((2, 2))),
        atol=1e-6,
    )


def test_a_box_outside_the_frame_is_empty():
    ones, frame = jnp.ones((4, 8, 8)), jnp.asarray([[10.0, 10.0, 26.0, 26.0]]).repeat(4, axis=0)
    boxes = jnp.asarray(
        [
            [27.0, 10.0, 40.0, 26.0],
            [-9.0, 10.0, 9.0, 26.0],
            [10.0, 30.0, 26.0, 33.0],
            [-900.0, -900.0, -800.0, -800.0],
        ]
    )
    assert not crop_masks(ones, frame, boxes, 4).any()
    assert crop_masks(ones, frame, frame, 4).all()


@pytest.fixture(scope="module")
def framed():
    """Soft masks of 10 x 12 cells, their boxes, and boxes within, across and around them."""
    rng = np.random.default_rng(9)
    corner = rng.uniform(0, 50, (24, 2))
    side = rng.uniform(5, 60, (24, 2))
    frames = np.concatenate([corner, corner + side], axis=1)
    start = corner + side * rng.uniform(-0.5, 0.7, (24, 2))
    boxes = np.concatenate([start, start + side * rng.uniform(0.1, 1.5, (24, 2))], axis=1)
    boxes[0] = boxes[0, [2, 3, 0, 1]]
    boxes[1] = frames[1, [0, 1, 0, 1]] + 2
    return rng.random((24, 10, 12), dtype=np.float32), frames.astype(np.float32), boxes.astype(np.float32)


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
@pytest.mark.parametrize("half_pixel", [False, True])
def test_equals_roi_align_of_the_framed_mask(framed, sampling_ratio, half_pixel):
    masks, frames, boxes = framed
    targets = crop_masks(masks, frames, boxes, 5, sampling_ratio, half_pixel, border=0.5)
    for mask, frame, box, target in zip(masks, np.float64(frames), np.float64(boxes), targets, strict=True):
        cells = np.tile([12, 10] / (frame[2:] - frame[:2]), 2)
        inside = (box - np.tile(frame[:2], 2)) * cells
        expected = oracles.roi_align(
            mask[..., None], inside[None], (5, 5), samples=sampling_ratio, half_pixel=half_pixel
        )
        np.testing.assert_allclose(target, expected[0, ..., 0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", [14, 28])
def test_equals_the_libraries(golden, size):
    arrays = golden("mask_targets")
    masks, boxes = arrays["bitmasks"][arrays["match_idx"]], arrays["boxes"]
    image = np.float32([[0, 0, 128, 96]]).repeat(len(boxes), axis=0)
    soft = np.asarray(crop_masks(masks, image, boxes, size, sampling_ratio=0, half_pixel=False, border=0.5))
    comparable = np.ones_like(soft, bool)
    if size == 14:  # these bins' first samples lie at -10 + (2 + 1/10) 60/14 = -1, on the limit of sampling
        comparable[2, :, 2] = False
    np.testing.assert_allclose(soft[comparable], arrays[f"tv_project_M{size}"][comparable], atol=2e-5, rtol=0)

    half_pixel = np.asarray(
        crop_masks(masks, image, boxes, size, sampling_ratio=0, half_pixel=True, border=0.5)
    )
    clear = np.abs(half_pixel - 0.5) > 2e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(half_pixel[clear] >= 0.5, arrays[f"d2_bit_crop_M{size}"][clear])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools' decode
@pytest.mark.parametrize("size", [14, 28])
def test_polygons_nearly_equal_detectron2(golden, size):
    """Detectron2 draws polygons into the bins; here into the image, which moves edges a little."""
    arrays = golden("mask_targets")
    parts = [
        [arrays[name].tolist() for name in sorted(arrays) if name.startswith(f"poly_{i}_")] for i in range(4)
    ]
    drawn = np.stack(
        [coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 96, 128))) for polygons in parts]
    )
    np.testing.assert_array_equal(drawn, arrays["d2_poly_bitmask"])
    match, frames, proposals = arrays["match_idx"], arrays["d2_poly_boxes"], arrays["boxes"]
    kept = np.stack([crop(mask, box, 112) for mask, box in zip(drawn, frames, strict=True)])
    targets = crop_masks(kept[match], frames[match], proposals, size) >= 0.5
    different = (targets != arrays[f"d2_poly_crop_M{size}"]).mean(axis=(1, 2))
    inside = match < 2  # the other two objects go on beyond the image, where the image has no pixels
    assert inside.sum() >= 4 and different[inside].max() < 0.03
    assert different.max() < 0.11


@pytest.fixture(scope="module")
def ellipses():
    """Bitmaps of 32 rotated ellipses, their tight boxes, and proposals up to 15% of the sides off."""
    rng = np.random.default_rng(10)
    y, x = np.mgrid[:96, :128] + 0.5
    bitmaps = []
    for _ in range(32):
        turn, a, b = rng.uniform(0, np.pi), rng.uniform(10, 30), rng.uniform(10, 30)
        dx, dy = x - rng.uniform(35, 93), y - rng.uniform(35, 61)
        bitmaps.append(
            ((dx * np.cos(turn) + dy * np.sin(turn)) / a) ** 2
            + ((dy * np.cos(turn) - dx * np.sin(turn)) / b) ** 2
            <= 1
        )
    spans = [(np.flatnonzero(bitmap.any(axis=0)), np.flatnonzero(bitmap.any(axis=1))) for bitmap in bitmaps]
    boxes = np.float32([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] for columns, rows in spans])
    proposals = boxes + np.tile(boxes[:, 2:] - boxes[:, :2], 2) * rng.uniform(-0.15, 0.15, boxes.shape)
    return np.array(bitmaps), boxes, proposals.astype(np.float32)


def test_a_mask_kept_in_its_own_box_gives_the_target_of_the_whole_bitmap(ellipses):
    """Resampling to 112 x 112 bits changes less than 1% of the target's bits."""
    bitmaps, boxes, proposals = ellipses
    image = np.float32([[0, 0, 128, 96]]).repeat(len(boxes), axis=0)
    kept = crop_masks(bitmaps, image, boxes, 112) >= 0.5
    target, reference = crop_masks(kept, boxes, proposals, 28), crop_masks(bitmaps, image, proposals, 28)
    assert np.abs(target - reference).mean() < 0.01
    assert ((target >= 0.5) != (reference >= 0.5)).mean() < 0.01
    assert 0.3 < reference.mean() < 0.9


def test_cutting_a_bitmap_to_whole_pixels_changes_nothing_inside(ellipses):
    bitmaps, boxes, _ = ellipses
    for bitmap, box in zip(bitmaps[:2], boxes[:2], strict=True):
        x1, y1, x2, y2 = box.astype(int)
        inner = (box + np.float32([0.6, 3.3, -5.2, -0.7]))[None]
        cut = ops.crop_masks(
            jnp.asarray(bitmap[None, y1:y2, x1:x2]), jnp.asarray(box)[None], jnp.asarray(inner), 14
        )
        np.testing.assert_allclose(
            cut, crop_masks(bitmap[None], np.float32([[0, 0, 128, 96]]), inner, 14), atol=2e-5
        )


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_any_finite_frame_and_box_gives_shares(sampling_ratio):
    strange = np.float32(
        [
            [3, 3, 3, 3],
            [9, 9, 2, 2],
            [-1e30, -1e30, 1e30, 1e30],
            [1e30, 0, -1e30, 1e-40],
            [0, 0, 8, 8],
            [5, 0, 5, 9],
        ]
    )
    frames, boxes = strange.repeat(len(strange), axis=0), np.tile(strange, (len(strange), 1))
    for half_pixel in (False, True):
        target = np.asarray(
            crop_masks(np.ones((len(frames), 6, 6), np.uint8), frames, boxes, 4, sampling_ratio, half_pixel)
        )
        assert np.isfinite(target).all() and target.min() >= 0 and target.max() <= 1 + 1e-6


@pytest.mark.parametrize("dtype", ["float64", "int64", "bfloat16"])
def test_boxes_of_other_types_are_those_of_float32(dtype):
    mask, frame, box = np.full((1, 4, 4), 0.5, np.float32), [[0, 0, 4, 4]], [[1, 1, 3, 3]]
    to = np.asarray if dtype != "bfloat16" else jnp.asarray
    targets = ops.crop_masks(mask, to(frame, dtype), to(box, dtype), 2)
    assert targets.dtype == jnp.float32 and (targets == 0.5).all()


def test_overlaps_without_masks():
    assert ops.mask_iou(np.zeros((0, 4, 4)), np.ones((2, 4, 4))).shape == (0, 2)
    assert ops.mask_iou(np.ones((2, 4, 4)), np.zeros((0, 4, 4))).shape == (2, 0)


def test_no_objects():
    assert crop_masks(jnp.zeros((0, 6, 6)), jnp.zeros((0, 4)), jnp.zeros((0, 4)), 28).shape == (0, 28, 28)


def test_boxes_around_masks():
    masks = np.zeros((2, 2, 6, 8), np.uint8)
    masks[0, 0, 2:4, 1:6] = masks[0, 1, 5, 7] = 3
    masks[1, 0] = 1
    expected = [[[1, 2, 6, 4], [7, 5, 8, 6]], [[0, 0, 8, 6], [0, 0, 0, 0]]]
    np.testing.assert_array_equal(ops.masks_to_boxes(masks), expected)
    rng = np.random.default_rng(0)
    for mask in rng.random((20, 9, 7)) < rng.random((20, 1, 1)) * 0.2:
        x, y, width, height = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask, np.uint8)))
        np.testing.assert_array_equal(ops.masks_to_boxes(mask), [x, y, x + width, y + height])


def test_overlaps_of_masks_equal_pycocotools():
    rng = np.random.default_rng(0)
    masks = (rng.random((12, 15, 11)) < np.linspace(0, 1, 12)[:, None, None]).astype(np.uint8)
    codes = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]
    expected = coco_mask.iou(codes, codes[::2], [0] * 6)
    expected[0, 0] = 0  # both empty: 0 / 0
    np.testing.assert_allclose(ops.mask_iou(masks, masks[::2]), np.nan_to_num(expected), rtol=1e-6)
