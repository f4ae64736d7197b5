"""Detections, objects and their matches in an evaluation, as an analysis reads them."""

from typing import NamedTuple

import numpy as np

from mrcnn_jax.evaluation.coco import KindEvaluation
from mrcnn_jax.evaluation.coco_matching import Pairs, overlapping
from mrcnn_jax.evaluation.coco_values import Id
from mrcnn_jax.typing import Bool, Float, Int

MIN_OVERLAP = 0.1
"""IoU below which a detection and an object have nothing to do with each other (TIDE)."""
IOU = 0.5
"""IoU from which a detection is on an object; keypoints take the object keypoint similarity instead."""


class Detections(NamedTuple):
    """D detections, grouped by class; the best of a class first, equal scores in the order of images."""

    positions: Int[np.ndarray, "D"]  # in the results that were compared
    images: Int[np.ndarray, "D"]  # index in Matches.image_ids
    classes: Int[np.ndarray, "D"]  # index in Matches.class_names
    scores: Float[np.ndarray, "D"]
    areas: Float[np.ndarray, "D"]  # in pixels
    matches: Int[np.ndarray, "T D"]  # index of the object that is found, at each IoU threshold; -1: none
    ignored: Bool[np.ndarray, "T D"]  # on a crowd, or on an object that does not count
    correct: Bool[np.ndarray, "T D"]  # on an object that counts


class ObjectArrays(NamedTuple):
    """G annotated objects, grouped by class; those of a class in the order of images."""

    images: Int[np.ndarray, "G"]
    classes: Int[np.ndarray, "G"]
    areas: Float[np.ndarray, "G"]
    ignored: Bool[np.ndarray, "G"]  # crowds, objects without mask or keypoints
    found: Bool[np.ndarray, "T G"]  # at each IoU threshold


class Matches(NamedTuple):
    """Detections, objects and their matches in an evaluation of one kind."""

    evaluated: KindEvaluation
    detections: Detections
    objects: ObjectArrays
    pairs: Pairs  # of any classes, with objects that count, from MIN_OVERLAP up

    @property
    def class_names(self) -> list[str]:
        return list(self.evaluated.input.class_names.values())

    @property
    def image_ids(self) -> list[Id]:
        return self.evaluated.input.image_ids

    def objects_per_class(self) -> Int[np.ndarray, "K"]:
        """Counts the objects of each class, without those that do not count."""
        counted = self.objects.classes[~self.objects.ignored]
        return np.bincount(counted, minlength=len(self.class_names))


def read_matches(evaluated: KindEvaluation) -> Matches:
    """Reads the matches over all sizes of objects; IoU with objects of other classes is computed here.

    Keypoints are compared within a class alone.
    """
    objects, matching, ranges = evaluated.objects, evaluated.matching, evaluated.input.ranges
    found, matches, (low, high) = matching.found, matching.objects.T, ranges["all"]
    correct, wrong = (np.ascontiguousarray(kind[:, 0].T) for kind in (matching.true, matching.false))
    detections = Detections(
        matching.positions, found.images, found.classes, found.scores, found.areas, matches,
        ignored=~correct & ~wrong, correct=correct,
    )  # fmt: skip
    on_objects = np.zeros((len(matches), len(objects.images)), bool)
    thresholds, places = np.nonzero(matches >= 0)
    on_objects[thresholds, matches[thresholds, places]] = True
    ignored = objects.ignored | (objects.areas < low) | (objects.areas > high)
    annotated = ObjectArrays(objects.images, objects.classes, objects.areas, ignored, on_objects)
    return Matches(evaluated, detections, annotated, _compare(evaluated, detections, annotated))


def _compare(evaluated: KindEvaluation, detections: Detections, objects: ObjectArrays) -> Pairs:
    """Compares detections with the objects in their images, keypoints with those of their class in them."""
    groups, object_groups = detections.images, objects.images
    if evaluated.input.kind == "keypoints":
        classes = len(evaluated.input.class_names)
        groups = groups * classes + detections.classes
        object_groups = object_groups * classes + objects.classes
    order = np.argsort(groups, kind="stable")
    pairs = overlapping(
        groups[order], detections.positions[order], object_groups, evaluated.overlaps, MIN_OVERLAP
    )
    counted = ~objects.ignored[pairs.objects]
    return Pairs(order[pairs.detections[counted]], pairs.objects[counted], pairs.overlaps[counted])
