"""Views of images and of their objects agree: what is drawn for an object is where its box and mask are."""

import dataclasses

import cv2
import numpy as np
import pytest
from example_records import FACES, STILL, encode, record
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_jax.config import AugmentationConfig, DataConfig
from mrcnn_jax.data.augment.example import training_example
from mrcnn_jax.data.augment.mask_runs import MaskRuns
from mrcnn_jax.data.augment.objects import transform_objects
from mrcnn_jax.data.augment.view import View, render_view, sample_view
from mrcnn_jax.data.transforms import padded_size

HEIGHT, WIDTH = 90, 130
FRACTIONS = st.sampled_from([0.0, 0.5, 1.0])


def blob(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """An object of one piece without symmetry, as its pixels."""
    mask = np.zeros((height, width), np.uint8)
    middle = random.uniform([0.2 * width, 0.2 * height], [0.8 * width, 0.8 * height])
    angles = np.sort(random.uniform(0, 2 * np.pi, 7))
    corners = middle + np.stack([np.cos(angles), np.sin(angles)], 1) * random.uniform(12, 30, (7, 1))
    cv2.fillPoly(mask, [corners.round().astype(np.int32)], 1)
    return mask


def tight_box(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def paste(crop: np.ndarray, box: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The full-size mask of a crop: each pixel's centre looks up its cell."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    column, row = (x - box[0]) / (box[2] - box[0]), (y - box[1]) / (box[3] - box[1])
    inside = (column >= 0) & (column < 1) & (row >= 0) & (row < 1)
    cells = (np.stack([row, column]).clip(0, 0.999) * len(crop)).astype(int)
    return inside & (crop[cells[0], cells[1]] > 0)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6), flip=FRACTIONS, vertical_flip=FRACTIONS, quarter_turns=st.booleans(),
    rotation=st.sampled_from([0.0, 10.0, 90.0]), crop=FRACTIONS,
    scale_jitter=st.sampled_from([(1.0, 1.0), (0.5, 0.9), (1.2, 2.0), (0.3, 2.5)]),
    size=st.sampled_from([(HEIGHT, WIDTH), (WIDTH, HEIGHT), (WIDTH, WIDTH)]),
)  # fmt: skip
def test_boxes_masks_and_keypoints_are_where_the_pixels_show_the_object(seed, size, **augment):
    """The oracle sends the object's own picture through the transformation of the pixels."""
    random = np.random.default_rng(seed)
    mask = blob(*size, random)
    x1, y1, x2, y2 = tight_box(mask)
    point = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
    dot = np.exp(-((np.mgrid[: size[0], : size[1]] + 0.5 - point[::-1, None, None]) ** 2).sum(0) / 18)
    picture = np.stack([mask * 255, np.full(size, 255), dot * 255], axis=-1).astype(np.uint8)
    config = DataConfig(
        short_edge=(96,), short_edge_test=96, long_edge=140, max_objects=2, mask_size=56,
        augment=AugmentationConfig(**augment, min_visible=0.0),
    )  # fmt: skip
    points = [[[*point, 2], [0, 0, 0], [0, 0, 0]]]
    one = training_example(
        record(picture, [[x1, y1, x2, y2]], [mask], keypoints=points), FACES, config,
        np.random.default_rng(seed),
    )  # fmt: skip
    seen, spot = one.images[..., 0] >= 128, one.images[..., 2]
    height, width = one.sizes
    assert one.images[height:].max(initial=0) == one.images[:, width:].max(initial=0) == 0
    padded = padded_size(config, size[0] > size[1])
    view = sample_view(np.random.default_rng(seed), *size, np.array([[x1, y1, x2, y2]]), padded, config)
    scale = max(1.0, *view.scale)  # an error of a pixel of the object's picture
    if seen.sum() < 200 * scale:  # too little of it to compare
        return
    assert one.valid.sum() == 1
    np.testing.assert_allclose(one.boxes[0], tight_box(seen), atol=2.5 * scale)
    drawn = paste(one.masks[0], one.boxes[0], seen.shape)
    border = cv2.morphologyEx(seen.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3))).sum()
    assert (drawn != seen).sum() < 0.75 * border * scale
    x, y, visibility = one.keypoints[0, 0]
    if spot.max() > 250 and visibility:
        row, column = np.unravel_index(spot.argmax(), spot.shape)
        np.testing.assert_allclose([x, y], [column + 0.5, row + 0.5], atol=2.5 * scale)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), quarter_turns=st.booleans(), rotation=st.sampled_from([0.0, 30.0]))
def test_matrix_is_the_map_of_the_pixels(seed, quarter_turns, rotation):
    random = np.random.default_rng(seed)
    augment = AugmentationConfig(
        quarter_turns=quarter_turns, rotation=rotation, crop=0.5, scale_jitter=(0.5, 1.5), vertical_flip=0.5
    )
    config = DataConfig(short_edge=(96,), short_edge_test=96, long_edge=160, augment=augment)
    view = sample_view(random, HEIGHT, WIDTH, np.zeros((0, 4)), (96, 160), config)
    # a smooth picture of the coordinates themselves
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    picture = np.stack([x, y, np.full_like(x, 200)], axis=-1).round().astype(np.uint8)
    canvas = render_view(picture, view, (96, 160)).astype(float)
    rows, columns = (random.integers(3, side - 3, 30) for side in view.size)
    inverse = np.linalg.inv(view.matrix)
    origin = (inverse @ np.stack([columns + 0.5, rows + 0.5, np.ones(30)]))[:2].T
    top, left, bottom, right = view.window
    inside = ((origin > [left + 3, top + 3]) & (origin < [right - 3, bottom - 3])).all(axis=1)
    np.testing.assert_allclose(canvas[rows, columns][inside, :2], origin[inside], atol=2.0)
    assert all(side <= limit for side, limit in zip(view.size, (96, 160), strict=True))


def test_without_augmentation_a_view_is_the_whole_image():
    config = DataConfig(short_edge=(96,), short_edge_test=96, long_edge=160, augment=STILL)
    view = sample_view(np.random.default_rng(0), HEIGHT, WIDTH, np.zeros((0, 4)), (96, 160), config)
    assert view == View((0, 0, HEIGHT, WIDTH), (96, 139))


@pytest.mark.parametrize("angle", [0.0, 1e-9])
def test_object_of_which_too_little_is_left_is_dropped(angle):
    mask = np.zeros((20, 40), np.uint8)
    mask[5:15, 10:30] = 1
    given_record = record(np.zeros((20, 40, 3), np.uint8), [[10, 5, 30, 15]] * 2, [mask, mask], crowd=[0, 1])
    view = View((0, 0, 20, 13), (20, 13), angle=angle)  # shows 3 of the 20 columns
    options = {"slots": 4, "mask_size": 8}
    for least, count in ((0.14, 2), (0.16, 0)):
        seen = transform_objects(given_record.objects, 20, 40, view, min_visible=least, **options)
        assert len(seen.boxes) == count
        np.testing.assert_allclose(seen.boxes, np.tile([[10, 5, 13, 15]], (count, 1)), atol=1e-6)


def test_box_of_a_cut_object_fits_what_is_left_of_its_mask():
    mask = np.zeros((20, 40), np.uint8)
    mask[2:5, 10:30] = mask[5:15, 28:30] = 1  # an angle, of which only the upper bar is left
    objects = record(np.zeros((20, 40, 3), np.uint8), [[10, 2, 30, 15]], [mask]).objects
    seen = transform_objects(objects, 20, 40, View((0, 0, 20, 20), (40, 40)), slots=1, mask_size=4)
    np.testing.assert_array_equal(seen.boxes, [[20, 4, 40, 10]])
    assert seen.masks.all()
    without = transform_objects(objects._replace(rles=[""]), 20, 40, View((0, 0, 20, 20), (40, 40)), slots=1,
                          mask_size=4)  # fmt: skip
    np.testing.assert_array_equal(without.boxes, [[20, 4, 40, 30]])


def test_keypoint_outside_the_view_is_unlabelled():
    points = [[[35.0, 5.0, 2], [12.0, 6.0, 1], [0, 0, 0]]]
    objects = record(np.zeros((20, 40, 3), np.uint8), [[10, 5, 38, 15]], keypoints=points).objects
    seen = transform_objects(objects, 20, 40, View((0, 0, 20, 20), (20, 20)), slots=1, mask_size=4)
    np.testing.assert_array_equal(seen.keypoints, [[[0, 0, 0], [12, 6, 1], [0, 0, 0]]])


@pytest.mark.parametrize("height", [1, 7, 20])
def test_segments_of_a_mask_are_its_runs_in_every_column(height):
    mask = np.random.default_rng(0).random((height, 30)) < 0.6
    mask[:, 4:7] = True  # runs on over columns
    again = np.zeros_like(mask)
    top, left, bottom, right = window = (height // 4, 3, max(1, height - 2), 25)
    segments, share = MaskRuns(encode(mask), *mask.shape, window).segments()
    for column, first, end in segments:
        assert first < end and not again[first:end, column].any()
        again[first:end, column] = True
    inside = np.zeros_like(mask)
    inside[top:bottom, left:right] = True
    np.testing.assert_array_equal(again, mask & inside)
    np.testing.assert_allclose(share, (mask & inside).sum() / mask.sum())


def test_smaller_scales_keep_all_of_the_image_and_larger_ones_fill_the_padded_size():
    config = DataConfig(short_edge=(96,), short_edge_test=96, long_edge=160, augment=STILL)
    for jitter, size in (((0.5, 0.5), (48, 70)), ((4.0, 4.0), (96, 160))):
        scaled = dataclasses.replace(config, augment=dataclasses.replace(STILL, scale_jitter=jitter))
        view = sample_view(np.random.default_rng(0), HEIGHT, WIDTH, np.zeros((0, 4)), (96, 160), scaled)
        assert view.size == size
        assert (view.window == (0, 0, HEIGHT, WIDTH)) == (jitter == (0.5, 0.5))


def test_crop_holds_the_centre_of_an_object():
    augment = dataclasses.replace(STILL, crop=1.0, crop_size=(0.1, 0.4))
    config = DataConfig(short_edge=(96,), short_edge_test=96, long_edge=160, augment=augment)
    boxes = np.array([[100.0, 70, 124, 88]])
    for seed in range(50):
        top, left, bottom, right = sample_view(
            np.random.default_rng(seed), HEIGHT, WIDTH, boxes, (96, 160), config
        ).window
        assert top <= 79 < bottom and left <= 112 < right
