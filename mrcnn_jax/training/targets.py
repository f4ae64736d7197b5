"""What each anchor and each RoI of one image should have said: matching, sampling, regression, mask and keypoint targets."""

import flax.struct
import jax.numpy as jnp

from mrcnn_jax import ops
from mrcnn_jax.config import ModelConfig, RPNConfig
from mrcnn_jax.ops.matching import BACKGROUND, IGNORED
from mrcnn_jax.structures import Batch, Proposals
from mrcnn_jax.typing import Array, Bool, Float, Int, PRNGKeyArray

CROWD_SHARE = 0.7
"""A background box of which a crowd region covers more than this is no example of background (Detectron's CROWD_FILTER_THRESH)."""


@flax.struct.dataclass
class RPNTargets:
    """S sampled anchors of one image."""

    index: Int[Array, "S"]
    positive: Bool[Array, "S"]
    exists: Bool[Array, "S"]
    deltas: Float[Array, "S 4"]


@flax.struct.dataclass
class RoITargets:
    """R sampled RoIs of one image, positives first; the first F slots hold every positive, and only they have masks and keypoints."""

    boxes: Float[Array, "R 4"]
    classes: Int[Array, "R"]  # K is background
    positive: Bool[Array, "R"]
    exists: Bool[Array, "R"]
    deltas: Float[Array, "R 4"]
    masks: Float[Array, "F M M"] | None  # 0 or 1, or shares in between (soft_targets); None without a mask branch
    keypoint_cells: Int[Array, "F J"] | None  # position of each keypoint in the RoI's map; None without a keypoint branch
    keypoint_valid: Bool[Array, "F J"] | None  # which are labelled and lie inside the RoI


def rpn_targets(
    key: PRNGKeyArray, anchors: Float[Array, "A 4"], boxes: Float[Array, "G 4"], valid: Bool[Array, "G"], crowd: Bool[Array, "G"], config: RPNConfig
) -> RPNTargets:
    """Samples anchors of one image: foreground from IoU ``foreground_iou`` on, and the best of each object; background below ``background_iou``.

    Anchors that cross the image border take part (FPN, section 4.1).
    """
    objects = valid & ~crowd
    matched, labels = ops.match(_iou_of(boxes, anchors), len(anchors), objects, config.foreground_iou, config.background_iou, low_quality=True)
    labels = _ignore_crowd(labels, anchors, boxes, valid & crowd)
    index, positive, exists = ops.sample(key, labels, config.samples_per_image, config.positive_fraction)
    deltas = ops.encode(boxes[matched[index]], anchors[index])
    return RPNTargets(index=index, positive=positive, exists=exists, deltas=jnp.where(positive[:, None], deltas, 0))


def roi_targets(key: PRNGKeyArray, proposals: Proposals, objects: Batch, config: ModelConfig) -> RoITargets:
    """Samples RoIs of one image from its proposals and its objects: positive from IoU ``foreground_iou`` on (section 3.1).

    ``proposals``, ``objects``: of one image, without the batch axis; the objects' image is not looked at.
    """
    roi, boxes = config.roi, objects.boxes
    real = objects.valid & ~objects.crowd
    candidates = jnp.concatenate([proposals.boxes, boxes])
    candidate_valid = jnp.concatenate([proposals.valid, real])
    matched, labels = ops.match(_iou_of(boxes, candidates), len(candidates), real, roi.foreground_iou, roi.foreground_iou)
    labels = jnp.where(candidate_valid, _ignore_crowd(labels, candidates, boxes, objects.valid & objects.crowd), IGNORED)
    index, positive, exists = ops.sample(key, labels, roi.samples_per_image, roi.positive_fraction)
    rois, matched = jnp.where(exists[:, None], candidates[index], 0), matched[index]
    deltas = ops.encode(boxes[matched], rois, config.box.delta_weights)

    slots = int(roi.samples_per_image * roi.positive_fraction)
    chosen, frames = matched[:slots], rois[:slots]
    masks = cells = valid = None
    if "masks" in config.tasks:
        masks = ops.crop_masks(
            objects.masks[chosen], boxes[chosen], frames, config.mask_size, config.conventions.mask_target_sampling_ratio, config.conventions.mask_target_half_pixel
        )
        masks = masks if config.conventions.soft_mask_targets else (masks >= 0.5).astype(jnp.float32)
    if "keypoints" in config.tasks:
        cells, valid = ops.keypoint_targets(objects.keypoints[chosen], frames, config.keypoint_size)
        valid &= positive[:slots, None]
    return RoITargets(
        boxes=rois,
        classes=jnp.where(positive, objects.classes[matched], config.num_classes),
        positive=positive,
        exists=exists,
        deltas=jnp.where(positive[:, None], deltas, 0),
        masks=masks,
        keypoint_cells=cells,
        keypoint_valid=valid,
    )


def _iou_of(boxes, candidates):
    return lambda slot: ops.iou(boxes[slot][None], candidates)[0]


def _ignore_crowd(labels, candidates, boxes, crowd):
    covered = ops.max_overlap(lambda slot: ops.intersection_over_area(boxes[slot][None], candidates)[0], len(candidates), crowd)
    return jnp.where((labels == BACKGROUND) & (covered > CROWD_SHARE), IGNORED, labels)
