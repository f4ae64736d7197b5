"""Weights of another library by the command line: imported, detected with, scored, tuned to other classes, exported again. The model is tiny."""

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
import tiny
import tiny_run
from mrcnn_jax.weights.report import conventions, loading_in_torchvision

from mrcnn_jax.cli import main as cli
from mrcnn_jax.config import (
    BackboneConfig,
    Experiment,
    KeypointHeadConfig,
    ModelConfig,
    read_experiment,
    to_dict,
)
from mrcnn_jax.data import dataset as records
from mrcnn_jax.data import shapes
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.data.image_io import read_image
from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.coco import evaluate_coco
from mrcnn_jax.evaluation.results import coco_results
from mrcnn_jax.inference.detector import Detector, load, read_weights
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.training import loop
from mrcnn_jax.training.loop import train
from mrcnn_jax.weights import torchvision
from mrcnn_jax.weights.param_map import to_theirs, unused_rows
from mrcnn_jax.weights.readers import read_tensors, write_tensors

CLASSES = ("ant", "bee", "cow", "dog", "eel")
BACKBONE = {"norm": "frozen", "norm_epsilon": 0.0, "freeze_stages": 2, "stride_in_1x1": False}
MODEL = tiny.model_config(len(CLASSES), **BACKBONE)
FIELDS = (
    "--model.backbone.pyramid-channels", 16, "--model.rpn.anchor-sizes", 8, 16, 32, 64, 128,
    "--model.rpn.pre-nms-test", 16, "--model.rpn.post-nms-test", 16, "--model.rpn.pre-nms-train", 16, "--model.rpn.post-nms-train", 24,
    "--model.rpn.samples-per-image", 32, "--model.roi.samples-per-image", 12,
    "--model.box.channels", 32, "--model.box.candidates", 80, "--model.box.detections", 40, "--model.box.score-threshold", 0,
    "--model.mask.channels", 16,
    "--data.short-edge", 64, "--data.short-edge-test", 64, "--data.long-edge", 96, "--data.max-objects", tiny.SLOTS, "--data.mask-size", tiny.MASK,
    "--data.threads", 2,
)  # fmt: skip
"""The channels of this model, which its file does not say, and a small number of everything."""
SETTINGS = ("--train.images-per-device", 1, "--train.reference-batch", 8, "--train.warmup-steps", 0, "--train.decay-steps", "--train.log-every", 1)
CLASS_LAYERS = ("box/classes", "box/deltas", "mask/logits")


@pytest.fixture(autouse=True)
def console(monkeypatch):
    """What is printed, in ``console.file``."""
    quiet = tiny_run.recording_console()
    monkeypatch.setattr(cli, "CONSOLE", quiet)
    return quiet


@pytest.fixture
def mrcnn(console, capsys):
    """``mrcnn(*arguments)``: exit status, and all that was said on one line."""

    def call(*arguments) -> tuple[int, str]:
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = exit.code
        return status, " ".join((console.file.getvalue() + "".join(capsys.readouterr())).replace("│", " ").split())

    return call


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    """A state dict as torchvision has it, also with the rows of background that nothing depends on."""
    table = torchvision.table(MODEL)
    tensors = to_theirs(jax.tree.map(np.asarray, tiny.variables(MODEL)), table)
    rng = np.random.default_rng(0)
    return to_theirs(
        tiny.variables(MODEL), table, {name: rng.standard_normal(rows.shape, np.float32) for name, rows in unused_rows(tensors, table).items()}
    )


@pytest.fixture(scope="module")
def file(base, tensors) -> Path:
    write_tensors(base / "tv.safetensors", tensors)
    return base / "tv.safetensors"


@pytest.fixture(scope="module")
def imported(base, file) -> tuple[Path, str]:
    """The directory, and what was said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "CONSOLE", tiny_run.recording_console())
        arguments = ["import-weights", "torchvision", file, "--out", base / "tv", "--classes", *CLASSES, *FIELDS]
        assert cli.main([str(argument) for argument in arguments]) == 0
        return base / "tv", cli.CONSOLE.file.getvalue()


@pytest.fixture(scope="module")
def backbone(base, tensors) -> Path:
    """A directory of a backbone alone."""
    prefix = torchvision.BODY
    write_tensors(base / "r18.npz", {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "CONSOLE", tiny_run.recording_console())
        assert cli.main(["import-weights", "torchvision", str(base / "r18.npz"), "--out", str(base / "r18")]) == 0
        said = cli.CONSOLE.file.getvalue()
    number = len(torchvision.table(ModelConfig(tasks=(), backbone=MODEL.backbone)))
    assert f"r18.npz is resnet18: {number} tensors, 0.2 M parameters; a backbone alone.\n" in said
    assert "backbone: frozen norm with epsilon 1e-05\n" in said and "anchors" not in said and "predict" not in said
    assert f"mrcnn train EXPERIMENT --train.weights-from {base / 'r18'}\n" in said
    return base / "r18"


def given_to_the_step(monkeypatch, experiment: Experiment, directory: Path, console):
    """The variables that training would begin with."""

    class Given(Exception):
        pass

    def make_train_step(*_):
        def step(state, batch):
            raise Given(state)

        return step

    monkeypatch.setattr(loop, "make_train_step", make_train_step)
    monkeypatch.setattr(loop, "init_variables", lambda model, key: tiny.variables(model.config, seed=1))
    with pytest.raises(Given) as given:
        train(experiment, directory, console)
    (state,) = given.value.args
    return {"params": state.params, **state.model_state}


# ---- import ----


def test_it_says_what_it_recognised(imported, tensors):
    directory, said = imported
    size = sum(tensor.size for tensor in tensors.values()) / 1e6
    centres = "centred 0 cells from the corners of their cells, strides of the grid"
    assert f"tv.safetensors is maskrcnn_resnet18_fpn: {len(tensors)} tensors, {size:.1f} M parameters; 5 classes; boxes, masks.\n" in said
    for line in (
        "pixels: rgb, mean 123.675 116.28 103.53, std 58.395 57.12 57.375",
        "backbone: frozen norm with epsilon 0",
        "images: shorter edge 64, longer at most 96; bilinear resizing, sizes rounded down, padded to multiples of 32",
        f"anchors: 8 16 32 64 128 pixels, height / width 0.5 1 2, rounded to whole pixels; {centres}",
        "RoIs: boxes 7x7 align, 2 samples a bin and axis; masks 14x14 align, 2 samples a bin and axis",
        "boxes: delta weights 10 10 5 5; scores above 0, NMS at 0.5, at most 40",
        "masks: pasted over whole pixels",
        f"mrcnn predict {directory} photo.jpg",
        f"mrcnn train {directory} --data.dataset data/mine --directory runs/mine",
    ):
        assert f"  {line}\n" in said
    assert "Missing" not in said


def test_the_lines_follow_the_configuration():
    default = conventions(ModelConfig(tasks=("boxes", "keypoints")), Experiment().data)
    assert default[1] == "backbone: frozen norm with epsilon 1e-05; stride in the 1x1 convolution"
    assert default[2].endswith("area resizing, sizes rounded nearest, padded to two fixed sizes")
    pooled = "align, 2 samples a bin and axis, half-pixel centres"
    assert default[4] == f"RoIs: boxes 7x7 {pooled}; keypoints 14x14 {pooled}"
    assert default[6:] == ["keypoints: 17, scored by probability"]


def test_fields_replace_what_was_recognised_and_the_rest_stays(imported):
    experiment = read_experiment(imported[0] / "experiment.json")
    model = experiment.model
    assert model.backbone == dataclasses.replace(MODEL.backbone, pyramid_channels=16) and model.num_classes == 5
    assert (model.box.score_threshold, model.box.min_size, model.rpn.anchor_strides, model.mask.paste) == (0, 1e-2, "grid", "integer")
    assert (experiment.data.short_edge_test, experiment.data.resize, experiment.data.padding_divisor) == (64, "bilinear", 32)
    assert load(imported[0]).class_names == CLASSES


def test_predict_finds_what_the_same_variables_find(mrcnn, imported, tmp_path):
    image = np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "photo.png"), image[..., ::-1])
    status, _ = mrcnn("predict", imported[0], tmp_path / "photo.png", "--out", tmp_path / "out")
    assert status == 0
    info = DatasetInfo("unknown", (1, 2, 3, 4, 5), CLASSES)
    direct = Detector(read_experiment(imported[0] / "experiment.json"), info, tiny.variables(MODEL))(image)
    assert len(set(direct.class_ids)) > 1
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == coco_results(1, direct, info)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("detectron1", "{file}", "--out", "new"), "invalid choice 'detectron1'"),
        (("torchvision", "{file}"), "--out"),
        (("torchvision", "none.npz", "--out", "new"), "none.npz"),
        (("torchvision", "{file}", "--out", "new", "--config", "c.yaml"), "a configuration file belongs to detectron2: torchvision has none"),
        (("torchvision", "{file}", "--out", "{imported}", *FIELDS), "{imported} holds checkpoints already: choose another directory"),
        (("torchvision", "{file}", "--out", "new", "--classes", "a", "b", *FIELDS), "--classes gives 2 names, but the model has 5 classes"),
        (("torchvision", "{file}", "--out", "new", "--model.box.score-treshold", "0"), "--model.box.score-treshold"),
        (("torchvision", "{file}", "--out", "new", "--model.box.score-threshold", "high"), "could not convert string to float: 'high'"),
        (("torchvision", "{file}", "--out", "new", "--model.box.score-threshold", "2"), "Error parsing model.box: box.score_threshold "),
        (("torchvision", "{file}", "--out", "new"), "of another shape: backbone.fpn.inner_blocks.0.0.weight [16, 8, 1, 1] instead of [256, 8, 1, 1]"),
    ],
)
def test_what_cannot_be_imported_is_refused(mrcnn, imported, file, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    places = {"file": file, "imported": imported[0]}
    status, told = mrcnn("import-weights", *(str(argument).format(**places) for argument in arguments))
    assert status == 2 and said.format(**places) in told and list(tmp_path.iterdir()) == []


@pytest.fixture
def incomplete(tensors, tmp_path) -> Path:
    """A file without two tensors, with one of its own, and one of another shape."""
    changed = {name: tensor for name, tensor in tensors.items() if not name.startswith("roi_heads.mask_predictor.mask_fcn_logits.")}
    write_tensors(tmp_path / "odd.npz", changed | {"roi_heads.extra": np.zeros(2, np.float32), "rpn.head.cls_logits.bias": np.zeros(9, np.float32)})
    return tmp_path / "odd.npz"


def test_all_that_does_not_fit_is_listed_at_once(mrcnn, incomplete):
    status, said = mrcnn("import-weights", "torchvision", incomplete, "--out", incomplete.parent / "odd", *FIELDS)
    assert status == 2 and said == (
        f"mrcnn: {incomplete} does not hold the tensors of the model that it seems to be: "
        "2 missing: roi_heads.mask_predictor.mask_fcn_logits.weight, roi_heads.mask_predictor.mask_fcn_logits.bias; "
        "1 not of this model: roi_heads.extra; 1 of another shape: rpn.head.cls_logits.bias [9] instead of [3]; "
        "--partial would leave what is missing to chance"
    )
    assert not (incomplete.parent / "odd").exists()


def test_a_part_is_reported_and_only_trained_from(mrcnn, tensors, tmp_path):
    logits = "roi_heads.mask_predictor.mask_fcn_logits"
    write_tensors(tmp_path / "part.npz", {name: tensor for name, tensor in tensors.items() if not name.startswith(logits)})
    status, said = mrcnn("import-weights", "torchvision", tmp_path / "part.npz", "--out", tmp_path / "part", "--partial", *FIELDS)
    assert status == 0 and f"Missing, 2 tensors: {logits}.weight, {logits}.bias " in said
    assert "mrcnn train" in said and "mrcnn predict" not in said
    with pytest.raises(InputError, match="holds a part of a model only, .* 2 arrays are missing, the first is params/mask/logits/bias$"):
        load(tmp_path / "part")


# ---- export ----


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_exported_again_the_file_is_the_same(mrcnn, imported, tensors, tmp_path, suffix):
    target = tmp_path / f"again{suffix}"
    status, said = mrcnn("export-weights", "torchvision", imported[0], target)
    assert status == 0 and f"The weights are in {target}. In torchvision: model = " in said
    again = read_tensors(target)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype and again[name].shape == tensor.shape and again[name].tobytes() == tensor.tobytes(), name
    assert "model.box.score_threshold: 0.0 here, 0.05 there" in said


def test_an_epsilon_that_loading_sees_to_is_no_difference(mrcnn, file, tmp_path):
    assert mrcnn("import-weights", "torchvision", file, "--out", tmp_path / "tv", *FIELDS, "--model.backbone.norm-epsilon", "1e-5")[0] == 0
    _, said = mrcnn("export-weights", "torchvision", tmp_path / "tv", tmp_path / "again.npz")
    assert "FrozenBatchNorm2d(channels, eps=1e-05)" in said and "model.box.detections: 40 here, 100 there" in said and "norm_epsilon" not in said


def test_loading_is_spelt_out_for_each_generation_and_file():
    (first, load_state), settled = loading_in_torchvision(MODEL, Path("mine.pth"))
    assert settled == ("model.backbone.norm_epsilon",)
    assert first == (
        'model = torchvision.models.detection.MaskRCNN(torchvision.models.detection.backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", '
        "weights=None, norm_layer=lambda channels: torchvision.ops.FrozenBatchNorm2d(channels, eps=0)), num_classes=6)"
    )
    assert load_state == 'model.load_state_dict(torch.load("mine.pth", weights_only=True))'
    second = ModelConfig(num_classes=7, tasks=("boxes",), backbone=BackboneConfig(norm="batch", pyramid_norm="batch", freeze_stages=0))
    (first, load_state), settled = loading_in_torchvision(second, Path("mine.safetensors"))
    assert settled == ()
    assert first == "model = torchvision.models.detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=8)"
    assert load_state == 'model.load_state_dict(safetensors.torch.load_file("mine.safetensors"))'
    keypoints = ModelConfig(num_classes=1, tasks=("boxes", "keypoints"))
    assert loading_in_torchvision(keypoints, Path("k.npz"))[0][0].endswith("eps=1e-05)), num_classes=2, num_keypoints=17)")


# ---- evaluation ----


def test_a_detector_may_know_more_classes_than_a_data_set(mrcnn, imported, base, tmp_path):
    """Three of its five classes count."""
    info = DatasetInfo("few", (2, 3, 5), ("bee", "cow", "eel"))
    source = records.open_dataset(tiny_run.dataset(base), "validation")
    objects = [record.objects._replace(classes=record.objects.classes % 3, keypoints=record.objects.keypoints[:, :0]) for record in source]
    few = [record._replace(objects=fewer) for record, fewer in zip(source, objects, strict=True)]
    write_dataset(tmp_path / "few", info, {"validation": few})
    status, _ = mrcnn("evaluate", imported[0], "--dataset", tmp_path / "few", "--out", tmp_path / "out", "--pictures", 2)
    assert status == 0
    detector, found = load(imported[0]), []
    for record in few:
        image = cv2.cvtColor(cv2.imdecode(np.frombuffer(record.image, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        found += coco_results(record.image_id, detector(image), detector.info)
    counted = [entry for entry in found if entry["category_id"] in info.category_ids]
    assert 0 < len(counted) < len(found)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert _by_image(results) == _by_image(counted)
    truth = records.open_dataset(tmp_path / "few", "validation").ground_truth()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == evaluate_coco(truth, results)
    assert read_image(tmp_path / "out" / "predictions.png").std() > 10


def _by_image(results):
    return [(entry["image_id"], entry["category_id"]) for entry in sorted(results, key=lambda entry: entry["image_id"])]


def test_classes_that_a_detector_does_not_know_are_named(mrcnn, imported, base, tmp_path):
    _, said = mrcnn("evaluate", imported[0], "--dataset", tiny_run.dataset(base), "--out", tmp_path / "out")
    first = f"{shapes.INFO.category_ids[0]} {shapes.INFO.category_names[0]}"
    assert f"tiny-shapes has classes (id and name) that {imported[0]} does not know: " in said and first in said
    assert not (tmp_path / "out").exists()


# ---- training from it ----


@pytest.fixture(scope="module")
def tuned(base, imported) -> tuple[Path, str]:
    """A run of two steps on seven classes, and what was said. The weights are gone afterwards."""
    shutil.copytree(imported[0], base / "gone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "CONSOLE", tiny_run.recording_console())
        arguments = ["train", base / "gone", "--data.dataset", tiny_run.dataset(base), "--directory", base / "tuned", "--train.steps", 2, *SETTINGS]
        assert cli.main([str(argument) for argument in arguments]) == 0
        said = cli.CONSOLE.file.getvalue()
    shutil.rmtree(base / "gone")
    return base / "tuned", said


def test_the_run_says_which_layers_start_anew(tuned, base):
    directory, said = tuned
    assert f"Starts from {base / 'gone'}. At random: box/classes, box/deltas, mask/logits.\n" in said and "It also has" not in said
    assert "7 classes, 20 training and 10 validation images" in said
    assert load(directory).class_names == shapes.INFO.category_names


def test_frozen_stages_do_not_move_and_the_rest_does(tuned):
    before, after = (tiny.names_and_leaves(variables) for variables in (tiny.variables(MODEL), load(tuned[0]).variables))
    for name, array in before.items():
        still = "'frozen'" in name or "'stem'" in name or "'res2_" in name
        if not any(layer.replace("/", "']['") in name for layer in CLASS_LAYERS):
            assert np.array_equal(array, after[name]) == still, name


def test_it_goes_on_without_the_weights(tuned, console, base):
    directory, _ = tuned
    assert not (base / "gone").exists()
    experiment = read_experiment(directory / "experiment.json")
    assert experiment.train.init_from == str(base / "gone")
    assert experiment.data.resize == "bilinear" and experiment.model.rpn.anchor_strides == "grid"
    train(dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, steps=3)), directory, console)
    assert f"Resumed {directory} at step 2 of 3." in console.file.getvalue() and "At random" not in console.file.getvalue()


def test_training_begins_with_the_weights(imported, base, tmp_path, monkeypatch, console):
    experiment = dataclasses.replace(cli._tuned(imported[0]), data=tiny_run.run_experiment(tiny_run.dataset(base)).data)
    found = tiny.names_and_leaves(given_to_the_step(monkeypatch, experiment, tmp_path / "run", console))
    before = tiny.names_and_leaves(tiny.variables(MODEL))
    assert found.keys() == before.keys()
    differing = {name for name in before if not np.array_equal(before[name], found[name])}
    assert differing == {f"['params']['{module}']['{layer}']['{kind}']" for module, layer in (name.split("/") for name in CLASS_LAYERS)
                         for kind in ("kernel", "bias")}  # fmt: skip


def test_an_experiment_starts_from_a_backbone(backbone, base, tmp_path, monkeypatch, console):
    model = tiny.model_config(0, **BACKBONE | {"norm_epsilon": 1e-3, "stride_in_1x1": True})
    experiment = tiny.experiment(model, {"dataset": str(tiny_run.dataset(base))}, init_from=str(backbone))
    found = given_to_the_step(monkeypatch, experiment, tmp_path / "run", console)
    weights = read_weights(backbone).variables
    for collection in ("params", "frozen"):
        tiny.assert_same(found[collection]["backbone"], weights[collection]["backbone"])
    assert f"Starts from {backbone}. At random: box, fpn, mask, rpn.\n" in console.file.getvalue()
    seen = read_experiment(tmp_path / "run" / "experiment.json").model.backbone
    assert (seen.norm_epsilon, seen.stride_in_1x1) == (1e-5, False)


def test_a_backbone_alone_is_no_detector(mrcnn, backbone):
    with pytest.raises(InputError, match="holds a part of a model only, such as a backbone, that training can start from"):
        load(backbone)
    sentence = f"mrcnn: {backbone} holds a backbone alone: name an experiment that has it, and give --train.weights-from {backbone}"
    assert mrcnn("train", backbone) == (2, sentence)


def test_another_backbone_is_refused(backbone, base, tmp_path):
    model = tiny.model_config(0, **BACKBONE | {"width": 16})
    experiment = tiny.experiment(model, {"dataset": str(tiny_run.dataset(base))}, init_from=str(backbone))
    with pytest.raises(InputError) as refusal:
        train(experiment, tmp_path / "run", tiny_run.recording_console())
    assert str(refusal.value) == f"train.weights_from {backbone} has another backbone: backbone.width is 8 there and 16 here"


def test_imported_weights_are_not_trained_in_their_own_directory(mrcnn, imported, base):
    status, said = mrcnn("train", imported[0], "--directory", imported[0], "--data.dataset", tiny_run.dataset(base))
    assert status == 2 and said == f"mrcnn: {imported[0]} holds imported weights: give --train.weights-from {imported[0]} and another --directory"


def test_help_of_a_directory_has_its_settings(mrcnn, imported, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, said = mrcnn("train", imported[0], "--help")
    assert status == 0 and "(default: runs/tv_tuned)" in said and f"(default: {imported[0]})" in said and "(default: bilinear)" in said


def test_classes_and_keypoints_are_left_to_the_data_set(tmp_path):
    head = KeypointHeadConfig(num_keypoints=5, classes=(3,))
    experiment = Experiment(model=ModelConfig(num_classes=4, tasks=("boxes", "keypoints"), keypoint=head))
    (tmp_path / "experiment.json").write_text(json.dumps(to_dict(experiment)))
    model = cli._tuned(tmp_path).model
    assert (model.num_classes, model.keypoint.num_keypoints) == (0, 0) and model.tasks == ("boxes", "keypoints")
