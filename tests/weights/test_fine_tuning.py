"""Training starts from imported detectors and backbones, and resumes without them."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_run
from cli_inputs import call_cli
from tiny_torchvision import BACKBONE, MODEL, mrcnn

from mrcnn_jax import presets
from mrcnn_jax.config import (
    TORCHVISION,
    Experiment,
    KeypointHeadConfig,
    ModelConfig,
    read_experiment,
    to_dict,
)
from mrcnn_jax.data import shapes
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import load, read_weights
from mrcnn_jax.training import run_setup
from mrcnn_jax.training.loop import train

SETTINGS = (
    "--train.images-per-device", 1, "--train.reference-batch", 8, "--train.warmup-steps", 0,
    "--train.decay-steps", "--train.log-every", 1,
)  # fmt: skip
CLASS_LAYERS = ("box/classes", "box/deltas", "mask/logits")


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def initial_variables(monkeypatch, experiment: Experiment, directory: Path, console):
    """Returns the variables that training would start with."""

    class Started(Exception):
        pass

    def make_train_step(*_, **__):
        def step(state, batch):
            raise Started(state)

        return step

    monkeypatch.setattr(run_setup, "make_train_step", make_train_step)
    monkeypatch.setattr(run_setup, "init_variables", lambda model, key: tiny.variables(model.config, seed=1))
    with pytest.raises(Started) as started:
        train(experiment, directory, console)
    (state,) = started.value.args
    return {"params": state.params, **state.model_state}


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


def test_backbones_alone_cannot_detect_but_get_a_detector_to_train(backbone):
    with pytest.raises(
        InputError, match="a part of a model only, such as a backbone, that training can start from"
    ):
        load(backbone)
    experiment, preset = presets.fine_tune(backbone), presets.get("finetune")
    assert experiment.model.backbone == read_experiment(Path(backbone) / "experiment.json").model.backbone
    assert experiment.model.tasks == ("boxes", "masks") and experiment.model.num_classes == 0
    expected = dataclasses.replace(preset.train, init_from=str(backbone))
    assert (experiment.train, experiment.data) == (expected, preset.data)


def test_other_backbones_are_refused(backbone, dataset, tmp_path):
    model = tiny.model_config(0, **BACKBONE | {"width": 16})
    experiment = tiny.experiment(model, {"dataset": str(dataset)}, init_from=str(backbone))
    with pytest.raises(InputError, match="train.init_from .*backbone.width is 8 .* 16"):
        train(experiment, tmp_path / "run", tiny_run.recording_console())


def test_imported_weights_are_not_trained_in_place(imported, dataset):
    status, printed = mrcnn("train", imported[0], "--directory", imported[0], "--data.dataset", dataset)
    advice = f"give --train.init-from {imported[0]} and another --directory"
    assert status == 2 and printed.endswith(f"mrcnn: {imported[0]} holds imported weights: {advice}")


def test_help_of_train_shows_the_settings_of_a_directory(imported):
    status, printed = mrcnn("train", imported[0], "--help-all", columns=100)
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
