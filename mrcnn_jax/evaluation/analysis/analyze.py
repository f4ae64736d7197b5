"""All analyses of an evaluation of one kind, as JSON."""

from typing import Any

import numpy as np

from mrcnn_jax.evaluation.analysis.calibration import calibration
from mrcnn_jax.evaluation.analysis.classes import class_table
from mrcnn_jax.evaluation.analysis.confusion import confusion_matrix
from mrcnn_jax.evaluation.analysis.curves import (
    ScoreCurve,
    class_curves,
    overall_curve,
    precision_recall,
)
from mrcnn_jax.evaluation.analysis.errors import ALL, DETECTION_ERRORS, ERRORS, Errors, find_errors, gains
from mrcnn_jax.evaluation.analysis.images import suspected_annotations, worst_images
from mrcnn_jax.evaluation.analysis.matches import IOU, Matches, read_matches
from mrcnn_jax.evaluation.analysis.sizes import by_size
from mrcnn_jax.evaluation.coco import KindEvaluation

DEFAULT_SCORE = 0.5
"""Minimum score where no F1 is largest, as nothing is correct."""
MAX_IMAGES, MAX_SUSPECTS = 100, 100
SCORES = np.linspace(0, 1, 101)
"""Minimum scores at which curves are stored."""


def analyze(evaluated: KindEvaluation, min_score: float | None = None) -> dict[str, Any]:
    """Analyses an evaluation of one kind at IoU 0.5 (keypoints: object keypoint similarity).

    Args:
        evaluated: from ``evaluate_coco``.
        min_score: of the detections in the confusion matrix and among the mistakes of images; by default the
            score with the best F1, or 0.5 if nothing is correct.

    Returns:
        JSON with the results of ``class_table``, ``precision_recall``, ``ScoreCurve``, ``confusion_matrix``,
        ``gains``, ``by_size``, ``calibration``, ``worst_images`` and ``suspected_annotations``. AP and gains
        are in percent, everything else is 0 to 1.
    """
    matches = read_matches(evaluated)
    errors, curve, of_classes = find_errors(matches), overall_curve(matches), class_curves(matches)
    best, gained = curve.best(), gains(matches, errors)
    if min_score is None:
        min_score = best["scores"] if best else DEFAULT_SCORE
    return {
        "images": len(matches.image_ids),
        "objects": int((~matches.objects.ignored).sum()),
        "detections": len(matches.detections.scores),
        "max_detections": [int(limit) for limit in evaluated.input.limits],
        "iou": IOU,
        "min_score": min_score,
        "best": best,
        "classes": class_table(matches, of_classes, {name: gained[name] for name in ERRORS}),
        "precision_recall": precision_recall(matches),
        "by_score": _sampled(curve),
        "class_f1": _class_f1(matches, of_classes),
        "errors": _error_summary(matches, errors, gained, min_score),
        "confusion": _sparse(matches, confusion_matrix(matches, min_score)),
        "sizes": by_size(matches),
        "calibration": calibration(matches),
        "worst_images": worst_images(matches, min_score, MAX_IMAGES),
        "suspected_annotations": suspected_annotations(matches, errors, MAX_SUSPECTS),
    }


def _sampled(curve: ScoreCurve) -> dict[str, list[float | None]]:
    values = curve.at(SCORES)._asdict().items()
    return {
        name: [None if np.isnan(value) else round(float(value), 4) for value in array]
        for name, array in values
    }


def _class_f1(matches: Matches, curves: list[ScoreCurve]) -> dict[str, list[float]]:
    """Returns F1 at the minimum scores 0, 0.01, ..., 1 of each class with objects."""
    number = matches.objects_per_class()
    return {
        name: curve.at(SCORES).f1.round(4).tolist()
        for name, curve, objects in zip(matches.class_names, curves, number, strict=True)
        if objects
    }


def _error_summary(
    matches: Matches, errors: Errors, gained: dict[str, Any], min_score: float
) -> dict[str, dict[str, Any]]:
    """Returns the number of errors of each kind, that of detections from the minimum score up (None for
    objects), and the mean gain of the classes with objects."""
    chosen = {name: errors.kinds == kind for kind, name in enumerate(DETECTION_ERRORS)}
    chosen |= {ALL[0]: errors.kinds >= 0, "missed": errors.missed}
    chosen[ALL[1]] = ~matches.objects.found[0] & ~matches.objects.ignored
    confident, defined = matches.detections.scores >= min_score, matches.objects_per_class() > 0
    return {
        name: {
            "count": int(chosen[name].sum()),
            "confident": None if name in ("missed", ALL[1]) else int((chosen[name] & confident).sum()),
            "gain": float(100 * values[defined].mean()) if defined.any() else None,
        }
        for name, values in gained.items()
    }


def _sparse(matches: Matches, matrix: np.ndarray) -> dict[str, Any]:
    """Returns a confusion matrix as [row, column, number] of what is not 0; the last class is background."""
    rows, columns = np.nonzero(matrix)
    counts = zip(rows.tolist(), columns.tolist(), matrix[rows, columns].tolist(), strict=True)
    return {"classes": [*matches.class_names, "background"], "counts": [list(each) for each in counts]}
