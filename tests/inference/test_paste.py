"""Pasting masks: against torchvision and Detectron2, against the rule pixel by pixel, and at the edges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import GOLDEN
from pycocotools import mask as coco_mask
from soft_masks import paste_probabilities

from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.paste import paste_masks
from mrcnn_jax.inference.paste_rles import paste_rles
from mrcnn_jax.run_length_masks import encode_masks


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "mask_paste.npz") as arrays:
        return dict(arrays)


def test_exact_probabilities_equal_detectron2(golden):
    soft = paste_probabilities(golden["masks"], golden["boxes"], 96, 128)
    assert soft.dtype == np.float32
    np.testing.assert_allclose(soft, golden["d2_paste_soft"], atol=1e-5)


def test_integer_probabilities_equal_torchvision(golden):
    rows = golden["rows"]
    soft = paste_probabilities(golden["masks"][rows], golden["boxes"][rows], 96, 128, convention="integer")
    np.testing.assert_allclose(soft, golden["tv_paste"], atol=1e-5)


@pytest.mark.parametrize("convention, expected", [("exact", "d2_paste_bool"), ("integer", "tv_paste")])
def test_masks_equal_torchvision_and_detectron2(golden, convention, expected):
    rows = golden["rows"]
    soft = golden["d2_paste_soft"][rows] if convention == "exact" else golden["tv_paste"]
    reference = golden[expected] if convention == "exact" else golden[expected] > 0.5
    pasted = paste_masks(golden["masks"][rows], golden["boxes"][rows], 96, 128, convention=convention)
    assert pasted.dtype == bool and pasted.shape == (9, 96, 128)
    clear = np.abs(soft - 0.5) > 1e-5
    np.testing.assert_array_equal(pasted[clear], reference[clear])
    assert reference.any(axis=(1, 2)).sum() >= 6


def test_levels_equal_detectron2(golden):
    """The uint8 masks that it makes for drawing: probabilities in 255ths, cut off."""
    rows = golden["rows"]
    soft = 255 * paste_probabilities(golden["masks"][rows], golden["boxes"][rows], 96, 128)
    clear = (soft == 0) | (np.abs(soft - np.round(soft)) > 1e-3)
    assert clear.mean() > 0.99 and soft.any(axis=(1, 2)).sum() >= 6
    np.testing.assert_array_equal(np.floor(soft)[clear], golden["d2_paste_uint8"][clear])


def test_integer_masks_nearly_equal_detectron(golden):
    """It resized with an antialiasing filter, which shows where a box has fewer pixels than cells."""
    rows = golden["rows"]
    pasted = paste_masks(golden["masks"][rows], golden["boxes"][rows], 96, 128, convention="integer")
    original = golden["old_detectron_paste"].astype(bool)
    large = (golden["boxes"][rows, 2:] - golden["boxes"][rows, :2] >= 28).all(axis=1)
    assert large.sum() == 5 and original[large].any(axis=(1, 2)).all()
    np.testing.assert_array_equal(pasted[large], original[large])
    assert (pasted != original).sum() <= 52  # of 9 x 96 x 128, all in the other four


def paste_slowly(mask, box, height, width):
    """Applies the exact rule to one pixel at a time: the mask, zero around it, bilinearly at the centre."""
    side = len(mask)
    framed = np.pad(np.float64(mask), 1)
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            u = (x + 0.5 - box[0]) / (box[2] - box[0]) * side + 0.5
            v = (y + 0.5 - box[1]) / (box[3] - box[1]) * side + 0.5
            if 0 <= u < side + 1 and 0 <= v < side + 1:
                i, j = int(v), int(u)
                a, b = v - i, u - j
                top = (1 - b) * framed[i, j] + b * framed[i, j + 1]
                bottom = (1 - b) * framed[i + 1, j] + b * framed[i + 1, j + 1]
                out[y, x] = (1 - a) * top + a * bottom
    return out


@pytest.mark.parametrize("side", [1, 3, 14])
def test_exact_probabilities_equal_the_rule_pixel_by_pixel(side):
    rng = np.random.default_rng(side)
    masks = rng.random((4, side, side), np.float32)
    boxes = [[2.3, 1.1, 15.7, 9.2], [-6, -4, 30, 24], [5.2, 6.4, 5.9, 7.6], [14.5, 3.0, 40.0, 50.0]]
    boxes = np.float32(boxes)
    expected = [paste_slowly(mask, box, 16, 20) for mask, box in zip(masks, boxes, strict=True)]
    np.testing.assert_allclose(paste_probabilities(masks, boxes, 16, 20), expected, atol=2e-5)


def test_full_mask_fills_the_pixels_with_centres_in_the_box():
    pasted = paste_masks(np.ones((1, 4, 4)), np.float32([[1.0, 2.0, 4.0, 4.0]]), 6, 6)
    expected = np.zeros((6, 6), bool)
    expected[2:4, 1:4] = True
    np.testing.assert_array_equal(pasted[0], expected)


def test_threshold_itself_counts_only_in_exact():
    masks = np.full((1, 4, 4), 0.5, np.float32)
    box = np.float32([[2, 2, 10, 10]])
    assert paste_masks(masks, box, 12, 12)[0, 5, 5]
    assert not paste_masks(masks, box, 12, 12, convention="integer").any()
    assert paste_masks(masks, box, 12, 12, threshold=0.4, convention="integer")[0, 5, 5]


@pytest.mark.parametrize("convention", ["exact", "integer"])
def test_no_masks_give_empty_results(convention):
    nothing = np.zeros((0, 28, 28)), np.zeros((0, 4)), 7, 9
    assert paste_masks(*nothing, convention=convention).shape == (0, 7, 9)
    assert paste_probabilities(*nothing, convention).shape == (0, 7, 9)
    assert paste_rles(*nothing, convention=convention).shape == (0, 7, 9)
    assert encode_masks(np.zeros((0, 7, 9), bool)) == []


NOWHERE = [
    [30, 2, 40, 8], [-40, 2, -30, 8], [2, 30, 8, 40], [2, -40, 8, -30],  # beside the image
    [5, 5, 5, 9], [5, 5, 9, 5], [5, 5, 5, 5], [9, 9, 4, 4],  # without area
    [np.nan, 1, 5, 5], [0, 0, np.inf, 5],
]  # fmt: skip


@pytest.mark.parametrize("convention", ["exact", "integer"])
@pytest.mark.parametrize("box", NOWHERE)
@pytest.mark.filterwarnings("error")
def test_boxes_outside_or_without_area_give_empty_masks(box, convention):
    masks, boxes = np.ones((1, 28, 28), np.float32), np.float32([box])
    assert not paste_masks(masks, boxes, 12, 16, convention=convention).any()
    assert not paste_probabilities(masks, boxes, 12, 16, convention).any()
    empty = encode_masks(np.zeros((1, 12, 16), bool))
    assert encode_masks(paste_rles(masks, boxes, 12, 16, convention=convention)) == empty


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools' decode
@pytest.mark.parametrize("convention", ["exact", "integer"])
def test_run_lengths_equal_those_of_the_pasted_masks(convention):
    rng = np.random.default_rng(5)
    centres, sides = rng.uniform(-5, 45, (200, 2)), rng.uniform(0, 60, (200, 2)) * rng.random((200, 1)) ** 2
    boxes = np.float32(np.concatenate([centres - sides, centres + sides], axis=1))
    masks = rng.random((200, 7, 7), np.float32)
    masks[::5] = 1.0  # whole columns, whole images: runs that go on in the next column
    boxes[0] = [-20, -20, 90, 90]
    pasted = paste_masks(masks, boxes, 31, 40, convention=convention)
    assert pasted[0].all() and pasted.any(axis=1).sum() > 1000
    found = paste_rles(masks, boxes, 31, 40, convention=convention)
    np.testing.assert_array_equal(found, pasted)
    runs = encode_masks(found)
    assert runs == encode_masks(pasted)
    np.testing.assert_array_equal(coco_mask.decode(runs).transpose(2, 0, 1), pasted)
    assert all(isinstance(rle["counts"], str) and rle["size"] == [31, 40] for rle in runs)


def test_masks_pasted_in_parts_are_the_same(monkeypatch):
    rng = np.random.default_rng(6)
    corners = rng.uniform(-20, 60, (20, 2))
    boxes = np.float32(np.concatenate([corners, corners + rng.uniform(5, 90, (20, 2))], axis=1))
    masks = np.round(rng.random((20, 7, 7), np.float32), 2)
    whole = paste_rles(masks, boxes, 60, 80).counts
    monkeypatch.setattr("mrcnn_jax.inference.paste_rles._TILE_PIXELS", 200)
    assert paste_rles(masks, boxes, 60, 80).counts == whole


numbers = st.floats(-30, 60, width=32)


@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(
    boxes=st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=4),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    cells=st.sampled_from([1, 2, 7, 28]),
    steps=st.sampled_from([1, 2, 10, 256, 2**23]),
    threshold=st.sampled_from([0.5, 0.5, 0.3, 0.0, 1.0]),
    convention=st.sampled_from(["exact", "integer"]),
    whole=st.booleans(),
)
def test_run_lengths_of_any_boxes_equal_those_of_the_pasted_masks(
    boxes, size, cells, steps, threshold, convention, whole
):
    """Also where cells or pixels lie exactly on the threshold."""
    boxes = np.float32([(0, 0, *size[::-1])] * whole + boxes).reshape(-1, 4)
    masks = np.random.default_rng(0).integers(0, steps + 1, (len(boxes), cells, cells)) / np.float32(steps)
    arguments = masks, boxes, *size, threshold, convention
    pasted = paste_masks(*arguments)
    assert encode_masks(paste_rles(*arguments)) == encode_masks(pasted)


@pytest.mark.parametrize("convention", ["exact", "integer"])
def test_run_lengths_of_large_boxes_equal_those_of_the_pasted_masks(convention):
    rng = np.random.default_rng(8)
    masks = rng.random((4, 28, 28), np.float32)
    masks[1], masks[2, 3, 4] = 0.5, np.nan
    boxes = np.float32([[0, 0, 640, 480]] * 3 + [[-100, 20.5, 700.25, 470]])
    found = paste_rles(masks, boxes, 480, 640, convention=convention)
    pasted = paste_masks(masks[[0, 1, 3]], boxes[[0, 1, 3]], 480, 640, convention=convention)
    assert encode_masks(found[[0, 1, 3]]) == encode_masks(pasted)
    assert not found[2].any()  # a value that is not finite leaves nothing


@pytest.mark.parametrize("paste", [paste_masks, paste_rles])
def test_unknown_conventions_are_refused(paste):
    with pytest.raises(InputError, match='"nearest": it must be "exact" or "integer"'):
        paste(np.ones((1, 2, 2)), np.float32([[0, 0, 4, 4]]), 8, 8, convention="nearest")
