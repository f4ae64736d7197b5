"""Selection of detections from the outputs of the box head (section 3.1, inference)."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax import ops
from mrcnn_jax.config import BoxHeadConfig, ModelConfig
from mrcnn_jax.structures import Predictions, Proposals
from mrcnn_jax.typing import Array, Float, Int


class Voters(NamedTuple):
    """Instances of each image that vote on the masks of similar detections."""

    boxes: Float[Array, "B N 4"]  # clipped to the image
    scores: Float[Array, "B N K"]  # of each class; 0 for instances that do not exist
    masks: Float[Array, "B N M M"]  # probabilities inside each box


class Candidates(NamedTuple):
    """Detections of each image before NMS; those of several views of it are united by concatenation."""

    found: Predictions  # without masks and keypoints
    voters: Voters | None = None  # of systems whose masks are voted on


def select_candidates(
    logits: Float[Array, "B P K1"],
    deltas: Float[Array, "B P K 4"],
    proposals: Proposals,
    sizes: Int[Array, "B 2"],
    config: BoxHeadConfig,
    max_box_scale: float = 1000 / 16,
) -> Predictions:
    """Selects the NMS candidates: the ``max_candidates`` best (box, class) pairs above the score threshold.

    Args:
        logits: of the K classes and background, K1 = K + 1.
        deltas: of each class.
        proposals: the boxes to which logits and deltas belong.
        sizes: height and width of the images, to which boxes are clipped.
        config: thresholds and numbers.
        max_box_scale: maximum factor by which deltas enlarge a proposal.

    Returns:
        Boxes, scores and classes, best first; one slot for each pair if there are fewer pairs.
    """

    def image(logits, deltas, proposals, size):
        def decode(roi, classes):
            boxes = proposals.boxes[roi]
            boxes = ops.decode(deltas[roi, classes], boxes, config.delta_weights, max_box_scale)
            return ops.clip(boxes, size[0], size[1])

        scores = jnp.where(proposals.valid[:, None], nn.softmax(logits)[:, :-1], 0)
        return _best_pairs(scores, decode, config)

    return jax.vmap(image)(logits, deltas, proposals, sizes)


def suppress(candidates: Predictions, config: BoxHeadConfig) -> Predictions:
    """Applies NMS or Soft-NMS to the candidates of each image, in any order.

    The result equals that of NMS over all boxes if ``max_detections`` of the candidates survive.

    Returns:
        Boxes, scores and classes, best first, in ``max_detections`` slots, or in one for each candidate if
        these are fewer; all zero where not valid.
    """
    return jax.vmap(partial(_survivors, config=config))(candidates)


def voting_candidates(voters: Voters, config: BoxHeadConfig) -> Candidates:
    """Selects the NMS candidates: as ``select_candidates``, of instances whose boxes are their RoIs."""

    def image(boxes, scores):
        return _best_pairs(scores, lambda roi, classes: boxes[roi], config)

    return Candidates(jax.vmap(image)(voters.boxes, voters.scores), voters)


def vote_detections(
    candidates: Candidates, config: ModelConfig, similar_iou: float, binarize: bool
) -> Predictions:
    """Selects the best candidates of each image by NMS; all instances like them vote on their masks.

    Args:
        candidates: with voters.
        config: thresholds and numbers (``box`` and ``mask``).
        similar_iou: minimum IoU of the instances that vote.
        binarize: see ``ops.vote_masks``.

    Returns:
        Detections with masks, best first; the boxes are those of the masks.
    """

    def image(candidates, voters):
        found = _survivors(candidates, config.box)
        tight, voted = ops.vote_masks(
            found.boxes, found.classes, found.valid, voters.boxes, voters.masks, voters.scores, similar_iou,
            config.mask.threshold, binarize,
        )  # fmt: skip
        valid = found.valid & ops.is_nonempty(tight)
        scores, classes = jnp.where(valid, found.scores, 0), jnp.where(valid, found.classes, 0)
        return Predictions(boxes=tight, scores=scores, classes=classes, valid=valid, masks=voted)

    return jax.vmap(image)(*candidates)


def _best_pairs(scores, boxes_of, config):
    """Selects pairs of RoI and class of one image by their scores [P, K]."""
    num_classes, scores = scores.shape[1], scores.reshape(-1)
    count = min(config.max_candidates, scores.size)
    index, valid = ops.masked_top_k(scores > config.score_threshold, scores, count)
    roi, classes = index // num_classes, index % num_classes
    boxes = boxes_of(roi, classes)
    valid &= ops.is_nonempty(boxes, config.min_size)
    return Predictions(boxes=boxes, scores=scores[index], classes=classes, valid=valid)


def _survivors(candidates, config):
    """Selects the candidates of one image that survive NMS or Soft-NMS."""
    boxes, scores, classes, valid = (
        getattr(candidates, name) for name in ("boxes", "scores", "classes", "valid")
    )
    best, scores, valid = _suppress(boxes, scores, valid, classes, config)
    return Predictions(
        boxes=jnp.where(valid[:, None], boxes[best], 0),
        scores=jnp.where(valid, scores, 0),
        classes=jnp.where(valid, classes[best], 0),
        valid=valid,
    )


def _suppress(boxes, scores, valid, classes, config):
    """Applies NMS or Soft-NMS; returns indices, scores and validity of the detections, best first."""
    groups, limit = None if config.class_agnostic_nms else classes, min(config.max_detections, len(scores))
    if config.soft_nms == "none":
        keep = ops.nms(boxes, scores, config.nms_iou, valid, groups, limit)
        best, valid = ops.masked_top_k(keep, scores, limit)
        return best, scores[best], valid
    best, scores, valid = ops.soft_nms(
        boxes, scores, limit, valid, groups, config.soft_nms, config.nms_iou, config.soft_nms_sigma
    )
    return best, scores, valid & (scores > config.score_threshold)
