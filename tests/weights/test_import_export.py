"""Imports write a directory with experiment, classes and origin, or refuse a file and write nothing."""

import json
from dataclasses import replace
from functools import cache
from unittest.mock import Mock

import numpy as np
import pytest
import tiny
from library_models import variable_shapes

import mrcnn_jax
from mrcnn_jax import paths
from mrcnn_jax.checkpoint import CheckpointStore, CheckpointWriteError
from mrcnn_jax.config import BackboneConfig, BoxHeadConfig, KeypointHeadConfig, ModelConfig, read_experiment
from mrcnn_jax.data import coco_classes
from mrcnn_jax.errors import InputError
from mrcnn_jax.weights import detectron2, import_export
from mrcnn_jax.weights.import_export import identify_model, import_weights, save_imported
from mrcnn_jax.weights.param_map import to_jax, to_source
from mrcnn_jax.weights.readers import write_tensors

SCORES = "roi_heads.box_predictor.cls_score.weight"


@cache
def tensors(classes: int = 3, keypoints: int = 0) -> dict[str, np.ndarray]:
    """Returns random tensors of a narrow detector under Detectron2's names."""
    model = ModelConfig(
        num_classes=classes,
        tasks=("boxes", *(["keypoints"] if keypoints else [])),
        backbone=BackboneConfig(name="resnet18", width=8, pyramid_channels=16),
        box=BoxHeadConfig(channels=16),
        keypoint=KeypointHeadConfig(num_keypoints=keypoints, layers=1, channels=8),
    )
    return to_source(tiny.jittered(variable_shapes(model)), detectron2.make_param_map(model))


@pytest.fixture
def source():
    return identify_model("detectron2", dict(tensors()), "some/file.pkl")


def read_checkpoint(out):
    """Returns the experiment, classes and state of a checkpoint."""
    with CheckpointStore(out / "checkpoints", read_only=True) as checkpoints:
        saved = checkpoints.restore_latest()
    template = dict(variable_shapes(saved.experiment.model))
    state = {"params": template.pop("params"), "model_state": template}
    return saved.experiment, saved.info, saved.restore_state(state)


def test_import_weights_writes_experiment_checkpoint_and_origin(tmp_path):
    file, out = tmp_path / "weights.npz", tmp_path / "deeper" / "out"
    write_tensors(file, tensors())
    config = tmp_path / "config.yaml"
    config.write_text("MODEL: {ROI_HEADS: {SCORE_THRESH_TEST: 0.25}}\n")
    classes = ("ant", "bee", "cow")

    def change(experiment):
        assert experiment.model.box.score_threshold == 0.25
        return replace(experiment, name="mine")

    assert import_weights(file, out, source="detectron2", config=config, classes=classes, change=change) == []
    experiment, info, state = read_checkpoint(out)
    assert experiment == read_experiment(out / "experiment.json") and experiment.name == "mine"
    assert info == coco_classes.unknown(3)._replace(category_names=classes)
    expected = to_jax(tensors(), detectron2.make_param_map(experiment.model))
    tiny.assert_same(state, {"params": expected["params"], "model_state": {"frozen": expected["frozen"]}})
    record = {"file": "weights.npz", "tensors": len(tensors()), "missing": []}  # nothing is assumed
    assert json.loads((out / "import.json").read_text()) == record
    assert {path.name for path in out.iterdir()} == {"checkpoints", "experiment.json", "import.json"}


def test_partial_imports_record_what_is_missing(tmp_path):
    some = {
        name: tensor for name, tensor in tensors().items() if not name.startswith("roi_heads.box_predictor")
    }
    missing = [name for name in tensors() if name not in some]
    source = identify_model("detectron2", some | {SCORES: tensors()[SCORES]}, "some/part.pkl")
    source.tensors.pop(SCORES)  # it only told the number of classes
    message = rf"tensors of some/part\.pkl do not fit .*: 4 missing: {', '.join(missing)}; --partial would"
    with pytest.raises(InputError, match=message):
        save_imported(source, source.experiment, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert save_imported(source, source.experiment, tmp_path / "out", partial=True) == missing
    record = json.loads((tmp_path / "out" / "import.json").read_text())
    assert record.pop("note").startswith("assumed, as the file does not specify: anchors of 32 64 128 256 ")
    assert record == {"file": "part.pkl", "tensors": len(some), "missing": missing}
    with pytest.raises(InputError, match="4 arrays differ, the first is params.box.classes.bias"):
        read_checkpoint(tmp_path / "out")


@pytest.mark.parametrize("classes, keypoints", [(80, 0), (90, 0), (1, 17), (2, 5)])
def test_classes_and_keypoints_are_named_as_in_coco(tmp_path, monkeypatch, classes, keypoints):
    store = Mock()
    store.__enter__, store.__exit__ = Mock(return_value=store), Mock(return_value=None)
    monkeypatch.setattr(import_export, "CheckpointStore", lambda directory: store)
    source = identify_model("detectron2", tensors(classes, keypoints), "file")
    assert save_imported(source, source.experiment, tmp_path) == []
    *_, info = store.save.call_args.args
    if keypoints == 5:
        assert info.category_names == ("class 1", "class 2") and info.keypoint_classes == (0, 1)
        assert info.keypoint_names == tuple(f"keypoint {number}" for number in range(1, 6))
        assert info.keypoint_flip == (0, 1, 2, 3, 4)
    else:
        known = {80: coco_classes.COCO, 90: coco_classes.COCO_WITH_GAPS, 1: coco_classes.COCO_PERSON}
        assert info == known[classes]


@pytest.mark.parametrize(
    "name, held",
    [
        ("checkpoints", "checkpoints"),
        ("model.safetensors", "a shared or exported model"),
        ("export.json", "a shared or exported model"),
    ],
)
def test_directories_with_a_model_are_refused(tmp_path, source, name, held):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"already holds {held}: choose another directory$"):
        save_imported(source, source.experiment, tmp_path)
    assert list(tmp_path.rglob("*")) == [tmp_path / name]


def test_a_failed_import_can_be_repeated(tmp_path, source, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", Mock(side_effect=CheckpointWriteError("the disk is full")))
        with pytest.raises(CheckpointWriteError):
            save_imported(source, source.experiment, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"experiment.json", "import.json"}
    (tmp_path / ".checkpoints.part/0").mkdir(parents=True)  # of a process that was killed
    (tmp_path / "unused.npz").touch()  # of another file
    assert save_imported(source, source.experiment, tmp_path) == []
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0"]
    assert read_checkpoint(tmp_path)[0] == source.experiment and len(list(tmp_path.iterdir())) == 3


def test_weights_of_a_run_in_a_bucket_are_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(import_export, "require_weights", lambda directory: directory)
    monkeypatch.setattr(paths, "_require_package", lambda bucket: None)
    loaded = Mock(side_effect=InputError("loaded"))
    monkeypatch.setattr(import_export, "load", loaded)
    with pytest.raises(InputError, match="^loaded$"):
        import_export.export_weights("safetensors", "gs://bucket/run", tmp_path / "out.safetensors")
    loaded.assert_called_once_with("gs://bucket/run")


@pytest.mark.parametrize(
    "change, classes, reason",
    [
        (lambda tensors: tensors.pop(SCORES), (), rf"1 missing: {SCORES}"),
        (lambda tensors: tensors.update(extra=np.zeros(3)), (), "1 unexpected: extra"),
        (
            lambda tensors: tensors.update({SCORES: np.zeros((9, 16))}),
            (),
            rf"1 of the wrong shape: {SCORES} \[9, 16\] instead of \[4, 16\]",
        ),
        (lambda tensors: None, ("ant", "bee"), "2 names of classes are given, but the model has 3 classes"),
        (lambda tensors: None, "ant", "names of the classes must be a sequence of texts, not 'ant'$"),
        (lambda tensors: None, (1, 2, 3), r"the classes must be a sequence of texts, not \(1, 2, 3\)$"),
    ],
)
def test_nothing_is_written_if_something_does_not_fit(tmp_path, source, change, classes, reason):
    change(source.tensors)
    with pytest.raises(InputError, match=reason):
        save_imported(source, source.experiment, tmp_path / "out", classes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "source, config, reason",
    [
        ("keras", None, "the source of weights must be one of torchvision, detectron2, not 'keras'"),
        (
            "torchvision",
            "config.yaml",
            "weights.npz has the names of detectron2, not of torchvision: leave the library out",
        ),
        ("detectron2", "config.yaml", "cannot read config.yaml: No such file"),
    ],
)
def test_unknown_sources_and_configurations_are_refused(tmp_path, monkeypatch, source, config, reason):
    monkeypatch.chdir(tmp_path)
    write_tensors("weights.npz", tensors())
    with pytest.raises(InputError, match=reason):
        import_weights("weights.npz", "out", source=source, config=config)
    assert not (tmp_path / "out").exists()


def test_an_empty_name_is_not_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for function in (import_weights, mrcnn_jax.export):
        with pytest.raises(InputError, match="^the output has an empty name"):
            function("weights.npz", "")
    assert list(tmp_path.iterdir()) == []


def test_backbones_alone_take_no_configuration(tmp_path):
    stem = {"stem.conv1.weight": np.zeros((8, 3, 7, 7), np.float32)}
    with pytest.raises(
        InputError, match="file holds a backbone alone, but .*config.yaml configures a detector"
    ):
        identify_model("detectron2", stem, "file", tmp_path / "config.yaml")
