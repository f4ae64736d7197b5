"""Layouts of COCO folders: the files of each split."""

from pathlib import Path

import pytest
from coco_folders import annotation, content, write_folder

from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.data.formats import coco
from mrcnn_jax.data.formats.coco_layout import CocoSplit, find_splits, sample_splits
from mrcnn_jax.errors import InputError


def touch(folder: Path, *paths: str) -> Path:
    for path in map(folder.__truediv__, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=True) if not path.suffix else path.touch()
    return folder


LAYOUTS = {
    "coco": (
        ["annotations/instances_train2017.json", "annotations/instances_val2017.json"]
        + ["annotations/captions_val2017.json"]
        + ["annotations/person_keypoints_train2017.json", "annotations/person_keypoints_val2017.json"]
        + ["train2017", "val2017", "test2017"],
        ("train2017", "annotations/instances_train2017.json"),
        ("val2017", "annotations/instances_val2017.json"),
    ),
    "images in images": (
        ["annotations/instances_train2017.json", "annotations/instances_val2017.json"]
        + ["images/train2017", "images/val2017"],
        ("images/train2017", "annotations/instances_train2017.json"),
        ("images/val2017", "annotations/instances_val2017.json"),
    ),
    "one image folder": (
        ["annotations/person_keypoints_train.json", "annotations/person_keypoints_val.json", "images"],
        ("images", "annotations/person_keypoints_train.json"),
        ("images", "annotations/person_keypoints_val.json"),
    ),
    "flat": (["train.json", "val.json", "train", "val"], ("train", "train.json"), ("val", "val.json")),
    "beside the images": (
        ["train/_annotations.coco.json", "valid/_annotations.coco.json", "test/_annotations.coco.json"],
        ("train", "train/_annotations.coco.json"),
        ("valid", "valid/_annotations.coco.json"),
        ("test", "test/_annotations.coco.json"),
    ),
    "train only": (["annotations/train.json", "images"], ("images", "annotations/train.json")),
}


@pytest.mark.parametrize("paths, splits", [(p, s) for p, *s in LAYOUTS.values()], ids=LAYOUTS.keys())
def test_usual_layouts_are_found(tmp_path, paths, splits):
    folder = touch(tmp_path / "my_train_data", *paths)
    expected = dict(zip(("train", "validation", "test"), splits, strict=False))
    assert find_splits(folder) == {s: CocoSplit(folder / i, folder / a) for s, (i, a) in expected.items()}


def test_keypoint_files_are_preferred_on_request(tmp_path):
    found = find_splits(touch(tmp_path, *LAYOUTS["coco"][0]), keypoints=True)
    names = [source.annotations.name for source in found.values()]
    assert names == ["person_keypoints_train2017.json", "person_keypoints_val2017.json"]


def test_images_of_a_single_file_are_drawn_for_validation(tmp_path):
    given = content(annotation(1, image_id=2), image_ids=(9, 2, 30, 4))
    write_folder(tmp_path, given, annotations="annotations/trainval.json")
    reports = coco.prepare(tmp_path, tmp_path / "out", validation_images=2)
    ids = {split: [r.image_id for r in open_dataset(tmp_path / "out", split)] for split in reports}
    assert len(ids["train"]) == len(ids["validation"]) == 2
    assert sorted(ids["train"] + ids["validation"]) == [2, 4, 9, 30]
    assert 2 in ids["train"]  # the only image of its class
    assert str(reports["validation"]).startswith("validation: 2 images, 0 of 0 annotations kept")
    assert (reports["train"].images, reports["train"].annotations, reports["train"].kept) == (2, 1, 1)
    assert list(find_splits(tmp_path)) == ["train"]
    with pytest.raises(InputError, match="none of its 4 images is left"):
        coco.prepare(tmp_path, tmp_path / "none", validation_images=4)


@pytest.mark.parametrize(
    "paths, message",
    [
        ([], r"JSON files: none\); name them with --train IMAGES ANNOTATIONS"),
        (["a.json", "b.json"], "annotation files .* are ambiguous .*a.json, b.json"),
        (["annotations/train_a.json", "annotations/train_b.json"], "annotation files .* are ambiguous"),
    ],
)
def test_ambiguous_layouts_are_refused(tmp_path, paths, message):
    with pytest.raises(InputError, match=message):
        find_splits(touch(tmp_path, *paths))


def test_invalid_validation_images_are_refused(tmp_path):
    folder = touch(tmp_path, *LAYOUTS["flat"][0])
    with pytest.raises(InputError, match="validation annotations of its own"):
        sample_splits(find_splits(folder), folder, validation_images=5)
    with pytest.raises(InputError, match="validation_images is -1"):
        sample_splits(find_splits(folder), folder, validation_images=-1)
    with pytest.raises(InputError, match="absent is not a folder"):
        find_splits(tmp_path / "absent")


def test_explicit_splits_are_taken(tmp_path):
    write_folder(tmp_path, content(annotation()), "photos", "labels.json")
    source = CocoSplit(tmp_path / "photos", tmp_path / "labels.json")
    coco.prepare({"train": source}, tmp_path / "cats")
    assert open_dataset(tmp_path / "cats", "train").info.name == "cats"
