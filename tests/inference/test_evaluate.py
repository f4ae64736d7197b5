"""Evaluation over a data set: the same detections one by one and in batches, metrics, files and pictures."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
from noise_images import CONFIG, MIXED
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import mrcnn_jax
from mrcnn_jax.data import shapes
from mrcnn_jax.data.image_io import read_image
from mrcnn_jax.data.transforms import decode_record
from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.coco import evaluate_coco
from mrcnn_jax.inference.detector import Detector
from mrcnn_jax.inference.evaluate import detect_split, evaluate, evaluate_split, evaluation_order

# pycocotools 2.0.11 asks NumPy 2 for a copy in a deprecated way when it decodes a mask
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_detections_equal_those_of_single_images(detector, validation):
    advanced, ids = [], [record.image_id for record in validation]
    results, examples = detect_split(
        detector, validation, keep=ids[::3], progress=lambda done, total: advanced.append((done, total))
    )
    assert advanced[-1] == (10, 10) and advanced == sorted(advanced)
    assert results and sorted(examples) == sorted(ids[::3])
    for record in validation:
        found = detector(decode_record(record))
        single = found.to_coco(record.image_id, detector.info)
        batched = [entry for entry in results if entry["image_id"] == record.image_id]
        assert len(single) == len(batched) > 0
        for one, other in zip(single, batched, strict=True):
            assert one["category_id"] == other["category_id"]
            np.testing.assert_allclose(one["bbox"], other["bbox"], atol=0.02)
            assert one["score"] == pytest.approx(other["score"], abs=1e-4)
            sizes = [entry["segmentation"]["size"] for entry in (one, other)]
            assert sizes == [[record.height, record.width]] * 2
            areas = [int(coco_mask.area(entry["segmentation"])) for entry in (one, other)]
            overlap = coco_mask.iou([one["segmentation"]], [other["segmentation"]], [0])[0, 0]
            assert overlap > 0.98 or areas == [0, 0]
        if record.image_id in examples:  # detections that are kept are those of the results
            assert examples[record.image_id].to_coco(record.image_id, detector.info) == batched


def test_order_has_every_image_once_grouped_by_padded_size():
    landscape, portrait = [0, 2, 3, 4, 6, 7, 9, 10, 11, 13], [1, 5, 8, 12]
    assert evaluation_order(MIXED.sizes, CONFIG) == landscape + portrait


def test_unreadable_image_ends_an_evaluation_by_its_name(detector, validation, monkeypatch):
    def decode(record):
        if record.image_id == 3:
            raise InputError("cannot read image 3")
        return decode_record(record)

    monkeypatch.setattr("mrcnn_jax.inference.evaluate.decode_record", decode)
    saved = []
    with pytest.raises(InputError, match="cannot read image 3"):
        detect_split(detector, validation, save=lambda results: saved.append(list(results)))
    assert {entry["image_id"] for entry in saved[-1]} <= {1, 2}


def test_images_are_evaluated_in_tiles(detector, validation):
    evaluation = evaluate(detector, tile=48, tile_overlap=0.4)
    images = [decode_record(record) for record in validation]
    streamed = detector.stream(images, tile=48, tile_overlap=0.4)
    single = [result.detections.to_coco(record.image_id, detector.info)
              for record, result in zip(validation, streamed, strict=True)]  # fmt: skip
    assert [entry["category_id"] for entry in evaluation.results] == [
        entry["category_id"] for entry in sum(single, [])
    ]
    for one, other in zip(evaluation.results, sum(single, []), strict=True):
        np.testing.assert_allclose(one["bbox"], other["bbox"], atol=0.02)
        assert one["segmentation"]["size"] == other["segmentation"]["size"]
    whole, _ = detect_split(detector, validation)
    assert len(evaluation.results) > len(whole)
    with pytest.raises(InputError, match="the side of tiles must be a whole number"):
        evaluate(detector, tile=-1)


def test_evaluate_repeats_the_metrics_of_training(tmp_path, tmp_path_factory):
    import tiny_run  # trains where this test runs

    run = tiny_run.trained_run(tmp_path_factory.getbasetemp())
    evaluation = mrcnn_jax.evaluate(run, out=tmp_path, pictures=2)
    names = {"metrics.json", "results.json", "predictions.png", "analysis.json", "report.html", "figures"}
    assert {path.name for path in tmp_path.iterdir()} == names
    written, trained = (json.loads((directory / "metrics.json").read_text()) for directory in (tmp_path, run))
    assert evaluation.metrics == written == trained and list(written) == ["bbox", "segm"]
    assert json.loads((tmp_path / "results.json").read_text()) == evaluation.results
    coco = COCO()
    coco.dataset = evaluation.split.ground_truth()
    coco.createIndex()
    loaded = coco.loadRes(str(tmp_path / "results.json"))
    assert set(loaded.getImgIds()) == {record.image_id for record in evaluation.split}
    assert {entry["image_id"] for entry in loaded.anns.values()} <= set(coco.getImgIds())
    assert {entry["category_id"] for entry in loaded.anns.values()} <= set(coco.getCatIds())
    drawn = read_image(tmp_path / "predictions.png")
    np.testing.assert_array_equal(drawn, read_image(run / "predictions.png"))
    np.testing.assert_array_equal(drawn, evaluation.sheet())
    (table,) = evaluation.tables()
    assert str(table.title) == "tiny-shapes/validation: 10 images"


def test_evaluate_takes_a_detector_and_writes_only_into_out(detector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluation = evaluate(detector, split="train")
    assert len(evaluation.split) == 12 and not evaluation.examples and not list(tmp_path.iterdir())
    ids = {record.image_id for record in evaluation.split}
    assert {entry["image_id"] for entry in evaluation.results} == ids
    assert "per_class" in evaluate_split(detector, evaluation.split, per_class=True).metrics["segm"]


def test_classes_are_matched_by_name_and_unknown_ones_left_out(detector, validation):
    """The detector's classes are the data set's in reverse under other ids, and one that the set lacks."""
    names = shapes.INFO.category_names
    info = shapes.INFO._replace(
        category_ids=tuple(range(50, 50 + len(names))), category_names=(*names[:0:-1], "unicorn")
    )
    other = Detector(detector.experiment, info, detector.variables)
    results, examples = detect_split(other, validation, keep={1})
    expected, _ = detect_split(detector, validation)
    ids = dict(zip(shapes.INFO.category_ids, (*shapes.INFO.category_ids[:0:-1], None), strict=True))
    renamed = [entry | {"category_id": ids[entry["category_id"]]} for entry in expected]
    assert results == [entry for entry in renamed if entry["category_id"] is not None] != renamed
    assert all(info.category_names[class_id] != "unicorn" for class_id in examples[1].class_ids)


def test_proposals_of_an_rpn_alone_are_evaluated(validation, tmp_path):
    model = replace(tiny.model_config(num_classes=len(shapes.KINDS)), tasks=())
    experiment = tiny.experiment(model, {"dataset": str(validation.directory)})
    detector = Detector(experiment, validation.info, tiny.variables(model))
    evaluation = evaluate(detector, out=tmp_path, pictures=1)
    assert list(evaluation.metrics) == ["proposals"]
    expected = evaluate_coco(validation.ground_truth(), evaluation.results, ["proposals"])
    assert evaluation.metrics == expected and (tmp_path / "predictions.png").exists()
    (found,) = evaluation.examples.values()
    assert len(found) > 1 and found.masks is None
    assert {detection.class_name for detection in found} == {"object"}


def test_unknown_splits_and_classes_are_refused(detector, validation, tmp_path):
    with pytest.raises(InputError, match="has no split 'test'"):
        evaluate(detector, split="test", out=tmp_path)
    others = tuple(f"other {name}" for name in shapes.INFO.category_names)
    other = Detector(detector.experiment, shapes.INFO._replace(category_names=others), detector.variables)
    with pytest.raises(InputError, match="few-shapes and the detector have no class in common: the set has "):
        evaluate(other, out=tmp_path)
    with pytest.raises(InputError, match="holds no checkpoints"):
        evaluate(tmp_path)
    assert not list(tmp_path.iterdir())
