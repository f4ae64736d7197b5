"""Keypoints as cells of a square heat map over a box: training targets, and decoding of predicted maps.

Both follow torchvision and Detectron2, which agree (``keypoints_to_heatmap``, ``heatmaps_to_keypoints``).
"""

import jax.numpy as jnp
import numpy as np

from mrcnn_jax.ops.checks import check_shape
from mrcnn_jax.typing import Array, Bool, Float, Int


def keypoint_targets(
    keypoints: Float[Array, "*n J 3"], boxes: Float[Array, "*n 4"], size: int
) -> tuple[Int[Array, "*n J"], Bool[Array, "*n J"]]:
    """Computes the cell of a ``size`` x ``size`` map over its box that contains each keypoint.

    Args:
        keypoints: x, y, visibility (above 0: labelled), in the pixels of the boxes.
        boxes: those of zero width or height contain nothing.
        size: cells a side.

    Returns:
        The cell as y * size + x, int32, 0 where not valid; and whether the keypoint is labelled and in the
        box. The right and bottom border of a box belong to its last cells.

    Raises:
        ValueError: for keypoints or boxes of other shapes.
    """
    check_shape("keypoints", keypoints, "...", "J", 3)
    check_shape("boxes", boxes, *keypoints.shape[:-2], 4)
    corners, sides = boxes[..., None, :2], boxes[..., None, 2:] - boxes[..., None, :2]
    points = keypoints[..., :2]
    cells = jnp.floor((points - corners) * (size / jnp.where(sides > 0, sides, 1)))
    cells = jnp.where(points == boxes[..., None, 2:], size - 1, cells)
    inside = (cells >= 0) & (cells < size) & (sides > 0)
    valid = inside.all(axis=-1) & (keypoints[..., 2] > 0)
    x, y = jnp.moveaxis(jnp.where(valid[..., None], cells, 0).astype(jnp.int32), -1, 0)
    return y * size + x, valid


def decode_keypoints(
    logits: Float[np.ndarray, "D J m m"], boxes: Float[np.ndarray, "D 4"]
) -> Float[np.ndarray, "D J 4"]:
    """Locates keypoints in heat maps, on the host.

    Each map is resized to the pixels of its box (bicubic, a = -0.75, border replicated); the centre of the
    greatest pixel is the keypoint.

    Args:
        logits: maps over the boxes.
        boxes: in pixels of the image; sides below one pixel count as one.

    Returns:
        x, y in pixels of the image; the logit there; and its share of the softmax over the m x m map, as
        Detectron2 scores a keypoint. Interpolated logits may exceed all of the map's own, and the share of a
        sharp maximum 1.

    Raises:
        ValueError: for logits or boxes of other shapes, or boxes that are not finite.
    """
    import cv2  # not needed to import the operations

    check_shape("logits", logits, "D", "J", "m", "m")
    check_shape("boxes", boxes, logits.shape[0], 4)
    logits, boxes = np.asarray(logits, np.float32), np.asarray(boxes, np.float32)
    if not np.isfinite(boxes).all():
        raise ValueError("boxes of keypoints must be finite")
    keypoints = np.zeros((*logits.shape[:2], 4), np.float32)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    pixels = np.ceil(sides).astype(int)
    for found, maps, (width, height) in zip(keypoints, logits, pixels.tolist(), strict=True):
        resized = np.empty((height, width), np.float32)
        for keypoint, one in zip(found, maps, strict=True):
            cv2.resize(one, (width, height), dst=resized, interpolation=cv2.INTER_CUBIC)
            y, x = divmod(int(resized.argmax()), width)
            keypoint[:3] = x, y, resized[y, x]
    keypoints[..., :2] = (keypoints[..., :2] + 0.5) * (sides / pixels)[:, None] + boxes[:, None, :2]
    with np.errstate(over="ignore"):  # a box of a few pixels may miss a sharp maximum by far
        keypoints[..., 3] = 1 / np.exp(logits - keypoints[..., 2, None, None]).sum(axis=(2, 3))
    return keypoints
