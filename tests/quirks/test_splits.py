"""Splits that are drawn, and what all formats of annotations share."""

from pathlib import Path

import pytest
from format_writers import WRITERS, cvat, labelme, mask_numbers, yolo
from PIL import Image
from quirks import quirk
from small_sets import rectangle, write_set

from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.data.formats.holdout import SplitSample, group_of, hold_out
from mrcnn_jax.data.prepare import prepare
from mrcnn_jax.errors import InputError


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def names(directory: Path, split: str) -> set[str]:
    return {record.file_name for record in open_dataset(directory, split)}


@quirk("`--split 0.5 0.25 0.25`", "train, validation and test by class and seed, without an image in two")
def test_shares():
    folder = write_set(Path("set"), count=12)
    directory, reports = prepare(folder, "out", split=(0.5, 0.25, 0.25), strict=True)
    drawn = {split: names(directory, split) for split in ("train", "validation", "test")}
    assert [len(images) for images in drawn.values()] == [6, 3, 3] and len(set.union(*drawn.values())) == 12
    for split in drawn:
        assert {
            int(class_) for record in open_dataset(directory, split) for class_ in record.objects.classes
        } == {0, 1}
        assert reports[split].images == len(drawn[split])
    again, _ = prepare(folder, "again", split=(0.5, 0.25, 0.25))
    other, _ = prepare(folder, "other", split=(0.5, 0.25, 0.25), seed=1)
    assert names(again, "test") == drawn["test"] != names(other, "test")


WRONG = {
    "sum": ((0.8, 0.1), "the split is 0.8 0.1, but must be 2 or 3 positive numbers that sum to 1"),
    "one": ((1.0,), "must be 2 or 3 positive"),
    "four": ((0.4, 0.2, 0.2, 0.2), "must be 2 or 3 positive"),
    "none for test": ((0.8, 0.2, 0.0), "must be 2 or 3 positive"),
    "not a number": ((float("nan"), 0.5), "must be 2 or 3 positive"),
}


@quirk("shares that do not sum to 1, or two ways of drawing at once", "refused")
@pytest.mark.parametrize("split, message", WRONG.values(), ids=WRONG)
def test_wrong_shares(split, message):
    folder = write_set(Path("set"))
    with pytest.raises(InputError, match=message):
        prepare(folder, "out", split=split)
    with pytest.raises(InputError, match="validation_images and split are given"):
        prepare(folder, "out", split=(0.5, 0.5), validation_images=1)
    with pytest.raises(
        InputError, match="group is '_', but neither validation_images nor split samples images"
    ):
        prepare(folder, "out", group="_")


def test_too_few_images_for_the_splits():
    with pytest.raises(InputError, match="none of its 2 images is left for training, if 2 are held out"):
        prepare(write_set(Path("set"), count=2), "out", split=(0.8, 0.1, 0.1))
    train, val = write_set(Path("two"), listing="train.json"), write_set(Path("two"), listing="val.json")
    assert train == val
    with pytest.raises(
        InputError, match="two has validation annotations of its own, so split must be left out"
    ):
        prepare(train, "out", split=(0.5, 0.5))


PATIENTS = [f"p{patient}_{slice_}.jpg" for patient in range(6) for slice_ in range(3)]


@quirk("`--group _`: several images of one patient, film or place", "all of a group are in one split")
@pytest.mark.parametrize("draw", [{"split": (0.6, 0.2, 0.2)}, {"validation_images": 4}])
def test_groups(draw):
    directory, reports = prepare(write_set(Path("set"), count=18, names=PATIENTS), "out", group="_", **draw)
    groups = [{name.split("_")[0] for name in names(directory, split)} for split in reports]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 6
    assert len(names(directory, "validation")) == 3  # a whole group, and no more than asked for


@quirk("`--group folder`, and groups that are too few", "images of a folder stay together; refused")
def test_folders_as_groups():
    folder = write_set(Path("set"), count=6, names=[f"{place}/{i}.jpg" for place in "abc" for i in (1, 2)])
    directory, _ = prepare(folder, "out", split=(0.6, 0.4), group="folder")
    assert {name[0] for name in names(directory, "train")}.isdisjoint(
        name[0] for name in names(directory, "validation")
    )
    with pytest.raises(InputError, match="4 images are in 1 groups by --group folder, too few for 3 splits"):
        prepare(write_set(Path("few")), "few_out", split=(0.5, 0.25, 0.25), group="folder")


def test_groups_of_names():
    assert group_of("a/p1_2_3.png", "_") == "p1" and group_of("x\\p1.png", "_") == "p1"
    assert group_of("a/b/1.png", "folder") == "a/b" and group_of("1.png", "folder") == ""
    assert group_of("p1.v2_x.png", "_") == "p1.v2"


def test_groups_are_stratified_and_never_split():
    classes = {i: [i // 30] for i in range(60)}
    groups = {i: str(i // 3) for i in range(60)}
    drawn = hold_out(classes, 12, 0, groups)
    assert len(drawn) == 12 and {i // 30 for i in drawn} == {0, 1}
    assert all({3 * (i // 3) + k for k in range(3)} <= drawn for i in drawn)
    assert len(hold_out({1: [], 2: [], 3: []}, 1, 0, {1: "a", 2: "a", 3: "b"})) == 1
    assert hold_out({1: [], 2: [], 3: [], 4: []}, 1, 0, {1: "a", 2: "a", 3: "b", 4: "b"}) in ({1, 2}, {3, 4})
    divided = SplitSample("train", (("validation", 0.2), ("test", 0.2)), 0, None).divide(
        dict.fromkeys(classes, ""), classes
    )
    assert sorted(divided.values()) == ["test"] * 12 + ["validation"] * 12


@quirk("drawn splits of YOLO, Pascal VOC, CVAT, LabelMe and mask files", "as for COCO")
@pytest.mark.parametrize("name", [name for name in WRITERS if name != "COCO"])
def test_other_formats_are_divided_alike(name):
    write, kinds = WRITERS[name]
    directory, _ = prepare(write(Path("set"), kinds[0]), "out", split=(0.4, 0.3, 0.3))
    assert sum(len(open_dataset(directory, split)) for split in ("train", "validation", "test")) == 3


@quirk("images of YOLO, LabelMe and others as TIFF, BMP or WebP", "converted to PNG")
@pytest.mark.parametrize("suffix", [".tif", ".bmp", ".webp"])
@pytest.mark.parametrize("write", [labelme, yolo])
def test_images_in_other_formats(write, suffix):
    folder = write(Path("set"), "polygons")
    for path in list(folder.rglob("*.png")):
        Image.open(path).save(path.with_suffix(suffix), lossless=True)
        path.unlink()
    directory, reports = prepare(folder, "out")
    records = list(open_dataset(directory, "train"))
    assert [record.image[1:4] for record in records] == [b"PNG"] * 3 and reports["train"].kept == 3
    assert [Path(record.file_name).suffix for record in records] == [suffix] * 3


@quirk(
    "a folder with annotations in several formats",
    "COCO, or the first that is recognised; the others are said",
)
def test_several_formats():
    labelme(Path("set"), "polygons"), cvat(Path("set"), "polygons")
    notes = []
    _, reports = prepare("set", "out", notify=notes.append)
    assert notes[0] == "set is read as CVAT; annotations of LabelMe are not used"
    assert str(reports["train"]).startswith("train: 3 images, 3 of 3 annotations kept (CVAT: ")
    write_set(Path("set"), lambda content: content["annotations"].append(rectangle(9, 1, 1)))
    assert "(COCO: set/annotations/all.json)" in str(prepare("set", "other").reports["train"])
    with pytest.raises(InputError, match="only is read as CVAT|to which keypoints does not apply"):
        prepare(cvat(Path("only"), "boxes"), "third", keypoints=True)


@quirk("only one split by its name, as of a set with `test` alone", "used for training, which is said")
def test_only_split():
    folder, notes = mask_numbers(Path("set"), "masks"), []
    (folder / "test").mkdir()
    for name in ("images", "masks"):
        (folder / name).rename(folder / "test" / name)
    _, reports = prepare(folder, "out", notify=notes.append)
    assert list(reports) == ["train"] and "set has one split alone, which becomes train" in notes[1]


@quirk("a folder in no known format", "one sentence: what it holds, and what was looked for")
def test_unknown_folder():
    Path("set").mkdir()
    Path("set/a.txt").write_text("hello")
    Path("set/a.png").write_bytes(b"x")
    with pytest.raises(
        InputError, match=r"no known format: it holds 1 .png, 1 .txt, and what was looked for is COCO"
    ):
        prepare("set", "out")
