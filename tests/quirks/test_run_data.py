"""Data of a training run: what is said before the first step."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import tiny_run
from quirks import quirk
from saved_runs import Started, image, repeat, saved_run, write
from small_sets import write_set

from mrcnn_jax.config import Experiment, read_experiment
from mrcnn_jax.data.prepare import prepare
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.training import run_setup
from mrcnn_jax.training.data_checks import data_warnings, split_statistics
from mrcnn_jax.training.loop import train
from mrcnn_jax.training.warm_start import resolve_dataset_fields


def warnings_of(directory: Path, experiment: Experiment | None = None) -> list[str]:
    """Returns the warnings before the first step of a run."""
    experiment = experiment or tiny_run.run_experiment(directory)
    splits = run_setup.open_splits(experiment.data)
    statistics = {split.split: split_statistics(split) for split in splits}
    experiment = resolve_dataset_fields(experiment, splits[0])
    return data_warnings(experiment, splits[0].info, statistics, splits[0].split)


@pytest.fixture
def start(monkeypatch):
    """``start(experiment, directory)``: what a run prints before its first step."""

    def first_step(*_):
        raise Started

    monkeypatch.setattr(run_setup, "make_train_step", lambda *_: first_step)
    monkeypatch.setattr(run_setup, "init_variables", lambda model, key: tiny.variables(model.config))

    def call(experiment, directory):
        console = tiny_run.recording_console()
        with pytest.raises(Started):
            train(experiment, directory, console)
        return console.file.getvalue()

    return call


@quirk("objects without a mask in a set with masks",
       "masks are learned and scored on the others; said with number and example")  # fmt: skip
@pytest.mark.parametrize("split, verb", [("train", "learned"), ("validation", "scored")])
def test_objects_without_mask_are_counted(tmp_path, split, verb):
    write(tmp_path / "data", **{split: [image(8), image(9, masks=False)]})
    (warning,) = warnings_of(tmp_path / "data")
    assert warning == (f"2 of 4 objects of the split '{split}' have no mask, the first in 9.png: masks are "
                       f"{verb} on the others")  # fmt: skip


@quirk("boxes and masks that looked wrong when the set was prepared", "said again before a training")
def test_suspicions_of_the_reader_are_repeated(tmp_path):
    def misplace(content):
        for annotation in content["annotations"]:
            annotation["bbox"] = [70, 45, 10, 10]

    write_set(tmp_path / "set", misplace)
    prepare(tmp_path / "set", tmp_path / "data", validation_images=2)
    found = [one for one in warnings_of(tmp_path / "data") if "do not fit their masks" in one]
    splits = [one.rpartition(", ")[2] for one in found]
    assert splits == ["in the split 'train'", "in the split 'validation'"]


@quirk("a training split without any mask", "boxes alone are learned and predicted; the run resumes as such")
def test_training_split_without_masks_teaches_boxes(tmp_path, start):
    data = write(tmp_path / "data", train=[image(1, masks=False)])
    output = start(tiny_run.run_experiment(data), tmp_path / "run")
    assert "no object of the split 'train' has masks" in output and "(model.tasks boxes)." in output
    assert read_experiment(tmp_path / "run/experiment.json").model.tasks == ("boxes",)
    experiment = saved_run(tmp_path / "other", data)
    assert experiment.model.tasks == ("boxes", "masks")
    assert "is finished" in repeat(experiment, tmp_path / "other")


def test_masks_of_crowds_alone_teach_no_masks(tmp_path):
    write(tmp_path / "data", train=[image(1, crowd=[True, True]), image(2, masks=False)])
    experiment = tiny_run.run_experiment(tmp_path / "data")
    source = run_setup.open_splits(experiment.data)[0]
    assert resolve_dataset_fields(experiment, source).model.tasks == ("boxes",)


@quirk("a validation split without any mask", "boxes alone are scored; said before the first step")
def test_validation_split_without_masks_is_said(tmp_path):
    write(tmp_path / "data", validation=[image(3, masks=False)])
    (warning,) = warnings_of(tmp_path / "data")
    assert warning == "no object of the split 'validation' has a mask: boxes alone are scored"


@quirk("more objects in an image than `data.max_objects` or `box.max_detections`",
       "the images, the fullest one and the objects beyond are named before the first step")  # fmt: skip
def test_more_objects_than_slots_or_detections(tmp_path):
    train, validation = [image(1, 9), image(2, 4), image(5, 5)], [image(3, 7), image(4, 6)]
    experiment = tiny_run.run_experiment(write(tmp_path / "data", train, validation))
    learned, scored = warnings_of(tmp_path / "data")
    assert learned == ("2 of 3 images of the split 'train' hold more objects than data.max_objects 4, the "
                       "most 1.png with 9: the smallest 6 are not learned")  # fmt: skip
    assert scored == ("1 of 2 images of the split 'validation' hold more objects than "
                      "model.box.max_detections 6, the most 3.png with 7: 1 of them cannot be "
                      "found")  # fmt: skip
    experiment = replace(experiment, evaluation=replace(experiment.evaluation, max_detections=(1, 2, 5)))
    assert "evaluation.max_detections 5" in warnings_of(tmp_path / "data", experiment)[1]


@quirk("nothing to learn or to score: no objects, or crowds only", "a warning before the first step")
@pytest.mark.parametrize("objects, crowd", [(0, None), (2, [True, True])])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_nothing_to_learn_or_score(tmp_path, split, objects, crowd):
    write(tmp_path / "data", **{split: [image(3, objects, crowd=crowd)]})
    (warning,) = warnings_of(tmp_path / "data")
    assert f"split '{split}'" in warning and ("crowds" in warning) == bool(crowd)
    outcome = "there is nothing to learn" if split == "train" else "its metrics will be undefined"
    assert warning.endswith(outcome)


@quirk("classes without objects, in one split or in all; repeated class names", "one warning each with names")
def test_classes_without_objects(tmp_path):
    info = DatasetInfo("set", (1, 2, 3, 7), ("cat", "dog", "owl", "owl"))
    write(tmp_path / "data", [image(1, classes=[0, 2])], [image(3, classes=[0, 1])], info)
    assert warnings_of(tmp_path / "data") == [
        "1 class names are repeated, for example owl (ids 3, 7): they are learned as different classes",
        "1 of 4 classes have no object in any split: owl",
        "1 of 4 classes have no object in the split 'train': dog",
        "1 of 4 classes have no object in the split 'validation': owl",
    ]


@quirk("keypoints that no object has, or none of which has a mirror partner", "a warning before training")
def test_keypoints_without_objects_or_partners(tmp_path):
    info = DatasetInfo("set", (1,), ("a",), ("tip", "end"), (0, 1), keypoint_classes=(0,))
    points, none = [[[8, 8, 2], [9, 9, 2]]], [[[0, 0, 0], [0, 0, 0]]]
    write(tmp_path / "data", [image(1, 1, keypoints=points)], [image(3, 1, keypoints=none)], info)
    experiment = tiny_run.run_experiment(tmp_path / "data")
    head = replace(experiment.model.keypoint, num_keypoints=0)
    tasks = ("boxes", "masks", "keypoints")
    experiment = replace(experiment, model=replace(experiment.model, tasks=tasks, keypoint=head))
    unscored, unpaired = warnings_of(tmp_path / "data", experiment)
    assert unscored.startswith("no object of the split 'validation' has keypoints")
    assert unpaired.startswith("none of the 2 keypoints, such as tip, has a counterpart in the flipped image")
    write(tmp_path / "data", [image(1, 1, keypoints=none)], [image(3, 1, keypoints=points)], info)
    source = run_setup.open_splits(experiment.data)[0]
    assert resolve_dataset_fields(experiment, source).model.tasks == ("boxes", "masks")


@quirk("images much smaller than the shorter edge of training", "a warning with both sizes")
def test_enlarged_images(tmp_path):
    experiment = tiny_run.run_experiment(write(tmp_path / "data"))
    data = replace(experiment.data, short_edge=(80,), short_edge_test=80)
    (warning,) = warnings_of(tmp_path / "data", replace(experiment, data=data))
    assert warning.startswith("training images of 30 x 20 pixels (the median) are enlarged to a shorter edge")


def test_clean_set_has_no_warning(tmp_path):
    assert warnings_of(write(tmp_path / "data")) == []


def test_warnings_precede_the_first_step(tmp_path, start):
    data = write(tmp_path / "data", train=[image(1, 9)])
    assert "Warning: 1 of 1 images of the split 'train' hold more" in start(
        tiny_run.run_experiment(data), tmp_path / "run"
    )
