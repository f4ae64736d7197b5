"""Conversion of experiments to JSON and back."""

import dataclasses
import json
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from mrcnn_jax import presets
from mrcnn_jax.config import Experiment, TrainConfig, from_dict, read_experiment, to_dict, with_changes
from mrcnn_jax.errors import InputError


def changed(path: str, value) -> dict:
    """Returns the default experiment as a dictionary, with one field set."""
    values = inner = to_dict(Experiment())
    *parents, last = path.split(".")
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return values


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_survive_json(name, tmp_path):
    experiment = presets.get(name)
    values = to_dict(experiment)
    assert json.loads(json.dumps(values)) == values
    assert from_dict(values) == experiment and hash(from_dict(values)) == hash(experiment)
    (tmp_path / "experiment.json").write_text(json.dumps(values))
    assert read_experiment(tmp_path / "experiment.json") == experiment


def other_value(name: str, value, hint):
    """Returns an allowed value of a field that is not its default."""
    special = {"padding_divisor": 32, "images_per_device": 4, "accumulate": 2}
    special |= {"tasks": ("boxes",), "levels": (3, 4), "crop_size": (0.3, 0.9), "tta_scales": (400, 1200)}
    special |= {"training_stages": 3, "groups": 3, "size": 28, "loggers": (), "empty_share": 0.5}
    special |= {"extra_datasets": ("other",), "weights": (2.0,)}
    if name in special:
        return special[name]
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice != value)
    if value is None:
        return 3
    others = {
        str: lambda: "other",
        bool: lambda: not value,
        int: lambda: value - 1 if value > 1 else value + 1,
        float: lambda: value * 0.75 + 0.001,
        tuple: lambda: tuple(item + 1 for item in value),
    }
    return others[type(value)]()


def test_every_field_survives_json():
    def fields(part, path=()):
        hints = get_type_hints(type(part))
        for field in dataclasses.fields(part):
            value, here = getattr(part, field.name), (*path, field.name)
            if dataclasses.is_dataclass(value):
                yield from fields(value, here)
            else:
                yield here, value, hints[field.name]

    count = 0
    for path, value, hint in fields(Experiment()):
        # these cannot change alone; other tests have them
        if path[-1] in ("features", "system", "keep_best", "patience", "monitor"):
            continue
        other = other_value(path[-1], value, hint)
        experiment = from_dict(changed(".".join(path), other))
        found = experiment
        for name in path:
            found = getattr(found, name)
        assert found == other != value
        assert from_dict(to_dict(experiment)) == experiment != Experiment()
        count += 1
    assert count > 110


def test_absent_fields_take_their_defaults():
    assert from_dict({}) == Experiment()
    assert from_dict({"train": {"steps": 7}}) == Experiment(train=TrainConfig(steps=7))


def test_integers_are_accepted_as_floats():
    values = {"train": {"learning_rate": 1}, "model": {"rpn": {"anchor_sizes": [8, 16, 32, 64, 128]}}}
    experiment = from_dict(values)
    assert isinstance(experiment.train.learning_rate, float)
    assert all(isinstance(size, float) for size in experiment.model.rpn.anchor_sizes)
    assert experiment.model.rpn.anchor_sizes == (8, 16, 32, 64, 128)


@pytest.mark.parametrize(
    "path, value, reason",
    [
        ("train.stepz", 5, "stepz @ experiment.train"),
        ("optimiser", {}, "optimiser @ experiment"),
        ("train.steps", 2.7, "must be int, not 2.7 @ experiment.train.steps"),
        ("train.steps", "5", "must be int, not '5' @ experiment.train.steps"),
        ("train.steps", True, "must be int, not True @ experiment.train.steps"),
        ("train.learning_rate", "fast", "must be float, not 'fast' @ experiment.train.learning_rate"),
        ("train.learning_rate", None, "must be float, not None @ experiment.train.learning_rate"),
        ("train.remat", "false", "must be bool, not 'false' @ experiment.train.remat"),
        ("train.remat", 1, "must be bool, not 1 @ experiment.train.remat"),
        ("data.dataset", None, "must be str, not None @ experiment.data.dataset"),
        ("data.short_edge", 800, "@ experiment.data.short_edge"),
        ("data.short_edge", [800, "900"], "must be int, not '900' @ experiment.data.short_edge[1]"),
        ("model.pixel_mean", [1, 2], "@ experiment.model.pixel_mean"),
        ("model.backbone.name", "resnet51", "'resnet152'] @ experiment.model.backbone.name"),
        ("train", 5, "@ experiment.train"),
        ("model.backbone", None, "@ experiment.model.backbone"),
        ("train.steps", -1, "train.steps must be greater than 0, not -1 @ experiment.train"),
    ],
)
def test_wrong_fields_are_named(path, value, reason):
    with pytest.raises(InputError) as error:
        from_dict(changed(path, value), "run/experiment.json")
    message = str(error.value)
    assert message.startswith("run/experiment.json does not describe an experiment of this version: ")
    assert message.endswith(reason) and "\n" not in message


def test_all_wrong_fields_are_named_at_once():
    with pytest.raises(InputError) as error:
        from_dict({"train": {"steps": "a"}, "data": {"max_objects": "b"}})
    assert all(name in str(error.value) for name in ("experiment.train.steps", "experiment.data.max_objects"))


@pytest.mark.parametrize("value", [5, [], None, "text"])
def test_values_that_are_no_object_are_rejected(value):
    with pytest.raises(InputError, match="^file does not describe an experiment: it must be an object"):
        from_dict(value, "file")


def test_with_changes_replaces_several_fields_at_once():
    c5 = {"model.backbone.features": "c5", "model.roi.levels": (5, 5), "model.rpn.anchor_sizes": (32, 64)}
    experiment = with_changes(Experiment(), c5)
    assert experiment.model.backbone.features == "c5" and experiment.model.roi.levels == (5, 5)
    assert to_dict(experiment)["train"] == to_dict(Experiment())["train"]
    with pytest.raises(InputError, match="^an experiment has no field model.maks.loss$"):
        with_changes(Experiment(), {"model.maks.loss": "softmax"})
    with pytest.raises(InputError, match="roi.levels must be 5 5"):
        with_changes(Experiment(), {"model.backbone.features": "c5"})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model.box.nms_iou": 3}, "model.box.nms_iou must lie between 0 and 1, not 3.0"),
        ({"data.long_edge": 10**8}, "data.long_edge must be at most 32,768, not 100000000"),
        ({"model.box.nms_iou": "a"}, "model.box.nms_iou must be float, not 'a'"),
        ({"model.box.max_detections": None}, "model.box.max_detections must be int, not None"),
        ({"model.roi.res5_stride": 3}, "model.roi.res5_stride must be 1 or 2, not 3"),
    ],
)
def test_wrong_changes_name_their_field(changes, message):
    with pytest.raises(InputError) as error:
        with_changes(Experiment(), changes)
    assert str(error.value) == message


def test_numbers_of_numpy_are_numbers():
    changed = with_changes(Experiment(), {"model.box.nms_iou": np.float32(0.25), "train.seed": np.int64(3)})
    assert (changed.model.box.nms_iou, changed.train.seed) == (0.25, 3)


@pytest.mark.parametrize("content", [b"", b"{", b'{"train": {"steps": 5},}', b"\xff\xfe\x00\x01", b"\x89PNG"])
def test_malformed_files_are_named(tmp_path, content):
    path = tmp_path / "experiment.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path} is not valid JSON: .+"):
        read_experiment(path)


def test_missing_files_are_named(tmp_path):
    missing = tmp_path / "none.json"
    with pytest.raises(InputError, match=f"^cannot read {missing}: No such file or directory$"):
        read_experiment(missing)
    with pytest.raises(InputError, match=f"^cannot read {tmp_path}: Is a directory$"):
        read_experiment(tmp_path)


def test_a_file_with_wrong_fields_is_named(tmp_path):
    path = tmp_path / "experiment.json"
    path.write_text('{"train": {"steps": 0}}')
    message = "train.steps must be greater than 0, not 0 @ experiment.train"
    with pytest.raises(InputError, match=f"^{path} does not describe .*: {message}$"):
        read_experiment(path)
