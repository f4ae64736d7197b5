"""Imported models give their library's numbers: features, proposals, detections, masks, keypoints, losses and gradients.

Tolerances are those of tests/golden/README.md, and closer for the detections of a single image and the losses.
"""

import json
import pickle
from dataclasses import replace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from library_models import CASES, Case, images, match
from pycocotools import mask as coco_mask

from mrcnn_jax import ops
from mrcnn_jax.cli import main as cli
from mrcnn_jax.data.transforms import inference_sizes, resize_and_pad
from mrcnn_jax.inference.postprocess import to_detections
from mrcnn_jax.models import norm
from mrcnn_jax.models.mask_rcnn import MaskRCNN, init_variables
from mrcnn_jax.structures import Batch
from mrcnn_jax.training import step
from mrcnn_jax.weights.param_map import to_theirs

OPTIMISED = {"xla_backend_optimization_level": 1}  # res5 of a thousand RoIs: unlike in other tests, it is running the program that takes the time
LEVELS = {"torchvision": ("fpn_0", "fpn_1", "fpn_2", "fpn_3", "fpn_pool"), "detectron2": ("p2", "p3", "p4", "p5", "p6")}
LOSSES = {
    "loss_class": ("loss_classifier", "loss_cls"),
    "loss_box": ("loss_box_reg", "loss_box_reg"),
    "loss_mask": ("loss_mask", "loss_mask"),
    "loss_keypoint": ("loss_keypoint", "loss_keypoint"),
    "loss_rpn_objectness": ("loss_objectness", "loss_rpn_cls"),
    "loss_rpn_box": ("loss_rpn_box_reg", "loss_rpn_loc"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def variables(case):
    case.check(jax.eval_shape(lambda: init_variables(MaskRCNN(case.recognised.experiment.model), jax.random.key(0))))
    return case.variables()


def stages(model, padded, sizes):
    """What detection goes through, and all that is said on the way."""
    pyramid = model.pyramid(padded, sizes)
    logits, deltas = model.objectness(pyramid)
    proposals = model.proposals(logits, deltas, model.anchors(pyramid, padded.shape[1:3]), sizes)
    class_logits, box_deltas = model.classify(model.roi_features(pyramid, proposals.boxes, model.config.box.pool))
    predictions = model(padded, sizes)
    masks = None
    if "masks" in model.config.tasks:
        masks = model.mask_logits(model.roi_features(pyramid, predictions.boxes[:, :2], model.config.mask.pool))
    return {
        "pyramid": pyramid, "objectness": jnp.concatenate(logits, axis=1), "deltas": jnp.concatenate(deltas, axis=1), "proposals": proposals,
        "class_logits": class_logits, "box_deltas": box_deltas, "predictions": predictions, "mask_logits": masks,
    }  # fmt: skip


def run(case, variables, pictures, edges=None):
    """The stages for one batch, with the settings the expected outputs were made with; and the sizes of the images, resized to (short, long) edges or not."""
    experiment = case.recognised.experiment
    model = replace(experiment.model, box=replace(experiment.model.box, score_threshold=0.0))

    def sizes_of(picture):
        short, long = edges or sorted(picture.shape[:2])
        return inference_sizes(*picture.shape[:2], replace(experiment.data, short_edge=(short,), short_edge_test=short, long_edge=long))

    sizes = [sizes_of(picture) for picture in pictures]
    padded = tuple(np.max([padded for _, padded in sizes], axis=0))
    batch = np.stack([resize_and_pad(picture, size, padded, experiment.data) for picture, (size, _) in zip(pictures, sizes, strict=True)])
    sizes = np.array([size for size, _ in sizes], np.int32)
    outputs = jax.jit(nn.apply(stages, MaskRCNN(model)), compiler_options=OPTIMISED if "C4" in case.name else None)(variables, batch, sizes)
    return jax.tree.map(np.asarray, outputs), sizes, model


@pytest.fixture(scope="module")
def outputs(case, variables):
    """torchvision's images were resized together in a run of its own; Detectron2's were not, so that one batch of both serves all tests."""
    pictures = images()[:1] if case.torchvision else images()
    return run(case, variables, pictures)


def test_features(case, outputs):
    names = LEVELS[case.source] if "FPN" in case.name.upper() else ("res4",)
    for name, level in zip(names, outputs[0]["pyramid"], strict=True):
        expected = case.expected[f"{name}_slice"]
        channels, cells = level.shape[3] // expected.shape[1], 4 if level.shape[2] > 30 else 2
        found = level[:1, ::cells, ::cells, ::channels].transpose(0, 3, 1, 2)
        rms = np.sqrt(np.mean(expected**2))
        np.testing.assert_allclose(found, expected, atol=1e-3 * rms, rtol=0, err_msg=name)
        np.testing.assert_allclose(level[0].mean(axis=(0, 1)), case.expected[f"{name}_chmean"], atol=1e-3 * rms, rtol=0, err_msg=name)


def test_proposals(case, outputs):
    expected, found = case.expected, outputs[0]
    np.testing.assert_allclose(found["objectness"][0, ::7], expected["rpn_obj_every7"], atol=5e-3, rtol=0)
    np.testing.assert_allclose(found["deltas"][0, ::35], expected["rpn_delta_every35"], atol=5e-3, rtol=0)
    boxes = found["proposals"].boxes[0][found["proposals"].valid[0]]
    assert len(boxes) == len(expected["proposals"])
    ours, theirs = match(boxes, expected["proposals"])
    assert len(ours) >= 0.99 * len(boxes)
    np.testing.assert_allclose(boxes[ours], expected["proposals"][theirs], atol=0.05, rtol=0)


def test_box_logits(case, outputs):
    expected, found = case.expected, outputs[0]
    # the expected rows are those of the library's first proposals, which may stand elsewhere among ours
    ours, theirs = match(found["proposals"].boxes[0], expected["proposals"][:40])
    assert len(ours) >= 39
    logits, deltas = found["class_logits"][0, ours], found["box_deltas"][0, ours]
    if case.torchvision:
        logits, deltas = np.roll(logits, 1, axis=1), np.pad(deltas, ((0, 0), (1, 0), (0, 0)))
    few = theirs < 8
    reference = expected["box_deltas_first8"].reshape(8, -1, 4)[theirs[few]]
    np.testing.assert_allclose(logits, expected["box_logits_first40"][theirs], atol=5e-3, rtol=0)
    np.testing.assert_allclose(deltas[few][:, case.torchvision :], reference[:, case.torchvision :], atol=5e-3, rtol=0)


def detections(outputs, image, original):
    (found, sizes, model), (height, width) = outputs, original
    one = jax.tree.map(lambda leaf: leaf[image], found["predictions"])
    return to_detections(one, tuple(sizes[image]), (height, width), model)


def compare(case, found, prefix, pixels=0.05, score=2e-3):
    """Detections in their order, with classes, scores, keypoints; returns which rows belong together."""
    expected, classes = case.expected, case.class_ids(prefix)
    ours, theirs = match(found.boxes, expected[f"{prefix}_boxes"], found.class_ids, classes)
    assert len(found.boxes) == 100 and len(ours) >= 98
    assert np.mean(ours == theirs) >= 0.95  # close scores may change places: in a batch, the libraries' own in float64 do
    assert np.diff(found.scores[ours]).max() < 1e-3
    np.testing.assert_allclose(found.boxes[ours], expected[f"{prefix}_boxes"][theirs], atol=pixels, rtol=0)
    np.testing.assert_allclose(found.scores[ours], expected[f"{prefix}_scores"][theirs], atol=score, rtol=0)
    if found.keypoints is not None:
        distance = np.abs(found.keypoints[ours, :, :2] - expected[f"{prefix}_keypoints"][theirs, :, :2]).max(axis=2)
        assert np.mean(distance < 0.05) >= 0.98
        if case.torchvision and f"{prefix}_keypoints_scores" in expected:
            np.testing.assert_allclose(found.keypoints[ours, :, 2], expected[f"{prefix}_keypoints_scores"][theirs], atol=2e-2, rtol=0)
        if not case.torchvision:
            assert np.mean(np.abs(found.keypoints[ours, :, 2] - expected[f"{prefix}_keypoints"][theirs, :, 2]) < 2e-3) >= 0.98
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
        logits = np.pad(logits, ((0, 0), (1, 0), (0, 0), (0, 0))) if case.torchvision else logits
        np.testing.assert_allclose(logits[:, 10::10], expected["mask_logits_first2"][:, 1:], atol=1e-2, rtol=0)


def test_batch_of_two(case, variables, outputs):
    first, second = (picture.shape[:2] for picture in images())
    if case.torchvision:
        outputs = run(case, variables, images(), (288, 400))
    else:
        first = tuple(case.expected["b2_out_hw0"])  # the library was asked for this size of the first image
    compare(case, detections(outputs, 0, first), "b2_det0")
    compare(case, detections(outputs, 1, second), "b2_det1")


def test_training_losses_and_gradients(case, variables, monkeypatch):
    """All anchors and proposals are used, so that nothing is drawn; batch norm keeps its running statistics."""
    expected, model = case.expected, case.recognised.experiment.model
    slots, candidates, anchors = 20, model.rpn.post_nms_train + 5, {"FPN": 33255, "C4": 7800}["C4" if "C4" in case.name else "FPN"]
    model = replace(
        model,
        rpn=replace(model.rpn, samples_per_image=2 * anchors, positive_fraction=0.5),
        roi=replace(model.roi, samples_per_image=candidates, positive_fraction=(slots + 0.5) / candidates),
    )
    crop, batch_norm = ops.crop_masks, norm.BatchNorm

    def crop_of_whole_images(masks, frames, boxes, *settings):  # ours are cut out at a fixed resolution, which the libraries do not do
        frames = jnp.broadcast_to(jnp.asarray([0.0, 0.0, 416.0, 320.0]), frames.shape)
        return crop(masks, frames, boxes, *settings, border=0.5)

    monkeypatch.setattr(ops, "crop_masks", crop_of_whole_images)
    monkeypatch.setattr(norm, "BatchNorm", lambda train, **settings: batch_norm(train=False, **settings))
    objects = len(expected["tgt_boxes"])
    picture = images()[0]
    batch = Batch(
        images=picture.astype(np.float32) if case.torchvision else picture, sizes=np.int32([320, 416]), boxes=expected["tgt_boxes"],
        classes=case.class_ids("tgt").astype(np.int32), valid=np.ones(objects, bool), crowd=np.zeros(objects, bool),
        masks=np.unpackbits(expected["tgt_masks_packed"], axis=-1)[..., :416] if "masks" in model.tasks else np.zeros((objects, 1, 1), np.uint8),
        keypoints=expected.get("tgt_keypoints", np.zeros((objects, 0, 3), np.float32)),
    )  # fmt: skip
    batch = jax.tree.map(lambda leaf: leaf[None, None], batch)

    def gradient(variables, batch):
        rest = {name: value for name, value in variables.items() if name != "params"}
        keys = jax.random.split(jax.random.key(0), 1)

        def loss(params):
            terms = nn.apply(step.batch_losses, MaskRCNN(model))({"params": params, **rest}, batch, keys)
            return terms["loss"], terms

        return jax.grad(loss, has_aux=True)(variables["params"])

    mapped = jax.pmap(gradient, axis_name=norm.DEVICE_AXIS, in_axes=(None, 0), devices=jax.devices()[:1])
    gradients, terms = jax.tree.map(lambda leaf: np.asarray(leaf[0]), mapped(variables, batch))
    for name, theirs in LOSSES.items():
        assert (name in terms) == (theirs[not case.torchvision] in expected)
        if name in terms:
            # both sides are float32: of a loss of 0.02, what the sums before it are rounded by is more than its own rounding
            np.testing.assert_allclose(terms[name], expected[theirs[not case.torchvision]], rtol=1e-5, atol=3e-7, err_msg=name)

    gradients = to_theirs({"params": gradients}, case.table)
    norms = dict(zip(expected["grad_names"].tolist(), expected["grad_l2"].tolist(), strict=True))
    floor = 1e-6 * np.sqrt(np.sum(np.square(expected["grad_l2"])))
    for index, (name, length) in enumerate(norms.items()):
        scale, found = max(length, floor), gradients[name].astype(np.float64)
        assert abs(np.linalg.norm(found) - length) < 5e-3 * scale, name
        assert abs(found.sum() - expected["grad_sum"][index]) < 5e-3 * scale * np.sqrt(found.size), name
        beginning = expected["grad_first8"][index][: found.size]
        np.testing.assert_allclose(found.ravel()[: len(beginning)], beginning, atol=5e-3 * scale, rtol=0, err_msg=name)
    for name in gradients.keys() - norms.keys():
        assert not gradients[name].any(), f"{name} is frozen in the library"


@pytest.mark.parametrize("name", ["tv_maskrcnn_resnet50_fpn", "d2_mask_rcnn_R_50_C4", "d2_keypoint_rcnn_R_50_FPN"])
def test_from_file_to_detections_on_the_command_line(name, tmp_path):
    case, given = Case(name), tmp_path / ("model.npz" if name.startswith("tv") else "model.pkl")
    if case.torchvision:
        np.savez(given, **case.tensors)
        options = []
    else:
        given.write_bytes(pickle.dumps({"model": case.tensors, "__author__": "someone"}, protocol=2))
        options = ["--config", str(case.settings)]
    cv2.imwrite(str(tmp_path / "photo.png"), images()[0][..., ::-1])
    sizes = ["--data.short-edge", "320", "--data.short-edge-test", "320", "--data.long-edge", "416"]
    assert cli.main(["import-weights", case.source, str(given), "--out", str(tmp_path / "imported"), *options, *sizes]) == 0
    assert cli.main(["predict", str(tmp_path / "imported"), str(tmp_path / "photo.png"), "--out", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    boxes = np.array([entry["bbox"] for entry in results])
    boxes[:, 2:] += boxes[:, :2]
    # COCO's own category ids: torchvision's labels; Detectron2's classes are the 80 of them in order
    ids = [entry["category_id"] for entry in results]
    assert json.loads((tmp_path / "imported" / "experiment.json").read_text())["name"] == name.partition("_")[2]
    known = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
    expected_ids = case.class_ids() + 1 if case.torchvision else np.array(known)[case.class_ids()]
    ours, theirs = match(boxes, case.expected["det_boxes"], ids, expected_ids)
    assert len(results) == 100 and len(ours) >= 98 and np.mean(ours == theirs) >= 0.98
    np.testing.assert_allclose(boxes[ours], case.expected["det_boxes"][theirs], atol=0.05, rtol=0)
    np.testing.assert_allclose([results[row]["score"] for row in ours], case.expected["det_scores"][theirs], atol=2e-3, rtol=0)
    if "keypoint" in name:
        found = np.array([entry["keypoints"] for entry in results]).reshape(100, 17, 3)[ours]
        assert np.mean(np.abs(found - case.expected["det_keypoints"][theirs]).max(axis=2) < 0.05) >= 0.98
        return
    masks = np.stack([coco_mask.decode(entry["segmentation"]) for entry in results]).astype(bool)
    assert np.mean(masks[ours] != np.unpackbits(case.expected["mask_bin_packed"], axis=-1)[..., :416].astype(bool)[theirs]) < 1e-3
