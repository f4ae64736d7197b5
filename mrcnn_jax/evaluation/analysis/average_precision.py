"""COCO's average precision from matches: of any subset of detections and objects, and of weighted images."""

import numpy as np

from mrcnn_jax.evaluation.coco_matching import RECALLS
from mrcnn_jax.typing import Bool, Float, Int


def average_precision(
    correct: Bool[np.ndarray, "T D"], ignored: Bool[np.ndarray, "T D"], objects: Float[np.ndarray, "B"],
    weights: Float[np.ndarray, "B D"],
) -> Float[np.ndarray, "T B"]:  # fmt: skip
    """Computes the AP of one class at T IoU thresholds, for B weightings of its detections.

    Args:
        correct: detections on objects, best first.
        ignored: detections that do not count.
        objects: weight of all objects; where it is 0, the result is NaN.
        weights: of the detections.

    Returns:
        Mean over the recalls 0, 0.01, ..., 1 of the best precision at that or a higher recall, 0 to 1, as
        ``COCOeval.accumulate`` computes it.
    """
    total, values = np.cumsum(weights, axis=1), np.full((len(correct), len(objects)), np.nan)
    defined = objects > 0
    for row, (right, left_out) in enumerate(zip(correct, ignored, strict=True)):
        hits, skipped = np.flatnonzero(right), np.flatnonzero(left_out)  # between hits precision only falls
        true, seen = np.cumsum(weights[:, hits], axis=1), total[:, hits]
        if len(skipped):
            before = np.cumsum(weights[:, skipped], axis=1, dtype=float)
            before = np.concatenate([np.zeros((len(objects), 1)), before], axis=1)
            seen = seen - before[:, np.searchsorted(skipped, hits)]
        values[row, defined] = _interpolated(true[defined], seen[defined], objects[defined, None])
    return values


def _interpolated(
    true: Float[np.ndarray, "B n"], seen: Float[np.ndarray, "B n"], objects: Float[np.ndarray, "B 1"]
) -> Float[np.ndarray, "B"]:
    precision = true / (seen + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(RECALLS, true / objects, side="right")
    return (np.diff(reached, axis=1, prepend=0) * envelope).sum(axis=1) / len(RECALLS)


def class_precisions(
    classes: Int[np.ndarray, "D"], scores: Float[np.ndarray, "D"], correct: Bool[np.ndarray, "D"],
    objects: Int[np.ndarray, "K"],
) -> Float[np.ndarray, "K"]:  # fmt: skip
    """Computes the AP of each of K classes.

    Args:
        classes: of the detections.
        scores: equal ones stay in the order that is given.
        correct: detections on objects.
        objects: number of objects of each class; where it is 0, the result is NaN.
    """
    order = np.lexsort((-scores, classes))
    correct, ends = correct[order], np.searchsorted(classes[order], np.arange(len(objects) + 1))
    values = np.full(len(objects), np.nan)
    for class_ in np.flatnonzero(objects):
        chosen = correct[None, ends[class_] : ends[class_ + 1]]
        ones = np.ones(chosen.shape)
        values[class_] = average_precision(chosen, np.zeros_like(chosen), objects[[class_]], ones)[0, 0]
    return values
