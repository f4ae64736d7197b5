"""Detections as a sequence of objects."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from square_objects import INFO, detections

from mrcnn_jax.detections import Detection, Detections
from mrcnn_jax.errors import InputError
from mrcnn_jax.run_length_masks import RunLengthMasks, encode_masks

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
        replace(FOUND, scores=FOUND.scores[:2])


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
    masked = replace(FOUND, masks=RunLengthMasks(["0`0", "0`0", "0`0"], 4, 6))
    assert len(masked.crops(np.zeros((4, 6, 3), np.uint8))) == 3
    with pytest.raises(InputError, match=r"an image of 4 x 6 pixels \(height x width\), not 6 x 4"):
        masked.crops(np.zeros((6, 4, 3), np.uint8))


def test_to_json_holds_plain_types():
    codes = RunLengthMasks(["0`0", "0`0", "0`0"], 4, 4)
    found = replace(FOUND, masks=codes, keypoints=None)
    entries = json.loads(json.dumps(found.to_json()))
    assert entries[0]["box"] == [0, 0, 5, 5] and entries[0]["class_name"] == "dog"
    assert entries[2]["mask"] == {"size": [4, 4], "counts": "0`0"} and "keypoints" not in entries[0]
    whole = FOUND.to_json()[0]
    assert len(whole["keypoints"]) == 2 and whole["mask"] == encode_masks(FOUND.masks)[0]


def test_to_supervision_passes_arrays_and_names(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=lambda **fields: fields))
    fields = FOUND.to_supervision()
    assert fields["data"]["class_name"].tolist() == ["dog", "cat", "dog"]
    np.testing.assert_array_equal(fields["xyxy"], FOUND.boxes)
    np.testing.assert_array_equal(fields["mask"], FOUND.masks)


def test_to_coco_of_one_image():
    found = replace(
        detections((1, 0.123456789, 10, 20, 30)),
        boxes=np.float32([[10.126, 20.25, 40.5, 50.75]]),
        keypoints=np.float32([[[1.5, 2.25, 0.75], [3, 4, 0.5]]]),
    )
    (entry,) = found.to_coco(np.int64(7), INFO)
    assert entry == {
        "image_id": 7,
        "category_id": 17,
        "bbox": [10.13, 20.25, 30.37, 30.5],
        "score": 0.123457,
        "segmentation": encode_masks(found.masks)[0],
        "keypoints": [1.5, 2.25, 0.75, 3.0, 4.0, 0.5],
    }
    assert json.loads(json.dumps(entry)) == entry
    codes = RunLengthMasks([entry["segmentation"]["counts"]], *entry["segmentation"]["size"])
    assert replace(found, masks=codes).to_coco(7, INFO) == [entry]
    assert detections().to_coco(7, INFO) == []


def test_to_coco_leaves_out_missing_masks_and_keypoints():
    found = detections((0, 0.9, 5, 5, 20), (1, 0.8, 5, 5, 20))
    found = replace(found, masks=None, keypoints=np.full((2, 1, 3), 0.5))
    cat, dog = found.to_coco(7, INFO._replace(keypoint_classes=(1,)))
    assert list(cat) == ["image_id", "category_id", "bbox", "score"]
    assert list(dog) == ["image_id", "category_id", "bbox", "score", "keypoints"]
    assert replace(detections(), masks=None).to_coco(7, INFO) == []


def test_to_coco_without_the_data_set_numbers_categories_from_one():
    assert [entry["category_id"] for entry in FOUND.to_coco()] == [2, 1, 2]
    assert all(len(entry["keypoints"]) == 6 for entry in FOUND.to_coco())


def test_detections_come_back_from_coco():
    given = detections((0, 0.9, 5, 5, 20), (1, 0.25, 40, 10, 10))
    found = Detections.from_coco(given.to_coco(7, INFO), INFO, 60, 80)
    for name in ("boxes", "scores", "class_ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(given, name))
    np.testing.assert_array_equal(np.asarray(found.masks), given.masks)
    assert found.class_names == INFO.category_names and found.keypoints is None
    assert len(Detections.from_coco([], INFO, 60, 80)) == 0


@pytest.mark.parametrize(
    "image, hint",
    [
        (np.zeros((8, 8), np.uint8), "repeat the channel of a gray image"),
        (np.zeros((8, 8, 1), np.uint8), "repeat the channel of a gray image"),
        (np.zeros((8, 8, 4), np.uint8), "drop the alpha channel"),
        (np.zeros((8, 8, 3), np.float32), "levels are 0 to 255"),
        (np.zeros((8, 8, 3), np.uint16), "levels are 0 to 255"),
    ],
)
def test_draw_refuses_other_arrays_than_rgb(image, hint):
    for settings in ({}, {"scale": 1}, {"max_side": 4}):
        with pytest.raises(InputError, match=rf"must be uint8 RGB of shape \[H, W, 3\], not .* \({hint}\)"):
            FOUND.draw(image, **settings)


def test_draw_needs_the_image_of_the_detections():
    image = np.full((8, 8, 3), 90, np.uint8)
    drawn = FOUND.draw(image, score_threshold=0.5, scale=2)
    assert drawn.shape == (16, 16, 3) and (drawn != 90).any() and (image == 90).all()
    with pytest.raises(InputError, match=r"an image of 8 x 8 pixels \(height x width\), not 9 x 8"):
        FOUND.draw(np.zeros((9, 8, 3), np.uint8))
