"""Runs on several data sets: what they know them by, warnings, and the line about their objects."""

import dataclasses
import shutil

import pytest
import saved_runs
import tiny
import tiny_run
from etils import epath

from mrcnn_jax.checkpoint import Checkpoint
from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.training import run_setup
from mrcnn_jax.training.data_identity import compare_data, contents_of
from mrcnn_jax.training.data_summary import summarize_objects
from mrcnn_jax.training.warm_start import resolve_dataset_fields


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    saved_runs.write(folder / "one", [saved_runs.image(i, objects=0 if i > 4 else 6) for i in range(1, 7)])
    others = [saved_runs.image(1, masks=False), saved_runs.image(2, masks=False, classes=[1, 1])]
    saved_runs.write(folder / "two", others, others, DatasetInfo("two", (2, 9), ("b", "c")))
    return folder / "one", folder / "two"


def experiment(*paths):
    given = tiny_run.run_experiment(paths[0])
    return dataclasses.replace(
        given, data=dataclasses.replace(given.data, extra_datasets=tuple(map(str, paths[1:])))
    )


def test_classes_of_all_sets_are_learned_and_tasks_of_any(sets):
    given = experiment(*sets)
    training, validation = run_setup.open_splits(given.data)
    resolved = resolve_dataset_fields(given, training)
    assert resolved.model.num_classes == 3 and resolved.model.tasks == ("boxes", "masks")
    only_boxes = experiment(sets[1])
    assert resolve_dataset_fields(only_boxes, run_setup.open_splits(only_boxes.data)[0]).model.tasks == (
        "boxes",
    )
    sources = run_setup.Sources(resolved, training, validation, None, None, {})
    found = run_setup._data_warnings(sources)
    assert "no object of the split 'train of two' has a mask: boxes alone are learned" in found
    assert any("hold more objects than data.max_objects 4" in message for message in found)


def test_run_recognises_all_its_data_sets(sets, tmp_path):
    given = experiment(*sets)
    splits = run_setup.open_splits(given.data)
    contents = contents_of(splits)
    assert set(contents) == {"train", "train (2)", "validation"}
    checkpoint = Checkpoint(3, given, splits[0].info, 24, {}, epath.Path(tmp_path), contents)

    def compare(*paths):
        now = experiment(*paths)
        opened = run_setup.open_splits(now.data)
        return compare_data(checkpoint, now.data, opened[0].info, contents_of(opened), "RUN")

    assert compare(*sets) == []
    (tmp_path / "moved").symlink_to(sets[1])
    assert compare(sets[0], tmp_path / "moved") == []
    shutil.copytree(sets[1], tmp_path / "copied")
    assert "in another place" in compare(sets[0], tmp_path / "copied")[0]
    with pytest.raises(InputError, match="holds another run .*data.dataset differs|other classes"):
        compare(sets[0])
    other = [saved_runs.image(1, level=9), saved_runs.image(2)]
    info = DatasetInfo("two", (2, 9), ("b", "c"))
    with pytest.raises(InputError, match=r"holds another run .*train \(2\): other"):
        compare(sets[0], saved_runs.write(tmp_path / "other", other, other, info))


def test_a_line_about_objects_names_rare_classes_and_anchors(sets):
    given = experiment(*sets)
    text = summarize_objects(given, run_setup.open_splits(given.data)[0])
    assert text.startswith("Objects: 28 in 8 images, 8 beyond data.max_objects 4; ")
    assert "3 of 3 classes are in 10 images or fewer (c 2, a 4, b 5)" in text
    assert "; anchors overlap 100% of them with an IoU of 0.5 or more (" in text
    far = dataclasses.replace(tiny.model_config().rpn, anchor_sizes=(512,) * 5)
    far = dataclasses.replace(given, model=dataclasses.replace(given.model, rpn=far))
    assert "anchors overlap 0% of them" in summarize_objects(far, run_setup.open_splits(given.data)[0])
    (sets[1] / "train_objects.npz").rename(sets[1] / "away")
    assert summarize_objects(given, run_setup.open_splits(given.data)[0]) == ""
    (sets[1] / "away").rename(sets[1] / "train_objects.npz")
