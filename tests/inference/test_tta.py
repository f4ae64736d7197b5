"""Test-time augmentation against a plain statement of it in NumPy: views seen one by one, then merged."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny
from variants import VARIANTS

from mrcnn_jax.config import DataConfig, EvaluationConfig, Experiment, KeypointHeadConfig, RPNConfig
from mrcnn_jax.data import shapes
from mrcnn_jax.data.transforms import inference_sizes, resize_and_pad
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import Detector
from mrcnn_jax.inference.stream import Pipeline
from mrcnn_jax.inference.tta import (
    AugmentedModel,
    ScaledBatch,
    scaled_configs,
)
from mrcnn_jax.models.detection import Candidates
from mrcnn_jax.structures import DatasetInfo

SCALES, PAIRS = (64, 32), list(shapes.INFO.keypoint_flip)


@pytest.fixture(scope="module")
def detector() -> Detector:
    """A random detector of boxes, masks and keypoints."""
    head = KeypointHeadConfig(num_keypoints=7, classes=tuple(range(7)), layers=1, channels=8)
    model = replace(tiny.model_config(num_classes=7), tasks=("boxes", "masks", "keypoints"), keypoint=head)
    model = replace(model, box=replace(model.box, score_threshold=0.0))
    return Detector(tiny.experiment(model), shapes.INFO, tiny.variables(model))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 90, 3), dtype=np.uint8)


def flat(boxes: np.ndarray, width: int) -> np.ndarray:
    """Mirrored boxes."""
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def greedy_nms(boxes, scores, classes, threshold: float, limit: int) -> list[int]:
    """The rule in float64, one box after the other."""
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        corner = np.maximum(boxes[kept, :2], boxes[index, :2])
        sides = np.maximum(np.minimum(boxes[kept, 2:], boxes[index, 2:]) - corner, 0)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        common = sides.prod(axis=1)
        overlap = common / (areas[kept] + areas[index] - common)
        if not (overlap[classes[kept] == classes[index]] > threshold).any() and len(kept) < limit:
            kept.append(int(index))
    return kept


def augmented(detector: Detector, **settings) -> AugmentedModel:
    changed = detector.with_settings(**settings)
    return AugmentedModel(changed.experiment, PAIRS, all_devices=False)


def batches(detector: Detector, image: np.ndarray, scales=SCALES) -> tuple[np.ndarray, list[ScaledBatch]]:
    """The frame and the scales of one image."""
    experiment = detector.with_settings(tta_scales=scales).experiment
    frame = np.int32([image.shape[:2]])
    made = []
    for data in scaled_configs(experiment):
        size, padded = inference_sizes(*image.shape[:2], data)
        made.append(ScaledBatch(resize_and_pad(image, size, padded)[None], np.int32([size])))
    return frame, made


def test_merged_views_equal_views_that_are_merged_in_numpy(detector, image):
    model = augmented(detector, tta_scales=SCALES, tta_flip=True)
    frame, scales = batches(detector, image)
    merged = model(detector.variables, frame, scales).image(0)
    box, upright = detector.experiment.model.box, np.array([False])
    views, boxes, scores, classes = [], [], [], []
    for images, (size,) in scales:
        for mirrored in (images, images.copy()):
            if mirrored is not images:  # by hand: the program sees an upright image
                mirrored[:, : size[0], : size[1]] = images[:, : size[0], : size[1]][:, :, ::-1]
            view = size[None], size[None], upright
            (found, _), pyramid = model._candidates(detector.variables, mirrored, *view)
            valid = np.asarray(found.valid[0])
            own = np.asarray(found.boxes[0], np.float64)[valid]
            own = own if mirrored is images else flat(own, size[1])
            boxes.append(own * np.tile(frame[0] / size, 2)[[1, 0, 3, 2]])
            scores.append(np.asarray(found.scores[0])[valid])
            classes.append(np.asarray(found.classes[0])[valid])
            views.append((pyramid, size, mirrored is not images))
    boxes, scores, classes = map(np.concatenate, (boxes, scores, classes))
    kept = greedy_nms(boxes, scores, classes, box.nms_iou, box.max_detections)
    assert len(kept) == box.max_detections < len(boxes)
    np.testing.assert_allclose(merged.boxes, boxes[kept], atol=1e-3)
    np.testing.assert_array_equal(merged.scores, scores[kept])
    np.testing.assert_array_equal(merged.classes, classes[kept])

    maps = []
    for pyramid, size, is_mirrored in views:
        rois = np.asarray(merged.boxes, np.float64) * np.tile(size / frame[0], 2)[[1, 0, 3, 2]]
        rois = np.float32(flat(rois, size[1]) if is_mirrored else rois)[None]
        view = size[None], size[None], upright, np.int32([range(7)])
        masks, keypoints = model._branches(detector.variables, pyramid, rois, merged.classes[None], *view)
        masks, keypoints = np.float64(masks[0]), np.float64(keypoints[0])
        if is_mirrored:
            masks, keypoints = masks[..., ::-1], keypoints[:, PAIRS, :, ::-1]
        maps.append((masks, keypoints))
    for found, each in zip((merged.masks, merged.keypoints), zip(*maps, strict=True), strict=True):
        assert np.ptp(each, axis=0).max() > 1e-3  # views differ
        np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-4, atol=1e-4)


def test_instances_of_all_views_vote_on_masks(image):
    """FCIS at another scale than the plain one, and mirrored: the views are mirrored back in NumPy."""
    config = replace(VARIANTS["FCIS"], num_classes=tiny.CLASSES)
    config = replace(config, box=replace(config.box, score_threshold=0.0, max_candidates=40))
    info = DatasetInfo("three", (1, 2, 3), ("a", "b", "c"))
    detector = Detector(tiny.experiment(config), info, tiny.variables(config))
    model = augmented(detector, tta_scales=(32,), tta_flip=True)
    frame, ((images, (size,)),) = batches(detector, image, (32,))
    merged = model(detector.variables, frame, [ScaledBatch(images, size[None])]).image(0)
    mirror, views, scale = images.copy(), [], np.float32(np.tile(frame[0] / size, 2)[[1, 0, 3, 2]])
    mirror[:, : size[0], : size[1]] = images[:, : size[0], : size[1]][:, :, ::-1]
    for seen in (images, mirror):
        view = size[None], size[None], np.array([False])
        (found, voters), maps = jax.device_get(model._candidates(detector.variables, seen, *view))
        assert maps is None  # nothing else is read from them
        boxes, masks = [found.boxes[0], voters.boxes[0]], voters.masks
        if seen is mirror:
            boxes, masks = [flat(each, size[1]) for each in boxes], masks[..., ::-1]
        found_boxes, voter_boxes = [each[None] * scale for each in boxes]
        voters = voters._replace(boxes=voter_boxes, masks=masks)
        views.append(Candidates(found.replace(boxes=found_boxes), voters))
    expected = model._merge({}, views).image(0)
    for found, _ in views:
        assert np.isin(merged.scores, found.scores).any()
    assert expected.valid.all()
    np.testing.assert_array_equal(merged.scores, expected.scores)
    np.testing.assert_array_equal(merged.classes, expected.classes)
    np.testing.assert_allclose(merged.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(merged.masks, expected.masks, atol=1e-3)


def test_one_view_is_the_plain_result(detector, image):
    plain = Pipeline(detector)
    prepared = plain.prepare(image)
    (expected,) = plain.start([prepared])()
    one = detector.with_settings(tta_scales=(64,))
    assert_same(one(image), expected)
    pipeline = Pipeline(one)
    pipeline._predict = AugmentedModel(one.experiment, PAIRS, all_devices=False)  # merges its one view
    (merged,) = pipeline.start([prepared])()  # by other programs, which round otherwise
    np.testing.assert_array_equal(merged.class_ids, expected.class_ids)
    np.testing.assert_allclose(merged.scores, expected.scores, atol=1e-4)
    np.testing.assert_allclose(merged.boxes, expected.boxes, atol=1e-2)
    assert (np.asarray(merged.masks) != np.asarray(expected.masks)).mean() < 1e-3


def assert_same(found, expected, width: int | None = None, pairs=None):
    """Asserts equality to the last bit; of mirrored images of this width, up to rounding of positions."""
    assert len(found) == len(expected) > 0
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.class_ids, expected.class_ids)
    masks, points, boxes = np.asarray(expected.masks), expected.keypoints, expected.boxes
    if width is None:
        np.testing.assert_array_equal(found.boxes, boxes)
        np.testing.assert_array_equal(found.keypoints, points)
        np.testing.assert_array_equal(np.asarray(found.masks), masks)
    else:
        np.testing.assert_allclose(found.boxes, flat(boxes, width), atol=1e-4)
        assert (np.asarray(found.masks) != masks[..., ::-1]).mean() < 1e-3
        points = points[:, pairs] * [-1, 1, 1] + [width, 0, 0]
        assert np.median(np.abs(found.keypoints - points)) < 0.01


def test_mirrored_image_has_mirrored_detections(detector, image):
    both = detector.with_settings(tta_flip=True)
    assert_same(both(image[:, ::-1].copy()), both(image), image.shape[1], PAIRS)
    # without pairs nothing is swapped
    other = Detector(both.experiment, shapes.INFO._replace(keypoint_flip=()), detector.variables)
    assert_same(other(image[:, ::-1].copy()), other(image), image.shape[1], list(range(7)))


def test_nothing_is_detected_where_no_view_has_a_candidate(detector, image):
    box = dict(detector.variables["params"]["box"])
    bias = np.array(box["classes"]["bias"]) + np.float32(1e4) * (np.arange(8) == 7)  # background
    box["classes"] = box["classes"] | {"bias": bias}
    variables = detector.variables | {"params": detector.variables["params"] | {"box": box}}
    nothing = Detector(detector.experiment, detector.info, variables)
    found = nothing.with_settings(tta_flip=True, tta_scales=SCALES)(image)
    assert len(found) == 0 and found.masks.shape == (0, 64, 90) and found.keypoints.shape == (0, 7, 3)


def test_number_of_programs_depends_on_sizes_alone(detector, image):
    model = augmented(detector, tta_scales=SCALES, tta_flip=True)
    before = [len(each._programs) for each in (model._candidates, model._branches)]
    small = detector.with_settings(tta_scales=SCALES, tta_flip=True)
    assert len(list(small([image, 255 - image, 0 * image]))) == 3
    assert [len(each._programs) for each in (model._candidates, model._branches)] == before == [2, 2]


def test_longer_edges_keep_their_ratio():
    experiment = Experiment(evaluation=EvaluationConfig(tta_scales=(400, 800, 1200)))
    edges = [(data.short_edge_test, data.long_edge) for data in scaled_configs(experiment)]
    assert edges == [(400, 666), (800, 1333), (1200, 2000)]
    assert scaled_configs(experiment)[1] == experiment.data == scaled_configs(Experiment())[0]
    extreme = Experiment(data=DataConfig(long_edge=800), evaluation=EvaluationConfig(tta_scales=(799,)))
    assert scaled_configs(extreme)[0].long_edge == 799


@pytest.mark.parametrize("settings, message", [
    ({"tta_scales": (400, 400)}, "tta_scales must be up to 16 different lengths"),
    ({"tta_scales": tuple(range(1, 18))}, "tta_scales must be up to 16 different lengths"),
    ({"tta_scales": (0,)}, "tta_scales must be greater than 0"),
])  # fmt: skip
def test_impossible_scales_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        EvaluationConfig(**settings)


def test_a_proposal_network_alone_is_refused():
    model = replace(tiny.model_config(), tasks=(), rpn=RPNConfig())
    with pytest.raises(InputError, match="a region proposal network alone has no test-time augmentation"):
        Experiment(model=model, evaluation=EvaluationConfig(tta_flip=True))
