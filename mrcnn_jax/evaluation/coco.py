"""The COCO metrics (cocodataset.org, "Detection Evaluation"), computed by pycocotools.

Every image of the ground truth counts, whether anything was detected in it or not. Metrics are percentages;
None stands for metrics that the ground truth does not define (COCO prints -1), such as the AP of small
objects if there are none.
"""

import contextlib
import io
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params
from rich.table import Table

from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.coco_checks import RESULT_FIELDS, check_limits, checked_results, completed_objects

Kind = Literal["bbox", "segm", "keypoints", "proposals"]
Metrics = dict[str, dict[str, Any]]

DEFAULT_SIGMA = 0.067
"""Tolerance of a keypoint for which none was ever measured: the mean of COCO's 17."""


def evaluate_coco(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    kinds: Iterable[Kind] = ("bbox", "segm"),
    max_detections: Sequence[int] = (1, 10, 100),
    per_class: bool = False,
    keypoint_sigmas: Sequence[float] | None = None,
    proposal_limits: Sequence[int] = (10, 100, 1000),
) -> Metrics:
    """Computes the COCO metrics of a list of results.

    Args:
        ground_truth: the data set in COCO's format; not changed.
        results: entries as ``coco_results`` makes them, each with the field its kind needs; may be empty.
        kinds: "bbox" compares boxes; "segm" masks (sized by their own area, not by the area of a box beside
            them); "keypoints" keypoints, in the categories that name some in the ground truth (in all if none
            does); "proposals" computes how many objects boxes find, whatever the class.
        max_detections: numbers of an image's best detections of a class that count. Each gives one AR;
            everything else is computed at the largest. Keypoints always take 20.
        per_class: add "per_class", the AP of every category by name, to each kind that knows classes.
        keypoint_sigmas: tolerance of each keypoint in the object keypoint similarity: the distance, in square
            roots of the object's area, by which an annotator's placement typically strays; None takes COCO's
            for 17 keypoints.
        proposal_limits: max_detections of "proposals".

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
    keypoint_sigmas = Params("keypoints").kpt_oks_sigmas if keypoint_sigmas is None else keypoint_sigmas
    sigmas = np.asarray(keypoint_sigmas, np.float64)
    metrics = {}
    for kind in kinds:
        limits = proposal_limits if kind == "proposals" else max_detections
        evaluator = _evaluator(ground_truth, results, kind, sorted(set(limits)), sigmas)
        own = {"keypoints": _keypoint_metrics, "proposals": _recalls}
        metrics[kind] = own.get(kind, _detection_metrics)(evaluator)
        if per_class and kind != "proposals":
            metrics[kind]["per_class"] = _class_metrics(evaluator)
    return metrics


def evaluate_files(
    ground_truth_json: str | Path, results_json: str | Path, *arguments: Any, **options: Any
) -> Metrics:
    """Computes ``evaluate_coco`` of two JSON files, with its further arguments.

    Raises:
        InputError: also if a file cannot be read.
    """
    ground_truth, results = _read_json(ground_truth_json), _read_json(results_json)
    if not isinstance(ground_truth, dict):
        raise InputError(f"{ground_truth_json} is not a COCO data set: it must hold a JSON object")
    if not isinstance(results, list):
        raise InputError(f"{results_json} is not a COCO results file: it must hold a JSON array of entries")
    return evaluate_coco(ground_truth, results, *arguments, **options)


def metrics_table(metrics: Metrics, title: str | None = None) -> Table:
    """Makes a table with a row per metric and a column per kind; a dash stands for undefined metrics."""
    table = Table(title=title)
    table.add_column("metric")
    for kind in metrics:
        table.add_column(kind, justify="right")
    names = dict.fromkeys(name for of_kind in metrics.values() for name in of_kind)
    for name in [name for name in names if name != "per_class"]:
        values = [of_kind.get(name) for of_kind in metrics.values()]
        table.add_row(name, *("-" if value is None else f"{value:.1f}" for value in values))
    return table


def _evaluator(
    ground_truth: dict, results: list[dict], kind: str, limits: list[int], sigmas: np.ndarray
) -> COCOeval:
    """Returns pycocotools' evaluator with its precision and recall arrays filled."""
    if kind not in RESULT_FIELDS:
        raise InputError(f'unknown kind of evaluation "{kind}": choose from {", ".join(RESULT_FIELDS)}')
    for key in ("images", "annotations", "categories"):
        if key not in ground_truth:
            parts = "images, annotations, categories"
            raise InputError(f'the ground truth has no "{key}": a COCO data set holds {parts}')
    if kind == "proposals":
        ground_truth, results = _without_classes(ground_truth, results)
    if kind == "keypoints":
        if not len(sigmas) or not np.all(sigmas > 0):
            given = tuple(sigmas.tolist())
            raise InputError(f"keypoint_sigmas must be numbers above 0, one for each keypoint, not {given}")
        ground_truth, results = _with_keypoints(ground_truth, results)
    objects = completed_objects(ground_truth["annotations"], kind, len(sigmas))
    detected = checked_results(ground_truth, results, kind, len(sigmas))
    with _quiet():
        truth = _index(ground_truth, objects)
        predictions = truth.loadRes(detected) if detected else _index(ground_truth, [])
        evaluator = COCOeval(truth, predictions, "bbox" if kind == "proposals" else kind)
        if kind == "keypoints":
            evaluator.params.kpt_oks_sigmas = sigmas
        else:
            evaluator.params.maxDets = limits
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def _without_classes(ground_truth: dict, results: list[dict]) -> tuple[dict, list[dict]]:
    """Puts objects and results into one category."""
    one = {"category_id": 1}
    annotations = [annotation | one for annotation in ground_truth["annotations"]]
    changed = {"annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    return ground_truth | changed, [entry | one for entry in results]


def _with_keypoints(ground_truth: dict, results: list[dict]) -> tuple[dict, list[dict]]:
    """Selects objects and results of the categories that name keypoints, or all if none does."""
    categories = [category for category in ground_truth["categories"] if category.get("keypoints")]
    if not categories:
        return ground_truth, results
    others = {category["id"] for category in ground_truth["categories"] if not category.get("keypoints")}
    annotations, compared = (
        [entry for entry in entries if entry.get("category_id") not in others]
        for entries in (ground_truth["annotations"], results)
    )
    return ground_truth | {"annotations": annotations, "categories": categories}, compared


def _index(ground_truth: dict, annotations: list[dict]) -> COCO:
    coco = COCO()
    coco.dataset = {key: ground_truth[key] for key in ("images", "categories")} | {"annotations": annotations}
    coco.createIndex()
    return coco


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences pycocotools' progress on stdout, and a deprecation warning of NumPy 2 about its arrays."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        yield


# Metrics are computed from the arrays and not by pycocotools' own summary, which knows no limit but 100.
# Precision is [IoU threshold, recall, category, area range, limit], recall the same without its second axis;
# -1 marks the undefined.


def _detection_metrics(evaluator: COCOeval) -> dict[str, float | None]:
    precision = evaluator.eval["precision"][..., -1]
    sizes = {f"AP{size}": _percent(precision[..., area]) for area, size in enumerate("sml", start=1)}
    return _average_precisions(precision[..., 0]) | sizes | _recalls(evaluator)


def _recalls(evaluator: COCOeval) -> dict[str, float | None]:
    recall, limits = evaluator.eval["recall"], evaluator.params.maxDets
    limits = {f"AR{limit}": _percent(recall[..., 0, position]) for position, limit in enumerate(limits)}
    return limits | {f"AR{size}": _percent(recall[..., area, -1]) for area, size in enumerate("sml", start=1)}


def _keypoint_metrics(evaluator: COCOeval) -> dict[str, float | None]:
    precision, recall = evaluator.eval["precision"][..., -1], evaluator.eval["recall"][..., -1]
    everything, medium, large = range(3)
    return {
        **_average_precisions(precision[..., everything]),
        "APm": _percent(precision[..., medium]),
        "APl": _percent(precision[..., large]),
        "AR": _percent(recall[..., everything]),
        "AR50": _percent(recall[0, ..., everything]),
        "AR75": _percent(recall[5, ..., everything]),
        "ARm": _percent(recall[..., medium]),
        "ARl": _percent(recall[..., large]),
    }


def _average_precisions(precision: np.ndarray) -> dict[str, float | None]:
    # the IoU thresholds are 0.50, 0.55, ..., 0.95
    return {"AP": _percent(precision), "AP50": _percent(precision[0]), "AP75": _percent(precision[5])}


def _class_metrics(evaluator: COCOeval) -> dict[str, float | None]:
    precision = evaluator.eval["precision"][..., 0, -1]
    names = [category["name"] for category in evaluator.cocoGt.loadCats(evaluator.params.catIds)]
    return {name: _percent(precision[..., position]) for position, name in enumerate(names)}


def _percent(values: np.ndarray) -> float | None:
    defined = values[values > -1]
    return float(100 * defined.mean()) if defined.size else None


def _read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
