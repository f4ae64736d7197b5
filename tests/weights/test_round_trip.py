"""The command line imports weights of another library, detects, evaluates and exports, with a tiny model."""

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
from tiny_torchvision import CLASSES, FIELDS, MODEL, mrcnn

from mrcnn_jax.config import TORCHVISION, Experiment, read_experiment
from mrcnn_jax.data import coco_classes, shapes
from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.data.image_io import read_image
from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.coco import evaluate_coco
from mrcnn_jax.inference.detector import Detector, load
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.weights import import_export
from mrcnn_jax.weights.readers import read_tensors, write_tensors


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_import_reports_the_model_and_its_conventions(imported, tensors):
    directory, printed = imported
    size = sum(tensor.size for tensor in tensors.values()) / 1e6
    centres = "0 cells from the corners of their cells, strides of the grid"
    parts = f"{len(tensors)} tensors, {size:.1f} M parameters; 5 classes; boxes, masks.\n"
    assert f"tv.safetensors is maskrcnn_resnet18_fpn: {parts}" in printed
    for line in (
        "pixels: rgb, mean 123.675 116.28 103.53, std 58.395 57.12 57.375",
        "backbone: frozen norm with epsilon 0",
        "images: shorter edge 64, longer at most 96; bilinear resizing, sizes rounded down, "
        "padded to multiples of 32",
        f"anchors: 8 16 32 64 128 pixels, height / width 0.5 1 2, rounded to whole pixels; {centres}",
        "RoIs: boxes 7x7 align, 2 samples per bin and axis; masks 14x14 align, 2 samples per bin and axis",
        "boxes: delta weights 10 10 5 5; scores above 0, NMS at 0.5, at most 40",
        "masks: pasted into whole pixels",
        f"mrcnn predict {directory} photo.jpg",
        f"mrcnn train {directory} --data.dataset data/mine --directory runs/mine",
    ):
        assert f"  {line}\n" in printed
    assert "Missing" not in printed


def test_given_fields_replace_inferred_ones(imported):
    experiment = read_experiment(imported[0] / "experiment.json")
    model = experiment.model
    assert (
        model.backbone == dataclasses.replace(MODEL.backbone, pyramid_channels=16) and model.num_classes == 5
    )
    assert (model.box.score_threshold, model.box.min_size) == (0, 1e-2)
    assert model.conventions == TORCHVISION
    assert (experiment.data.short_edge_test, experiment.data.padding_divisor) == (64, 32)
    assert load(imported[0]).class_names == CLASSES


def test_predict_equals_a_detector_of_the_same_variables(imported, tmp_path):
    image = np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "photo.png"), image[..., ::-1])
    status, _ = mrcnn("predict", imported[0], tmp_path / "photo.png", "--out", tmp_path / "out")
    assert status == 0
    info = coco_classes.unknown(5)._replace(category_names=CLASSES)
    detector = Detector(read_experiment(imported[0] / "experiment.json"), info, tiny.variables(MODEL))
    expected = detector(image)
    assert len(set(expected.class_ids)) > 1
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == expected.to_coco(1, info)


IMPORT = ("torchvision", "{file}", "--out", "new")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("detectron1", "{file}", "--out", "new"), "there is no library 'detectron1': it must be one of"),
        (("torchvision", "{file}"), "--out"),
        (("torchvision", "none.npz", "--out", "new"), "there is no file none.npz"),
        (
            (*IMPORT, "--config", "c.yaml"),
            "a configuration file is read for detectron2 only, not for torchvision",
        ),
        (("torchvision", "{file}", "--out", "{imported}", *FIELDS), "{imported} already holds checkpoints"),
        (
            (*IMPORT, "--classes", "a", "b", *FIELDS),
            "2 names of classes are given, but the model has 5 classes",
        ),
        ((*IMPORT, "--model.box.score-treshold", "0"), "--model.box.score-treshold"),
        ((*IMPORT, "--model.box.score-threshold", "high"), "must be a number, not 'high'"),
        ((*IMPORT, "--model.box.score-threshold", "2"), "box.score_threshold "),
        (IMPORT, "wrong shape: backbone.fpn.inner_blocks.0.0.weight [16, 8, 1, 1] instead of [256, 8, 1, 1]"),
    ],
)
def test_imports_that_cannot_work_are_refused(imported, file, tmp_path, arguments, message):
    places = {"file": file, "imported": imported[0]}
    status, printed = mrcnn("import-weights", *(str(argument).format(**places) for argument in arguments))
    assert status == 2 and message.format(**places) in printed and list(tmp_path.iterdir()) == []


def test_everything_that_does_not_fit_is_listed(tensors, tmp_path):
    logits = "roi_heads.mask_predictor.mask_fcn_logits"
    changed = {name: tensor for name, tensor in tensors.items() if not name.startswith(logits)}
    changed |= {
        "roi_heads.extra": np.zeros(2, np.float32),
        "rpn.head.cls_logits.bias": np.zeros(9, np.float32),
    }
    write_tensors("odd.npz", changed)
    status, printed = mrcnn("import-weights", "torchvision", "odd.npz", "--out", "odd", *FIELDS)
    assert status == 2 and printed == (
        "mrcnn: the tensors of odd.npz do not fit the model that they seem to be: "
        f"2 missing: {logits}.weight, {logits}.bias; 1 unexpected: roi_heads.extra; "
        "1 of the wrong shape: rpn.head.cls_logits.bias [9] instead of [3]; "
        "--partial would initialise the missing ones randomly; its RPN has 9 anchors per cell, not 3: give "
        "--model.rpn.aspect-ratios (9 of them where a feature level has one size)"
    )
    assert not Path("odd").exists()


def test_partial_imports_are_reported_and_cannot_detect(tensors, tmp_path):
    logits = "roi_heads.mask_predictor.mask_fcn_logits"
    some = {name: tensor for name, tensor in tensors.items() if not name.startswith(logits)}
    write_tensors("part.npz", some)
    status, printed = mrcnn(
        "import-weights", "torchvision", "part.npz", "--out", "part", "--partial", *FIELDS
    )
    assert status == 0 and f"Missing, 2 tensors: {logits}.weight, {logits}.bias " in printed
    assert "mrcnn train" in printed and "mrcnn predict" not in printed
    message = "a part of a model only, .* 2 arrays are missing, the first is params/mask/logits/bias$"
    with pytest.raises(InputError, match=message):
        load("part")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_export_restores_the_imported_file(imported, tensors, tmp_path, suffix):
    target = tmp_path / f"again{suffix}"
    status, printed = mrcnn("export-weights", "torchvision", imported[0], target)
    assert status == 0 and f"The weights are in {target}. In torchvision: model = " in printed
    restored = read_tensors(target)
    assert restored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert restored[name].dtype == tensor.dtype and restored[name].shape == tensor.shape, name
        assert restored[name].tobytes() == tensor.tobytes(), name
    assert "model.box.score_threshold: 0.0 here, 0.05 there" in printed


def test_export_writes_new_files_only(imported, tmp_path):
    (tmp_path / "mine.npz").write_text("mine")
    for name, fault in {"mine.npz": "exists already: name a new", "mine.onnx": "suffix of weights"}.items():
        with pytest.raises(InputError, match=fault):
            import_export.export_weights("torchvision", imported[0], tmp_path / name)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("mine.npz", "mine")]


def test_export_names_only_differences_that_loading_does_not_set(file, tmp_path):
    epsilon = ("--model.backbone.norm-epsilon", "1e-5")
    assert mrcnn("import-weights", "torchvision", file, "--out", "tv", *FIELDS, *epsilon)[0] == 0
    _, printed = mrcnn("export-weights", "torchvision", "tv", "again.npz")
    assert "FrozenBatchNorm2d(channels, eps=1e-05)" in printed and "norm_epsilon" not in printed
    assert "model.box.max_detections: 40 here, 100 there" in printed and "conventions" not in printed


def test_export_prints_the_code_for_the_model_of_the_checkpoint(imported, tmp_path):
    shutil.copytree(imported[0], "edited")
    text = Path("edited/experiment.json").read_text()
    Path("edited/experiment.json").write_text(text.replace('"num_classes": 5', '"num_classes": 9'))
    assert read_experiment("edited/experiment.json").model.num_classes == 9
    status, printed = mrcnn("export-weights", "torchvision", "edited", "again.npz")
    assert status == 0 and f"num_classes={1 + len(CLASSES)})" in printed


def test_export_refuses_what_torchvision_does_not_have(tmp_path, monkeypatch):
    backbone = dataclasses.replace(MODEL.backbone, norm="group", norm_epsilon=1e-5)
    model = dataclasses.replace(MODEL, backbone=backbone)
    detector = Detector(Experiment(model=model), coco_classes.unknown(5), {})
    monkeypatch.setattr(import_export, "require_weights", lambda directory: directory)
    monkeypatch.setattr(import_export, "load", lambda directory: detector)
    reason = "torchvision has no model like that of runs/mine: a norm is group; the target safetensors takes"
    with pytest.raises(InputError, match=reason):
        import_export.export_weights("torchvision", "runs/mine", tmp_path / "mine.npz")


def test_evaluate_ignores_classes_that_the_data_set_lacks(imported, dataset, tmp_path):
    """Three of the detector's five classes are evaluated."""
    info = DatasetInfo("few", (2, 3, 5), ("bee", "cow", "eel"))
    few = []
    for record in open_dataset(dataset, "validation"):
        objects = record.objects
        objects = objects._replace(classes=objects.classes % 3, keypoints=objects.keypoints[:, :0])
        few.append(record._replace(objects=objects))
    write_dataset(tmp_path / "few", info, {"validation": few})
    arguments = ("--dataset", tmp_path / "few", "--out", tmp_path / "out", "--pictures", 2)
    assert mrcnn("evaluate", imported[0], *arguments)[0] == 0
    detector, found = load(imported[0]), []
    for record in few:
        image = cv2.imdecode(np.frombuffer(record.image, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        found += detector(np.ascontiguousarray(image)).to_coco(record.image_id, detector.info)
    counted = [entry for entry in found if entry["category_id"] in info.category_ids]
    assert 0 < len(counted) < len(found)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert sorted_pairs(results) == sorted_pairs(counted)
    truth = open_dataset(tmp_path / "few", "validation").ground_truth()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == evaluate_coco(truth, results)
    assert read_image(tmp_path / "out" / "predictions.png").std() > 10


def sorted_pairs(results):
    in_order = sorted(results, key=lambda entry: entry["image_id"])
    return [(entry["image_id"], entry["category_id"]) for entry in in_order]


def test_evaluate_names_classes_that_the_detector_lacks(imported, dataset, tmp_path):
    _, printed = mrcnn("evaluate", imported[0], "--dataset", dataset, "--out", tmp_path / "out")
    message = f"wide-shapes and {imported[0]} have no class in common"
    assert message in printed and shapes.INFO.category_names[0] in printed
    assert not (tmp_path / "out").exists()
