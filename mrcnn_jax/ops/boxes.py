"""Boxes: areas, overlaps, the delta coding of R-CNN, clipping. Boxes are xyxy; see mrcnn_jax.structures."""

import math

import jax.numpy as jnp

from mrcnn_jax.typing import Array, Bool, Float

Weights = tuple[float, float, float, float]


def area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Area in square pixels; inverted boxes have none."""
    return jnp.maximum(boxes[..., 2] - boxes[..., 0], 0) * jnp.maximum(boxes[..., 3] - boxes[..., 1], 0)


def intersection(a: Float[Array, "N 4"], b: Float[Array, "M 4"]) -> Float[Array, "N M"]:
    """Pairwise area of overlap."""
    width = jnp.minimum(a[:, None, 2], b[None, :, 2]) - jnp.maximum(a[:, None, 0], b[None, :, 0])
    height = jnp.minimum(a[:, None, 3], b[None, :, 3]) - jnp.maximum(a[:, None, 1], b[None, :, 1])
    return jnp.maximum(width, 0) * jnp.maximum(height, 0)


def iou(a: Float[Array, "N 4"], b: Float[Array, "M 4"]) -> Float[Array, "N M"]:
    """Pairwise intersection over union; 0 where nothing overlaps, so two empty boxes have 0 and not NaN."""
    overlap = intersection(a, b)
    union = area(a)[:, None] + area(b)[None, :] - overlap
    return jnp.where(overlap > 0, overlap / jnp.where(overlap > 0, union, 1), 0)


def intersection_over_area(a: Float[Array, "N 4"], b: Float[Array, "M 4"]) -> Float[Array, "N M"]:
    """Pairwise share of b that a covers (the crowd rule of COCO); 0 for empty b."""
    overlap = intersection(a, b)
    return jnp.where(overlap > 0, overlap / jnp.where(overlap > 0, area(b)[None, :], 1), 0)


def encode(targets: Float[Array, "*n 4"], anchors: Float[Array, "*n 4"], weights: Weights = (1, 1, 1, 1)) -> Float[Array, "*n 4"]:
    """Deltas (dx, dy, dw, dh) that take the anchors to the targets (R-CNN, appendix C), times the weights.

    A side below 1e-4 pixels counts as 1e-4, so an empty box gives large but finite deltas.
    """
    (anchor_centre, anchor_size), (centre, size) = _centre_and_size(anchors), _centre_and_size(targets)
    anchor_size, size = jnp.maximum(anchor_size, 1e-4), jnp.maximum(size, 1e-4)
    deltas = jnp.concatenate([(centre - anchor_centre) / anchor_size, jnp.log(size / anchor_size)], axis=-1)
    return deltas * jnp.asarray(weights, deltas.dtype)


def decode(
    deltas: Float[Array, "*n 4"], anchors: Float[Array, "*n 4"], weights: Weights = (1, 1, 1, 1), largest_growth: float = 1000 / 16
) -> Float[Array, "*n 4"]:
    """The boxes to which the deltas take the anchors.

    exp(dw) and exp(dh) are bounded by ``largest_growth``, so that a wild delta cannot overflow; Detectron's bound is a 1000-pixel box over a
    16-pixel stride.
    """
    deltas = deltas / jnp.asarray(weights, deltas.dtype)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    centre = anchor_centre + deltas[..., :2] * anchor_size
    half = jnp.exp(jnp.minimum(deltas[..., 2:], math.log(largest_growth))) * anchor_size / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def clip(boxes: Float[Array, "*n 4"], height: Float[Array, ""] | float, width: Float[Array, ""] | float) -> Float[Array, "*n 4"]:
    """Boxes cut off at the borders of an image."""
    limit = jnp.stack([jnp.asarray(side, boxes.dtype) for side in (width, height, width, height)])
    return jnp.clip(boxes, 0, limit)


def is_nonempty(boxes: Float[Array, "*n 4"], min_size: float = 0.0) -> Bool[Array, "*n"]:
    """Which boxes have both sides of at least min_size pixels (torchvision) or, where that is 0, longer than 0 (Detectron2)."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    if min_size == 0:
        return (width > 0) & (height > 0)
    return (width >= min_size) & (height >= min_size)


def _centre_and_size(boxes):
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + size / 2, size
