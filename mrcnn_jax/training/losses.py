"""The training objective: L = L_cls + L_box + L_mask (equation 1), the RPN's two losses and the keypoints'.

Logits of any precision are converted to float32: in bfloat16 a sum of a few hundred terms is already wrong.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mrcnn_jax.config import MaskHeadConfig
from mrcnn_jax.distributed import DEVICE_AXIS
from mrcnn_jax.models.heads import select_class_masks
from mrcnn_jax.models.mask_rcnn import MaskRCNN, Pyramid
from mrcnn_jax.structures import Batch, Proposals
from mrcnn_jax.training.roi_blocks import sum_over_rois
from mrcnn_jax.training.targets import max_positives, roi_targets, rpn_targets
from mrcnn_jax.typing import Array, Bool, Float, Int, Key

Metrics = dict[str, Float[Array, ""]]


class Term(NamedTuple):
    """A loss before normalisation."""

    total: Float[Array, ""]  # sum over this device's images
    count: Float[Array, ""] | Int[Array, ""] | int  # this device's share of the divisor


def batch_losses(model: MaskRCNN, batch: Batch, keys: Key[jax.Array, "B"]) -> Metrics:
    """Computes the losses of this device's images for the model's tasks.

    Divisors are those of the released code (RPN: nominal number of sampled anchors; class and box: sampled
    RoIs; mask: positive RoIs whose object has a mask; keypoints: visible ones), but counted over all devices
    instead of on each. The update is then that of one device with the whole batch, however images are
    distributed.

    Args:
        model: bound to its variables, by ``flax.linen.apply``.
        batch: this device's images.
        keys: random keys [B], one per image.

    Returns:
        "loss", and its terms by name.
    """
    config = model.config
    pyramid = model.pyramid(batch.images, batch.sizes, train=True)
    keys = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
    if config.rpn.proposals_from:
        proposals, terms = model.frozen_proposals(batch.images, batch.sizes, train=True), {}
    else:
        proposals, terms = _rpn_losses(model, pyramid, batch, keys[:, 0])
    if config.tasks:
        terms |= _head_losses(model, pyramid, proposals, batch, keys[:, 1])
    counts = _mean_counts({name: term.count for name, term in terms.items()})
    means = {name: term.total / counts[name] for name, term in terms.items()}
    return {"loss": sum(means.values()), **means}


def _rpn_losses(
    model: MaskRCNN, pyramid: Pyramid, batch: Batch, keys: Key[jax.Array, "B"]
) -> tuple[Proposals, dict[str, Term]]:
    """Computes the losses of the region proposal network, and its proposals for the second stage."""
    config, anchors = model.config.rpn, model.anchors(pyramid, batch.images.shape[1:3])
    level_logits, level_deltas = model.objectness(pyramid)
    all_anchors = jnp.concatenate(anchors)
    sampled = jax.vmap(lambda key, *objects: rpn_targets(key, all_anchors, *objects, config))(
        keys, batch.boxes, batch.valid, batch.crowd
    )
    logits = jnp.take_along_axis(jnp.concatenate(level_logits, axis=1), sampled.index, axis=1)
    deltas = jnp.take_along_axis(jnp.concatenate(level_deltas, axis=1), sampled.index[..., None], axis=1)
    nominal = model.config.conventions.rpn_normalizer == "nominal"
    count = config.samples_per_image * batch.images.shape[0] if nominal else sampled.valid.sum()
    box = box_loss(deltas, sampled.deltas, sampled.positive, config.smooth_l1_beta)
    return model.proposals(level_logits, level_deltas, anchors, batch.sizes, train=True), {
        "loss_rpn_objectness": Term(objectness_loss(logits, sampled.positive, sampled.valid), count),
        "loss_rpn_box": Term(box, count),
    }


def _head_losses(
    model: MaskRCNN, pyramid: Pyramid, proposals: Proposals, batch: Batch, keys: Key[jax.Array, "B"]
) -> dict[str, Term]:
    """Computes the losses of the second stage: class and box, and mask and keypoints of positive RoIs."""
    config = model.config
    rois = jax.vmap(lambda *image: roi_targets(*image, config))(keys, proposals, batch.examples)
    rois = jax.lax.stop_gradient(rois)
    features = model.roi_features(pyramid, rois.boxes, config.pool_of("box"), rois.valid, train=True)
    logits, deltas = model.classify(features, rois.valid, train=True)
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
            pooled[pool] = model.roi_features(pyramid, boxes, pool, positive, train=True)
        return pooled[pool]

    if "masks" in config.tasks:
        features, targets = branch_features("mask"), (rois.masks, labels[:, :slots], rois.mask_valid)
        loss = partial(_mask_branch_loss, config.mask)
        if config.mask.norm == "batch":
            total = loss(model.mask_logits(features, positive, train=True), *targets)
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
    config: MaskHeadConfig, logits: Float[Array, "*n M M k"], targets: Float[Array, "*n M M"],
    classes: Int[Array, "*n"], valid: Bool[Array, "*n"],
) -> Float[Array, ""]:  # fmt: skip
    if config.loss == "softmax":
        return softmax_mask_loss(logits, targets, classes, valid)
    own = logits[..., 0] if config.class_agnostic else select_class_masks(logits, classes)
    return mask_loss(own, targets, valid)


def _keypoint_branch_loss(
    logits: Float[Array, "*n J m m2"], cells: Int[Array, "*n J"], valid: Bool[Array, "*n J"]
) -> Float[Array, ""]:
    return keypoint_loss(logits.reshape(*logits.shape[:-2], -1), cells, valid)


def _mean_counts(counts):
    """Averages the counts over devices, in one message; at least one over all devices."""
    local = jnp.stack([jnp.asarray(count, jnp.float32) for count in counts.values()])
    total, devices = jax.lax.psum((local, 1.0), DEVICE_AXIS)
    return dict(zip(counts, jnp.maximum(total, 1.0) / devices, strict=True))


# ---- elementary losses, each a sum over what was sampled ----


def smooth_l1(prediction: Float[Array, "*n"], target: Float[Array, "*n"], beta: float) -> Float[Array, "*n"]:
    """Computes 0.5 d^2 / beta if |d| < beta, else |d| - 0.5 beta (Fast R-CNN, equation 3); beta 0 is L1."""
    distance = jnp.abs(prediction.astype(jnp.float32) - target)
    if beta == 0:
        return jnp.where(distance == 0, 0, distance)  # without gradient at 0, where that of abs is 1 in JAX
    return jnp.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)


def objectness_loss(
    logits: Float[Array, "*n"], positive: Bool[Array, "*n"], valid: Bool[Array, "*n"]
) -> Float[Array, ""]:
    """Sums binary cross-entropy over the valid anchors."""
    return jnp.sum(_binary_cross_entropy(logits, positive) * valid)


def box_loss(
    deltas: Float[Array, "*n 4"], targets: Float[Array, "*n 4"], positive: Bool[Array, "*n"], beta: float
) -> Float[Array, ""]:
    """Sums smooth L1 over the four deltas of the positive boxes."""
    return jnp.sum(smooth_l1(deltas, targets, beta) * positive[..., None])


def class_loss(
    logits: Float[Array, "*n K1"], classes: Int[Array, "*n"], valid: Bool[Array, "*n"]
) -> Float[Array, ""]:
    """Sums cross-entropy over K classes and background (K1 = K + 1) over the valid RoIs."""
    return jnp.sum(_cross_entropy(logits, classes) * valid)


def mask_loss(
    logits: Float[Array, "*n M M"], targets: Float[Array, "*n M M"], positive: Bool[Array, "*n"]
) -> Float[Array, ""]:
    """Averages binary cross-entropy over the pixels of a mask; sums over positive RoIs."""
    return jnp.sum(_binary_cross_entropy(logits, targets).mean(axis=(-2, -1)) * positive)


def softmax_mask_loss(
    logits: Float[Array, "*n M M K1"], targets: Float[Array, "*n M M"], classes: Int[Array, "*n"],
    positive: Bool[Array, "*n"],
) -> Float[Array, ""]:  # fmt: skip
    """Averages cross-entropy over the pixels of a mask; sums over positive RoIs.

    Classes and background (index K) compete for every pixel, the alternative of table 2b. Targets are 0 or 1.
    """
    pixel_classes = jnp.where(targets > 0.5, classes[..., None, None], logits.shape[-1] - 1)
    return jnp.sum(_cross_entropy(logits, pixel_classes).mean(axis=(-2, -1)) * positive)


def keypoint_loss(
    logits: Float[Array, "*n J cells"], cells: Int[Array, "*n J"], valid: Bool[Array, "*n J"]
) -> Float[Array, ""]:
    """Sums cross-entropy over the cells of a RoI over the valid keypoints (section 5)."""
    return jnp.sum(_cross_entropy(logits, cells) * valid)


def _binary_cross_entropy(logits, targets):
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets.astype(jnp.float32))


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
