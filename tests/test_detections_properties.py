"""Detections of any number of objects in images of any size: every form is right; and arrays of any kind."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_jax.detections import Detections
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.image_inputs import to_rgb
from mrcnn_jax.inference.prediction_writer import instance_ids
from mrcnn_jax.run_length_masks import RunLengthMasks, encode_counts, encode_masks
from mrcnn_jax.structures import DatasetInfo

INFO = DatasetInfo("things", (3, 90, 7), ("cat", "dog", "owl"))
SIDES = st.one_of(st.integers(1, 40), st.sampled_from([1, 2, 333]))


def rectangles(count: int, height: int, width: int, seed: int) -> Detections:
    """Objects whose masks fill their boxes in whole pixels; some are empty, some as large as the image."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.integers(0, [[[height + 1, width + 1]]], (count, 2, 2)), axis=1)
    codes = []
    for (y1, x1), (y2, x2) in corners:
        mask = np.zeros((1, height, width), bool)
        mask[0, y1:y2, x1:x2] = True
        codes.append(encode_masks(mask)[0]["counts"])
    boxes = corners[:, :, ::-1].reshape(count, 4).astype(np.float32)
    scores, classes = np.sort(rng.random(count, np.float32))[::-1], rng.integers(0, 3, count)
    return Detections(boxes, scores, classes, RunLengthMasks(codes, height, width), None, INFO.category_names)


@settings(max_examples=15, deadline=None)
@given(SIDES, SIDES, st.sampled_from([0, 1, 2, 7, 30, 100]), st.integers(0, 99))
def test_every_form_of_any_objects_is_right(height, width, count, seed):
    found = rectangles(count, height, width, seed)
    image = np.full((height, width, 3), 90, np.uint8)
    areas = (np.diff(found.boxes.reshape(-1, 2, 2), axis=1)[:, 0]).prod(axis=1)
    assert found.masks.areas.tolist() == areas.tolist() == found.areas.tolist()
    back = Detections.from_coco(json.loads(json.dumps(found.to_coco(5, INFO))), INFO, height, width)
    np.testing.assert_array_equal(back.boxes, found.boxes)
    np.testing.assert_array_equal(back.class_ids, found.class_ids)
    assert count == 0 or back.masks.counts == found.masks.counts
    assert len(found.to_json()) == len(found.crops(image)) == count
    for crop, area in zip(found.crops(image), areas, strict=True):
        assert crop.size == 3 * area or area == 0
    ids = instance_ids(found)
    assert ids.shape == (height, width) and ids.max(initial=0) <= count
    np.testing.assert_array_equal(ids > 0, np.asarray(found.masks).any(axis=0))
    picture = found.draw(image, score_threshold=0, max_side=2048)
    assert picture.dtype == np.uint8 and max(picture.shape) <= 2048 and (image == 90).all()
    assert repr(found).startswith(f"Detections({count} object") and len(repr(found)) < 1000


@pytest.mark.parametrize("height, width", [(8000, 1), (1, 8000), (3, 7999), (8000, 8000)])
def test_huge_and_narrow_images_are_drawn(height, width):
    y, x = max(1, height // 2), max(1, width // 2)
    lengths = np.array([0, *[y, height - y] * x])  # the upper left quarter
    lengths[-1] += (width - x) * height
    code = encode_counts(lengths, np.array([len(lengths)]))[0]
    codes = RunLengthMasks([code] * 100, height, width)
    boxes = np.tile(np.float32([0, 0, x, y]), (100, 1))
    found = Detections(boxes, np.ones(100, np.float32), np.zeros(100, int), codes, None, INFO.category_names)
    image = np.zeros((height, width, 3), np.uint8)
    picture = found[:1].draw(image, max_side=1024)
    assert max(picture.shape) == 1024 and picture[0, 0].any()
    assert found.masks.areas.tolist() == [x * y] * 100 and found.crops(image)[0].shape == (y, x, 3)


TYPES = ["uint8", "uint16", "bool", "float32", "float64", "int32", "int64", "complex64", "float16"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=4), st.sampled_from([None, 1, 2, 3, 4]), st.sampled_from(TYPES))
def test_an_array_is_an_image_or_one_sentence_says_what_to_change(shape, channels, kind):
    array = np.zeros((*shape, *([channels] if channels else [])), kind)
    if kind == "uint8" and array.ndim == 3 and array.shape[2] == 3 and array.size:
        assert to_rgb(array) is array
        return
    with pytest.raises(InputError) as error:
        to_rgb(array)
    message = str(error.value)
    assert message.startswith("an image must ") and "\n" not in message and len(message) < 160
