"""Overlap of detections with objects: IoU of boxes and masks by pycocotools, similarity of keypoints."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.evaluation.coco_matching import Overlaps
from mrcnn_jax.typing import Float, Int


def overlap_function(kind: str, objects: list[dict], values: Any, sigmas: Sequence[float]) -> Overlaps:
    """Returns the function that compares detections with objects, both by index.

    Args:
        kind: of the evaluation.
        objects: annotations.
        values: of the detections: boxes, keypoints, or run-length codes.
        sigmas: tolerance of each keypoint.
    """
    if kind == "keypoints":
        return _KeypointSimilarity(objects, values, np.asarray(sigmas))
    crowd = np.array([each["iscrowd"] for each in objects], np.uint8)
    if kind == "segm":
        masks = [each["segmentation"] for each in objects]
        return lambda found, chosen: coco_mask.iou(
            [values[i] for i in found], [masks[i] for i in chosen], crowd[chosen]
        )
    boxes = np.array([each["bbox"] for each in objects], np.float64).reshape(-1, 4)
    return lambda found, chosen: coco_mask.iou(values[found], boxes[chosen], crowd[chosen])


class _KeypointSimilarity:
    """Object keypoint similarity (OKS), with every operation as in pycocotools' ``computeOks``."""

    def __init__(self, objects: list[dict], values: Float[np.ndarray, "D n"], sigmas: Float[np.ndarray, "J"]):
        self._objects, self._variances = objects, (sigmas * 2) ** 2
        self._x, self._y = values[:, 0::3], values[:, 1::3]

    def __call__(
        self, found: Int[np.ndarray, "d"], chosen: Int[np.ndarray, "g"]
    ) -> Float[np.ndarray, "d g"]:
        return np.stack([self._compare(found, self._objects[i]) for i in chosen], axis=1)

    def _compare(self, found: Int[np.ndarray, "d"], one: dict) -> Float[np.ndarray, "d"]:
        """Compares detections with an object; with its box, twice enlarged, if it has no visible keypoint."""
        points = np.array(one["keypoints"])
        visible = points[2::3] > 0
        if visible.any():
            dx, dy = self._x[found] - points[0::3], self._y[found] - points[1::3]
        else:
            x, y, width, height = one["bbox"]
            dx = _distance(self._x[found], x - width, x + width * 2)
            dy = _distance(self._y[found], y - height, y + height * 2)
            visible[:] = True
        errors = (dx**2 + dy**2) / self._variances / (one["area"] + np.spacing(1)) / 2
        return np.exp(-np.ascontiguousarray(errors[:, visible])).sum(axis=1) / visible.sum()


def _distance(values: Float[np.ndarray, "d J"], low: float, high: float) -> Float[np.ndarray, "d J"]:
    return np.maximum(0, low - values) + np.maximum(0, values - high)
