"""Training targets of one image: matching and sampling of anchors and RoIs, and what they should predict."""

from typing import NamedTuple

import jax.numpy as jnp

from mrcnn_jax import ops
from mrcnn_jax.config import ModelConfig, RoIConfig, RPNConfig
from mrcnn_jax.ops.matching import BACKGROUND, IGNORED
from mrcnn_jax.structures import Example, Proposals
from mrcnn_jax.typing import Array, Bool, Float, Int, PRNGKeyArray

MAX_CROWD_OVERLAP = 0.7
"""Background boxes covered more than this by a crowd region are ignored (Detectron's CROWD_FILTER_THRESH)."""


class RPNTargets(NamedTuple):
    """S sampled anchors of one image, positives first."""

    index: Int[Array, "S"]  # among all anchors
    positive: Bool[Array, "S"]
    valid: Bool[Array, "S"]
    deltas: Float[Array, "S 4"]  # 0 where not positive


class RoITargets(NamedTuple):
    """R sampled RoIs of one image, positives first; only the first F (``max_positives``) have masks."""

    index: Int[Array, "R"]  # among the proposals and, after them, the object slots
    matched: Int[Array, "R"]  # object slot of greatest overlap
    boxes: Float[Array, "R 4"]
    classes: Int[Array, "R"]  # K is background
    positive: Bool[Array, "R"]
    valid: Bool[Array, "R"]
    deltas: Float[Array, "R 4"]  # 0 where not positive
    masks: Float[Array, "F M M"] | None  # 0 or 1, or fractions (soft_mask_targets); None without branch
    mask_valid: Bool[Array, "F"] | None  # positive RoIs whose object has a mask; None without branch
    keypoint_cells: Int[Array, "F J"] | None  # cell of each keypoint in the RoI's map; None without branch
    keypoint_valid: Bool[Array, "F J"] | None  # labelled keypoints inside a positive RoI


def max_positives(config: RoIConfig) -> int:
    """Returns the maximum number of positive RoIs per image, which fill the first slots."""
    return int(config.samples_per_image * config.positive_fraction)


def rpn_targets(
    key: PRNGKeyArray, anchors: Float[Array, "A 4"], boxes: Float[Array, "G 4"], valid: Bool[Array, "G"],
    crowd: Bool[Array, "G"], config: RPNConfig,
) -> RPNTargets:  # fmt: skip
    """Assigns the objects of one image to its anchors by IoU and samples a fixed number of anchors.

    Foreground are anchors with an IoU of at least ``foreground_iou``, and the best anchors of each object;
    background are those below ``background_iou``. Anchors that cross the image border take part (FPN, section
    4.1).

    Args:
        key: random key of the image.
        anchors: of all levels, in pixels.
        boxes: of the image's object slots.
        valid: slots that hold an object.
        crowd: slots that hold a crowd region.
        config: thresholds and number of samples.
    """
    objects = valid & ~crowd
    matched, labels = ops.match(
        _iou_with(boxes, anchors), len(anchors), objects, config.foreground_iou, config.background_iou,
        allow_low_quality=True,
    )
    labels = _ignore_crowd(labels, anchors, boxes, valid & crowd)
    count, fraction = config.samples_per_image, config.positive_fraction
    index, positive, valid = ops.sample_labels(key, labels, count, fraction)
    deltas = jnp.where(positive[:, None], ops.encode(boxes[matched[index]], anchors[index]), 0)
    return RPNTargets(index=index, positive=positive, valid=valid, deltas=deltas)


def roi_targets(key: PRNGKeyArray, proposals: Proposals, objects: Example, config: ModelConfig) -> RoITargets:
    """Assigns the objects of one image to its proposals by IoU and samples a fixed number of RoIs.

    RoIs are positive with an IoU of at least ``foreground_iou`` (section 3.1); the objects' own boxes are
    candidates too.

    Args:
        key: random key of the image.
        proposals: of the image, without the batch axis.
        objects: of the image.
        config: thresholds, number of samples, and the targets that the tasks need.
    """
    roi, boxes = config.roi, objects.boxes
    matchable = objects.valid & ~objects.crowd
    candidates = jnp.concatenate([proposals.boxes, boxes])
    candidate_valid = jnp.concatenate([proposals.valid, matchable])
    matched, labels = ops.match(
        _iou_with(boxes, candidates), len(candidates), matchable, roi.foreground_iou, roi.foreground_iou
    )
    labels = _ignore_crowd(labels, candidates, boxes, objects.valid & objects.crowd)
    labels = jnp.where(candidate_valid, labels, IGNORED)
    index, positive, valid = ops.sample_labels(key, labels, roi.samples_per_image, roi.positive_fraction)
    rois, matched = jnp.where(valid[:, None], candidates[index], 0), matched[index]
    deltas = ops.encode(boxes[matched], rois, config.box.delta_weights)

    slots = max_positives(roi)
    matched_positives, positive_rois = matched[:slots], rois[:slots]
    masks = mask_valid = cells = keypoint_valid = None
    if "masks" in config.tasks:
        object_masks, object_boxes = objects.masks[matched_positives], boxes[matched_positives]
        masks = _mask_targets(object_masks, object_boxes, positive_rois, config)
        mask_valid = positive[:slots] & objects.has_mask[matched_positives]
    if "keypoints" in config.tasks:
        keypoints = objects.keypoints[matched_positives]
        cells, keypoint_valid = ops.keypoint_targets(keypoints, positive_rois, config.keypoint_size)
        keypoint_valid &= positive[:slots, None]
    return RoITargets(
        index=index,
        matched=matched,
        boxes=rois,
        classes=jnp.where(positive, objects.classes[matched], config.num_classes),
        positive=positive,
        valid=valid,
        deltas=jnp.where(positive[:, None], deltas, 0),
        masks=masks,
        mask_valid=mask_valid,
        keypoint_cells=cells,
        keypoint_valid=keypoint_valid,
    )


def _mask_targets(masks, boxes, rois, config):
    conventions = config.conventions
    sampling_ratio, half_pixel = conventions.mask_target_sampling_ratio, conventions.mask_target_half_pixel
    masks = ops.crop_masks(masks, boxes, rois, config.mask_size, sampling_ratio, half_pixel)
    return masks if conventions.soft_mask_targets else (masks >= config.mask.threshold).astype(jnp.float32)


def _iou_with(boxes, candidates):
    return lambda slot: ops.iou(boxes[slot][None], candidates)[0]


def _ignore_crowd(labels, candidates, boxes, crowd):
    covered = ops.max_overlap(
        lambda slot: ops.intersection_over_area(boxes[slot][None], candidates)[0], len(candidates), crowd
    )
    return jnp.where((labels == BACKGROUND) & (covered > MAX_CROWD_OVERLAP), IGNORED, labels)
