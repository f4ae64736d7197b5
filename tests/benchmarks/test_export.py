"""Exported detectors: how detections are compared, and the page on them."""

import json

import numpy as np

from benchmarks._program import RESULTS
from benchmarks.export import measure
from mrcnn_jax.detections import Detections

BOXES = np.float32([[0, 0, 4, 4], [2, 2, 9, 9], [1, 1, 5, 7]])
CLASSES = np.int32([0, 1, 0])


def found(order, moved: float = 0.0, classes=CLASSES) -> Detections:
    scores = np.float32([0.9, 0.8, 0.8])
    return Detections(BOXES[order] + np.float32(moved), scores[order], np.asarray(classes)[order])


def test_detections_that_change_places_are_the_same():
    other = measure.compare(found([0, 2, 1], 0.5**8), found([0, 1, 2]))
    assert other == {"detections": 3, "same": 3, "pixels": 0.003906, "score": 0.0}


def test_detections_that_differ_are_counted():
    assert measure.compare(found([0, 1, 2], 0.5), found([0, 1, 2]))["same"] == 0
    assert measure.compare(found([0, 1, 2], classes=[0, 0, 0]), found([0, 1, 2]))["same"] == 2


def test_the_page_has_a_row_for_each_preset_and_format():
    program = {"same": 99, "detections": 100, "pixels": 0.002, "score": 1e-5, "megabytes": {"x.onnx": 177.5}}
    seconds = {kind: {"network": 1.0, "whole": 1.25} for kind in ("live", *measure.FORMATS)}
    one = {"stablehlo": program | {"mask_pixels": 1e-6}, "onnx": program, "seconds": seconds}
    recorded = "tv_maskrcnn_resnet50_fpn"
    page = measure.make_page({
        "models": {"mine": one}, "imported": {recorded: one}, "imported_sizes": [[320, 416]],
        "imported_processor": "q",
        "command": "c", "machine": {"processor": "p", "cores": 2},
        "image": [800, 1333], "versions": {"jax": "1", "onnx": "2", "onnxruntime": "3"},
    })  # fmt: skip
    assert "| mine | stablehlo | 99 of 100 | 0.002 | 1e-05 | 1e-06 |  |" in page
    assert "| mine | 1.00 | 1.00 | 1.00 | 1.25 | 1.25 | 1.25 |" in page
    assert "| mine | onnx | x.onnx 177.5 | 178 |" in page
    assert "| tv_maskrcnn_resnet50_fpn | 0.0029 | 0.041 |" in page  # the library's own rounding


def test_the_page_is_of_the_committed_results():
    """Both formats find every detection; the guide says how closely."""
    result = json.loads((RESULTS / "export.json").read_text())
    assert (RESULTS / "EXPORT.md").read_text() == measure.make_page(result)
    for formats in (result["models"] | result["imported"]).values():
        assert all(formats[name]["same"] == formats[name]["detections"] for name in ("stablehlo", "onnx"))
        assert formats["stablehlo"]["pixels"] == 0 and round(formats["onnx"]["pixels"], 2) <= 0.01
