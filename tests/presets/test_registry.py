"""Named experiments, and fine-tuning of directories."""

import json

import pytest

from mrcnn_jax import presets
from mrcnn_jax.config import Experiment, KeypointHeadConfig, ModelConfig, TrainConfig, to_dict
from mrcnn_jax.errors import InputError


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_have_names_and_descriptions(name):
    assert presets.get(name).name == name
    assert presets.describe(name).endswith(".") and "\n" not in presets.describe(name)
    assert f"mrcnn train {name}" in presets.PRESETS[name].__doc__


def test_presets_are_distinct():
    assert len({presets.get(name) for name in presets.PRESETS}) == len(presets.PRESETS)


def test_unknown_names_list_the_presets(tmp_path):
    with pytest.raises(InputError) as error:
        presets.resolve("mask_rcnn_r5")
    names = ", ".join(presets.PRESETS)
    assert str(error.value) == f"there is no experiment 'mask_rcnn_r5'; choose from {names}"


@pytest.mark.parametrize(
    "file, message",
    [
        ("notes.txt", "holds neither a training run nor imported weights: it has no experiment.json"),
        (
            "metadata.json",
            "is a data set, not an experiment: `mrcnn train small --data.dataset {}` trains on it",
        ),
    ],
)
def test_directories_of_other_kinds_are_named_as_what_they_are(tmp_path, file, message):
    (tmp_path / file).write_text("{}")
    with pytest.raises(InputError) as error:
        presets.resolve(str(tmp_path))
    assert str(error.value) == f"{tmp_path} {message.format(tmp_path)}"
    with pytest.raises(InputError, match="is a file; `mrcnn import-weights` makes weights to train from"):
        presets.resolve(str(tmp_path / file))


def test_fine_tuning_leaves_classes_and_keypoints_to_the_data_set(tmp_path):
    head = KeypointHeadConfig(num_keypoints=5, classes=(3,))
    long = TrainConfig(epochs=5.0, evaluate_every=100, patience=2)
    model = ModelConfig(num_classes=4, tasks=("boxes", "keypoints"), keypoint=head)
    trained = Experiment(model=model, train=long)
    (tmp_path / "experiment.json").write_text(json.dumps(to_dict(trained)))
    experiment, run_name = presets.resolve(str(tmp_path))
    assert run_name == f"{tmp_path.name}_tuned" and experiment.train.init_from == str(tmp_path)
    assert (experiment.model.num_classes, experiment.model.keypoint.num_keypoints) == (0, 0)
    assert experiment.model.tasks == ("boxes", "keypoints")
    train = experiment.train
    assert (train.epochs, train.patience, train.evaluate_every) == (0, 0, 100)


def test_a_preset_is_preferred_to_a_directory_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "experiment.json").write_text("{}")
    assert presets.resolve("demo") == (presets.get("demo"), "demo")
