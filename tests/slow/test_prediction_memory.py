"""Memory of a prediction in a large photo: far less than its objects would take as full-size masks."""

import json
import subprocess
import sys

from paths import REPOSITORY

CODE = """
import json, sys
sys.path[:0] = sys.argv[1:]
from dataclasses import replace
import tiny
from benchmarks.model.predict import measure_memory
from mrcnn_jax.inference.detector import Detector
from mrcnn_jax.structures import DatasetInfo

model = tiny.model_config()
rpn, box = replace(model.rpn, post_nms_test=200, pre_nms_test=200), replace(
    model.box, score_threshold=0.0, nms_iou=0.9, max_candidates=400, max_detections=100)
experiment = tiny.experiment(replace(model, rpn=rpn, box=box))
info = DatasetInfo("tiny", (1, 2, 3), ("a", "b", "c"))
detector = Detector(experiment, info, tiny.variables(experiment.model))
detector.warm_up()
print(json.dumps(measure_memory(detector, [(6000, 8000)])))
"""


def test_a_large_photo_takes_little_memory(test_data):
    folders = [str(REPOSITORY), str(REPOSITORY / "tests/helpers")]
    command = [sys.executable, "-c", CODE, *folders]
    measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert measured["detections"] == 100 and measured["megabytes"] < 1500
    assert measured["largest_picture_bytes"] <= 3_000_000
