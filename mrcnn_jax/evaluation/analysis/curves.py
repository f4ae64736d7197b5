"""Precision, recall and F1 over the minimum score, and the score that balances them best."""

from typing import NamedTuple

import numpy as np

from mrcnn_jax.evaluation.analysis.matches import Matches
from mrcnn_jax.typing import Bool, Float


class ScoreCurve(NamedTuple):
    """Precision, recall and F1, 0 to 1, of the detections that score at least n distinct values."""

    scores: Float[np.ndarray, "n"]  # best first
    precision: Float[np.ndarray, "n"]
    recall: Float[np.ndarray, "n"]
    f1: Float[np.ndarray, "n"]

    def best(self) -> dict[str, float] | None:
        """Returns the score with the largest F1 (the highest such score), and what it reaches; None without
        a correct detection."""
        if not self.f1.any():
            return None
        index = int(np.argmax(self.f1))
        return {name: round(float(values[index]), 6) for name, values in self._asdict().items()}

    def at(self, scores: Float[np.ndarray, "m"]) -> "ScoreCurve":
        """Returns the curve at other minimum scores; precision is NaN where nothing scores that much."""
        counts = np.searchsorted(-self.scores, -scores, side="right")
        starts = (("precision", np.nan), ("recall", 0.0), ("f1", 0.0))
        values = (np.concatenate([[start], getattr(self, name)])[counts] for name, start in starts)
        return ScoreCurve(scores, *values)


def score_curve(
    scores: Float[np.ndarray, "D"], correct: Bool[np.ndarray, "D"], objects: int
) -> ScoreCurve:
    """Computes the curve of some detections, whatever their classes.

    Args:
        scores: of the detections.
        correct: detections on objects of their class.
        objects: number of objects to be found.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.diff(ranked, append=-np.inf))  # of equal scores
    true, detected = np.cumsum(correct[order])[last], last + 1
    recall = true / objects if objects else np.zeros(len(last))
    return ScoreCurve(ranked[last], true / detected, recall, 2 * true / (detected + objects))


def overall_curve(matches: Matches) -> ScoreCurve:
    """Computes the curve at IoU 0.5 of all classes together."""
    counted = ~matches.detections.ignored[0]
    objects = int((~matches.objects.ignored).sum())
    return score_curve(matches.detections.scores[counted], matches.detections.correct[0, counted], objects)


def class_curves(matches: Matches) -> list[ScoreCurve]:
    """Computes the curve at IoU 0.5 of each class."""
    detections, objects = matches.detections, matches.objects_per_class()
    ends = np.searchsorted(detections.classes, np.arange(len(objects) + 1))
    curves = []
    for class_, number in enumerate(objects):
        chosen = slice(ends[class_], ends[class_ + 1])
        counted = ~detections.ignored[0, chosen]
        scores, correct = detections.scores[chosen][counted], matches.detections.correct[0, chosen][counted]
        curves.append(score_curve(scores, correct, int(number)))
    return curves


def precision_recall(matches: Matches) -> dict[str, list[float]]:
    """Returns COCO's precision, 0 to 1, at the recalls 0, 0.01, ..., 1, as the mean over the classes with
    objects: at IoU 0.5, at 0.75, and as the mean over all IoU thresholds. Empty without objects."""
    precision = matches.evaluated.curves.precision[..., 0]  # IoU, recall, class
    defined = precision[0, 0] > -1
    if not defined.any():
        return {}
    mean = precision[..., defined].mean(axis=-1)
    curves = {"IoU 0.50": mean[0], "IoU 0.75": mean[5], "IoU 0.50 to 0.95": mean.mean(axis=0)}
    return {name: curve.round(4).tolist() for name, curve in curves.items()}
