"""Narrow detectors of torchvision, imported, have its detections, losses and gradients (golden/README.md)."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from library_losses import compare_gradients, compare_losses, losses_and_gradients, use_all
from library_models import match_boxes, read_arrays
from paths import GOLDEN

from mrcnn_jax.inference import detector as detectors
from mrcnn_jax.structures import Batch
from mrcnn_jax.weights.import_export import import_weights
from mrcnn_jax.weights.readers import write_tensors
from mrcnn_jax.weights.torchvision import make_param_map

CASES = ("maskrcnn_resnet50_fpn", "maskrcnn_resnet18_fpn_v2", "keypointrcnn_resnet18_fpn")
CHANNELS, HIDDEN, DETECTIONS, PROPOSALS = 8, 16, 15, 40
ANCHORS = 3 * (24 * 32 + 12 * 16 + 6 * 8 + 3 * 4 + 2 * 2)


def read_state(arrays):
    """Returns the state dict of a recorded model."""
    shapes, counters = (json.loads(str(arrays[f"state/{part}"])) for part in ("shapes", "counters"))
    sizes = np.cumsum([np.prod(shape, dtype=int) for shape in shapes.values()])
    values = np.split(arrays["state/values"].astype(np.float32), sizes[:-1])
    state = {name: value.reshape(shape) for (name, shape), value in zip(shapes.items(), values, strict=True)}
    return state | {name: np.int64(count) for name, count in counters.items()}


def narrow(experiment):
    """Sets what a file does not tell: channels, anchors, canonical size, limits and image sizes."""
    model = experiment.model
    model = replace(
        model,
        backbone=replace(model.backbone, pyramid_channels=CHANNELS),
        rpn=replace(
            model.rpn, anchor_sizes=(8, 16, 32, 64, 128), pre_nms_train=60, pre_nms_test=60,
            post_nms_train=PROPOSALS, post_nms_test=PROPOSALS,
        ),
        roi=replace(model.roi, canonical_size=56),
        box=replace(
            model.box, channels=HIDDEN, convolution_channels=CHANNELS, score_threshold=0,
            max_detections=DETECTIONS
        ),
        mask=replace(model.mask, channels=CHANNELS),
        keypoint=replace(model.keypoint, channels=CHANNELS),
    )  # fmt: skip
    data = replace(experiment.data, short_edge=(96,), short_edge_test=96, long_edge=128)
    return replace(experiment, model=model, data=data)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """Name, recorded arrays and imported detector of a model."""
    arrays, folder = (
        read_arrays(GOLDEN / "narrow" / f"{request.param}.npz"),
        tmp_path_factory.mktemp("narrow"),
    )
    write_tensors(folder / "state.npz", read_state(arrays))
    assert import_weights(folder / "state.npz", folder / "imported", change=narrow) == []
    return request.param, arrays, detectors.load(folder / "imported")


def test_detections_equal_torchvision(case):
    name, arrays, detector = case
    expected = {key.removeprefix("det/"): value for key, value in arrays.items() if key.startswith("det/")}
    assert detector.experiment.name == name
    found = detector(expected["image"])
    ours, theirs = match_boxes(found.boxes, expected["boxes"], found.class_ids, expected["labels"] - 1)
    assert len(found.boxes) == DETECTIONS and len(ours) == DETECTIONS
    np.testing.assert_allclose(found.boxes[ours], expected["boxes"][theirs], atol=0.05, rtol=0)
    np.testing.assert_allclose(found.scores[ours], expected["scores"][theirs], atol=2e-3, rtol=0)
    if "masks" in expected:
        assert expected["masks"].any(axis=(1, 2)).mean() > 0.4
        assert np.mean(found.masks[ours] != expected["masks"][theirs]) < 1e-3
    if "keypoints" in expected:
        distance = np.abs(found.keypoints[ours, :, :2] - expected["keypoints"][theirs, :, :2]).max(axis=2)
        assert np.mean(distance < 0.05) >= 0.95
        scores = found.keypoints[ours, :, 2], expected["keypoints_scores"][theirs]
        np.testing.assert_allclose(*scores, atol=2e-2, rtol=0)


def test_losses_and_gradients_equal_torchvision(case, monkeypatch):
    name, arrays, detector = case
    target = {
        key.removeprefix("target/"): value for key, value in arrays.items() if key.startswith("target/")
    }
    expected = {
        key.removeprefix("train/"): value for key, value in arrays.items() if key.startswith("train/")
    }
    model, objects = use_all(detector.experiment.model, ANCHORS, positives=30), len(target["boxes"])
    batch = Batch(
        images=target["image"].astype(np.float32),
        sizes=np.int32([96, 128]),
        boxes=target["boxes"],
        classes=np.int32(target["labels"] - 1),
        valid=np.ones(objects, bool),
        crowd=np.zeros(objects, bool),
        masks=target.get("masks", np.zeros((objects, 1, 1), np.uint8)),
        has_mask=np.ones(objects, bool),
        keypoints=target.get("keypoints", np.zeros((objects, 0, 3), np.float32)),
    )
    terms, gradients = losses_and_gradients(monkeypatch, model, jax.device_get(detector.variables), batch)
    compare_losses(terms, expected, "torchvision")
    compare_gradients(gradients, expected, make_param_map(model))
