"""Heads, targets and losses together, with weights, features and results of Detectron2."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_jax import ops
from mrcnn_jax.config import BoxHeadConfig, RPNConfig
from mrcnn_jax.config.model import STRIDES
from mrcnn_jax.models.heads import BoxHead
from mrcnn_jax.models.rpn import RPNHead, select_proposals
from mrcnn_jax.training import loss_functions as losses
from mrcnn_jax.training.targets import rpn_targets

ANCHORS = 3072  # of an image
# every labelled anchor is sampled, however many are positive
EVERY_ANCHOR = RPNConfig(anchor_sizes=(8, 16, 32, 64, 128), samples_per_image=2 * ANCHORS, smooth_l1_beta=0)


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("d2_unit")


def layer(arrays, name):
    """Weights [out, in, ...] as Flax has them, [..., in, out]."""
    kernel = np.moveaxis(arrays[f"{name}.weight"], (1, 0), (-2, -1))
    return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(arrays[f"{name}.bias"])}


# ---- region proposal network


@pytest.fixture(scope="module")
def rpn(arrays):
    """Logits and deltas of each level from the stored features and weights, and the anchors."""
    names = {"conv1": "rpn_conv", "objectness": "rpn_objectness_logits", "deltas": "rpn_anchor_deltas"}
    weights = {"params": {ours: layer(arrays, theirs) for ours, theirs in names.items()}}
    pyramid = [jnp.asarray(arrays[f"rpn_feat_p{level}"].transpose(0, 2, 3, 1)) for level in range(2, 7)]
    logits, deltas = jax.jit(RPNHead(anchors_per_cell=3).apply)(weights, pyramid)
    grids = [level.shape[1:3] for level in pyramid]
    sizes, ratios = EVERY_ANCHOR.anchor_sizes, EVERY_ANCHOR.aspect_ratios
    anchors = ops.pyramid_anchors(sizes, ratios, grids, STRIDES["fpn"])
    return logits, deltas, [jnp.asarray(level) for level in anchors]


@pytest.fixture(scope="module")
def targets(arrays, rpn):
    """Targets of both images, with a fourth, invalid object slot."""
    anchors = jnp.concatenate(rpn[2])
    boxes = jnp.pad(arrays["rpn_gt"], ((0, 0), (0, 1), (0, 0)))
    valid, none = jnp.arange(4) < 3, jnp.zeros(4, bool)
    key = jax.random.key(0)
    make = jax.vmap(lambda boxes: rpn_targets(key, anchors, boxes, valid, none, EVERY_ANCHOR))
    return jax.jit(make)(boxes)


def test_anchors(arrays, rpn):
    assert sum(map(len, rpn[2])) == ANCHORS
    np.testing.assert_allclose(np.concatenate(rpn[2]), arrays["rpn_anchors"], rtol=0, atol=1e-4)


def test_labels_of_anchors(arrays, targets):
    for image in range(2):
        sampled = targets.index, targets.positive, targets.valid
        index, positive, valid = (np.asarray(leaf[image]) for leaf in sampled)
        labels = np.full(ANCHORS, -1)
        labels[index[valid]] = positive[valid]
        assert len(set(index[valid])) == valid.sum() and set(labels) == {-1, 0, 1}
        np.testing.assert_array_equal(labels, arrays["rpn_labels"][image])


def test_matched_boxes_of_anchors(arrays):
    anchors = jnp.asarray(arrays["rpn_anchors"])
    for boxes, expected in zip(jnp.asarray(arrays["rpn_gt"]), arrays["rpn_matched_boxes"], strict=True):
        def iou(slot, boxes=boxes):
            return ops.iou(boxes[slot][None], anchors)[0]

        index, _ = ops.match(iou, ANCHORS, jnp.ones(3, bool), 0.7, 0.3)
        np.testing.assert_array_equal(boxes[index][::7], expected)


def test_rpn_losses(arrays, rpn, targets):
    """Detectron2 divides both by the nominal number of samples, and takes L1."""
    logits, deltas = (jnp.concatenate(levels, axis=1) for levels in rpn[:2])
    logits = jnp.take_along_axis(logits, targets.index, axis=1)
    deltas = jnp.take_along_axis(deltas, targets.index[..., None], axis=1)
    divisor, beta = 2 * EVERY_ANCHOR.samples_per_image, EVERY_ANCHOR.smooth_l1_beta
    objectness = losses.objectness_loss(logits, targets.positive, targets.valid) / divisor
    np.testing.assert_allclose(objectness, arrays["loss_rpn_cls"], rtol=1e-5)
    box = losses.box_loss(deltas, targets.deltas, targets.positive, beta) / divisor
    np.testing.assert_allclose(box, arrays["loss_rpn_loc"], rtol=1e-5)


@pytest.mark.parametrize("mode, before, after", [("train", 400, 300), ("test", 200, 100)])
def test_proposals(arrays, rpn, mode, before, after):
    logits, deltas, anchors = rpn
    sizes = jnp.asarray(arrays["rpn_sizes"], jnp.int32)
    select = jax.jit(lambda *outputs: select_proposals(*outputs, anchors, sizes, before, after, 0.7))
    proposals = select(logits, deltas)
    for image in range(2):
        assert proposals.valid[image].all()
        expected = arrays[f"rpn_{mode}_prop{image}"]
        np.testing.assert_allclose(proposals.boxes[image], expected, rtol=0, atol=1e-3)
        if mode == "train":
            expected = arrays[f"rpn_train_logit{image}"]
            np.testing.assert_allclose(proposals.scores[image], expected, rtol=0, atol=1e-5)


# ---- classes and boxes


def test_box_head_and_its_losses(arrays):
    """The head without hidden layers, on features of one cell."""
    config = dataclasses.replace(BoxHeadConfig(), fully_connected=0, smooth_l1_beta=0)
    names = {"classes": "frcnn_cls_score", "deltas": "frcnn_bbox_pred"}
    weights = {"params": {ours: layer(arrays, theirs) for ours, theirs in names.items()}}
    features = jnp.asarray(arrays["frcnn_feat"])[:, None, None]
    logits, deltas = BoxHead(config, num_classes=5).apply(weights, features)
    np.testing.assert_allclose(logits, arrays["frcnn_logits"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(deltas.reshape(2, 20), arrays["frcnn_deltas"], rtol=1e-5, atol=1e-6)

    classes = jnp.asarray(arrays["frcnn_cls"], jnp.int32)
    rows, positive = len(classes), classes < 5
    class_loss = losses.class_loss(logits, classes, jnp.ones(rows, bool)) / rows
    np.testing.assert_allclose(class_loss, arrays["frcnn_loss_cls"], rtol=1e-5)
    boxes, proposals = jnp.asarray(arrays["frcnn_gt"]), jnp.asarray(arrays["frcnn_proposals"])
    targets = ops.encode(boxes, proposals, config.delta_weights)
    own = deltas[jnp.arange(rows), classes % 5]
    box_loss = losses.box_loss(own, targets, positive, config.smooth_l1_beta) / rows
    np.testing.assert_allclose(box_loss, arrays["frcnn_loss_box_reg"], rtol=1e-5)


# ---- masks


def mask_loss(arrays, targets):
    count = len(arrays["mask_classes"])
    logits = jnp.asarray(arrays["mask_logits"], jnp.float32)[jnp.arange(count), arrays["mask_classes"]]
    return losses.mask_loss(logits, jnp.asarray(targets, jnp.float32), jnp.ones(count, bool)) / count


def test_mask_loss_of_bitmaps(arrays):
    whole = jnp.tile(jnp.asarray([0.0, 0.0, 64.0, 64.0]), (6, 1))
    masks = jnp.asarray(arrays["mask_gt_bit"][arrays["mask_match"]])
    shares = ops.crop_masks(masks, whole, jnp.asarray(arrays["mask_props"]), 28, sampling_ratio=0, border=0.5)
    np.testing.assert_allclose(mask_loss(arrays, shares >= 0.5), arrays["mask_loss_bitmask"], rtol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools' decode
def test_mask_loss_of_polygons(arrays):
    """Detectron2 moves the polygons into the bins of the proposal and draws them there."""
    targets = []
    for match, box in zip(arrays["mask_match"], np.float64(arrays["mask_props"]), strict=True):
        points = arrays[f"mask_gt_poly{match}"].reshape(-1, 2)
        inside = (points - box[:2]) * 28 / (box[2:] - box[:2])
        polygons = coco_mask.frPyObjects([inside.ravel().tolist()], 28, 28)
        targets.append(coco_mask.decode(coco_mask.merge(polygons)))
    np.testing.assert_allclose(mask_loss(arrays, np.stack(targets)), arrays["mask_loss_polygon"], rtol=1e-5)
