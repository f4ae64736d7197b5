"""Full-size models of other libraries, imported, have their features, detections, losses and gradients.

Tolerances are those of tests/golden/README.md, and closer for the detections of a single image and the
losses."""

import json
import pickle
from dataclasses import replace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from library_losses import compare_gradients, compare_losses, losses_and_gradients, use_all
from library_models import CASES, Case, images, match_boxes
from pycocotools import mask as coco_mask

from mrcnn_jax.cli import main as cli
from mrcnn_jax.data.transforms import image_type, inference_sizes, resize_and_pad
from mrcnn_jax.inference.export import onnx
from mrcnn_jax.inference.postprocess import to_detections
from mrcnn_jax.models.mask_rcnn import MaskRCNN
from mrcnn_jax.structures import Batch, Predictions

# with C4, res5 of a thousand RoIs takes longer to run than to compile, unlike the programs of other tests
OPTIMISED = {"xla_backend_optimization_level": 1}
LEVELS = {
    "torchvision": ("fpn_0", "fpn_1", "fpn_2", "fpn_3", "fpn_pool"),
    "detectron2": ("p2", "p3", "p4", "p5", "p6"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def variables(case):
    return case.variables()


def run_stages(model, padded, sizes):
    """Computes all intermediate results of detection."""
    pyramid, config = model.pyramid(padded, sizes), model.config
    logits, deltas = model.objectness(pyramid)
    proposals = model.proposals(logits, deltas, model.anchors(pyramid, padded.shape[1:3]), sizes)
    features = model.roi_features(pyramid, proposals.boxes, config.pool_of("box"))
    class_logits, box_deltas = model.classify(features)
    predictions = model(padded, sizes)
    masks = None
    if "masks" in config.tasks:
        masks = model.mask_logits(
            model.roi_features(pyramid, predictions.boxes[:, :2], config.pool_of("mask"))
        )
    return {
        "pyramid": pyramid,
        "objectness": jnp.concatenate(logits, axis=1),
        "deltas": jnp.concatenate(deltas, axis=1),
        "proposals": proposals,
        "class_logits": class_logits,
        "box_deltas": box_deltas,
        "predictions": predictions,
        "mask_logits": masks,
    }


def run(case, variables, pictures, edges=None):
    """Runs the stages for one batch with the settings of the recorded outputs.

    Returns:
        Outputs, the sizes of the images, resized to (short, long) ``edges`` or not at all, and the model.
    """
    experiment = case.model.experiment
    model = replace(experiment.model, box=replace(experiment.model.box, score_threshold=0.0))
    conventions = model.conventions

    def sizes_of(picture):
        short, long = edges or sorted(picture.shape[:2])
        data = replace(experiment.data, short_edge=(short,), short_edge_test=short, long_edge=long)
        return inference_sizes(*picture.shape[:2], data, conventions)

    sizes = [sizes_of(picture) for picture in pictures]
    padded = tuple(np.max([padded for _, padded in sizes], axis=0))
    pairs = zip(pictures, sizes, strict=True)
    batch = np.stack([resize_and_pad(picture, size, padded, conventions) for picture, (size, _) in pairs])
    sizes = np.array([size for size, _ in sizes], np.int32)
    options = OPTIMISED if "C4" in case.name else None
    stages = jax.jit(nn.apply(run_stages, MaskRCNN(model)), compiler_options=options)
    return jax.tree.map(np.asarray, stages(variables, batch, sizes)), sizes, model


@pytest.fixture(scope="module")
def outputs(case, variables):
    """Outputs for both images; for torchvision, which resizes a batch as one, for the first only."""
    return run(case, variables, images()[:1] if case.is_torchvision else images())


def test_features(case, outputs):
    names = LEVELS[case.source] if "FPN" in case.name.upper() else ("res4",)
    for name, level in zip(names, outputs[0]["pyramid"], strict=True):
        expected = case.expected[f"{name}_slice"]
        channels, cells = level.shape[3] // expected.shape[1], 4 if level.shape[2] > 30 else 2
        found = level[:1, ::cells, ::cells, ::channels].transpose(0, 3, 1, 2)
        rms = np.sqrt(np.mean(expected**2))
        np.testing.assert_allclose(found, expected, atol=1e-3 * rms, rtol=0, err_msg=name)
        np.testing.assert_allclose(
            level[0].mean(axis=(0, 1)), case.expected[f"{name}_chmean"], atol=1e-3 * rms, rtol=0, err_msg=name
        )


def test_proposals(case, outputs):
    expected, found = case.expected, outputs[0]
    np.testing.assert_allclose(found["objectness"][0, ::7], expected["rpn_obj_every7"], atol=5e-3, rtol=0)
    np.testing.assert_allclose(found["deltas"][0, ::35], expected["rpn_delta_every35"], atol=5e-3, rtol=0)
    boxes = found["proposals"].boxes[0][found["proposals"].valid[0]]
    assert len(boxes) == len(expected["proposals"])
    ours, theirs = match_boxes(boxes, expected["proposals"])
    assert len(ours) >= 0.99 * len(boxes)
    np.testing.assert_allclose(boxes[ours], expected["proposals"][theirs], atol=0.05, rtol=0)


def test_box_logits(case, outputs):
    expected, found = case.expected, outputs[0]
    # recorded rows are those of the library's first proposals, whose order may differ from ours
    ours, theirs = match_boxes(found["proposals"].boxes[0], expected["proposals"][:40])
    assert len(ours) >= 39
    logits, deltas = found["class_logits"][0, ours], found["box_deltas"][0, ours]
    if case.is_torchvision:
        logits, deltas = np.roll(logits, 1, axis=1), np.pad(deltas, ((0, 0), (1, 0), (0, 0)))
    few = theirs < 8
    reference = expected["box_deltas_first8"].reshape(8, -1, 4)[theirs[few]]
    np.testing.assert_allclose(logits, expected["box_logits_first40"][theirs], atol=5e-3, rtol=0)
    np.testing.assert_allclose(
        deltas[few][:, case.is_torchvision :], reference[:, case.is_torchvision :], atol=5e-3, rtol=0
    )


def detections(outputs, image, original):
    (found, sizes, model), (height, width) = outputs, original
    one = jax.tree.map(lambda leaf: leaf[image], found["predictions"])
    return to_detections(one, tuple(sizes[image]), (height, width), model)


def compare(case, found, prefix, pixels=0.05, score=2e-3):
    """Compares detections with recorded ones in order; returns which rows belong together."""
    expected, classes = case.expected, case.class_ids(prefix)
    ours, theirs = match_boxes(found.boxes, expected[f"{prefix}_boxes"], found.class_ids, classes)
    assert len(found.boxes) == 100 and len(ours) >= 98
    assert np.mean(ours == theirs) >= 0.95  # close scores may change places, as they do in the libraries
    assert np.diff(found.scores[ours]).max() < 1e-3
    np.testing.assert_allclose(found.boxes[ours], expected[f"{prefix}_boxes"][theirs], atol=pixels, rtol=0)
    np.testing.assert_allclose(found.scores[ours], expected[f"{prefix}_scores"][theirs], atol=score, rtol=0)
    if found.keypoints is not None:
        distance = np.abs(found.keypoints[ours, :, :2] - expected[f"{prefix}_keypoints"][theirs, :, :2]).max(
            axis=2
        )
        assert np.mean(distance < 0.05) >= 0.98
        if case.is_torchvision and f"{prefix}_keypoints_scores" in expected:
            np.testing.assert_allclose(
                found.keypoints[ours, :, 2], expected[f"{prefix}_keypoints_scores"][theirs], atol=2e-2, rtol=0
            )
        if not case.is_torchvision:
            assert (
                np.mean(
                    np.abs(found.keypoints[ours, :, 2] - expected[f"{prefix}_keypoints"][theirs, :, 2]) < 2e-3
                )
                >= 0.98
            )
    return ours, theirs


def test_detections(case, outputs):
    expected, found = case.expected, detections(outputs, 0, (320, 416))
    ours, theirs = compare(case, found, "det", pixels=0.01, score=5e-4)
    assert len(ours) == 100 and (ours == theirs).all()
    if found.masks is not None:
        probabilities = outputs[0]["predictions"].masks[0]
        np.testing.assert_allclose(probabilities[ours], expected["mask_prob28"][theirs], atol=5e-3, rtol=0)
        masks = np.unpackbits(expected["mask_bin_packed"], axis=-1)[..., :416].astype(bool)
        assert np.mean(found.masks[ours] != masks[theirs]) < 1e-3
        logits = outputs[0]["mask_logits"][0].transpose(0, 3, 1, 2)
        logits = np.pad(logits, ((0, 0), (1, 0), (0, 0), (0, 0))) if case.is_torchvision else logits
        np.testing.assert_allclose(
            logits[:, 10::10], expected["mask_logits_first2"][:, 1:], atol=1e-2, rtol=0
        )


def test_onnx_predicts_the_same(variables, outputs, tmp_path):
    """Boxes to 0.01 pixels and scores to 5e-4, as the library's, most to a third; masks to 1 in 10,000."""
    found, sizes, model = outputs
    onnx.write(tmp_path, model, variables)
    run_onnx = onnx.read(tmp_path / onnx.FILE, model.box.max_detections)
    picture = images()[0].astype(image_type(model.conventions))
    predictions = Predictions(**run_onnx(picture[None], sizes[:1]))
    original = picture.shape[:2]
    ours = to_detections(predictions.image(0), original, original, model)
    live = detections(outputs, 0, original)
    one, other = match_boxes(ours.boxes, live.boxes, ours.class_ids, live.class_ids)
    assert len(one) == len(live) == 100 and np.mean(one == other) >= 0.95
    difference = np.abs(ours.boxes[one] - live.boxes[other])
    assert difference.max() <= 0.01 and np.quantile(difference, 0.98) <= 3e-3
    difference = np.abs(ours.scores[one] - live.scores[other])
    assert difference.max() <= 5e-4 and np.quantile(difference, 0.98) <= 2e-4
    if live.masks is not None:
        assert np.mean(np.asarray(ours.masks)[one] != np.asarray(live.masks)[other]) <= 1e-4
    if live.keypoints is not None:
        distance = np.abs(ours.keypoints[one] - live.keypoints[other])[..., :2].max(axis=2)
        assert np.mean(distance < 0.01) >= 0.99


def test_batch_of_two(case, variables, outputs):
    first, second = (picture.shape[:2] for picture in images())
    if case.is_torchvision:
        outputs = run(case, variables, images(), (288, 400))
    else:
        first = tuple(case.expected["b2_out_hw0"])  # size that the library scaled the first image's to
    compare(case, detections(outputs, 0, first), "b2_det0")
    compare(case, detections(outputs, 1, second), "b2_det1")


def test_losses_and_gradients(case, variables, monkeypatch):
    expected = case.expected
    model = use_all(case.model.experiment.model, 7800 if "C4" in case.name else 33255, positives=20)
    objects, picture = len(expected["tgt_boxes"]), images()[0]
    masks = np.zeros((objects, 1, 1), np.uint8)
    if "masks" in model.tasks:
        masks = np.unpackbits(expected["tgt_masks_packed"], axis=-1)[..., :416]
    batch = Batch(
        images=picture.astype(np.float32) if case.is_torchvision else picture,
        sizes=np.int32([320, 416]),
        boxes=expected["tgt_boxes"],
        classes=case.class_ids("tgt").astype(np.int32),
        valid=np.ones(objects, bool),
        crowd=np.zeros(objects, bool),
        masks=masks,
        has_mask=np.ones(objects, bool),
        keypoints=expected.get("tgt_keypoints", np.zeros((objects, 0, 3), np.float32)),
    )
    terms, gradients = losses_and_gradients(monkeypatch, model, variables, batch)
    compare_losses(terms, expected, case.source)
    compare_gradients(gradients, expected, case.param_map)


@pytest.mark.parametrize(
    "name", ["tv_maskrcnn_resnet50_fpn", "d2_mask_rcnn_R_50_C4", "d2_keypoint_rcnn_R_50_FPN"]
)
def test_command_line_imports_a_file_and_detects(name, tmp_path):
    case, given = Case(name), tmp_path / ("model.npz" if name.startswith("tv") else "model.pkl")
    if case.is_torchvision:
        np.savez(given, **case.tensors)
        options = []
    else:
        given.write_bytes(pickle.dumps({"model": case.tensors, "__author__": "someone"}, protocol=2))
        options = ["--config", str(case.config)]
    cv2.imwrite(str(tmp_path / "photo.png"), images()[0][..., ::-1])
    sizes = ["--data.short-edge", "320", "--data.short-edge-test", "320", "--data.long-edge", "416"]
    assert (
        cli.main(
            ["import-weights", case.source, str(given), "--out", str(tmp_path / "imported"), *options, *sizes]
        )
        == 0
    )
    assert (
        cli.main(
            [
                "predict",
                str(tmp_path / "imported"),
                str(tmp_path / "photo.png"),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    boxes = np.array([entry["bbox"] for entry in results])
    boxes[:, 2:] += boxes[:, :2]
    # COCO's own category ids: torchvision's labels; Detectron2's classes are the 80 of them in order
    ids = [entry["category_id"] for entry in results]
    assert (
        json.loads((tmp_path / "imported" / "experiment.json").read_text())["name"] == name.partition("_")[2]
    )
    known = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
    expected_ids = case.class_ids() + 1 if case.is_torchvision else np.array(known)[case.class_ids()]
    ours, theirs = match_boxes(boxes, case.expected["det_boxes"], ids, expected_ids)
    assert len(results) == 100 and len(ours) >= 98 and np.mean(ours == theirs) >= 0.98
    np.testing.assert_allclose(boxes[ours], case.expected["det_boxes"][theirs], atol=0.05, rtol=0)
    np.testing.assert_allclose(
        [results[row]["score"] for row in ours], case.expected["det_scores"][theirs], atol=2e-3, rtol=0
    )
    if "keypoint" in name:
        found = np.array([entry["keypoints"] for entry in results]).reshape(100, 17, 3)[ours]
        assert np.mean(np.abs(found - case.expected["det_keypoints"][theirs]).max(axis=2) < 0.05) >= 0.98
        return
    masks = np.stack([coco_mask.decode(entry["segmentation"]) for entry in results]).astype(bool)
    assert (
        np.mean(
            masks[ours]
            != np.unpackbits(case.expected["mask_bin_packed"], axis=-1)[..., :416].astype(bool)[theirs]
        )
        < 1e-3
    )
