"""What each anchor and each RoI of one image should have said: matching, sampling, regression and mask targets."""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mrcnn_jax import ops
from mrcnn_jax.config import BoxHeadConfig, RoIConfig, RPNConfig
from mrcnn_jax.ops.matching import BACKGROUND, IGNORED

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
    """R sampled RoIs of one image, positives first; the first F slots hold every positive, and only they have masks."""

    boxes: Float[Array, "R 4"]
    classes: Int[Array, "R"]  # K is background
    positive: Bool[Array, "R"]
    exists: Bool[Array, "R"]
    deltas: Float[Array, "R 4"]
    masks: Float[Array, "F M M"]  # 0 or 1


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


def roi_targets(
    key: PRNGKeyArray,
    proposals: Float[Array, "P 4"],
    proposal_valid: Bool[Array, "P"],
    boxes: Float[Array, "G 4"],
    classes: Int[Array, "G"],
    valid: Bool[Array, "G"],
    crowd: Bool[Array, "G"],
    masks: Float[Array, "G m m"],
    num_classes: int,
    mask_size: int,
    config: RoIConfig,
    box_config: BoxHeadConfig,
) -> RoITargets:
    """Samples RoIs of one image from its proposals and its objects: positive from IoU ``foreground_iou`` on (section 3.1)."""
    objects = valid & ~crowd
    candidates = jnp.concatenate([proposals, boxes])
    candidate_valid = jnp.concatenate([proposal_valid, objects])
    matched, labels = ops.match(_iou_of(boxes, candidates), len(candidates), objects, config.foreground_iou, config.foreground_iou)
    labels = jnp.where(candidate_valid, _ignore_crowd(labels, candidates, boxes, valid & crowd), IGNORED)
    index, positive, exists = ops.sample(key, labels, config.samples_per_image, config.positive_fraction)
    rois, matched = candidates[index], matched[index]
    rois = jnp.where(exists[:, None], rois, 0)
    deltas = ops.encode(boxes[matched], rois, box_config.delta_weights)
    slots = int(config.samples_per_image * config.positive_fraction)
    chosen = matched[:slots]
    target_masks = ops.crop_masks(masks[chosen], boxes[chosen], rois[:slots], mask_size) >= 0.5
    return RoITargets(
        boxes=rois,
        classes=jnp.where(positive, classes[matched], num_classes),
        positive=positive,
        exists=exists,
        deltas=jnp.where(positive[:, None], deltas, 0),
        masks=target_masks.astype(jnp.float32),
    )


def _iou_of(boxes, candidates):
    return lambda slot: ops.iou(boxes[slot][None], candidates)[0]


def _ignore_crowd(labels, candidates, boxes, crowd):
    covered = ops.greatest_overlap(lambda slot: ops.intersection_over_second(boxes[slot][None], candidates)[0], len(candidates), crowd)
    return jnp.where((labels == BACKGROUND) & (covered > CROWD_SHARE), IGNORED, labels)
