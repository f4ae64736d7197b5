"""Confusion of classes with each other and with the background."""

import numpy as np

from mrcnn_jax.evaluation.analysis.matches import IOU, Matches
from mrcnn_jax.typing import Bool, Int


def confusion_matrix(matches: Matches, min_score: float) -> Int[np.ndarray, "K1 K1"]:
    """Counts objects by their class and the class they are detected as, at IoU 0.5.

    Correct detections are those of the metrics. The remaining ones, best first, take the object of another
    class that they overlap most and that is left.

    Args:
        matches: of K classes.
        min_score: detections below it are left out.

    Returns:
        Row: class of the object; column: class of the detection. The last row counts detections on no object
        that is left, the last column objects without a detection. Ignored ones are left out.
    """
    detections, objects, pairs = matches.detections, matches.objects, matches.pairs
    kept = (detections.scores >= min_score) & ~detections.ignored[0]
    correct = kept & matches.detections.correct[0]
    predicted = np.full(len(objects.images), -1)
    predicted[detections.matches[0, correct]] = detections.classes[correct]
    alone = kept & ~correct
    chosen = alone[pairs.detections] & (predicted[pairs.objects] < 0) & (pairs.overlaps >= IOU)
    left = np.lexsort((-pairs.overlaps[chosen], -detections.scores[pairs.detections[chosen]]))
    for index in np.flatnonzero(chosen)[left]:
        detection, object_ = pairs.detections[index], pairs.objects[index]
        if alone[detection] and predicted[object_] < 0:
            alone[detection], predicted[object_] = False, detections.classes[detection]
    return _count(matches, predicted, alone)


def _count(
    matches: Matches, predicted: Int[np.ndarray, "G"], alone: Bool[np.ndarray, "D"]
) -> Int[np.ndarray, "K1 K1"]:
    background, counted = len(matches.class_names), ~matches.objects.ignored
    matrix = np.zeros((background + 1, background + 1), int)
    columns = np.where(predicted < 0, background, predicted)
    np.add.at(matrix, (matches.objects.classes[counted], columns[counted]), 1)
    np.add.at(matrix, (background, matches.detections.classes[alone]), 1)
    return matrix
