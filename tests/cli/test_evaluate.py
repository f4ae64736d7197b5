"""`mrcnn evaluate`: data sets that do not fit the detector, and the official metrics of Cityscapes."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_cityscapes
from cli_inputs import table_rows, write_coco
from pycocotools import mask as coco_mask

from mrcnn_jax.config import DataConfig, EvaluationConfig, Experiment
from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.structures import DatasetInfo

# pycocotools 2.0.11 asks NumPy 2 for a copy in a deprecated way when it decodes a mask
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def use_detector(monkeypatch, experiment, info: DatasetInfo):
    """Replaces what ``evaluate`` loads by a detector without weights."""
    detector = SimpleNamespace(experiment=experiment, info=info, class_names=info.category_names)
    monkeypatch.setattr("mrcnn_jax.inference.evaluate.load", lambda *_, **__: detector)


def detect_nothing(detector, split, **options):
    """Stands in for ``evaluate_split``."""
    from mrcnn_jax.inference.evaluate import Evaluation

    return Evaluation(split, {"bbox": {"AP": 0.0}}, [], {}, 0.5)


def test_missing_data_sets_and_splits_are_rejected_and_unknown_classes_named(mrcnn, rejected, monkeypatch):
    experiment = Experiment(data=DataConfig(dataset="data/gone"))
    use_detector(monkeypatch, experiment, DatasetInfo("things", (3, 90), ("cat", "dog")))
    for arguments, name in (((), "data/gone"), (("--dataset", "none"), "none")):
        message = rejected("evaluate", "run", *arguments)
        assert message.startswith(f"{Path(name).absolute()} is not a prepared data set")
    write_coco()
    assert mrcnn("dataset", "pets")[0] == 0
    message = rejected("evaluate", "run", "--dataset", "data/pets", "--split", "test")
    assert "data/pets has no split 'test'" in message and "train" in message
    monkeypatch.setattr("mrcnn_jax.inference.evaluate.evaluate_split", detect_nothing)
    status, _, err = mrcnn("evaluate", "run", "--dataset", "data/pets", "--split", "train")
    assert status == 0 and "Warning: run does not know 'owl' of " in err


def test_tiles_and_test_time_augmentation_are_passed_on(mrcnn, monkeypatch):
    given = {}

    def evaluate(*_, **options):
        given.update(options)
        return SimpleNamespace(tables=lambda: [])

    monkeypatch.setattr("mrcnn_jax.inference.evaluate.evaluate", evaluate)
    words = ("--tile", "64", "--tile-overlap", "0.5", "--tta-scales", "400", "800", "--tta-flip", "True")
    assert mrcnn("evaluate", "run", *words)[0] == 0
    assert (given["tile"], given["tile_overlap"]) == (64, 0.5)
    assert given["settings"] == {"evaluation.tta_scales": (400, 800), "evaluation.tta_flip": True}


def test_other_keypoints_are_not_scored(mrcnn, monkeypatch):
    write_coco()
    mrcnn("dataset", "pets")
    info = open_dataset("data/pets", "train").info._replace(keypoint_names=("nose", "tail"))
    model = SimpleNamespace(tasks=("boxes", "keypoints"))
    data, evaluation = DataConfig(dataset="data/pets"), EvaluationConfig()
    use_detector(monkeypatch, SimpleNamespace(data=data, model=model, evaluation=evaluation), info)
    monkeypatch.setattr("mrcnn_jax.inference.evaluate.evaluate_split", detect_nothing)
    status, _, err = mrcnn("evaluate", "run", "--split", "train")
    assert status == 0
    assert "data/pets has 0 keypoints, but run predicts 2 others: keypoints are not scored" in err


@pytest.fixture
def trained_on_cityscapes(mrcnn, monkeypatch):
    """A prepared Cityscapes, and a detector that detects one person perfectly; ``tasks`` of the model may
    change."""
    tiny_cityscapes.write(Path("cityscapes"))
    mrcnn("dataset", "cityscapes")
    info = open_dataset("data/cityscapes", "validation").info
    person = tiny_cityscapes.instance_ids("val/munster/munster_000000_000019") == 24005
    encoded = coco_mask.encode(np.asfortranarray(person, np.uint8))
    mask = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    results = [{"image_id": 2, "category_id": 24, "score": 0.75, "bbox": [30, 20, 20, 36]}]
    results[0]["segmentation"] = mask
    model = SimpleNamespace(tasks=("boxes", "masks"))
    data = DataConfig(dataset="data/cityscapes")
    experiment = SimpleNamespace(data=data, evaluation=EvaluationConfig(), model=model)
    use_detector(monkeypatch, experiment, info)

    def evaluate_split(detector, split, **options):
        from mrcnn_jax.inference.evaluate import Evaluation

        return Evaluation(split, {"bbox": {"AP": 12.5}}, results, {}, 0.5)

    monkeypatch.setattr("mrcnn_jax.inference.evaluate.evaluate_split", evaluate_split)
    return model


def test_evaluate_adds_the_official_metrics_of_cityscapes(mrcnn, trained_on_cityscapes):
    pytest.importorskip("cityscapesscripts")
    status, out, err = mrcnn("evaluate", "run", "--cityscapes", "cityscapes", "--pictures", "0")
    assert status == 0 and "mrcnn: " not in err
    metrics = json.loads(Path("run/evaluation/metrics.json").read_text())
    assert metrics["bbox"] == {"AP": 12.5}
    # persons, but neither riders nor cars
    assert metrics["cityscapes"]["AP"] == metrics["cityscapes"]["AP50"] == pytest.approx(100 / 3)
    classes = metrics["cityscapes"]["per_class"]
    assert classes["person"] == {"AP": pytest.approx(100), "AP50": pytest.approx(100)}
    assert classes["bus"] == {"AP": None, "AP50": None}
    table = table_rows(out)
    assert table["person"] == ["100.0", "100.0"] and table["bus"] == ["-", "-"]
    assert table["all"] == ["33.3", "33.3"] and table["AP"] == ["12.5"]
    assert mrcnn("evaluate", "run", "--pictures", "0")[0] == 0
    assert list(json.loads(Path("run/evaluation/metrics.json").read_text())) == ["bbox"]


def test_needs_of_the_cityscapes_metrics_are_checked_first(rejected, trained_on_cityscapes, monkeypatch):
    monkeypatch.setattr("mrcnn_jax.inference.evaluate.evaluate_split", None)  # must not be reached
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling", None)
        assert "mrcnn_jax[cityscapes]" in rejected("evaluate", "run", "--cityscapes", "cityscapes")
    monkeypatch.setattr("mrcnn_jax.evaluation.cityscapes._official_scripts", lambda: None)
    name = "gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_instanceIds.png"
    assert f"nowhere/{name}" in rejected("evaluate", "run", "--cityscapes", "nowhere")
    trained_on_cityscapes.tasks = ("boxes",)
    assert "run predicts no masks" in rejected("evaluate", "run", "--cityscapes", "cityscapes")
