"""The benchmark of the evaluation runs, and its made-up sets are like COCO's."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evaluation import _made_up, measure


@pytest.mark.slow
def test_small_benchmark(tmp_path, monkeypatch):
    stages = []
    original = measure.run_stage

    def run_stage(checkout, *words):
        stages.append(words[0])
        if words[0] == "paste":  # it is as large as it is
            return {}
        return original(checkout, *words)

    monkeypatch.setattr(measure, "run_stage", run_stage)
    out = tmp_path / "evaluation.json"
    here = Path(measure.__file__).parents[2]
    options = measure.Options(images=3, compared_images=2, rounds=1, against=here, out=out)
    assert measure.run(options) == [out]
    result = json.loads(out.read_text())
    assert stages == ["evaluate", "report", "paste", "paste", "evaluate", "evaluate"]
    assert result["this"]["seconds"]["total"] > 0 and result["this"]["metrics"]["segm"]["AP"] > 0
    assert result["report"]["seconds"].keys() == {"bbox", "segm", "figures", "total"}
    assert result["compared"]["this"]["pycocotools"]["segm"] > 0


def test_made_up_sets_are_like_coco():
    truth = _made_up.ground_truth(200)
    assert 6 < len(truth["annotations"]) / 200 < 9
    boxes = _made_up.random_boxes(np.random.default_rng(0), 2000)
    small = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) < 32**2
    assert 0.3 < small.mean() < 0.5
    ids, predictions = zip(*_made_up.predictions(truth), strict=True)
    assert ids == tuple(range(1, 201)) and all(each.valid.sum() == 100 for each in predictions)
