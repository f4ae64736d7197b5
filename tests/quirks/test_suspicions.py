"""Annotations that seem to be wrong, each kind of which becomes one warning."""

import numpy as np
import pytest
from converted_sets import convert
from PIL import Image
from quirks import quirk
from small_sets import rectangle, write_set

from mrcnn_jax.config import AUGMENTATIONS, DataConfig
from mrcnn_jax.data.augment.example import training_example
from mrcnn_jax.data.dataset import read_metadata
from mrcnn_jax.data.formats import coco
from mrcnn_jax.errors import InputError


def change_all(**fields):
    return lambda content: [annotation.update(fields) for annotation in content["annotations"]]


def warnings(tmp_path, change, **options):
    """Returns the records and the only warning of a set."""
    records, report = convert(tmp_path, change, **options)
    boxes = [warning for warning in report.warnings if "have no mask" not in warning]
    assert len(boxes) == 1 and report.kept == 4, report.warnings
    return records, boxes[0]


SMALL = [0.2, 0.15, 0.4, 0.5]
SMALL_POLYGON = [[0.2, 0.15, 0.6, 0.15, 0.6, 0.65, 0.2, 0.65]]
RELATIVE = {
    "boxes": {"bbox": SMALL, "segmentation": []},
    "both": {"bbox": SMALL, "segmentation": SMALL_POLYGON},
    "boxes beside good masks": {"bbox": SMALL},
    "whole image": {"bbox": [0, 0, 1, 1], "segmentation": []},
}


@quirk("boxes in 0..1, relative to the image's size", "a warning with the number and an example")
@pytest.mark.parametrize("fields", RELATIVE.values(), ids=RELATIVE)
def test_relative_boxes(tmp_path, fields):
    _, warning = warnings(tmp_path, change_all(**fields))
    assert warning.startswith("4 of 4 boxes are within the first pixel (annotation 1: x, y, width, height 0")


APART = {
    "x1, y1, x2, y2": [20, 10, 60, 40],
    "y, x, height, width": [10, 20, 30, 40],
    "y1, x1, y2, x2": [10, 20, 40, 60],
    "the centre, width and height": [40, 25, 40, 30],
}


@quirk("boxes as corners, as y, x, height, width or by their centre, beside masks", "a warning that says so")
@pytest.mark.parametrize("meaning, box", APART.items(), ids=APART)
def test_boxes_of_another_meaning(tmp_path, meaning, box):
    _, warning = warnings(tmp_path, change_all(bbox=box))
    numbers = " ".join(map(str, box))
    example = f"annotation 1: x, y, width, height {numbers}, but that of its mask 20 10 40 30"
    assert warning.startswith(f"4 of 4 boxes do not fit their masks ({example})")
    assert warning.endswith(f"4 of them would fit if given as {meaning}")


@quirk("boxes elsewhere than their masks", "a warning with the number and an example")
@pytest.mark.parametrize("box", [[70, 45, 10, 10], [0, 0, 96, 64], [22, 12, 5, 5]])
def test_boxes_elsewhere(tmp_path, box):
    def change(content):
        content["annotations"][2]["bbox"] = box

    _, warning = warnings(tmp_path, change)
    assert warning.startswith("1 of 4 boxes do not fit their masks (annotation 3: ")


@quirk("corners in place of width and height, without masks", "a warning if all boxes may be corners")
def test_corners_without_masks(tmp_path):
    _, warning = warnings(tmp_path, change_all(bbox=[50, 30, 90, 60], segmentation=[]))
    assert warning.startswith("4 of 4 boxes extend beyond their image, and all may be corners")


@quirk("boxes and polygons drawn on the rotated photo", "a warning that names `--rotation`")
def test_rotated_frame(tmp_path):
    def change(content):
        content["annotations"] = [rectangle(i, i, 1 + i % 2, x=5, y=40, w=50, h=50) for i in range(1, 5)]

    _, warning = warnings(tmp_path, change)
    assert warning.startswith("4 of 4 boxes extend beyond their image but would fit it turned by 90 degrees")
    assert "--rotation upright" in warning


BEYOND = {"right": [20, 10, 4000, 30], "left": [-500, 10, 560, 30], "below": [20, 10, 40, 90]}


@quirk("boxes that extend beyond their image", "a warning; clipped for training, scored as annotated")
@pytest.mark.parametrize("box", BEYOND.values(), ids=BEYOND)
@pytest.mark.parametrize("mask", [True, False])
def test_boxes_beyond_the_image(tmp_path, box, mask):
    given = {"bbox": box} if mask and box[2:] != [4000, 30] else {"bbox": box, "segmentation": []}
    records, warning = warnings(tmp_path, change_all(**given))
    if "training clips them" not in warning:
        assert warning.startswith(("4 of 4 boxes do not fit", "4 of 4 boxes extend beyond their image"))
    x, y, w, h = box
    assert records[0].objects.boxes.tolist() == [[x, y, x + w, y + h]]
    info = read_metadata(tmp_path / "out")[0]
    config = DataConfig(short_edge=(64,), short_edge_test=64, long_edge=96, augment=AUGMENTATIONS["none"])
    boxes = training_example(records[0], info, config, np.random.default_rng(0), masks=False).boxes
    clipped = [max(x, 0), max(y, 0), min(x + w, 96), min(y + h, 64)]
    np.testing.assert_allclose(boxes[0], clipped, atol=1e-4)


@quirk("all objects have `iscrowd` 1", "a warning that nothing is learned from crowds")
@pytest.mark.parametrize("flag", [1, True, "1"])
def test_all_crowds(tmp_path, flag):
    _, warning = warnings(tmp_path, change_all(iscrowd=flag))
    assert warning.startswith("all 4 objects are crowd regions, from which nothing is learned")


ALL_LOST = {
    "boxes": ({"bbox": [10, 10, -5, -5], "segmentation": []}, "box without a positive, finite width"),
    "parts": ({"bbox": [], "segmentation": [[1, 2, 3]]}, "mask: "),
    "captions": ({"category_id": None, "caption": "a dog"}, "annotation of a category that is not listed"),
    "categories by name": ({"category_id": "a"}, "annotation of a category that is not listed"),
    "images by name": ({"image_id": "1.jpg"}, "annotation of an image that is not listed"),
}


@quirk("none of the annotations for training can be used (captions, names in place of ids)", "refused: why")
@pytest.mark.parametrize("fields, reason", ALL_LOST.values(), ids=ALL_LOST)
@pytest.mark.parametrize("validation_images", [0, 1])
def test_all_annotations_are_lost(tmp_path, fields, reason, validation_images):
    with pytest.raises(InputError, match=f"annotations of train can be used.* x {reason}"):
        convert(tmp_path, change_all(**fields), validation_images=validation_images)
    assert not (tmp_path / "out").exists()


@quirk("nothing to learn: no annotation", "a warning")
def test_nothing_to_learn(tmp_path):
    _, report = convert(tmp_path, lambda content: content.update(annotations=[]))
    assert "no object is left in train: nothing can be learned from it" in report.warnings
    assert read_metadata(tmp_path / "out")[1]["train"]["objects"] == 0


@quirk("objects without a mask", "their number; masks are learned and scored from the others")
def test_objects_without_mask(tmp_path):
    _, report = convert(tmp_path, lambda d: d["annotations"][3].update(segmentation=[]))
    use = "masks are learned and scored from the others"
    assert report.warnings == [f"1 of 4 objects have no mask: {use}"]
    _, report = convert(tmp_path, change_all(segmentation=[]))
    assert report.warnings == ["4 of 4 objects have no mask: only boxes are of use"]


@quirk("images that are in two splits, under any name", "a warning with the number and an example")
@pytest.mark.parametrize("split", ["validation", "test"])
def test_images_in_two_splits(tmp_path, split):
    folder = write_set(tmp_path / "set", images="train", listing="annotations/train.json")
    names = [f"photo {i}.jpg" for i in range(1, 5)]
    write_set(folder, images=split, listing=f"annotations/{split}.json", names=names)
    reports = coco.prepare(folder, tmp_path / "out")
    assert reports["train"].warnings == []
    warned = "different images are also in train (photo 1.jpg is 1.jpg there): scores on them"
    assert [w for w in reports[split].warnings if w.startswith(f"4 of 4 {warned}")]
    for grey, name in enumerate(names[1:]):
        Image.new("L", (96, 64), grey).save(folder / split / name)
    reports = coco.prepare(folder, tmp_path / "out", overwrite=True)
    assert [w for w in reports[split].warnings if w.startswith(f"1 of 4 {warned}")]


def test_held_out_images_are_in_one_split(tmp_path):
    reports = coco.prepare(write_set(tmp_path / "set"), tmp_path / "out", validation_images=1)
    assert "also in train" not in str(reports["validation"])
    source = coco.CocoSplit(tmp_path / "set/images", tmp_path / "set/annotations/all.json")
    reports = coco.prepare({"train": source, "validation": source}, tmp_path / "twice")
    assert "4 of 4 different images are also in train (1.jpg is 1.jpg there)" in str(reports["validation"])


@quirk("classes without objects, or with objects in one split alone", "named in a warning")
def test_classes_without_objects(tmp_path):
    def only(category):
        return change_all(category_id=category)

    def add_class(content):
        content["categories"].append({"id": 7, "name": "c"})
        only(1)(content)

    write_set(tmp_path / "set", add_class, images="train", listing="annotations/train.json")
    write_set(tmp_path / "set", only(2), images="val", listing="annotations/val.json")
    reports = coco.prepare(tmp_path / "set", tmp_path / "out")
    assert "1 class ('c') without objects, which cannot be learned" in reports["train"].warnings
    alone = "1 class ('{}') with objects in {} alone, which cannot be {}"
    assert alone.format("a", "train", "scored") in reports["train"].warnings
    assert alone.format("b", "validation", "learned") in reports["validation"].warnings


@quirk("keypoints of which none has a mirror partner by its name", "a warning")
@pytest.mark.parametrize(
    "names, warned", [(["nose", "tail"], True), (["nose"], False), (["LEye", "REye"], False)]
)
def test_keypoints_without_mirror_partners(tmp_path, names, warned):
    _, report = convert(tmp_path, lambda d: [c.update(keypoints=names) for c in d["categories"]])
    assert any("no keypoint has a mirror partner" in warning for warning in report.warnings) == warned


@quirk("many objects in an image", "the largest number is in the statistics of the set")
def test_largest_number_of_objects(tmp_path):
    many = [rectangle(100 + i, 2, 1) | {"bbox": [1, 2, 3 + i / 9, 4]} for i in range(150)]
    convert(tmp_path, lambda d: d["annotations"].extend(many))
    assert read_metadata(tmp_path / "out")[1]["train"]["objects_per_image"][-1] == 151
