"""The command line imports weights of another library, detects, fine-tunes and exports, with a tiny model."""

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
import tiny_run
from cli_inputs import call_cli

from mrcnn_jax import presets
from mrcnn_jax.config import (
    TORCHVISION,
    Experiment,
    KeypointHeadConfig,
    ModelConfig,
    read_experiment,
    to_dict,
)
from mrcnn_jax.data import coco_classes, shapes
from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.data.image_io import read_image
from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.coco import evaluate_coco
from mrcnn_jax.evaluation.results import coco_results
from mrcnn_jax.inference.detector import Detector, load, read_weights
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.training import start
from mrcnn_jax.training.loop import train
from mrcnn_jax.weights import import_export, torchvision
from mrcnn_jax.weights.param_map import collect_unused_rows, to_source
from mrcnn_jax.weights.readers import read_tensors, write_tensors

CLASSES = ("ant", "bee", "cow", "dog", "eel")
BACKBONE = {"norm": "frozen", "norm_epsilon": 0.0, "freeze_stages": 2, "stride_in_1x1": False}
MODEL = tiny.model_config(len(CLASSES), **BACKBONE)
FIELDS = (
    "--model.backbone.pyramid-channels", 16, "--model.rpn.anchor-sizes", 8, 16, 32, 64, 128,
    "--model.rpn.pre-nms-test", 16, "--model.rpn.post-nms-test", 16,
    "--model.rpn.pre-nms-train", 16, "--model.rpn.post-nms-train", 24,
    "--model.rpn.samples-per-image", 32, "--model.roi.samples-per-image", 12,
    "--model.box.channels", 32, "--model.box.max-candidates", 80, "--model.box.max-detections", 40,
    "--model.box.score-threshold", 0, "--model.mask.channels", 16,
    "--data.short-edge", 64, "--data.short-edge-test", 64, "--data.long-edge", 96,
    "--data.max-objects", tiny.SLOTS, "--data.mask-size", tiny.MASK, "--data.threads", 2,
)  # fmt: skip
"""Channels of this model, which its file does not tell, and a small number of everything."""
SETTINGS = (
    "--train.images-per-device", 1, "--train.reference-batch", 8, "--train.warmup-steps", 0,
    "--train.decay-steps", "--train.log-every", 1,
)  # fmt: skip
CLASS_LAYERS = ("box/classes", "box/deltas", "mask/logits")


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def mrcnn(*arguments) -> tuple[int, str]:
    """Calls the command line; returns its exit status and all that it prints, on one line."""
    status, printed = call_cli(*arguments)
    return status, " ".join(printed.replace("│", " ").split())


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    """Returns a state dict of torchvision, with random rows of the background class."""
    param_map, variables = torchvision.make_param_map(MODEL), tiny.variables(MODEL)
    rows = collect_unused_rows(to_source(variables, param_map), param_map)
    rng = np.random.default_rng(0)
    return to_source(
        variables, param_map, {name: rng.standard_normal(row.shape, np.float32) for name, row in rows.items()}
    )


@pytest.fixture(scope="module")
def file(base, tensors) -> Path:
    write_tensors(base / "tv.safetensors", tensors)
    return base / "tv.safetensors"


@pytest.fixture(scope="module")
def imported(base, file) -> tuple[Path, str]:
    """The directory of imported weights, and what the import printed."""
    out = base / "tv"
    status, printed = call_cli(
        "import-weights", "torchvision", file, "--out", out, "--classes", *CLASSES, *FIELDS
    )
    assert status == 0
    return out, printed


@pytest.fixture(scope="module")
def backbone(base, tensors) -> Path:
    """The directory of a backbone alone."""
    prefix, out = torchvision.BACKBONE_PREFIX, base / "r18"
    weights = {
        name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)
    }
    write_tensors(base / "r18.npz", weights)
    status, printed = call_cli("import-weights", "torchvision", base / "r18.npz", "--out", out)
    assert status == 0
    number = len(torchvision.make_param_map(ModelConfig(tasks=(), backbone=MODEL.backbone)))
    assert f"r18.npz is resnet18: {number} tensors, 0.2 M parameters; a backbone alone.\n" in printed
    assert "backbone: frozen norm with epsilon 1e-05\n" in printed
    assert "anchors" not in printed and "predict" not in printed
    assert f"mrcnn train EXPERIMENT --train.init-from {out}\n" in printed
    return out


def initial_variables(monkeypatch, experiment: Experiment, directory: Path, console):
    """Returns the variables that training would start with."""

    class Started(Exception):
        pass

    def make_train_step(*_, **__):
        def step(state, batch):
            raise Started(state)

        return step

    monkeypatch.setattr(start, "make_train_step", make_train_step)
    monkeypatch.setattr(start, "init_variables", lambda model, key: tiny.variables(model.config, seed=1))
    with pytest.raises(Started) as started:
        train(experiment, directory, console)
    (state,) = started.value.args
    return {"params": state.params, **state.model_state}


@pytest.fixture(scope="module")
def dataset(base) -> Path:
    """A data set of seven classes, with images of one size, for which one program suffices."""
    source = tiny_run.dataset(base)
    splits = {split: open_dataset(source, split) for split in ("train", "validation")}
    wide = {split: [record for record in records if record.width == 96] for split, records in splits.items()}
    write_dataset(base / "wide-shapes", splits["train"].info, wide)
    return base / "wide-shapes"


# ---- import ----


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
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == coco_results(1, expected, info)


IMPORT = ("torchvision", "{file}", "--out", "new")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("detectron1", "{file}", "--out", "new"), "invalid choice 'detectron1'"),
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
        ((*IMPORT, "--model.box.score-threshold", "high"), "could not convert string to float: 'high'"),
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
        "--partial would initialise the missing ones randomly"
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


# ---- export ----


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


def test_export_names_only_differences_that_loading_does_not_set(file, tmp_path):
    epsilon = ("--model.backbone.norm-epsilon", "1e-5")
    assert mrcnn("import-weights", "torchvision", file, "--out", "tv", *FIELDS, *epsilon)[0] == 0
    _, printed = mrcnn("export-weights", "torchvision", "tv", "again.npz")
    assert "FrozenBatchNorm2d(channels, eps=1e-05)" in printed and "norm_epsilon" not in printed
    assert "model.box.max_detections: 40 here, 100 there" in printed and "conventions" not in printed


def test_export_refuses_what_torchvision_does_not_have(tmp_path, monkeypatch):
    backbone = dataclasses.replace(MODEL.backbone, norm="group", norm_epsilon=1e-5)
    model = dataclasses.replace(MODEL, backbone=backbone)
    detector = Detector(Experiment(model=model), coco_classes.unknown(5), {})
    monkeypatch.setattr(import_export, "load", lambda directory: detector)
    with pytest.raises(InputError, match="torchvision has no model like that of runs/mine: a norm is group$"):
        import_export.export_weights("torchvision", "runs/mine", tmp_path / "mine.npz")


# ---- evaluation ----


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
        found += coco_results(record.image_id, detector(np.ascontiguousarray(image)), detector.info)
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
    first = f"{shapes.INFO.category_ids[0]} {shapes.INFO.category_names[0]}"
    message = f"wide-shapes has classes (id and name) that {imported[0]} does not know: "
    assert message in printed and first in printed
    assert not (tmp_path / "out").exists()


# ---- training ----


@pytest.fixture(scope="module")
def tuned(base, imported, dataset) -> tuple[Path, str]:
    """A run of two steps on seven classes, and what it printed; the weights it started from are deleted."""
    shutil.copytree(imported[0], base / "gone")
    options = ("--data.dataset", dataset, "--directory", base / "tuned", "--train.steps", 2, *SETTINGS)
    status, printed = call_cli("train", base / "gone", *options)
    assert status == 0, printed
    shutil.rmtree(base / "gone")
    return base / "tuned", printed


def test_train_reports_randomly_initialised_layers(tuned, base):
    directory, printed = tuned
    layers = "box/classes, box/deltas, mask/logits"
    assert f"Initialised from {base / 'gone'}. Randomly initialised: {layers}." in " ".join(printed.split())
    assert "7 classes" in printed
    assert load(directory).class_names == shapes.INFO.category_names


def test_train_changes_all_but_frozen_stages(tuned):
    before = tiny.names_and_leaves(tiny.variables(MODEL))
    after = tiny.names_and_leaves(load(tuned[0]).variables)
    for name, array in before.items():
        frozen = "'frozen'" in name or "'stem'" in name or "'res2_" in name
        if not any(layer.replace("/", "']['") in name for layer in CLASS_LAYERS):
            assert np.array_equal(array, after[name]) == frozen, name


def test_run_resumes_without_the_imported_weights(tuned, base):
    directory, _ = tuned
    assert not (base / "gone").exists()
    experiment, console = read_experiment(directory / "experiment.json"), tiny_run.recording_console()
    assert experiment.train.init_from == str(base / "gone")
    assert experiment.model.conventions == TORCHVISION
    train(
        dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, steps=3)),
        directory,
        console,
    )
    printed = console.file.getvalue()
    assert f"Resumed {directory} at step 2 of 3." in printed and "Randomly initialised" not in printed


def test_training_starts_from_the_imported_weights(imported, dataset, tmp_path, monkeypatch):
    data = tiny_run.run_experiment(dataset).data
    experiment = dataclasses.replace(presets.fine_tune(imported[0]), data=data)
    console = tiny_run.recording_console()
    started = tiny.names_and_leaves(initial_variables(monkeypatch, experiment, tmp_path / "run", console))
    before = tiny.names_and_leaves(tiny.variables(MODEL))
    assert started.keys() == before.keys()
    differing = {name for name in before if not np.array_equal(before[name], started[name])}
    layers = [layer.replace("/", "']['") for layer in CLASS_LAYERS]
    assert differing == {
        f"['params']['{layer}']['{kind}']" for layer in layers for kind in ("kernel", "bias")
    }


def test_training_starts_from_an_imported_backbone(backbone, dataset, tmp_path, monkeypatch):
    model = tiny.model_config(0, **BACKBONE | {"norm_epsilon": 1e-3, "stride_in_1x1": True})
    experiment = tiny.experiment(model, {"dataset": str(dataset)}, init_from=str(backbone))
    console = tiny_run.recording_console()
    started = initial_variables(monkeypatch, experiment, tmp_path / "run", console)
    weights = read_weights(backbone).variables
    for collection in ("params", "frozen"):
        tiny.assert_same(started[collection]["backbone"], weights[collection]["backbone"])
    assert (
        f"Initialised from {backbone}. Randomly initialised: box, fpn, mask, rpn.\n"
        in console.file.getvalue()
    )
    matched = read_experiment(tmp_path / "run" / "experiment.json").model.backbone
    assert (matched.norm_epsilon, matched.stride_in_1x1) == (1e-5, False)


def test_backbones_alone_cannot_detect_and_need_an_experiment(backbone):
    with pytest.raises(
        InputError, match="a part of a model only, such as a backbone, that training can start from"
    ):
        load(backbone)
    status, printed = mrcnn("train", backbone)
    assert status == 2 and printed.startswith(f"mrcnn: {backbone} holds a backbone without a detector: ")
    assert f"--train.init-from {backbone}" in printed


def test_other_backbones_are_refused(backbone, dataset, tmp_path):
    model = tiny.model_config(0, **BACKBONE | {"width": 16})
    experiment = tiny.experiment(model, {"dataset": str(dataset)}, init_from=str(backbone))
    with pytest.raises(InputError, match="train.init_from .*backbone.width is 8 .* 16"):
        train(experiment, tmp_path / "run", tiny_run.recording_console())


def test_imported_weights_are_not_trained_in_place(imported, dataset):
    status, printed = mrcnn("train", imported[0], "--directory", imported[0], "--data.dataset", dataset)
    advice = f"give --train.init-from {imported[0]} and another --directory"
    assert status == 2 and printed == f"mrcnn: {imported[0]} holds imported weights: {advice}"


def test_help_of_train_shows_the_settings_of_a_directory(imported):
    status, printed = mrcnn("train", imported[0], "--help")
    assert status == 0 and "(default: runs/tv_tuned)" in printed
    assert f"(default: {imported[0]})" in printed and "(default: bilinear)" in printed


def test_fine_tuning_leaves_classes_and_keypoints_to_the_data_set(tmp_path):
    head = KeypointHeadConfig(num_keypoints=5, classes=(3,))
    model = ModelConfig(num_classes=4, tasks=("boxes", "keypoints"), keypoint=head)
    (tmp_path / "experiment.json").write_text(json.dumps(to_dict(Experiment(model=model))))
    model = presets.fine_tune(tmp_path).model
    assert (model.num_classes, model.keypoint.num_keypoints) == (0, 0) and model.tasks == (
        "boxes",
        "keypoints",
    )
