"""`mrcnn dataset`: prepared data sets, reports and messages."""

import json
from pathlib import Path

import pytest
import tiny_cityscapes
from cli_inputs import ANNOTATIONS, HEIGHT, listing, table_rows, write_coco

from mrcnn_jax.data.dataset import open_dataset, split_names
from mrcnn_jax.data.image_io import read_image

EXISTS = "exists already: choose another name, or overwrite it if it is a prepared set"


def test_dataset_prepares_reports_counts_and_draws(mrcnn):
    status, out, err = mrcnn("dataset", write_coco(), "--draw", "sheets/pets.png")
    assert status == 0 and "Traceback" not in err
    assert "train: 3 images, 6 of 6 annotations kept" in out
    assert "box without a positive, finite width and height (annotation 14)" in out
    assert "box wholly outside the image (annotation 15)" in out
    assert "1 x area derived from the mask or the box (annotation 16)" in out
    table = table_rows(out)
    assert table["images"] == ["3"] and table["objects"] == ["6"] and table["crowd"] == ["1"]
    assert table["images without objects"] == ["1"]
    assert table["3"] == ["cat", "4"] and table["90"] == ["dog", "2"] and table["7"] == ["owl", "0"]
    assert "A contact sheet is in sheets/pets.png.\n" in out
    again = "mrcnn dataset pets --draw sheets/pets.png --overwrite --validation-images 1\n"
    assert out.endswith(again) and "there is no validation split" in err
    source = open_dataset("data/pets", "train")
    assert [record.objects.ids.tolist() for record in source] == [[11, 13, 14, 15, 16], [12], []]
    sheet = read_image("sheets/pets.png")
    assert min(sheet.shape[:2]) > HEIGHT and sheet.std() > 10
    assert sorted(path.name for path in Path().iterdir()) == ["data", "pets", "sheets"]


def test_dataset_draws_images_as_a_training_sees_them(mrcnn, rejected):
    mrcnn("dataset", write_coco())
    plain, augmented = ("--draw", "plain.png"), ("--draw", "strong.png", "--augment", "strong")
    assert mrcnn("dataset", "data/pets", *plain)[0] == mrcnn("dataset", "data/pets", *augmented)[0] == 0
    assert read_image("strong.png").shape != read_image("plain.png").shape
    assert "name its file, --draw FILE" in rejected("dataset", "data/pets", "--augment", "strong")
    assert "'aerial', 'light', 'microscopy'" in rejected("dataset", "data/pets", "--augment", "heavy")


def test_dataset_shows_a_prepared_set(mrcnn):
    prepared = mrcnn("dataset", write_coco(), "--out", "here")
    before = listing()
    status, out, err = mrcnn("dataset", "here")
    assert status == 0 and err == "" and listing() == before
    assert table_rows(out) == table_rows(prepared[1])
    assert out.endswith("prepare the set again from its folder with --validation-images 1\n")


def test_dataset_overwrites_only_prepared_sets_with_the_option(mrcnn, rejected):
    mrcnn("dataset", write_coco())
    assert EXISTS in rejected("dataset", "pets")
    write_coco(annotations=[])
    status, out, _ = mrcnn("dataset", "pets", "--overwrite")
    assert status == 0 and table_rows(out)["objects"] == ["0"]
    status, out, _ = mrcnn("dataset", "pets", "--overwrite", "--validation-images", "1")
    assert status == 0 and "Ready" not in out and "The training split has no annotated objects." in out
    message = rejected("dataset", "pets", "--out", "pets/images", "--overwrite")
    assert "pets/images exists and is not a prepared data set, so it is not overwritten" in message


def test_dataset_takes_splits_by_file_or_number(mrcnn, rejected):
    write_coco()
    status, out, _ = mrcnn("dataset", "pets", "--validation-images", "1", "--out", "held")
    assert status == 0 and table_rows(out)["images"] == ["2", "1"]
    assert split_names("held") == ("train", "validation")
    both = ("--train", "pets/images", ANNOTATIONS, "--validation", "pets/images", ANNOTATIONS)
    status, out, _ = mrcnn("dataset", "pets", "--out", "both", *both)
    assert status == 0 and table_rows(out)["images"] == ["3", "3"]
    assert "not for the split train" in rejected("dataset", "pets", *both[3:])
    message = rejected("dataset", "pets", "--validation-images", "3")
    assert "none of its 3 images is left for training" in message


def test_dataset_prefers_keypoints_with_the_option(mrcnn):
    content = json.loads((write_coco() / "annotations/all.json").read_text())
    Path(ANNOTATIONS).rename("pets/annotations/instances_train.json")
    names = ["nose", "left_ear", "right_ear"]
    content["categories"] = [category | {"keypoints": names} for category in content["categories"]]
    content["annotations"][0]["keypoints"] = [5, 5, 2, 0, 0, 0, 9, 9, 1]
    Path("pets/annotations/person_keypoints_train.json").write_text(json.dumps(content))
    assert "with keypoints" not in mrcnn("dataset", "pets", "--out", "instances")[1]
    status, out, _ = mrcnn("dataset", "pets", "--keypoints")
    assert status == 0 and table_rows(out)["with keypoints (of 3)"] == ["1"]
    assert open_dataset("data/pets", "train").info.keypoint_flip == (0, 2, 1)


def test_dataset_recognises_cityscapes(mrcnn, rejected):
    tiny_cityscapes.write(Path("cityscapes"))
    status, out, err = mrcnn("dataset", "cityscapes", "--draw", "sheet.png")
    assert status == 0 and "Traceback" not in err
    table = table_rows(out)
    assert table["images"] == ["3", "3"] and table["crowd"] == ["2", "1"]
    assert table["24"] == ["person", "2", "2"]
    assert "A contact sheet is in sheet.png.\n" in out
    assert out.endswith("\nmrcnn train small --data.dataset data/cityscapes\n")
    assert read_image("sheet.png").std() > 10
    assert EXISTS in rejected("dataset", "cityscapes")
    assert mrcnn("dataset", "cityscapes", "--overwrite")[0] == 0


def test_options_of_coco_are_rejected_for_cityscapes(mrcnn, rejected):
    tiny_cityscapes.write(Path("cityscapes"))
    for options in (("--validation-images", "2"), ("--keypoints",)):
        message = rejected("dataset", "cityscapes", *options)
        assert "cityscapes is laid out like Cityscapes, to which" in message
    write_coco()  # annotations in COCO's format are taken where they are named
    status, out, _ = mrcnn("dataset", "cityscapes", "--train", "pets/images", ANNOTATIONS)
    assert status == 0 and table_rows(out)["images"] == ["3"]


def test_a_cityscapes_without_annotations_is_named(rejected):
    tiny_cityscapes.write(Path("cityscapes"))
    Path("cityscapes/gtFine").rename("elsewhere")
    assert "gtFine" in rejected("dataset", "cityscapes")


# ---- wrong annotations and images


BOX = {"id": 11, "image_id": 1, "category_id": 3, "bbox": [4, 4, 10, 8]}
SMALL = {"id": 1, "file_name": "1.jpg", "height": 5, "width": 5}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"annotations": [BOX | {"category_id": 5}]}, "(annotation 11)"),
        ({"annotations": [BOX | {"image_id": 4}]}, "(annotation 11)"),
        ({"annotations": 5}, "has no list 'annotations'"),
        ({"images": []}, "it lists no image, but needs at least one"),
        (
            {"images": [{"id": 1, "file_name": "gone.jpg"}], "annotations": []},
            "1 of 1 images cannot be used, none is left (gone.jpg: missing from pets/images)",
        ),
        ({"images": [SMALL], "annotations": []}, "1.jpg: is 36x24 (width x height), but annotated as 5x5"),
    ],
)
def test_contradictory_annotation_files_are_rejected(rejected, changes, message):
    write_coco(**changes)
    found = rejected("dataset", "pets", "--strict")
    assert found.startswith(ANNOTATIONS) and message in found


@pytest.mark.parametrize("content", ["", "{", '{"images": [],}'])
def test_malformed_annotation_files_are_rejected(rejected, content):
    write_coco()
    Path(ANNOTATIONS).write_text(content)
    assert rejected("dataset", "pets").startswith(f"{ANNOTATIONS} is not valid JSON: ")


def test_unreadable_images_are_named_and_nothing_is_written(rejected):
    write_coco()
    last = Path("pets/images/3.jpg")  # two records are already being written
    data = last.read_bytes()
    last.write_bytes(data[: len(data) // 2])
    message = rejected("dataset", "pets", "--max-bad", "0")
    assert "1 of 3 images cannot be used" in message and "3.jpg: it is truncated or damaged" in message
    assert list(Path("data").iterdir()) == []


def test_missing_folders_are_named(rejected):
    assert rejected("dataset", "none").removesuffix(".") == "none is not a folder"


def test_pictures_that_cannot_be_written_are_named(mrcnn):
    mrcnn("dataset", write_coco())
    status, _, err = mrcnn("dataset", "data/pets", "--draw", "sheet.nonsense")
    assert status == 2 and err.startswith("mrcnn: ") and "sheet.nonsense" in err and err.count("\n") == 1
    assert not Path("sheet.nonsense").exists()
