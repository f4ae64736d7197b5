"""Keypoints as positions in a square map over a box: as targets of training, and read out of predicted maps.

Both follow torchvision and Detectron2, which agree with one another (`keypoints_to_heatmap`, `heatmaps_to_keypoints`).
"""

import jax.numpy as jnp
import numpy as np

from mrcnn_jax.typing import Array, Bool, Float, Int


def keypoint_targets(keypoints: Float[Array, "*n J 3"], boxes: Float[Array, "*n 4"], size: int) -> tuple[Int[Array, "*n J"], Bool[Array, "*n J"]]:
    """The cell of a size x size map over its box that holds each keypoint.

    Args:
      keypoints: x, y, visibility (above 0: labelled), in the pixels of the boxes.
      boxes: those of zero width or height hold nothing.
      size: cells a side.

    Returns:
      y * size + x of the cell, int32, 0 where not valid; and whether the keypoint is labelled and in the box. The box's
      right and bottom border belong to the last cell.
    """
    corners, sides = boxes[..., None, :2], boxes[..., None, 2:] - boxes[..., None, :2]
    points = keypoints[..., :2]
    cells = jnp.floor((points - corners) * (size / jnp.where(sides > 0, sides, 1)))
    cells = jnp.where(points == boxes[..., None, 2:], size - 1, cells)
    inside = (cells >= 0) & (cells < size) & (sides > 0)
    valid = inside.all(axis=-1) & (keypoints[..., 2] > 0)
    x, y = jnp.moveaxis(jnp.where(valid[..., None], cells, 0).astype(jnp.int32), -1, 0)
    return y * size + x, valid


def decode_keypoints(logits: Float[np.ndarray, "D J m m"], boxes: Float[np.ndarray, "D 4"]) -> Float[np.ndarray, "D J 4"]:
    """Where the maps say that the keypoints are, on the host.

    Each map is resized to the pixels of its box (bicubic, a = -0.75, the border repeated); the centre of the greatest
    pixel is the keypoint.

    Args:
      logits: over the positions of the box.
      boxes: in pixels of the image; one narrower than a pixel counts as a pixel wide.

    Returns:
      x, y, in pixels of the image; the logit there; and its share of the softmax over the m x m map, as Detectron2
      scores a keypoint. Between the map's own positions the logit may be greater than at any of them, and the share of a
      sharp maximum then even greater than 1.
    """
    import cv2  # a bare accelerator machine imports the ops without it

    logits, boxes = np.asarray(logits, np.float32), np.asarray(boxes, np.float32)
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
