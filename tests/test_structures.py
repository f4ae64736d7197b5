"""Detections as a sequence of objects."""

import dataclasses

import numpy as np
import pytest

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
