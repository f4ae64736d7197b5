"""Imports: what does not fit is said all at once and leaves nothing behind; what fits is written with its experiment, classes and origin."""

import json
from dataclasses import replace
from functools import cache
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import tiny

from mrcnn_jax.checkpoint import CheckpointStore
from mrcnn_jax.config import BackboneConfig, BoxHeadConfig, KeypointHeadConfig, ModelConfig, read_experiment
from mrcnn_jax.data import coco_classes
from mrcnn_jax.errors import InputError
from mrcnn_jax.models.mask_rcnn import MaskRCNN, init_variables
from mrcnn_jax.weights import detectron2
from mrcnn_jax.weights import import_export as exchange
from mrcnn_jax.weights.import_export import import_weights, recognise, save
from mrcnn_jax.weights.param_map import MATRIX, Table, check, to_ours, to_theirs, unused_rows
from mrcnn_jax.weights.readers import write_tensors

SCORES = "roi_heads.box_predictor.cls_score.weight"


@cache
def shapes(model: ModelConfig):
    return jax.eval_shape(lambda: init_variables(MaskRCNN(model), jax.random.key(0)))


@cache
def tensors(classes: int = 3, joints: int = 0) -> dict[str, np.ndarray]:
    """Random tensors of a narrow detector, with Detectron2's names."""
    model = ModelConfig(
        num_classes=classes, tasks=("boxes", *(["keypoints"] if joints else [])),
        backbone=BackboneConfig(name="resnet18", width=8, pyramid_channels=16), box=BoxHeadConfig(channels=16),
        keypoint=KeypointHeadConfig(num_keypoints=joints, layers=1, channels=8),
    )  # fmt: skip
    return to_theirs(tiny.jittered(shapes(model)), detectron2.table(model))


def written(out):
    """Experiment, classes and state of a checkpoint."""
    checkpoints = CheckpointStore(out / "checkpoints", read_only=True)
    saved = checkpoints.restore_latest()
    checkpoints.close()
    template = {name: leaf for name, leaf in shapes(saved.experiment.model).items() if name != "params"}
    return saved.experiment, saved.info, saved.restore_state({"params": shapes(saved.experiment.model)["params"], "model_state": template})


# ---- tables ----


@pytest.fixture
def table():
    names = Table()
    names.layer("scores", "box/classes", MATRIX, background_first=True)
    names.layer("deltas", "box/deltas", MATRIX, unused_rows=2)
    names.norm("norm", "box/norm", "batch")
    return names


def theirs():
    rows = {"scores": 3, "deltas": 6, "norm": 5}
    tensors = {f"{layer}.weight": np.arange(rows[layer] * 2, dtype=np.float32).reshape(-1, 2) for layer in ("scores", "deltas")}
    tensors |= {f"{layer}.bias": np.arange(rows[layer], dtype=np.float32) for layer in rows}
    return tensors | {f"norm.{name}": np.arange(5, dtype=np.float32) for name in ("weight", "running_mean", "running_var")}


def test_tensors_find_their_places_and_come_back(table):
    tensors = theirs()
    ours = to_ours(tensors, table)
    box = ours["params"]["box"]
    np.testing.assert_array_equal(box["classes"]["kernel"], [[2, 4, 0], [3, 5, 1]])
    np.testing.assert_array_equal(box["classes"]["bias"], [1, 2, 0])
    np.testing.assert_array_equal(box["deltas"]["bias"], [2, 3, 4, 5])
    assert ours["batch_stats"]["box"]["norm"].keys() == {"mean", "var"} and box["norm"].keys() == {"scale", "bias"}
    unused = unused_rows(tensors, table)
    assert {name: rows.tolist() for name, rows in unused.items()} == {"deltas.weight": [[0, 1], [2, 3]], "deltas.bias": [0, 1]}
    tiny.assert_same(to_theirs(ours, table, unused), tensors)
    np.testing.assert_array_equal(to_theirs(ours, table)["deltas.bias"], [0, 0, 2, 3, 4, 5])


def test_what_is_missing_is_left_out(table):
    tensors = {"deltas.bias": theirs()["deltas.bias"]}
    ours = to_ours(tensors, table)
    assert jax.tree.map(np.shape, ours) == {"params": {"box": {"deltas": {"bias": (4,)}}}}
    assert to_theirs(ours, table).keys() == unused_rows(tensors, table).keys() == {"deltas.bias"}


def test_everything_that_does_not_fit_is_listed(table):
    tensors = theirs()
    template = to_ours(tensors, table)
    assert check(tensors, table, template, "file.npz") == []
    del tensors["norm.running_mean"], tensors["scores.bias"]
    assert check(tensors, table, template, "file.npz", partial=True) == ["scores.bias", "norm.running_mean"]
    tensors |= {"head.weight": np.zeros(2), "deltas.weight": np.zeros((4, 2)), "deltas.bias": np.zeros((6, 1))}
    wrong = "1 not of this model: head.weight; 2 of another shape: deltas.weight [4, 2] instead of [6, 2], deltas.bias [6, 1] instead of [6]"
    with pytest.raises(InputError) as error:
        check(tensors, table, template, "file.npz")
    assert str(error.value) == (
        f"file.npz does not hold the tensors of the model that it seems to be: 2 missing: scores.bias, norm.running_mean; {wrong}; "
        "--partial would leave what is missing to chance"
    )
    with pytest.raises(InputError) as error:
        check(tensors, table, template, "file.npz", partial=True)
    assert str(error.value) == f"file.npz does not hold the tensors of the model that it seems to be: {wrong}"


# ---- imports ----


def test_a_file_becomes_a_directory(tmp_path):
    file, out = tmp_path / "weights.npz", tmp_path / "deeper" / "out"
    write_tensors(file, tensors())
    (tmp_path / "config.yaml").write_text("MODEL: {ROI_HEADS: {SCORE_THRESH_TEST: 0.25}}\n")

    def change(experiment):
        assert experiment.model.box.score_threshold == 0.25
        return replace(experiment, name="mine")

    assert import_weights("detectron2", file, out, settings=tmp_path / "config.yaml", classes=("ant", "bee", "cow"), change=change) == []
    experiment, info, state = written(out)
    assert experiment == read_experiment(out / "experiment.json") and experiment.name == "mine"
    assert info == coco_classes.unknown(3)._replace(category_names=("ant", "bee", "cow"))
    expected = to_ours(tensors(), detectron2.table(experiment.model))
    tiny.assert_same(state, {"params": expected["params"], "model_state": {"frozen": expected["frozen"]}})
    assert json.loads((out / "import.json").read_text()) == {"file": "weights.npz", "tensors": len(tensors()), "missing": []}
    assert {path.name for path in out.iterdir()} == {"checkpoints", "experiment.json", "import.json"}


def test_a_part_of_a_model(tmp_path):
    some = {name: tensor for name, tensor in tensors().items() if not name.startswith("roi_heads.box_predictor")}
    gone = [name for name in tensors() if name not in some]
    found = recognise("detectron2", some | {SCORES: tensors()[SCORES]}, "some/part.pkl")
    found.tensors.pop(SCORES)  # it told the number of classes
    with pytest.raises(InputError, match=rf"^some/part\.pkl does not hold .*: 4 missing: {', '.join(gone)}; --partial would leave"):
        save(found, found.experiment, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert save(found, found.experiment, tmp_path / "out", partial=True) == gone
    assert json.loads((tmp_path / "out" / "import.json").read_text()) == {"file": "part.pkl", "tensors": len(some), "missing": gone}
    with pytest.raises(InputError, match="4 arrays differ, the first is params.box.classes.bias"):  # a detector needs all of it
        written(tmp_path / "out")


@pytest.mark.parametrize("classes, joints", [(80, 0), (90, 0), (1, 17), (2, 5)])
def test_names_of_classes(tmp_path, monkeypatch, classes, joints):
    checkpoints = Mock()
    monkeypatch.setattr(exchange, "Checkpoints", lambda directory: checkpoints)
    found = recognise("detectron2", tensors(classes, joints), "file")
    assert save(found, found.experiment, tmp_path) == []
    *_, info = checkpoints.save.call_args.args
    if joints == 5:
        assert info.category_names == ("class 1", "class 2") and info.keypoint_classes == (0, 1)
        assert info.keypoint_names == ("keypoint 1", "keypoint 2", "keypoint 3", "keypoint 4", "keypoint 5") and info.keypoint_flip == (0, 1, 2, 3, 4)
    else:
        assert info == {80: coco_classes.COCO, 90: coco_classes.COCO_WITH_GAPS, 1: coco_classes.COCO_PERSON}[classes]


def test_a_directory_with_checkpoints_is_left_alone(tmp_path):
    found = recognise("detectron2", tensors(), "file")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match=r"holds checkpoints already: choose another directory$"):
        save(found, found.experiment, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"] and not any((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "change, classes, reason",
    [
        (lambda found: found.tensors.pop(SCORES), (), rf"1 missing: {SCORES}"),
        (lambda found: found.tensors.update(extra=np.zeros(3)), (), "1 not of this model: extra"),
        (lambda found: found.tensors.update({SCORES: np.zeros((9, 16))}), (), rf"1 of another shape: {SCORES} \[9, 16\] instead of \[4, 16\]"),
        (lambda found: None, ("ant", "bee"), "--classes gives 2 names, but the model has 3 classes"),
    ],
)
def test_nothing_is_written_where_something_does_not_fit(tmp_path, change, classes, reason):
    found = recognise("detectron2", tensors(), "file")
    change(found)
    with pytest.raises(InputError, match=reason):
        save(found, found.experiment, tmp_path / "out", classes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "source, settings, reason",
    [
        ("keras", None, "there is no source 'keras' of weights: choose from torchvision, detectron2"),
        ("torchvision", "config.yaml", "a configuration file belongs to detectron2: torchvision has none"),
        ("detectron2", "config.yaml", "cannot read config.yaml: No such file"),
    ],
)
def test_sources_that_there_are_not(tmp_path, monkeypatch, source, settings, reason):
    monkeypatch.chdir(tmp_path)
    write_tensors("weights.npz", tensors())
    with pytest.raises(InputError, match=reason):
        import_weights(source, "weights.npz", "out", settings=settings)
    assert not (tmp_path / "out").exists()
