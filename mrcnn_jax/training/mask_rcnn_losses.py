"""The losses of Mask R-CNN's second stage: L = L_cls + L_box + L_mask (equation 1), and the keypoints'."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from mrcnn_jax.config import MaskHeadConfig
from mrcnn_jax.models.mask_rcnn import MaskRCNN, Pyramid
from mrcnn_jax.structures import Batch, Proposals
from mrcnn_jax.training.loss_functions import (
    Term,
    box_loss,
    class_loss,
    keypoint_loss,
    mask_loss,
    softmax_mask_loss,
)
from mrcnn_jax.training.roi_blocks import sum_over_rois
from mrcnn_jax.training.targets import max_positives, roi_targets
from mrcnn_jax.typing import Array, Bool, Float, Int, Key


def mask_rcnn_losses(
    model: MaskRCNN, pyramid: Pyramid, proposals: Proposals, batch: Batch, keys: Key[jax.Array, "B"],
    train: bool = True,
) -> dict[str, Term]:  # fmt: skip
    """Computes the losses of the second stage: class and box, and mask and keypoints of positive RoIs."""
    config = model.config
    rois = jax.vmap(lambda *image: roi_targets(*image, config))(keys, proposals, batch.examples)
    rois = jax.lax.stop_gradient(rois)
    features = model.roi_features(pyramid, rois.boxes, config.pool_of("box"), rois.valid, train=train)
    logits, deltas = model.classify(features, rois.valid, train=train)
    # rows of background, which has neither deltas nor a mask, do not contribute
    labels = jnp.minimum(rois.classes, config.num_classes - 1)
    deltas = jnp.take_along_axis(deltas, labels[..., None, None], axis=2)[:, :, 0]
    count = rois.valid.sum()
    terms = {
        "loss_class": Term(class_loss(logits, rois.classes, rois.valid), count),
        "loss_box": Term(box_loss(deltas, rois.deltas, rois.positive, config.box.smooth_l1_beta), count),
    }

    slots = max_positives(config.roi)
    positive, boxes = rois.positive[:, :slots], rois.boxes[:, :slots]
    pooled = {config.pool_of("box"): features[:, :slots]}  # pooled once for all branches with equal pooling

    def branch_features(branch):
        pool = config.pool_of(branch)
        if pool not in pooled:
            pooled[pool] = model.roi_features(pyramid, boxes, pool, positive, train=train)
        return pooled[pool]

    if "masks" in config.tasks:
        features, targets = branch_features("mask"), (rois.masks, labels[:, :slots], rois.mask_valid)
        loss = partial(_mask_branch_loss, config.mask)
        if config.mask.norm == "batch":
            total = loss(partial(model.mask_logits, valid=positive, train=train), features, *targets)
        else:
            total = sum_over_rois(loss, model.mask, features, targets, rois.mask_valid)
        terms["loss_mask"] = Term(total, rois.mask_valid.sum())
    if "keypoints" in config.tasks:
        features, targets = branch_features("keypoint"), (rois.keypoint_cells, rois.keypoint_valid)
        labelled = rois.keypoint_valid.any(axis=-1)
        total = sum_over_rois(_keypoint_branch_loss, model.keypoint, features, targets, labelled)
        terms["loss_keypoint"] = Term(total, rois.keypoint_valid.sum())
    return terms


def _mask_branch_loss(
    config: MaskHeadConfig, head: Callable[..., Float[Array, "*n M M k"]], features: Float[Array, "*n h w c"],
    targets: Float[Array, "*n M M"], classes: Int[Array, "*n"], valid: Bool[Array, "*n"],
) -> Float[Array, ""]:  # fmt: skip
    if config.loss == "softmax":
        return softmax_mask_loss(head(features), targets, classes, valid)
    logits = head(features, classes=None if config.class_agnostic else classes)
    return mask_loss(logits[..., 0], targets, valid)


def _keypoint_branch_loss(
    head: Callable[..., Float[Array, "*n J m m2"]], features: Float[Array, "*n h w c"],
    cells: Int[Array, "*n J"], valid: Bool[Array, "*n J"],
) -> Float[Array, ""]:  # fmt: skip
    logits = head(features)
    return keypoint_loss(logits.reshape(*logits.shape[:-2], -1), cells, valid)
