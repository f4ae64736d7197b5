"""Stages of an evaluation, timed: a script that ``measure`` runs with the library of a checkout.

``_stages.py paste ROUNDS`` pastes the masks of one image, ``_stages.py evaluate IMAGES`` evaluates made-up
predictions, ``_stages.py report IMAGES`` analyses them too; with a third word, pycocotools evaluates them.
"""

import contextlib
import copy
import io
import json
import resource
import sys
import tempfile
import time
import tracemalloc
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import _made_up
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.config import ModelConfig
from mrcnn_jax.evaluation.coco import evaluate_coco
from mrcnn_jax.inference.postprocess import to_detections
from mrcnn_jax.structures import Predictions

CASES = {
    "COCO-like boxes, 800 x 1333": ((800, 1333), False),
    "boxes of the whole image, 800 x 1333": ((800, 1333), True),
    "COCO-like boxes, 6000 x 8000": ((6000, 8000), False),
    "boxes of the whole image, 6000 x 8000": ((6000, 8000), True),
}
"""Height and width of the image, and whether the boxes are as large."""


def paste(rounds: int, masks: int = 100) -> dict[str, dict[str, float]]:
    """Measures pasting and encoding the masks of one image; the photo of 48 million pixels once."""
    measured = {}
    for name, ((height, width), whole) in CASES.items():
        random = np.random.default_rng(0)
        boxes = _made_up.random_boxes(random, masks, height, width)
        if whole:
            boxes = np.float32([0, 0, width, height]) + random.uniform(-1, 1, (masks, 4)).astype(np.float32)
        predictions = Predictions(
            boxes=boxes, scores=np.ones(masks, np.float32), classes=np.zeros(masks, np.int32),
            valid=np.ones(masks, bool), masks=_made_up.random_masks(random, masks),
        )  # fmt: skip
        arguments = predictions, (height, width), (height, width), ModelConfig()
        times = []
        for _ in range(rounds if height < 6000 else 1):
            begin = time.perf_counter()
            to_detections(*arguments)
            times.append(time.perf_counter() - begin)
        measured[name] = {"milliseconds": 1e3 * median(times)}
        if not (whole and height >= 6000):
            tracemalloc.start()
            to_detections(*arguments)
            measured[name]["peak_megabytes"] = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
    return measured


def detect(images: int) -> tuple[dict, list[dict], dict[str, float]]:
    """Makes ground truth and results, and measures the seconds from predictions to results."""
    truth, config, results = _made_up.ground_truth(images), ModelConfig(), []
    size, seconds = (_made_up.HEIGHT, _made_up.WIDTH), dict.fromkeys(("paste", "entries"), 0.0)
    for image_id, predictions in _made_up.predictions(truth):
        begin = time.perf_counter()
        found = to_detections(predictions, _made_up.RESIZED, size, config)
        pasted = time.perf_counter()
        results += found.to_coco(image_id, _made_up.INFO)
        seconds["paste"] += pasted - begin
        seconds["entries"] += time.perf_counter() - pasted
    return truth, results, seconds


def evaluate(images: int, with_pycocotools: bool) -> dict[str, Any]:
    """Measures every stage from predictions to metrics."""
    truth, results, seconds = detect(images)
    metrics, before = {}, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind in ("bbox", "segm"):
        begin = time.perf_counter()
        metrics |= evaluate_coco(truth, results, [kind], per_class=True)
        seconds[kind] = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        write_json(Path(folder) / "results.json", results, indent=None)
        write = time.perf_counter() - begin
    measured = {
        "seconds": seconds | {"total": sum(seconds.values())}, "write_results_seconds": write,
        "megabytes_before_metrics": before / 1e3, "peak_megabytes": peak / 1e3, "metrics": metrics,
    }  # fmt: skip
    if with_pycocotools:
        measured["pycocotools"] = {kind: _pycocotools(truth, results, kind) for kind in metrics}
    return measured


def report(images: int) -> dict[str, Any]:
    """Measures metrics, analysis and figures of a report, from results on."""
    from mrcnn_jax.evaluation.analysis.analyze import analyze
    from mrcnn_jax.evaluation.report.sections import draw_figures

    truth, results, _ = detect(images)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, analyses = {}, {}
    for kind in ("bbox", "segm"):
        begin = time.perf_counter()
        evaluate_coco(truth, results, [kind], inspect=lambda name, one: analyses.update({name: analyze(one)}))
        seconds[kind] = time.perf_counter() - begin
    begin = time.perf_counter()
    for analysis in analyses.values():
        draw_figures(analysis)
    seconds["figures"] = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": seconds | {"total": sum(seconds.values())},
        "megabytes_before_metrics": before / 1e3, "peak_megabytes": peak / 1e3,
    }  # fmt: skip


def _pycocotools(truth: dict, results: list[dict], kind: str) -> float:
    """Measures pycocotools alone, in seconds, on copies of its own."""
    field = {"bbox": "bbox", "segm": "segmentation"}[kind]
    found = [{key: one[key] for key in ("image_id", "category_id", "score", field)} for one in results]
    truth = copy.deepcopy(truth)
    begin = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        indexed = COCO()
        indexed.dataset = truth
        indexed.createIndex()
        evaluator = COCOeval(indexed, indexed.loadRes(found), kind)
        evaluator.evaluate()
        evaluator.accumulate()
    return time.perf_counter() - begin


if __name__ == "__main__":
    stage, number, *further = sys.argv[1:]
    stages = {"paste": paste, "report": report, "evaluate": partial(evaluate, with_pycocotools=bool(further))}
    print(json.dumps(stages[stage](int(number))))
