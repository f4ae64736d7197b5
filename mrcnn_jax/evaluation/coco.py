"""The COCO metrics (cocodataset.org, "Detection Evaluation"), equal to those of pycocotools.

Every image of the ground truth counts, whether anything was detected in it or not. Metrics are percentages;
None stands for metrics that the ground truth does not define (COCO prints -1), such as the AP of small
objects if there are none.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pycocotools.cocoeval import Params
from rich.table import Table
from rich.text import Text

from mrcnn_jax.data.formats.coco_json import load_json
from mrcnn_jax.errors import InputError, printable
from mrcnn_jax.evaluation.coco_checks import (
    GroundTruth,
    check_ground_truth,
    check_limits,
    check_sigmas,
    complete_objects,
)
from mrcnn_jax.evaluation.coco_matching import (
    Curves,
    DetectionArrays,
    Matching,
    Objects,
    Overlaps,
    accumulate,
    match,
)
from mrcnn_jax.evaluation.coco_overlaps import overlap_function
from mrcnn_jax.evaluation.coco_result_checks import RESULT_FIELDS, Results, check_results
from mrcnn_jax.evaluation.coco_values import Id, shown

Kind = Literal["bbox", "segm", "keypoints", "proposals"]
Metrics = dict[str, dict[str, Any]]

KEYPOINT_LIMIT = 20
"""Detections of a class in an image that count for keypoints."""
DEFAULT_SIGMA = 0.067
"""Tolerance of a keypoint for which none was ever measured: the mean of COCO's 17."""
AREA_RANGES = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
"""Areas of the objects that count, in square pixels."""


class EvaluationInput(NamedTuple):
    """Checked objects and detections of the classes that one kind of evaluation compares."""

    kind: str
    image_ids: list[Id]  # in the order of the images' numbers
    class_names: dict[int, str]  # by number, ascending; no two are equal
    objects: list[dict]  # grouped by class; those of a class in the order of images
    results: Results
    limits: list[int]
    ranges: dict[str, tuple[float, float]]
    sigmas: Sequence[float]
    without_mask: int


class KindEvaluation(NamedTuple):
    """Matches and curves of one kind; images and classes are numbered from 0 in the order of their names."""

    input: EvaluationInput
    objects: Objects
    matching: Matching
    curves: Curves
    overlaps: Overlaps


def evaluate_coco(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], kinds: Iterable[Kind] = ("bbox", "segm"),
    max_detections: Sequence[int] = (1, 10, 100), per_class: bool = False,
    keypoint_sigmas: Sequence[float] | None = None, proposal_limits: Sequence[int] = (10, 100, 1000),
    notices: list[str] | None = None, inspect: Callable[[str, KindEvaluation], Any] | None = None,
) -> Metrics:  # fmt: skip
    """Computes the COCO metrics of a list of results.

    Ids may be whole numbers, also as text or float, or other texts. Objects of images that are not listed do
    not count, nor, except for "proposals", objects of categories that are not listed. For "segm", a detection
    on an object without a mask (a region of the shape of its box) is neither right nor wrong.

    Args:
        ground_truth: the data set in COCO's format; not changed.
        results: entries as ``Detections.to_coco`` makes them, each with the field its kind needs; may be
            empty. Masks are compressed or uncompressed run-length codes or polygons.
        kinds: "bbox" compares boxes; "segm" masks (sized by their own area, not by the area of a box beside
            them); "keypoints" keypoints, in the categories that name some in the ground truth (in all if none
            does); "proposals" computes how many objects boxes find, whatever the class.
        max_detections: numbers of an image's best detections of a class that count. Each gives one AR;
            everything else is computed at the largest. Keypoints always take 20.
        per_class: add "per_class", the AP of every category by name, to each kind that knows classes; where
            several have one name, as "name (id 2)".
        keypoint_sigmas: tolerance of each keypoint in the object keypoint similarity: the distance, in square
            roots of the object's area, by which an annotator's placement typically strays; None takes COCO's
            for 17 keypoints.
        proposal_limits: max_detections of "proposals".
        notices: list that gets a sentence about objects without a mask, if there are any.
        inspect: called with each kind but "proposals" and its matches, for an analysis.

    Returns:
        {kind: {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"}},
        where AR1 to AR100 follow max_detections; for keypoints {"AP", "AP50", "AP75", "APm", "APl", "AR",
        "AR50", "AR75", "ARm", "ARl"}; for proposals {"AR10", "AR100", "AR1000", "ARs", "ARm", "ARl"},
        following proposal_limits.

    Raises:
        InputError: unknown kind, image or category id, a missing or malformed field, or different numbers of
            keypoints and tolerances.
    """
    check_limits("max_detections", max_detections)
    check_limits("proposal_limits", proposal_limits)
    sigmas = Params("keypoints").kpt_oks_sigmas if keypoint_sigmas is None else keypoint_sigmas
    truth, metrics = check_ground_truth(ground_truth), {}
    for kind in map(_check_kind, kinds):
        limits = sorted(set(proposal_limits if kind == "proposals" else max_detections))
        given = _check(truth, results, kind, [KEYPOINT_LIMIT] if kind == "keypoints" else limits, sigmas)
        if given.without_mask and notices is not None:
            objects = f"{given.without_mask} objects"
            notices.append(f"{objects} have no mask: segm ignores detections in their boxes")
        evaluated = _evaluate(given)
        metrics[kind] = _metrics(kind, evaluated.curves, given.limits)
        if kind != "proposals" and per_class:
            metrics[kind]["per_class"] = _class_metrics(evaluated)
        if kind != "proposals" and inspect is not None:
            inspect(kind, evaluated)
        del given, evaluated  # before the next kind needs memory
    return metrics


def _check_kind(kind: Any) -> Kind:
    if kind not in RESULT_FIELDS:
        choices = ", ".join(RESULT_FIELDS)
        raise InputError(f"unknown kind of evaluation {shown(kind)}: choose from {choices}")
    return kind


def evaluate_files(
    ground_truth_json: str | Path, results_json: str | Path, *arguments: Any, **options: Any
) -> Metrics:
    """Computes ``evaluate_coco`` of two JSON files, with its further arguments.

    Raises:
        InputError: also if a file cannot be read.
    """
    ground_truth, results = load_json(ground_truth_json), load_json(results_json)
    if not isinstance(ground_truth, dict):
        raise InputError(f"{ground_truth_json} is not a COCO data set: it must hold a JSON object")
    if not isinstance(results, list):
        raise InputError(f"{results_json} is not a COCO results file: it must hold a JSON array of entries")
    return evaluate_coco(ground_truth, results, *arguments, **options)


def metrics_table(metrics: Metrics, title: str | None = None) -> Table:
    """Makes a table with a row per metric and a column per kind; a dash stands for undefined metrics."""
    table = Table(title=title and Text(printable(title), "table.title"))  # a text is no markup
    table.add_column("metric")
    for kind in metrics:
        table.add_column(kind, justify="right")
    names = dict.fromkeys(name for of_kind in metrics.values() for name in of_kind)
    for name in [name for name in names if name != "per_class"]:
        values = [of_kind.get(name) for of_kind in metrics.values()]
        table.add_row(name, *("-" if value is None else f"{value:.1f}" for value in values))
    return table


def _check(
    truth: GroundTruth, results: list[dict], kind: str, limits: list[int], sigmas: Sequence[float]
) -> EvaluationInput:
    names, ranges = _class_names(truth), AREA_RANGES
    if kind == "proposals":
        truth = truth._replace(objects=[each | {"category_id": 1} for each in truth.objects])
        names = {1: "object"}
    elif kind == "keypoints":
        sigmas = check_sigmas(sigmas)
        named = {each.number for each in truth.categories.values() if each.has_keypoints}
        names = {number: name for number, name in names.items() if number in named or not named}
        ranges = {name: bounds for name, bounds in ranges.items() if name != "small"}
    objects, without_mask = complete_objects(truth, kind, len(sigmas), list(names))
    objects.sort(key=lambda each: (each["category_id"], each["image_id"]))
    found = check_results(truth, results, kind, len(sigmas), list(names))
    images = list(truth.images)
    return EvaluationInput(kind, images, names, objects, found, limits, ranges, sigmas, without_mask)


def _class_names(truth: GroundTruth) -> dict[int, str]:
    repeated = Counter(category.name for category in truth.categories.values())
    return {
        category.number: category.name if repeated[category.name] == 1 else f"{category.name} (id {id_})"
        for id_, category in truth.categories.items()
    }


def _evaluate(given: EvaluationInput) -> KindEvaluation:
    numbers, results, ranges = list(given.class_names), given.results, list(given.ranges.values())
    images, classes, areas, crowd = (
        np.array([each[key] for each in given.objects], dtype)
        for key, dtype in (("image_id", int), ("category_id", int), ("area", float), ("iscrowd", bool))
    )
    ignored = crowd | np.array([each.get("num_keypoints") == 0 for each in given.objects], bool)
    objects = Objects(images - 1, np.searchsorted(numbers, classes), areas, crowd, ignored)
    found = DetectionArrays(
        results.images - 1, np.searchsorted(numbers, results.categories), results.areas, results.scores
    )
    overlaps = overlap_function(given.kind, given.objects, results.values, given.sigmas)
    matching = match(objects, found, overlaps, given.limits[-1], ranges)
    curves = accumulate(objects, matching, len(numbers), given.limits, ranges)
    return KindEvaluation(given, objects, matching, curves, overlaps)


def _metrics(kind: str, curves: Curves, limits: Sequence[int]) -> dict[str, float | None]:
    """Computes the metrics of a kind.

    Precision is [IoU threshold, recall, category, area range], recall [IoU threshold, category, area range,
    limit].
    """
    precision, recall = curves.precision, curves.recall[..., -1]
    averages = _average_precisions(precision[..., 0])
    if kind == "keypoints":
        everything, medium, large = range(3)
        return {
            **averages,
            "APm": percent(precision[..., medium]),
            "APl": percent(precision[..., large]),
            "AR": percent(recall[..., everything]),
            "AR50": percent(recall[0, ..., everything]),
            "AR75": percent(recall[5, ..., everything]),
            "ARm": percent(recall[..., medium]),
            "ARl": percent(recall[..., large]),
        }
    areas = list(enumerate("sml", start=1))
    averages |= {f"AP{size}": percent(precision[..., area]) for area, size in areas}
    recalls = {f"AR{limit}": percent(curves.recall[:, :, 0, i]) for i, limit in enumerate(limits)}
    recalls |= {f"AR{size}": percent(recall[..., area]) for area, size in areas}
    return recalls if kind == "proposals" else averages | recalls


def _average_precisions(precision: np.ndarray) -> dict[str, float | None]:
    # the IoU thresholds are 0.50, 0.55, ..., 0.95
    return {"AP": percent(precision), "AP50": percent(precision[0]), "AP75": percent(precision[5])}


def _class_metrics(evaluated: KindEvaluation) -> dict[str, float | None]:
    names = enumerate(evaluated.input.class_names.values())
    return {name: percent(evaluated.curves.precision[:, :, index, 0]) for index, name in names}


def percent(values: np.ndarray) -> float | None:
    """Returns the mean of what is not -1, in percent; None if everything is."""
    defined = values[values > -1]
    return float(100 * defined.mean()) if defined.size else None
