"""Kinds of errors, and what correcting all errors of a kind would gain in AP at IoU 0.5.

References:
    Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, section 2.
"""

from typing import NamedTuple

import numpy as np

from mrcnn_jax.evaluation.analysis.average_precision import class_precisions
from mrcnn_jax.evaluation.analysis.matches import IOU, Matches
from mrcnn_jax.typing import Bool, Float, Int

DETECTION_ERRORS = "classification", "localisation", "both", "duplicate", "background"
"""Kinds of errors of detections: on an object of another class; only near an object of the class (IoU 0.1 to
0.5); only near objects of other classes; on an object that a better detection has found; on nothing."""
ERRORS = (*DETECTION_ERRORS, "missed")
ALL = "false_positives", "false_negatives"
_CLASSIFICATION, _LOCALISATION, _BOTH, _DUPLICATE, _BACKGROUND = range(5)


class Errors(NamedTuple):
    """The error of each detection and object."""

    kinds: Int[np.ndarray, "D"]  # index in DETECTION_ERRORS; -1 is no error
    objects: Int[np.ndarray, "D"]  # object that a classification or localisation error is on or near; or -1
    missed: Bool[np.ndarray, "G"]  # objects without a detection, even one with such an error


def find_errors(matches: Matches) -> Errors:
    """Finds out what is wrong with each detection that is on no object of its class."""
    detections, objects, pairs = matches.detections, matches.objects, matches.pairs
    own = detections.classes[pairs.detections] == objects.classes[pairs.objects]
    near_own, own_object = _best(matches, own)
    near_other, other_object = _best(matches, ~own)
    taken, _ = _best(matches, own & objects.found[0, pairs.objects])
    conditions = {  # the first that holds
        _LOCALISATION: (near_own > 0) & (near_own < IOU),
        _CLASSIFICATION: near_other >= IOU,
        _DUPLICATE: taken >= IOU,
        _BACKGROUND: (near_own == 0) & (near_other == 0),
    }
    kinds = np.select(list(conditions.values()), list(conditions), _BOTH)
    kinds[(detections.matches[0] >= 0) | detections.ignored[0]] = -1
    target = np.select([kinds == _LOCALISATION, kinds == _CLASSIFICATION], [own_object, other_object], -1)
    missed = ~objects.found[0] & ~objects.ignored
    missed[target[target >= 0]] = False
    return Errors(kinds, target, missed)


def _best(matches: Matches, chosen: Bool[np.ndarray, "P"]) -> tuple[Float[np.ndarray, "D"], np.ndarray]:
    """Returns each detection's largest IoU among some pairs, and its object; 0 and -1 without a pair."""
    detections, objects, values = (part[chosen] for part in matches.pairs)
    order = np.argsort(values, kind="stable")  # the last of several assignments remains
    number = len(matches.detections.scores)
    ious, index = np.zeros(number), np.full(number, -1)
    ious[detections[order]] = values[order]
    index[detections[order]] = objects[order]
    return ious, index


def gains(matches: Matches, errors: Errors) -> dict[str, Float[np.ndarray, "K"]]:
    """Computes the gain of each class in AP at IoU 0.5, 0 to 1, if all errors of one kind were corrected.

    A classification or localisation error becomes a correct detection, the best one where several are on one
    object that is not found, and disappears otherwise; the other detections disappear, missed objects do not
    count. "false_positives" leaves out all errors of detections, "false_negatives" all objects that are not
    found. A class of which no object remains counts as perfect. Classes without objects are NaN.
    """
    detections, correct = matches.detections, matches.detections.correct[0]
    objects, counted = matches.objects_per_class(), ~detections.ignored[0]

    def precisions(kept, correct, classes=detections.classes, objects=objects):
        return class_precisions(classes[kept], detections.scores[kept], correct[kept], objects)

    def without(left_out: Bool[np.ndarray, "G"]) -> Float[np.ndarray, "K"]:
        rest = objects - np.bincount(matches.objects.classes[left_out], minlength=len(objects))
        values = precisions(counted, correct, objects=rest)
        return np.where((rest == 0) & (objects > 0), 1.0, values)

    base, results = precisions(counted, correct), {}
    for kind, name in enumerate(DETECTION_ERRORS):
        wrong, classes = errors.kinds == kind, detections.classes
        mended = np.zeros_like(wrong)
        if kind in (_CLASSIFICATION, _LOCALISATION):
            mended, classes = _best_on_free_objects(matches, errors, wrong), classes.copy()
            classes[mended] = matches.objects.classes[errors.objects[mended]]
        results[name] = precisions(counted & (~wrong | mended), correct | mended, classes)
    not_found = ~matches.objects.found[0] & ~matches.objects.ignored
    results["missed"] = without(errors.missed)
    results["false_positives"] = precisions(counted & correct, correct)
    results["false_negatives"] = without(not_found)
    return {name: values - base for name, values in results.items()}


def _best_on_free_objects(
    matches: Matches, errors: Errors, wrong: Bool[np.ndarray, "D"]
) -> Bool[np.ndarray, "D"]:
    """Chooses the best of the wrong detections at each object that is not found."""
    chosen = np.zeros_like(wrong)
    candidates = np.flatnonzero(wrong & (errors.objects >= 0))
    candidates = candidates[~matches.objects.found[0, errors.objects[candidates]]]
    order = candidates[np.argsort(-matches.detections.scores[candidates], kind="stable")]
    chosen[order[np.unique(errors.objects[order], return_index=True)[1]]] = True
    return chosen
