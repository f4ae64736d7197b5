"""Arguments of `mrcnn train`; tests/training has the training itself."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mrcnn_jax import presets
from mrcnn_jax.config import AUGMENTATIONS, to_dict, with_changes


def test_unknown_experiments_are_rejected(rejected):
    names = ", ".join(presets.PRESETS)
    assert rejected("train", "demoo") == f"there is no experiment 'demoo'; choose from {names}"
    message = rejected("train", "--train.steps", "5")
    assert message == "an experiment or a directory precedes the options: `mrcnn train demo --train.steps`"


@pytest.mark.parametrize(
    "given, message",
    [
        (("--train.stepz", "5"), "mrcnn train has no option --train.stepz; did you mean --train.steps?"),
        (("--steps", "5"), "mrcnn train has no option --steps; use --train.steps"),
        (("extra",), "mrcnn train demo does not take 'extra': an option's name, --NAME, precedes its value"),
        (("--train.steps", "many"), "--train.steps must be a whole number, not 'many'"),
        (("--train.steps", "1.5"), "--train.steps must be a whole number, not '1.5'"),
        (("--train.seed", "[bold]"), "--train.seed must be a whole number, not '[bold]'"),
        (("--train.learning-rate", "high"), "--train.learning-rate must be a number, not 'high'"),
        (("--train.steps",), "--train.steps needs a value"),
        (("--evaluation.max-detections", "1"), "--evaluation.max-detections needs 3 values"),
        (("--train.steps", "-5"), "train.steps must be greater than 0, not -5"),
        (
            ("--model.backbone.name", "resnet51"),
            "--model.backbone.name must be one of 'resnet18', 'resnet34', 'resnet50', 'resnet101', "
            "'resnet152', not 'resnet51'",
        ),
        (
            ("--model.rpn.anchor-sizes", "8", "16"),
            "rpn.anchor_sizes must have one size for each of the 5 levels of backbone.features fpn, not 2",
        ),
        (
            ("--train.epochs", "5", "--train.decay-steps", "40"),
            "--train.epochs determines what --train.decay-steps says: give --train.steps alone",
        ),
        (("--data.short-edge", "900"), "data.long_edge must be at least the shorter edge 900, not 160"),
    ],
)
def test_wrong_fields_are_named(rejected, given, message):
    assert rejected("train", "demo", *given) == message


def test_arguments_reach_the_training(mrcnn, monkeypatch):
    calls = []
    monkeypatch.setattr("mrcnn_jax.training.loop.train", lambda *arguments, **_: calls.append(arguments[:2]))
    monkeypatch.setattr("mrcnn_jax.distributed.initialize", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("mrcnn_jax.paths._require_package", lambda bucket: None)
    fields = ("--train.steps", "5", "--data.augment.flip", "0", "--model.box.pool.sampling-ratio", "0")
    assert mrcnn("train", "demo", *fields)[0] == 0
    processes, (experiment, directory) = calls
    assert processes == (None, None, None) and directory == "runs/demo"
    assert (experiment.name, experiment.train.steps, experiment.data.augment.flip) == ("demo", 5, 0.0)
    assert experiment.model.pool_of("box").sampling_ratio == 0
    assert experiment.model.pool_of("mask").sampling_ratio == 2
    calls.clear()
    assert mrcnn("train", "demo", "--augment", "strong", "--data.augment.hue", "0")[0] == 0
    assert calls[1][0].data.augment == replace(AUGMENTATIONS["strong"], hue=0.0)
    calls.clear()
    processes = ("--coordinator", "a:1", "--processes", "2", "--process", "1")
    assert mrcnn("train", "nuclei", "--directory", "gs://bucket/run", *processes)[0] == 0
    assert calls[0] == ("a:1", 2, 1) and calls[1][1] == "gs://bucket/run"
    calls.clear()
    epochs = with_changes(presets.get("demo"), {"train.epochs": 5.0})
    monkeypatch.setitem(presets.PRESETS, "passes", lambda: epochs)
    assert mrcnn("train", "passes", "--train.steps", "7")[0] == 0
    assert (calls[1][0].train.epochs, calls[1][0].train.steps) == (0, 7)


def test_a_missing_data_set_is_named(rejected):
    assert str(Path("data/nuclei").absolute()) in rejected("train", "nuclei")
    missing = rejected("train", "demo", "--data.dataset", "none", "--directory", "run")
    assert missing.startswith(f"{Path('none').absolute()} is not a prepared data set")


@pytest.mark.parametrize("option", ["--help", "-h", "--help-all"])
@pytest.mark.parametrize("name", ["torchvision/maskrcnn_resnet50_fpn", "https://a.b/c.pth", "hf://me/mine"])
def test_help_downloads_nothing(mrcnn, monkeypatch, tmp_path, name, option):
    monkeypatch.setenv("MRCNN_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mrcnn_jax.weights.locate.locate", lambda model: pytest.fail(f"{model} is loaded"))
    status, out, err = mrcnn("train", name, option)
    assert (status, err) == (0, "") and "nothing is downloaded for a help" in out and "--data.dataset" in out
    assert list(tmp_path.iterdir()) == []


def test_finetune_is_the_fine_tuning_of_the_weights_it_names(mrcnn, rejected, monkeypatch, tmp_path):
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mrcnn_jax.training.loop.train", lambda *arguments, **_: calls.append(arguments[:2]))
    monkeypatch.setattr("mrcnn_jax.distributed.initialize", lambda *arguments: None)
    monkeypatch.setattr("mrcnn_jax.presets.fine_tuning.open_split", lambda data, split: range(40))
    monkeypatch.setattr("mrcnn_jax.presets.fine_tuning.open_training", lambda data: range(40))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    run = tmp_path / "runs" / "a"
    (run / "checkpoints").mkdir(parents=True)
    stored = replace(presets.get("demo"), data=replace(presets.get("demo").data, dataset="data/a"))
    (run / "experiment.json").write_text(json.dumps(to_dict(stored)))
    for words in (("finetune", "--train.init-from", "runs/a"), ("finetune", "--train.init_from=runs/a")):
        status, out, _ = mrcnn("train", *words, "--data.dataset", "data/a")
        assert status == 0 and out.startswith("Fine-tuning on 40 images of about 128 x 160 pixels: 300 steps")
    assert mrcnn("train", "runs/a", "--data.dataset", "data/b", "--directory", "runs/a_tuned")[0] == 0
    (first, directory), second, (other, _) = calls
    assert (first, directory) == second and directory == "runs/a_tuned"
    assert (first.train.init_from, first.model.num_classes) == ("runs/a", 0)
    assert replace(other, data=first.data) == first  # one rule for both
    expected = "finetune starts from trained weights: `mrcnn train finetune --train.init-from NAME|DIR"
    assert rejected("train", "finetune").startswith(expected)
    no_run = rejected("train", "finetune", "--train.init-from", "demo")
    assert no_run.startswith("./demo holds no checkpoints")
    assert "--train.init-from" in mrcnn("train", "finetune", "--help")[1]
