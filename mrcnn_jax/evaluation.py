"""Detections -> COCO results -> the COCO metrics (cocodataset.org, "Detection Evaluation"), computed by pycocotools.

Every image of the ground truth counts, whether anything was detected in it or not. Figures are percentages; None stands
for what the ground truth does not define (COCO prints -1), as for the AP of small objects where there are none.
"""

import contextlib
import io
import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.table import Table

from mrcnn_jax.errors import InputError
from mrcnn_jax.ops.paste import encode_masks
from mrcnn_jax.structures import DatasetInfo, Detections

Kind = Literal["bbox", "segm", "keypoints"]
Metrics = dict[str, dict[str, Any]]

_FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}  # what a results entry is judged by
_PERSON_KEYPOINTS = 17  # COCO's tolerances exist for these only


def coco_results(
    image_id: int, detections: Detections, info: DatasetInfo, rles: Sequence[dict] | None = None
) -> list[dict[str, Any]]:
    """The detections of one image as entries of a COCO results file.

    Args:
      image_id: the data set's own id.
      detections: in pixels of the original image.
      info: its category_ids[i] is written for class i.
      rles: the masks as run-length codes (`ops.paste.paste_rles`) where they are at hand; `detections.masks` is not
        looked at then.

    Returns:
      JSON-ready entries with image_id, category_id, bbox (x, y, width, height), score, segmentation, and keypoints (x,
      y, score in turn) if there are any.
    """
    boxes = np.asarray(detections.boxes, np.float64)
    boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).round(2).tolist()
    scores = np.asarray(detections.scores, np.float64).round(6).tolist()
    rles = encode_masks(detections.masks) if rles is None else rles
    entries = [
        {
            "image_id": int(image_id),
            "category_id": int(info.category_ids[class_id]),
            "bbox": box,
            "score": score,
            "segmentation": rle,
        }
        for class_id, box, score, rle in zip(detections.class_ids, boxes, scores, rles, strict=True)
    ]
    if detections.keypoints is not None:
        keypoints = np.asarray(detections.keypoints, np.float64).round(2)
        for entry, points in zip(entries, keypoints, strict=True):
            entry["keypoints"] = points.ravel().tolist()
    return entries


def evaluate_coco(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    kinds: Iterable[Kind] = ("bbox", "segm"),
    max_detections: Sequence[int] = (1, 10, 100),
    per_class: bool = False,
) -> Metrics:
    """The COCO metrics of a list of results.

    Args:
      ground_truth: the data set in COCO's format; left as it is.
      results: entries as `coco_results` makes them, each with the field its kind needs; may be empty.
      kinds: "bbox" judges boxes, "segm" masks (sized by their own area, not that of a box beside them), "keypoints"
        COCO's 17 person keypoints.
      max_detections: how many of an image's best detections of a class count: one AR each; everything else is at
        the largest. Keypoints always take 20.
      per_class: add to each kind "per_class": the AP of every category by name.

    Returns:
      {kind: {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"}}, the names of the
      middle ones following max_detections; for keypoints {"AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75",
      "ARm", "ARl"}.

    Raises:
      InputError: unknown kind, image or category id, or a missing or malformed field.
    """
    limits = sorted(set(max_detections))
    if not limits or limits[0] < 1:
        raise InputError(f"max_detections must be one or more numbers from 1 up, not {tuple(max_detections)}.")
    metrics = {}
    for kind in kinds:
        evaluator = _evaluator(ground_truth, results, kind, limits)
        metrics[kind] = _keypoint_figures(evaluator) if kind == "keypoints" else _detection_figures(evaluator)
        if per_class:
            metrics[kind]["per_class"] = _class_figures(evaluator)
    return metrics


def evaluate_files(
    ground_truth_json: str | Path,
    results_json: str | Path,
    kinds: Iterable[Kind] = ("bbox", "segm"),
    max_detections: Sequence[int] = (1, 10, 100),
    per_class: bool = False,
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
    return evaluate_coco(ground_truth, results, kinds, max_detections, per_class)


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


def write_metrics(path: str | Path, metrics: Metrics) -> None:
    """Write metrics as JSON, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _evaluator(ground_truth: dict, results: list[dict], kind: str, limits: list[int]) -> COCOeval:
    """pycocotools' evaluator with its precision and recall arrays filled."""
    if kind not in _FIELDS:
        raise InputError(f'unknown kind of evaluation "{kind}": it is one of {", ".join(_FIELDS)}.')
    for key in ("images", "annotations", "categories"):
        if key not in ground_truth:
            raise InputError(f'the ground truth has no "{key}": a COCO data set holds images, annotations, categories.')
    detected = _checked_results(ground_truth, results, kind)
    objects = _completed_objects(ground_truth["annotations"], kind)
    with _quiet():
        truth = _index(ground_truth["images"], ground_truth["categories"], objects)
        if detected:
            predictions = truth.loadRes(detected)
        else:
            predictions = _index(ground_truth["images"], ground_truth["categories"], [])
        evaluator = COCOeval(truth, predictions, kind)
        if kind != "keypoints":
            evaluator.params.maxDets = limits
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def _checked_results(ground_truth: dict, results: list[dict], kind: str) -> list[dict]:
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
        if flaw := _flaw(entry[field], kind, images[entry["image_id"]]):
            raise InputError(f'results entry {number} has an unusable "{field}": {flaw}.')
        checked.append({key: entry[key] for key in ("image_id", "category_id", "score", field)})
    return checked


def _flaw(value: Any, kind: str, image: dict) -> str | None:
    """What is wrong with what was detected, if anything."""
    if kind == "segm":
        if not isinstance(value, dict) or not isinstance(value.get("counts"), str | bytes):
            return "it must be a compressed run-length code with size and counts"
        size = [image.get("height"), image.get("width")]
        if None not in size and list(value.get("size", ())) != size:
            return f"its size is {value.get('size')}, but the image is {size[0]} high and {size[1]} wide"
        return None
    length = 4 if kind == "bbox" else 3 * _PERSON_KEYPOINTS
    if not isinstance(value, list | tuple | np.ndarray) or len(value) != length or not _finite(value):
        return f"it must hold {length} finite numbers"
    return None


def _finite(values: Iterable[Any]) -> bool:
    return all(isinstance(value, Real) and math.isfinite(value) for value in values)


def _completed_objects(annotations: list[dict], kind: str) -> list[dict]:
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
        keypoints = given.get("keypoints") or [0] * (3 * _PERSON_KEYPOINTS)
        if kind == "keypoints" and len(keypoints) != 3 * _PERSON_KEYPOINTS:
            raise InputError(
                f"annotation {given.get('id', number)} of the ground truth has {len(keypoints) // 3} keypoints, but "
                f"COCO rates the {_PERSON_KEYPOINTS} of a person only."
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


def _detection_figures(evaluator: COCOeval) -> dict[str, float | None]:
    precision, recall = evaluator.eval["precision"][..., -1], evaluator.eval["recall"]
    everything, small, medium, large = range(4)
    figures = _average_precisions(precision[..., everything])
    for name, area in (("APs", small), ("APm", medium), ("APl", large)):
        figures[name] = _percent(precision[..., area])
    for position, limit in enumerate(evaluator.params.maxDets):
        figures[f"AR{limit}"] = _percent(recall[..., everything, position])
    for name, area in (("ARs", small), ("ARm", medium), ("ARl", large)):
        figures[name] = _percent(recall[..., area, -1])
    return figures


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
