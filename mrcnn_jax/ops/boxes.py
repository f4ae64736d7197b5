"""Areas, overlaps, coding and clipping of boxes; ``mrcnn_jax.structures`` states their convention."""

import math

import jax.numpy as jnp

from mrcnn_jax.ops.checks import check_shape
from mrcnn_jax.typing import Array, Bool, Float, Int, Shaped

Weights = tuple[float, float, float, float]


def at_least_float32(boxes: Shaped[Array, "*n"]) -> Float[Array, "*n"]:
    """Converts integers and half precision, whose products would overflow, to float32."""
    boxes = jnp.asarray(boxes)
    is_wide = jnp.issubdtype(boxes.dtype, jnp.floating) and boxes.dtype.itemsize >= 4
    return boxes if is_wide else boxes.astype(jnp.float32)


def area(boxes: Shaped[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Computes areas in square pixels, in at least float32; inverted boxes have area 0."""
    check_shape("boxes", boxes, "...", 4)
    boxes = at_least_float32(boxes)
    return jnp.maximum(boxes[..., 2] - boxes[..., 0], 0) * jnp.maximum(boxes[..., 3] - boxes[..., 1], 0)


def intersection(a: Shaped[Array, "N 4"], b: Shaped[Array, "M 4"]) -> Float[Array, "N M"]:
    """Computes the area of overlap of all pairs of boxes, in at least float32."""
    check_shape("a", a, "N", 4)
    check_shape("b", b, "M", 4)
    a, b = at_least_float32(a), at_least_float32(b)
    width = jnp.minimum(a[:, None, 2], b[None, :, 2]) - jnp.maximum(a[:, None, 0], b[None, :, 0])
    height = jnp.minimum(a[:, None, 3], b[None, :, 3]) - jnp.maximum(a[:, None, 1], b[None, :, 1])
    return jnp.maximum(width, 0) * jnp.maximum(height, 0)


def iou(a: Shaped[Array, "N 4"], b: Shaped[Array, "M 4"]) -> Float[Array, "N M"]:
    """Computes the intersection over union of all pairs, in at least float32.

    It is 0 without overlap, also of two empty boxes and of boxes with NaN.

    Args:
        a: N boxes.
        b: M boxes.

    Raises:
        ValueError: for boxes of another shape.
    """
    overlap = intersection(a, b)
    union = area(a)[:, None] + area(b)[None, :] - overlap
    return jnp.where(overlap > 0, overlap / jnp.where(overlap > 0, union, 1), 0)


def giou(a: Shaped[Array, "N 4"], b: Shaped[Array, "M 4"]) -> Float[Array, "N M"]:
    """Computes the generalised IoU of all pairs, in at least float32: from 1 for equal boxes to -1 far apart.

    It is the IoU less the share of the smallest enclosing box that neither box covers; 0 where that box has
    no area, and for boxes with NaN.

    References:
        Rezatofighi et al., "Generalized intersection over union", 2019.
    """
    overlap = intersection(a, b)
    a, b = at_least_float32(a), at_least_float32(b)
    union = area(a)[:, None] + area(b)[None, :] - overlap
    width = jnp.maximum(a[:, None, 2], b[None, :, 2]) - jnp.minimum(a[:, None, 0], b[None, :, 0])
    height = jnp.maximum(a[:, None, 3], b[None, :, 3]) - jnp.minimum(a[:, None, 1], b[None, :, 1])
    enclosing = jnp.maximum(width, 0) * jnp.maximum(height, 0)
    ratio = jnp.where(overlap > 0, overlap / jnp.where(overlap > 0, union, 1), 0)
    return ratio - jnp.where(enclosing > 0, 1 - union / jnp.where(enclosing > 0, enclosing, 1), 0)


def intersection_over_area(a: Shaped[Array, "N 4"], b: Shaped[Array, "M 4"]) -> Float[Array, "N M"]:
    """Computes the fraction of each b that each a covers (the crowd rule of COCO); 0 for empty b."""
    overlap = intersection(a, b)
    return jnp.where(overlap > 0, overlap / jnp.where(overlap > 0, area(b)[None, :], 1), 0)


def encode(
    targets: Float[Array, "*n 4"], anchors: Float[Array, "*n 4"], weights: Weights = (1, 1, 1, 1)
) -> Float[Array, "*n 4"]:
    """Computes the deltas (dx, dy, dw, dh) from anchors to targets, times the weights.

    A side below 1e-4 pixels counts as 1e-4, so an empty box gives large but finite deltas.

    Args:
        targets: boxes to reach.
        anchors: boxes to start from, as many.
        weights: factors of dx, dy, dw and dh.

    Raises:
        ValueError: for targets or anchors that are not boxes.

    References:
        Girshick et al., "Rich feature hierarchies" (R-CNN), 2014, appendix C.
    """
    check_shape("targets", targets, "...", 4)
    check_shape("anchors", anchors, "...", 4)
    (anchor_centre, anchor_size), (centre, size) = _centre_and_size(anchors), _centre_and_size(targets)
    anchor_size, size = jnp.maximum(anchor_size, 1e-4), jnp.maximum(size, 1e-4)
    deltas = jnp.concatenate([(centre - anchor_centre) / anchor_size, jnp.log(size / anchor_size)], axis=-1)
    return deltas * _row(weights, deltas)


def decode(
    deltas: Float[Array, "*n 4"],
    anchors: Float[Array, "*n 4"],
    weights: Weights = (1, 1, 1, 1),
    max_scale: float = 1000 / 16,
) -> Float[Array, "*n 4"]:
    """Applies deltas (dx, dy, dw, dh), divided by the weights, to anchors.

    exp(dw) and exp(dh) are at most ``max_scale``, so that a wild delta cannot overflow; the default is
    Detectron's, a box of 1000 pixels over a stride of 16.

    Args:
        deltas: of each anchor.
        anchors: boxes to start from.
        weights: factors of dx, dy, dw and dh, as for ``encode``.
        max_scale: maximum factor by which a side grows.

    Raises:
        ValueError: for deltas or anchors of another shape.

    References:
        Girshick et al., "Rich feature hierarchies" (R-CNN), 2014, appendix C.
    """
    check_shape("deltas", deltas, "...", 4)
    check_shape("anchors", anchors, "...", 4)
    deltas, anchors = jnp.asarray(deltas), jnp.asarray(anchors)
    deltas = deltas / _row(weights, deltas)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    centre = anchor_centre + deltas[..., :2] * anchor_size
    half = jnp.exp(jnp.minimum(deltas[..., 2:], math.log(max_scale))) * anchor_size / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def clip(
    boxes: Float[Array, "*n 4"],
    height: Float[Array, ""] | Int[Array, ""] | float,
    width: Float[Array, ""] | Int[Array, ""] | float,
) -> Float[Array, "*n 4"]:
    """Clips boxes to an image.

    Args:
        boxes: in pixels of the image.
        height: of the image, in pixels.
        width: likewise.

    Raises:
        ValueError: for boxes of another shape.
    """
    check_shape("boxes", boxes, "...", 4)
    boxes = jnp.asarray(boxes)
    limit = _row([jnp.asarray(side, boxes.dtype) for side in (width, height, width, height)], boxes)
    return jnp.clip(boxes, 0, limit)


def is_nonempty(boxes: Float[Array, "*n 4"], min_size: float = 0.0) -> Bool[Array, "*n"]:
    """Tests for sides of at least ``min_size`` pixels (torchvision) or, if it is 0, above 0 (Detectron2)."""
    check_shape("boxes", boxes, "...", 4)
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    if min_size == 0:
        return (width > 0) & (height > 0)
    return (width >= min_size) & (height >= min_size)


def _centre_and_size(boxes):
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + size / 2, size


def _row(values, boxes):
    """Four numbers as an array that broadcasts against boxes."""
    return jnp.asarray(values, boxes.dtype).reshape((1,) * (boxes.ndim - 1) + (4,))
