"""Predictions of one image, made by hand, as detections in pixels of the image as given."""

from dataclasses import replace

import numpy as np
import pytest

from mrcnn_jax.config import TORCHVISION, KeypointHeadConfig, ModelConfig
from mrcnn_jax.inference.paste import paste_masks
from mrcnn_jax.inference.postprocess import to_detections
from mrcnn_jax.ops.keypoints import decode_keypoints
from mrcnn_jax.run_length_masks import encode_masks
from mrcnn_jax.structures import Predictions

SIZE, ORIGINAL = (40, 60), (80, 180)  # twice as high, three times as wide
RANDOM = np.random.default_rng(0)
PREDICTIONS = Predictions(
    boxes=np.float32([[10, 5, 30, 25], [0, 0, 60, 40], [0, 0, 0, 0], [40, 10, 50, 38]]),
    scores=np.float32([0.9, 0.8, 0.0, 0.7]),
    classes=np.int32([2, 0, 0, 1]),
    valid=np.array([True, True, False, True]),
    masks=RANDOM.random((4, 7, 7), np.float32),
    keypoints=RANDOM.standard_normal((4, 2, 8, 8)).astype(np.float32),
)
MODEL = ModelConfig(
    num_classes=3,
    tasks=("boxes", "masks", "keypoints"),
    keypoint=KeypointHeadConfig(num_keypoints=2, classes=(0, 2)),
)


def test_boxes_are_scaled_and_empty_slots_left_out():
    found = to_detections(PREDICTIONS, SIZE, ORIGINAL, MODEL, ("ant", "bee", "cow"))
    np.testing.assert_array_equal(found.boxes, [[30, 10, 90, 50], [0, 0, 180, 80], [120, 20, 150, 76]])
    np.testing.assert_array_equal(found.scores, np.float32([0.9, 0.8, 0.7]))
    assert [detection.class_name for detection in found] == ["cow", "ant", "bee"]


@pytest.mark.parametrize(
    "conventions, threshold", [(MODEL.conventions, 0.4), (TORCHVISION, 0.5)], ids=["ours", "torchvision"]
)
def test_masks_are_pasted_into_the_image_as_given(conventions, threshold):
    model = replace(MODEL, conventions=conventions, mask=replace(MODEL.mask, threshold=threshold))
    found = to_detections(PREDICTIONS, SIZE, ORIGINAL, model)
    assert found.masks.shape == (3, *ORIGINAL) and found.masks.any(axis=(1, 2)).all()
    masks = PREDICTIONS.masks[PREDICTIONS.valid]
    pasted = paste_masks(masks, found.boxes, *ORIGINAL, threshold, conventions.mask_paste)
    np.testing.assert_array_equal(found.masks, pasted)
    assert encode_masks(found.masks) == encode_masks(pasted)
    assert to_detections(PREDICTIONS.replace(masks=None), SIZE, ORIGINAL, model).masks is None


@pytest.mark.parametrize("score", ["probability", "logit"])
def test_keypoints_are_decoded_in_their_classes_alone(score):
    model = replace(MODEL, conventions=replace(MODEL.conventions, keypoint_score=score))
    found = to_detections(PREDICTIONS, SIZE, ORIGINAL, model).keypoints
    decoded = decode_keypoints(PREDICTIONS.keypoints[:2], PREDICTIONS.boxes[:2])
    np.testing.assert_allclose(found[:2, :, :2], decoded[..., :2] * [3, 2], rtol=1e-6)
    np.testing.assert_array_equal(found[:2, :, 2], decoded[..., 3 if score == "probability" else 2])
    assert not found[2].any()
    assert to_detections(PREDICTIONS.replace(keypoints=None), SIZE, ORIGINAL, model).keypoints is None


def test_no_valid_predictions_give_no_detections():
    found = to_detections(PREDICTIONS.replace(valid=np.zeros(4, bool)), SIZE, ORIGINAL, MODEL)
    assert len(found) == 0 and found.masks.shape == (0, *ORIGINAL) and found.keypoints.shape == (0, 2, 3)
