"""Detections -> COCO results -> the COCO metrics (cocodataset.org, "Detection Evaluation"), computed by pycocotools.

Every image of the ground truth counts, whether anything was detected in it or not. Figures are percentages; None stands
for what the ground truth does not define (COCO prints -1), as for the AP of small objects where there are none.
"""

import contextlib
import io
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params
from rich.table import Table

from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.paste import encode_masks
from mrcnn_jax.structures import DatasetInfo, Detections

Kind = Literal["bbox", "segm", "keypoints", "proposals"]
Metrics = dict[str, dict[str, Any]]

# What a results entry is judged by.
_FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints", "proposals": "bbox"}


DEFAULT_SIGMA = 0.067
"""The tolerance of a keypoint for which none was ever measured: the mean of COCO's 17."""


def coco_results(
    image_id: int, detections: Detections, info: DatasetInfo, rles: Sequence[dict] | None = None
) -> list[dict[str, Any]]:
    """The detections of one image as entries of a COCO results file.

    Args:
      image_id: the data set's own id.
      detections: in pixels of the original image. Where info names the classes that have keypoints, those of other
        classes are left out.
      info: its category_ids[i] is written for class i.
      rles: the masks as run-length codes (`ops.paste.paste_rles`) where they are at hand; `detections.masks` is not
        looked at then.

    Returns:
      JSON-ready entries with image_id, category_id, bbox (x, y, width, height), score; segmentation where there are
      masks and keypoints (x, y, score in turn) where there are any.
    """
    boxes = np.asarray(detections.boxes, np.float64)
    boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).round(2).tolist()
    scores = np.asarray(detections.scores, np.float64).round(6).tolist()
    entries = [
        {"image_id": int(image_id), "category_id": int(info.category_ids[class_id]), "bbox": box, "score": score}
        for class_id, box, score in zip(detections.class_ids, boxes, scores, strict=True)
    ]
    if rles is None and detections.masks is not None:
        rles = encode_masks(detections.masks)
    if rles is not None:
        for entry, rle in zip(entries, rles, strict=True):
            entry["segmentation"] = rle
    if detections.keypoints is not None:
        have_keypoints = info.keypoint_classes or range(info.num_classes)
        keypoints = np.asarray(detections.keypoints, np.float64).round(4)
        for entry, points, class_id in zip(entries, keypoints, detections.class_ids, strict=True):
            if class_id in have_keypoints:
                entry["keypoints"] = points.ravel().tolist()
    return entries


def evaluate_coco(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    kinds: Iterable[Kind] = ("bbox", "segm"),
    max_detections: Sequence[int] = (1, 10, 100),
    per_class: bool = False,
    keypoint_sigmas: Sequence[float] | None = None,
    proposal_limits: Sequence[int] = (10, 100, 1000),
) -> Metrics:
    """The COCO metrics of a list of results.

    Args:
      ground_truth: the data set in COCO's format; left as it is.
      results: entries as `coco_results` makes them, each with the field its kind needs; may be empty.
      kinds: "bbox" judges boxes, "segm" masks (sized by their own area, not that of a box beside them), "keypoints"
        keypoints, in the categories that name some in the ground truth (in all where none does), "proposals" how many
        objects boxes find, whatever the class.
      max_detections: how many of an image's best detections of a class count: one AR each; everything else is at
        the largest. Keypoints always take 20.
      per_class: add to each kind that knows classes "per_class": the AP of every category by name.
      keypoint_sigmas: the tolerance of each keypoint in the object keypoint similarity: the distance, in square roots
        of the object's area, at which an annotator's placing typically strays; None takes COCO's of a person's 17.
      proposal_limits: max_detections of "proposals".

    Returns:
      {kind: {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"}}, the names of the
      middle ones following max_detections; for keypoints {"AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75",
      "ARm", "ARl"}; for proposals {"AR10", "AR100", "AR1000", "ARs", "ARm", "ARl"}, following proposal_limits.

    Raises:
      InputError: unknown kind, image or category id, a missing or malformed field, or another number of keypoints than
        of tolerances.
    """
    for name, limits in (("max_detections", max_detections), ("proposal_limits", proposal_limits)):
        if not limits or min(limits) < 1:
            raise InputError(f"{name} must be one or more numbers from 1 up, not {tuple(limits)}.")
    sigmas = Params("keypoints").kpt_oks_sigmas if keypoint_sigmas is None else np.asarray(keypoint_sigmas, np.float64)
    metrics = {}
    for kind in kinds:
        limits = proposal_limits if kind == "proposals" else max_detections
        evaluator = _evaluator(ground_truth, results, kind, sorted(set(limits)), sigmas)
        metrics[kind] = _figures(evaluator, kind)
        if per_class and kind != "proposals":
            metrics[kind]["per_class"] = _class_figures(evaluator)
    return metrics


def evaluate_files(
    ground_truth_json: str | Path,
    results_json: str | Path,
    kinds: Iterable[Kind] = ("bbox", "segm"),
    max_detections: Sequence[int] = (1, 10, 100),
    per_class: bool = False,
    keypoint_sigmas: Sequence[float] | None = None,
    proposal_limits: Sequence[int] = (10, 100, 1000),
) -> Metrics:
    """`evaluate_coco` of two JSON files.

    Raises:
      InputError: also when a file cannot be read.
    """
    ground_truth, results = _read_json(ground_truth_json), _read_json(results_json)
    if not isinstance(ground_truth, dict):
        raise InputError(f"{ground_truth_json} is not a COCO data set: it must hold a JSON object.")
    if not isinstance(results, list):
        raise InputError(f"{results_json} is not a COCO results file: it must hold a JSON array of entries.")
    return evaluate_coco(ground_truth, results, kinds, max_detections, per_class, keypoint_sigmas, proposal_limits)


def metrics_table(metrics: Metrics, title: str | None = None) -> Table:
    """One row a figure, one column a kind; a dash where the ground truth defines none."""
    table = Table(title=title)
    table.add_column("figure")
    for kind in metrics:
        table.add_column(kind, justify="right")
    for name in dict.fromkeys(name for figures in metrics.values() for name in figures if name != "per_class"):
        values = [figures.get(name) for figures in metrics.values()]
        table.add_row(name, *("-" if value is None else f"{value:.1f}" for value in values))
    return table


def _evaluator(ground_truth: dict, results: list[dict], kind: str, limits: list[int], sigmas: np.ndarray) -> COCOeval:
    """pycocotools' evaluator with its precision and recall arrays filled."""
    if kind not in _FIELDS:
        raise InputError(f'unknown kind of evaluation "{kind}": it is one of {", ".join(_FIELDS)}.')
    for key in ("images", "annotations", "categories"):
        if key not in ground_truth:
            raise InputError(f'the ground truth has no "{key}": a COCO data set holds images, annotations, categories.')
    if kind == "proposals":
        ground_truth, results = _without_classes(ground_truth, results)
    if kind == "keypoints":
        if not len(sigmas) or not np.all(sigmas > 0):
            given = tuple(sigmas.tolist())
            raise InputError(f"keypoint_sigmas must be numbers above 0, one for each keypoint, not {given}.")
        ground_truth, results = _with_keypoints(ground_truth, results)
    objects = _completed_objects(ground_truth["annotations"], kind, len(sigmas))
    detected = _checked_results(ground_truth, results, kind, len(sigmas))
    with _quiet():
        truth = _index(ground_truth["images"], ground_truth["categories"], objects)
        if detected:
            predictions = truth.loadRes(detected)
        else:
            predictions = _index(ground_truth["images"], ground_truth["categories"], [])
        evaluator = COCOeval(truth, predictions, "bbox" if kind == "proposals" else kind)
        if kind == "keypoints":
            evaluator.params.kpt_oks_sigmas = sigmas
        else:
            evaluator.params.maxDets = limits
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def _without_classes(ground_truth: dict, results: list[dict]) -> tuple[dict, list[dict]]:
    """Objects and results in one category."""
    one = {"category_id": 1}
    annotations = [annotation | one for annotation in ground_truth["annotations"]]
    categories = [{"id": 1, "name": "object"}]
    return ground_truth | {"annotations": annotations, "categories": categories}, [entry | one for entry in results]


def _with_keypoints(ground_truth: dict, results: list[dict]) -> tuple[dict, list[dict]]:
    """Objects and results of the categories that name keypoints, or of all where none does."""
    categories = [category for category in ground_truth["categories"] if category.get("keypoints")]
    if not categories:
        return ground_truth, results
    others = {category["id"] for category in ground_truth["categories"]} - {category["id"] for category in categories}
    annotations = [annotation for annotation in ground_truth["annotations"] if annotation["category_id"] not in others]
    judged = [entry for entry in results if entry.get("category_id") not in others]
    return ground_truth | {"annotations": annotations, "categories": categories}, judged


def _checked_results(ground_truth: dict, results: list[dict], kind: str, num_keypoints: int) -> list[dict]:
    """Fresh entries with nothing but what this kind is judged by.

    pycocotools would size a mask by the box beside it and write into the entries it is given.
    """
    images = {image["id"]: image for image in ground_truth["images"]}
    categories = {category["id"] for category in ground_truth["categories"]}
    field = _FIELDS[kind]
    checked = []
    for number, entry in enumerate(results):
        for key in ("image_id", "category_id", "score", field):
            if key not in entry:
                raise InputError(f'results entry {number} has no "{key}", which the evaluation of {kind} needs.')
        if entry["image_id"] not in images:
            raise InputError(
                f"results entry {number} has image_id {entry['image_id']!r}, which is none of the {len(images)} images "
                "of the ground truth."
            )
        if entry["category_id"] not in categories:
            raise InputError(
                f"results entry {number} has category_id {entry['category_id']!r}, which is none of the "
                f"{len(categories)} categories of the ground truth."
            )
        if not _finite([entry["score"]]):
            raise InputError(f"results entry {number} has score {entry['score']!r}, which is not a finite number.")
        if flaw := _flaw(entry[field], kind, images[entry["image_id"]], num_keypoints):
            raise InputError(f'results entry {number} has an unusable "{field}": {flaw}.')
        checked.append({key: entry[key] for key in ("image_id", "category_id", "score", field)})
    return checked


def _flaw(value: Any, kind: str, image: dict, num_keypoints: int) -> str | None:
    """What is wrong with what was detected, if anything."""
    if kind == "segm":
        if not isinstance(value, dict) or not isinstance(value.get("counts"), str | bytes):
            return "it must be a compressed run-length code with size and counts"
        size = [image.get("height"), image.get("width")]
        if None not in size and list(value.get("size", ())) != size:
            return f"its size is {value.get('size')}, but the image is {size[0]} high and {size[1]} wide"
        return None
    length = 3 * num_keypoints if kind == "keypoints" else 4
    if not isinstance(value, list | tuple | np.ndarray) or len(value) != length or not _finite(value):
        return f"it must hold {length} finite numbers"
    return None


def _finite(values: Iterable[Any]) -> bool:
    return all(isinstance(value, Real) and math.isfinite(value) for value in values)


def _completed_objects(annotations: list[dict], kind: str, num_keypoints: int) -> list[dict]:
    """Copies of the ground truth's objects with every key that pycocotools takes for granted.

    Objects are numbered anew from 1: pycocotools takes id 0 for "no match" and merges objects of equal ids.
    """
    completed = []
    for number, given in enumerate(annotations, start=1):
        required = {"bbox", "segmentation"} if kind == "segm" else {"bbox"}
        for key in sorted(required):
            if not given.get(key):
                name = given.get("id", f"number {number}")
                raise InputError(f'annotation {name} of the ground truth has no "{key}", which {kind} needs.')
        keypoints = given.get("keypoints") or [0] * (3 * num_keypoints)
        if kind == "keypoints" and len(keypoints) != 3 * num_keypoints:
            raise InputError(
                f"annotation {given.get('id', number)} of the ground truth has {len(keypoints) // 3} keypoints, but "
                f"keypoint_sigmas has {num_keypoints}: there must be one for each keypoint (by default COCO's 17)."
            )
        completed.append(
            {
                "iscrowd": 0,
                "area": given["bbox"][2] * given["bbox"][3],
                "num_keypoints": sum(visible > 0 for visible in keypoints[2::3]),
                **given,
                "keypoints": keypoints,
                "id": number,
            }
        )
    return completed


def _index(images: list[dict], categories: list[dict], annotations: list[dict]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    coco.createIndex()
    return coco


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps pycocotools' progress off the screen, and its conversion of arrays that NumPy 2 finds old-fashioned."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        yield


# The figures are read from the arrays and not from pycocotools' own summary, which knows no limit but 100. Precision is
# [IoU threshold, recall, category, area range, limit], recall the same without its second axis; -1 marks the undefined.


def _figures(evaluator: COCOeval, kind: str) -> dict[str, float | None]:
    own = {"keypoints": _keypoint_figures, "proposals": _recall_figures}
    return own.get(kind, _detection_figures)(evaluator)


def _detection_figures(evaluator: COCOeval) -> dict[str, float | None]:
    precision = evaluator.eval["precision"][..., -1]
    everything, small, medium, large = range(4)
    return {
        **_average_precisions(precision[..., everything]),
        "APs": _percent(precision[..., small]),
        "APm": _percent(precision[..., medium]),
        "APl": _percent(precision[..., large]),
        **_recall_figures(evaluator),
    }


def _recall_figures(evaluator: COCOeval) -> dict[str, float | None]:
    recall = evaluator.eval["recall"]
    everything, small, medium, large = range(4)
    return {
        **{f"AR{limit}": _percent(recall[..., everything, i]) for i, limit in enumerate(evaluator.params.maxDets)},
        "ARs": _percent(recall[..., small, -1]),
        "ARm": _percent(recall[..., medium, -1]),
        "ARl": _percent(recall[..., large, -1]),
    }


def _keypoint_figures(evaluator: COCOeval) -> dict[str, float | None]:
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
    """The IoU thresholds are 0.50, 0.55, ..., 0.95."""
    return {"AP": _percent(precision), "AP50": _percent(precision[0]), "AP75": _percent(precision[5])}


def _class_figures(evaluator: COCOeval) -> dict[str, float | None]:
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
        raise InputError(f"cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from error
