"""The images with most mistakes, and annotations that may be wrong."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.evaluation.analysis.errors import DETECTION_ERRORS, Errors
from mrcnn_jax.evaluation.analysis.matches import Detections, Matches, ObjectArrays


def worst_images(matches: Matches, min_score: float, count: int) -> list[dict[str, Any]]:
    """Lists images by their number of mistakes at IoU 0.5: missed objects and false detections.

    Args:
        matches: of all images.
        min_score: detections below it are left out.
        count: maximum number of images; those without a mistake are left out.

    Returns:
        [{"image_id", "objects", "correct", "missed", "false"}], the worst first.
    """
    detections, objects, number = matches.detections, matches.objects, len(matches.image_ids)
    kept = (detections.scores >= min_score) & ~detections.ignored[0]
    correct = kept & matches.detections.correct[0]
    per_image = {
        "objects": np.bincount(objects.images[~objects.ignored], minlength=number),
        "correct": np.bincount(detections.images[correct], minlength=number),
        "false": np.bincount(detections.images[kept & ~correct], minlength=number),
    }
    per_image["missed"] = per_image["objects"] - per_image["correct"]
    mistakes = per_image["missed"] + per_image["false"]
    worst = [index for index in np.argsort(-mistakes, kind="stable")[:count] if mistakes[index]]
    return [
        {"image_id": matches.image_ids[index]} | {key: int(of[index]) for key, of in per_image.items()}
        for index in worst
    ]


def suspected_annotations(matches: Matches, errors: Errors, count: int) -> dict[str, list[dict[str, Any]]]:
    """Lists places where the annotations may be wrong rather than the detector.

    Returns:
        Up to ``count`` entries each, the most suspicious first. "not_annotated": detections on nothing, by
        score; "other_class": detections on an object of another class that is not found, by score;
        "not_detected": objects that no detection of any class even overlaps, by size. Entries are
        {"image_id", "box" (x, y, width, height), "class", "score"} of a detection, without a score of an
        object; those of "other_class" have "annotated" too, the object's class.
    """
    objects, scores = matches.objects, matches.detections.scores
    of_kind = [errors.kinds == DETECTION_ERRORS.index(name) for name in ("background", "classification")]
    nothing, other = map(np.flatnonzero, of_kind)
    other = other[~objects.found[0, errors.objects[other]]]
    touched = np.zeros(len(objects.images), bool)
    touched[matches.pairs.objects] = True
    unseen = np.flatnonzero(~touched & ~objects.ignored)
    nothing, other = (
        chosen[np.argsort(-scores[chosen], kind="stable")][:count] for chosen in (nothing, other)
    )
    unseen = unseen[np.argsort(-objects.areas[unseen], kind="stable")][:count]
    names = matches.class_names
    return {
        "not_annotated": [_detection(matches, index) for index in nothing],
        "other_class": [
            _detection(matches, index) | {"annotated": names[objects.classes[errors.objects[index]]]}
            for index in other
        ],
        "not_detected": [_object(matches, index) for index in unseen],
    }


def _detection(matches: Matches, index: int) -> dict[str, Any]:
    detections, given = matches.detections, matches.evaluated.input
    box = value = given.results.values[detections.positions[index]]
    if given.kind == "segm":
        box = coco_mask.toBbox(value)
    elif given.kind == "keypoints":
        points = value[0::3], value[1::3]
        box = [*map(np.min, points), *map(np.ptp, points)]
    return _entry(matches, detections, index, box) | {"score": round(float(detections.scores[index]), 6)}


def _object(matches: Matches, index: int) -> dict[str, Any]:
    one = matches.evaluated.input.objects[index]
    box = one["bbox"] if "bbox" in one else coco_mask.toBbox(one["segmentation"])
    return _entry(matches, matches.objects, index, box)


def _entry(
    matches: Matches, part: Detections | ObjectArrays, index: int, box: Sequence[float]
) -> dict[str, Any]:
    return {
        "image_id": matches.image_ids[part.images[index]],
        "box": [round(float(side), 2) for side in box],
        "class": matches.class_names[part.classes[index]],
    }
