"""Mask voting (Dai et al., 2016): the mask of a detection as the mean of the masks of similar instances."""

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.boxes import at_least_float32, iou
from mrcnn_jax.ops.checks import check_shape
from mrcnn_jax.ops.masks import crop_masks, masks_to_boxes
from mrcnn_jax.typing import Array, Bool, Float, Int

CHUNK = 8
"""Instances of a detection whose masks are stretched together, in a fixed amount of memory."""


def vote_masks(
    boxes: Float[Array, "D 4"], classes: Int[Array, "D"], valid: Bool[Array, "D"],
    instance_boxes: Float[Array, "N 4"], instance_masks: Float[Array, "N M M"],
    instance_scores: Float[Array, "N K"], similar_iou: float | Float[Array, ""] = 0.5,
    threshold: float | Float[Array, ""] = 0.4, binarize: bool = False, frame_size: int = 256,
) -> tuple[Float[Array, "D 4"], Float[Array, "D M M"]]:  # fmt: skip
    """Averages the masks of the instances similar to each detection, weighted by their scores of its class.

    Masks are stretched over their boxes bilinearly, to the pixels of a frame around all similar boxes, and
    summed there; the new box is the tightest around the pixels of at least ``threshold``, and the new mask
    the sum inside it, resized to M x M. Detections are taken one after another, so only one frame exists at a
    time. It has a cell for each pixel; where the similar boxes together are longer than ``frame_size``, a
    cell is several pixels, and the new box is exact to a cell.

    Args:
        boxes: detections, which survived NMS, in pixels.
        classes: of the detections.
        valid: slots that hold a detection.
        instance_boxes: all boxes before NMS, in pixels; those without scores do not vote.
        instance_masks: 0 to 1, stretched over the instances' boxes.
        instance_scores: of each class, not negative.
        similar_iou: minimum IoU of an instance with the detection.
        threshold: mean from which a pixel belongs to the object.
        binarize: stretched masks vote 1 where they are at least ``threshold``, else 0.
        frame_size: cells along each side of the frame.

    Returns:
        Boxes and masks of the detections; zeros where not valid, or where no pixel reaches the threshold.

    Raises:
        ValueError: for arrays of other shapes.

    References:
        Dai et al., "Instance-aware semantic segmentation via multi-task network cascades", 2016, section 4.
    """
    arrays = boxes, classes, valid, instance_boxes, instance_masks, instance_scores
    _check(*arrays)
    boxes, classes, valid, instance_boxes, instance_masks, instance_scores = map(jnp.asarray, arrays)
    boxes, instance_boxes = at_least_float32(boxes), at_least_float32(instance_boxes)
    size = instance_masks.shape[-1]
    if 0 in (len(boxes), len(instance_boxes)):
        return jnp.zeros_like(boxes), jnp.zeros((len(boxes), size, size), boxes.dtype)
    similar = (iou(boxes, instance_boxes) >= similar_iou) & valid[:, None]
    weights = at_least_float32(jnp.where(similar, instance_scores.T[classes], 0))
    weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-12)

    def vote(weights):
        corner, cell = _frame(instance_boxes, weights > 0, frame_size)
        frame = jnp.concatenate([corner, corner + frame_size * cell])

        def votes_of(index):
            frames = jnp.broadcast_to(frame, (CHUNK, 4))
            stretched = crop_masks(instance_masks[index], instance_boxes[index], frames, frame_size, 1)
            return (stretched >= threshold).astype(frame.dtype) if binarize else stretched

        total = _weighted_sum(votes_of, weights, jnp.zeros((frame_size, frame_size), frame.dtype))
        tight, mask = _crop(total, total >= threshold, size)
        return jnp.where(tight[2] > 0, jnp.tile(corner, 2) + tight * jnp.tile(cell, 2), 0), mask

    return jax.lax.map(vote, weights)


def _check(boxes, classes, valid, instance_boxes, instance_masks, instance_scores):
    check_shape("boxes", boxes, "D", 4)
    check_shape("classes", classes, boxes.shape[0])
    check_shape("valid", valid, boxes.shape[0])
    check_shape("instance_boxes", instance_boxes, "N", 4)
    number, size = instance_boxes.shape[0], instance_masks.shape[-1]
    check_shape("instance_masks", instance_masks, number, size, size)
    check_shape("instance_scores", instance_scores, number, "K")


def _weighted_sum(votes_of, weights, zero):
    """Sums the votes of all instances with a weight, a few at a time."""
    order, count = jnp.argsort(-weights), (weights > 0).sum()
    order = jnp.pad(order, (0, -weights.size % CHUNK))  # padding is masked by ``counted``

    def add(block, total):
        index = jax.lax.dynamic_slice(order, (block * CHUNK,), (CHUNK,))
        counted = block * CHUNK + jnp.arange(CHUNK) < count
        return total + jnp.einsum("n,nhw->hw", jnp.where(counted, weights[index], 0), votes_of(index))

    return jax.lax.fori_loop(jnp.zeros_like(count), -(-count // CHUNK), add, zero)


def _frame(boxes, chosen, size):
    """Corner of a frame around the chosen boxes, and the whole number of pixels that a cell of it spans."""
    chosen = chosen[:, None]
    corner = jnp.floor(jnp.min(jnp.where(chosen, boxes[:, :2], jnp.inf), axis=0))
    end = jnp.max(jnp.where(chosen, boxes[:, 2:], -jnp.inf), axis=0)
    corner, end = jnp.where(jnp.isfinite(corner), corner, 0), jnp.where(jnp.isfinite(end), end, 0)
    return corner, jnp.maximum(jnp.ceil((end - corner) / size), 1)


def _crop(frame, chosen, size):
    """The smallest box around the chosen cells, and what is inside it, resized."""
    box = masks_to_boxes(chosen)
    rows, columns = (_resizing_matrix(box[axis], box[axis + 2], len(frame), size) for axis in (1, 0))
    return box, rows @ frame @ columns.T


def _resizing_matrix(first, end, cells, bins):
    """Bilinear weights of the cells from ``first`` to before ``end`` in each bin, [bins, cells]."""
    position = first + (jnp.arange(bins, dtype=first.dtype) + 0.5) / bins * (end - first)
    position = jnp.clip(position, first + 0.5, end - 0.5)[:, None]
    centre = (jnp.arange(cells, dtype=first.dtype) + 0.5)[None]
    weight = jnp.maximum(1 - jnp.abs(position - centre), 0)
    return jnp.where(end > first, weight, 0)
