"""pycocotools' own evaluator, filled with checked ground truth and results, for an analysis."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_jax.evaluation.coco_checks import GroundTruth
from mrcnn_jax.evaluation.coco_result_checks import RESULT_FIELDS, Results


def pycocotools_evaluator(
    truth: GroundTruth, categories: Sequence[int], objects: list[dict], results: Results, kind: str,
    limits: list[int], sigmas: Sequence[float],
) -> COCOeval:  # fmt: skip
    """Returns pycocotools' evaluator with its arrays filled.

    Objects are numbered from 1: pycocotools takes id 0 for "no match" and merges objects of equal ids.
    """
    objects = [each | {"id": number} for number, each in enumerate(objects, start=1)]
    values = results.values.tolist() if isinstance(results.values, np.ndarray) else results.values
    keys = "image_id", "category_id", "score", RESULT_FIELDS[kind]
    columns = results.images.tolist(), results.categories.tolist(), results.scores.tolist(), values
    detected = [dict(zip(keys, entry, strict=True)) for entry in zip(*columns, strict=True)]
    with _quiet():
        indexed = _index(truth, categories, objects)
        predictions = indexed.loadRes(detected) if detected else _index(truth, categories, [])
        evaluator = COCOeval(indexed, predictions, kind)
        evaluator.params.maxDets = limits
        if kind == "keypoints":
            evaluator.params.kpt_oks_sigmas = np.asarray(sigmas)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def _index(truth: GroundTruth, categories: Sequence[int], objects: list[dict]) -> COCO:
    coco, image_keys = COCO(), ("id", "height", "width")
    coco.dataset = {
        "images": [dict(zip(image_keys, image, strict=True)) for image in truth.images.values()],
        "categories": [{"id": number} for number in categories],
        "annotations": objects,
    }
    coco.createIndex()
    return coco


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences pycocotools' progress on stdout, and a deprecation warning of NumPy 2 about its arrays."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        yield
