"""Detections as a sequence of objects."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from mrcnn_jax.errors import InputError
from mrcnn_jax.run_length_masks import RunLengthMasks
from mrcnn_jax.structures import Detection, Detections

FOUND = Detections(
    boxes=np.float32([[0, 0, 5, 5], [1, 1, 9, 9], [2, 2, 4, 4]]),
    scores=np.float32([0.9, 0.6, 0.25]),
    class_ids=np.int32([1, 0, 1]),
    masks=np.arange(3 * 8 * 8).reshape(3, 8, 8) % 2 == 0,
    keypoints=np.zeros((3, 2, 3), np.float32),
    class_names=("cat", "dog"),
)


def test_length_is_the_number_of_objects():
    assert len(FOUND) == 3 and len(FOUND[:0]) == 0


@pytest.mark.parametrize("index", [1, np.int64(1), -2])
def test_integers_give_one_object(index):
    found = FOUND[index]
    assert isinstance(found, Detection)
    assert (found.class_id, found.class_name) == (0, "cat") and found.score == pytest.approx(0.6)
    np.testing.assert_array_equal(found.box, [1, 1, 9, 9])
    assert found.mask.shape == (8, 8) and found.keypoints.shape == (2, 3)


@pytest.mark.parametrize("index", [slice(0, 3, 2), [0, 2], np.array([0, 2]), np.array([True, False, True])])
def test_slices_indices_and_masks_give_detections(index):
    found = FOUND[index]
    assert isinstance(found, Detections) and found.class_names == FOUND.class_names
    np.testing.assert_array_equal(found.scores, np.float32([0.9, 0.25]))
    assert found.boxes.shape == (2, 4)
    assert found.masks.shape == (2, 8, 8) and found.keypoints.shape == (2, 2, 3)


def test_iteration_is_over_objects():
    assert [found.class_name for found in FOUND] == ["dog", "cat", "dog"]
    bare = Detections(FOUND.boxes, FOUND.scores, FOUND.class_ids)
    assert [(found.class_name, found.mask, found.keypoints) for found in bare] == [(None, None, None)] * 3
    with pytest.raises(IndexError):
        FOUND[3]


def test_repr_is_readable():
    assert repr(FOUND[:2]) == (
        "Detections(2 objects"
        "\n  Detection(dog 0.90 at 0.0, 0.0, 5.0, 5.0)"
        "\n  Detection(cat 0.60 at 1.0, 1.0, 9.0, 9.0))"
    )
    assert repr(FOUND[[0] * 50]).count("\n") == 11 and repr(FOUND[:0]) == "Detections(0 objects)"


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="the same number of objects, not boxes 3, scores 2, class_ids 3"):
        dataclasses.replace(FOUND, scores=FOUND.scores[:2])


def test_filter_by_score_class_and_area():
    assert FOUND.areas.tolist() == [25, 64, 4]
    assert FOUND.filter(score=0.5).scores.tolist() == FOUND.scores[:2].tolist()
    assert len(FOUND.filter(classes=["dog"])) == len(FOUND.filter(classes={1})) == 2
    assert len(FOUND.filter(classes=["dog", 0])) == 3 and len(FOUND.filter(classes=[])) == 0
    assert FOUND.filter(min_area=5, max_area=30).areas.tolist() == [25]
    with pytest.raises(ValueError, match="there is no class 'cow'; the classes are cat, dog"):
        FOUND.filter(classes=["cow"])
    assert len(FOUND.filter(classes="dog")) == len(FOUND.filter(classes=1)) == 2
    with pytest.raises(InputError, match="there is no class 2; the classes are cat, dog"):
        FOUND.filter(classes=[2])
    for limit, value in (("score", "x"), ("score", float("nan")), ("min_area", None), ("max_area", [1, 2])):
        with pytest.raises(InputError, match=f"{limit} must be a number, not "):
            FOUND.filter(**{limit: value})


def test_crops_are_the_boxes_in_whole_pixels():
    image = np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3)
    boxes = np.float32([[1.2, 2.7, 3.4, 5.1], [-5, -5, 2, 2], [11.5, 9.5, 30, 30], [4, 4, 4, 4]])
    crops = Detections(boxes, np.ones(4, np.float32), np.zeros(4, np.int32)).crops(image)
    expected = [image[2:6, 1:4], image[0:2, 0:2], image[9:10, 11:12], image[4:5, 4:5]]
    for crop, one in zip(crops, expected, strict=True):
        np.testing.assert_array_equal(crop, one)


def test_crops_of_another_image_are_refused():
    with pytest.raises(InputError, match=r"out of an array \[H, W, 3\], not str"):
        FOUND.crops("image.png")
    masked = dataclasses.replace(FOUND, masks=RunLengthMasks(["0`0", "0`0", "0`0"], 4, 6))
    assert len(masked.crops(np.zeros((4, 6, 3), np.uint8))) == 3
    with pytest.raises(InputError, match=r"an image of 4 x 6 pixels \(height x width\), not 6 x 4"):
        masked.crops(np.zeros((6, 4, 3), np.uint8))


def test_to_json_holds_plain_types():
    codes = RunLengthMasks(["0`0", "0`0", "0`0"], 4, 4)
    found = dataclasses.replace(FOUND, masks=codes, keypoints=None)
    entries = json.loads(json.dumps(found.to_json()))
    assert entries[0]["box"] == [0, 0, 5, 5] and entries[0]["class_name"] == "dog"
    assert entries[2]["mask"] == {"size": [4, 4], "counts": "0`0"} and "keypoints" not in entries[0]
    assert len(FOUND.to_json()[0]["keypoints"]) == 2 and "mask" not in FOUND.to_json()[0]


def test_to_supervision_passes_arrays_and_names(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=lambda **fields: fields))
    fields = FOUND.to_supervision()
    assert fields["data"]["class_name"].tolist() == ["dog", "cat", "dog"]
    np.testing.assert_array_equal(fields["xyxy"], FOUND.boxes)
    np.testing.assert_array_equal(fields["mask"], FOUND.masks)
