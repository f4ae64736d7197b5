"""The benchmark of whole detectors on small images: the work is that of torchvision, and of the detector."""

import json
import os

import numpy as np
import pytest

from benchmarks.model import measure
from benchmarks.model._cases import Models
from benchmarks.model._programs import Inference
from mrcnn_jax.data import coco_classes
from mrcnn_jax.inference.detector import Detector

STAGES = (
    "resize and pad", "pyramid", "RPN head", "proposals", "RoI pooling, boxes", "box head", "detection",
    "RoI pooling, masks", "mask head", "pasting",
)  # fmt: skip


@pytest.mark.skipif(
    not os.environ.get("MRCNN_TORCHVISION_PYTHON"),
    reason="MRCNN_TORCHVISION_PYTHON does not name a Python interpreter that has torch and torchvision",
)
def test_both_libraries_do_the_same_work(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "enable_compilation_cache", lambda: None)
    small = ["--size", "64", "96", "--rounds", "1", "--out", str(tmp_path)]
    assert measure.main(small) == 0
    inference, training = json.loads((tmp_path / "model_cpu.json").read_text())["rows"]
    for row in (inference, training):
        assert set(row["seconds"]) == {"ours", "matrix product", "eager", "channels-last"}
        assert all(len(each) == 1 and each[0] > 0 for each in row["seconds"].values())
        assert row["compile_seconds"] is None or row["compile_seconds"] > 0
    assert inference["objects"] == inference["torchvision"]["eager"]["objects"] == [100]
    assert training["objects"] == [128] and training["torchvision"]["eager"]["objects"] == [64]
    for row, stages in ((inference, STAGES), (training, ("forward", "backward", "update"))):
        assert all(tuple(rounds[0]) == stages for rounds in row["stages"].values())
        assert set(row["stages"]) == {"ours", "eager"}
    assert training["flops"] > inference["flops"] > 0
    assert "share of peak" in (tmp_path / "MODEL.md").read_text()


def test_inference_is_the_detectors(monkeypatch):
    monkeypatch.delenv("MRCNN_TEST_DATA", raising=False)
    models = Models(2, (64, 96), None)
    experiment, variables = models.get("demo")
    program = Inference(experiment, variables, models.photos)
    program()
    detector = Detector(experiment, coco_classes.unknown(experiment.model.num_classes), variables)
    for image, found in zip(models.photos, program.detections, strict=True):
        expected = detector(image)
        assert len(found) == len(expected) > 0
        np.testing.assert_allclose(found.boxes, expected.boxes, rtol=1e-4, atol=1e-2)
        np.testing.assert_array_equal(found.class_ids, expected.class_ids)
