"""Faults of COCO files: mended, left out or refused, and always named."""

import json
import math

import cv2
import numpy as np
import pytest
from coco_folders import (
    HEIGHT,
    TRIANGLE,
    WIDTH,
    annotation,
    compressed,
    content,
    mask_of,
    read_one,
    uncompressed,
    write_folder,
)
from pycocotools import mask as coco_mask

from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.data.formats import coco
from mrcnn_jax.data.formats.coco import CocoFile
from mrcnn_jax.errors import InputError

# ---- mended or left out


def test_missing_box_and_area_come_from_the_mask(tmp_path):
    blob = compressed(mask_of(20, 10, 13, 9))
    objects, report = read_one(
        tmp_path,
        annotation(1, segmentation=blob, bbox=..., area=...),
        annotation(2, segmentation=..., area=..., bbox=[1, 2, 3, 4]),
        annotation(3, segmentation=[], area=math.nan, bbox=[1, 2, 3, 4]),
        annotation(4, area=-1, segmentation=blob),
    )
    np.testing.assert_array_equal(objects.boxes[0], [20, 10, 33, 19])
    np.testing.assert_array_equal(objects.areas, [117, 12, 12, 117])
    assert [bool(rle) for rle in objects.rles] == [True, False, False, True]
    assert report.mended == {
        "box derived from the mask": {1},
        "area derived from the mask or the box": {1, 2, 3, 4},
    }
    assert not report.left_out and report.kept == 4


BAD_BOXES = {
    "negative height": ([5, 5, 9, -1], "box without a positive"),
    "not a number": ([5, 5, math.nan, 9], "box without a positive"),
    "infinite": ([5, 5, math.inf, 9], "box without a positive"),
    "corner not a number": ([5, math.nan, 9, 9], "box whose corner is no number"),
    "three numbers": ([5, 5, 9], "box that is not 4 numbers"),
    "word": ([5, 5, "wide", 9], "box that is not 4 numbers"),
    "right of the image": ([WIDTH, 5, 9, 9], "box wholly outside"),
    "above the image": ([5, -9, 9, 9], "box wholly outside"),
    "vanishes in float32": ([50, 5, 1e-9, 9], "box wholly outside"),
}
BAD_MASKS = {
    "two points": ([[1, 1, 9, 9]], "polygon with fewer than 3 points"),
    "odd number": ([[1, 1, 9, 9, 4, 4, 5]], "polygon with an odd number"),
    "infinite corner": ([[1, 1, 9, math.inf, 4, 4]], "polygon with a coordinate beyond"),
    "far corner": ([[1, 1, 9, 1e15, 4, 4]], "polygon with a coordinate beyond"),
    "endless outline": ([[0, 0, 1e6, 1e6] * 9], "polygon whose outline is longer"),
    "word": ([[1, 1, 9, "far", 4, 4]], "polygon of other things than numbers"),
    "polygon outside": ([[100, 100, 120, 100, 120, 120]], "polygon outside the image"),
    "thin polygon": ([[5, 5.1, 25, 5.2, 25, 5.3]], "polygon thinner than a pixel"),
    "all background": (uncompressed(mask_of(0, 0, 0, 0)), "run-length code of no pixel"),
    "transposed": ({"size": [WIDTH, HEIGHT], "counts": [2400]}, "run-length code of another size"),
    "runs too short": ({"size": [HEIGHT, WIDTH], "counts": [10, 20]}, "run-length code that does not fill"),
    "runs too long": ({"size": [HEIGHT, WIDTH], "counts": [10, 9999]}, "run-length code that does not fill"),
    "negative run": ({"size": [HEIGHT, WIDTH], "counts": [-10, 2410]}, "run-length code that does not fill"),
    "short text": ({"size": [HEIGHT, WIDTH], "counts": "12"}, "run-length code that does not fill"),
    "cut text": ({"size": [HEIGHT, WIDTH], "counts": "1P"}, "run-length code that does not fill"),
    "endless number": ({"size": [HEIGHT, WIDTH], "counts": "o" * 10**5}, "run-length code that"),
    "wrong letters": ({"size": [HEIGHT, WIDTH], "counts": "1 ü"}, "run-length code that does not fill"),
    "no counts": ({"size": [HEIGHT, WIDTH]}, "run-length code that does not fill"),
}
BAD = (
    {f"box: {name}": ({"bbox": box, "segmentation": ...}, kind) for name, (box, kind) in BAD_BOXES.items()}
    | {f"mask: {name}": ({"bbox": ..., "segmentation": mask}, f"mask: {kind}")
       for name, (mask, kind) in BAD_MASKS.items()}
    | {"nothing": ({"bbox": ..., "segmentation": ...}, "neither a box nor a mask")}
)  # fmt: skip


@pytest.mark.parametrize("changes, kind", BAD.values(), ids=BAD.keys())
def test_bad_annotation_is_left_out_and_reported(tmp_path, changes, kind):
    given = annotation(1), annotation(2, **changes), annotation(3, category_id=90)
    objects, report = read_one(tmp_path, *given)
    assert objects.ids.tolist() == [1, 3]
    ((found, ids),) = report.left_out.items()
    assert found.startswith(kind) and ids == {2} and report.kept == 2
    assert f"left out: 1 x {found} (annotation 2)" in str(report)


@pytest.mark.parametrize("box, kind", BAD_BOXES.values(), ids=BAD_BOXES.keys())
def test_unusable_box_is_derived_from_a_good_mask(tmp_path, box, kind):
    objects, report = read_one(tmp_path, annotation(1), annotation(2, bbox=box))
    assert objects.rles[0] == objects.rles[1] and not report.left_out
    x, y, w, h = coco_mask.toBbox({"size": [HEIGHT, WIDTH], "counts": objects.rles[1]})
    assert objects.boxes[1].tolist() == [x, y, x + w, y + h]
    ((found, ids),) = report.mended.items()
    assert found.startswith(f"box derived from the mask: {kind}") and ids == {2}


@pytest.mark.parametrize("mask, kind", BAD_MASKS.values(), ids=BAD_MASKS.keys())
def test_good_box_is_kept_without_an_unusable_mask(tmp_path, mask, kind):
    objects, report = read_one(tmp_path, annotation(1), annotation(2, segmentation=mask))
    assert [bool(rle) for rle in objects.rles] == [True, False] and not report.left_out
    np.testing.assert_array_equal(objects.boxes[0], objects.boxes[1])
    ((found, ids),) = report.dropped.items()
    assert found.startswith(f"mask: {kind}") and ids == {2}
    assert f"not used: 1 x {found} (annotation 2)" in str(report)


def test_stray_polygon_parts_are_dropped(tmp_path):
    objects, report = read_one(tmp_path, annotation(8, segmentation=[[1, 1, 9, 9], TRIANGLE]), annotation(9))
    assert objects.rles[0] == objects.rles[1]
    assert report.mended == {"part of a mask left out: polygon with fewer than 3 points": {8}}


def test_unusable_ids_are_replaced(tmp_path):
    given = [annotation(id_, bbox=[5, 5, 20 + i, 25]) for i, id_ in enumerate((0, 5, 5, ..., 3))]
    objects, report = read_one(tmp_path, *given)
    assert objects.ids.tolist() == [6, 5, 7, 8, 3]
    assert list(report.mended.values()) == [{6, 7, 8}]


def test_report_shortens_long_lists(tmp_path):
    _, report = read_one(tmp_path, *(annotation(i, bbox=[i, 1, 0, 0], segmentation=[]) for i in range(1, 9)))
    assert str(report).splitlines() == [
        "all.json: 1 images, 0 of 8 annotations kept",
        "  left out: 8 x box without a positive, finite width and height (annotation 1, 2, 3, 4, 5, ...)",
        "  warning: 8 of 8 annotations are left out: if that is more than you expected, mend the file first",
    ]


# ---- refused


def edited(edit) -> dict:
    given = content(annotation(31))
    edit(given)
    return given


REFUSED = {
    "no images": (edited(lambda c: c.pop("images")), "no list 'images'"),
    "no annotations": (edited(lambda c: c.pop("annotations")), "no list 'annotations'"),
    "no categories": (edited(lambda c: c.pop("categories")), "no list 'categories'"),
    "empty images": (edited(lambda c: c["images"].clear()), "lists no image"),
    "a list": ([], "no list 'images'"),
    "category twice": (
        edited(lambda c: c["categories"].append({"id": 90, "name": "x"})),
        "category id 90 is given more than once, to 'dog' and 'x'",
    ),
    "no usable category": (
        edited(lambda c: c.update(categories=[None, {}])), "none of its 2 categories has an id"
    ),
    "no usable image": (edited(lambda c: c.update(images=[None])), "1 of 1 images cannot be used"),
}


@pytest.mark.parametrize("given, message", REFUSED.values(), ids=REFUSED.keys())
def test_untrustworthy_file_is_refused(tmp_path, given, message):
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(given))
    write_folder(tmp_path, content())  # the images are there
    with pytest.raises(InputError, match=message) as refusal:
        CocoFile(tmp_path / "images", path)
    assert str(path) in str(refusal.value)


def test_missing_and_malformed_json_are_refused(tmp_path):
    with pytest.raises(InputError, match="^cannot read .*absent.json: No such file"):
        CocoFile(tmp_path, tmp_path / "absent.json")
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(InputError, match="half.json is not valid JSON"):
        CocoFile(tmp_path, tmp_path / "half.json")


def test_missing_images_are_named(tmp_path):
    write_folder(tmp_path, content(image_ids=(1, 2, 3, 4, 5, 6)))
    for id_ in (2, 3, 5, 6):
        (tmp_path / "images" / f"{id_}.jpg").unlink()
    expected = r"4 of 6 images cannot be used, --max-bad 0.05 allows 1 \(2.jpg: missing from .*; 6.jpg: m"
    with pytest.raises(InputError, match=expected):
        CocoFile(tmp_path / "images", tmp_path / "annotations/all.json")


def test_unusable_images_are_left_out_up_to_a_share(tmp_path):
    write_folder(tmp_path, content(annotation(), annotation(2, image_id=4), image_ids=(4, 7, 9)))
    for id_ in (7, 9):
        (tmp_path / f"images/{id_}.jpg").write_bytes(b"no image")
    expected = r"2 of 3 images cannot be used, --max-bad 0.05 allows 1 \(7.jpg: .*; 9.jpg: "
    with pytest.raises(InputError, match=expected):
        coco.prepare(tmp_path, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["annotations", "images"]
    reports = coco.prepare(tmp_path, tmp_path / "out", max_bad=0.5)
    assert [record.image_id for record in open_dataset(tmp_path / "out", "train")] == [4]
    left_out = reports["train"].images_left_out.values()
    assert sorted(name for names in left_out for name in names) == ["7.jpg", "9.jpg"]
    assert reports["train"].left_out == {"annotation of an image that is left out": {1}}
    with pytest.raises(InputError, match="2 of 3 images cannot be used, --max-bad 0 allows 0"):
        coco.prepare(tmp_path, tmp_path / "strict", max_bad=1, strict=True)


def test_truncated_image_is_named_by_its_record(tmp_path):
    file = write_folder(tmp_path, content())
    data = (tmp_path / "images/7.jpg").read_bytes()
    (tmp_path / "images/7.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"7.jpg: it is truncated or damaged"):
        file[1]


def test_truncated_jpeg_with_a_whole_thumbnail_is_refused(tmp_path):
    file = write_folder(tmp_path, content())
    path = tmp_path / "images" / "7.jpg"
    data = path.read_bytes()
    thumbnail = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    block = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    path.write_bytes(data[:2] + block + data[2:])
    assert file[1].image_id == 7
    path.write_bytes(data[:2] + block + data[2:-300])
    with pytest.raises(InputError, match="7.jpg: it is truncated or damaged"):
        file[1]


def test_size_other_than_annotated_is_refused(tmp_path):
    given = content()
    given["images"][0].update(height=WIDTH, width=HEIGHT)
    with pytest.raises(InputError, match=r"7.jpg is 60x40 \(width x height\), but annotated as 40x60"):
        write_folder(tmp_path, given)[1]


def test_strict_lists_every_kind_of_flaw(tmp_path):
    stray = annotation(3, image_id=5)
    write_folder(tmp_path, content(annotation(1, bbox=...), annotation(2, segmentation=[1, 1, 9, 9]), stray))
    message = "as --strict asks: .*not listed.*fewer than 3.*derived from the mask"
    with pytest.raises(InputError, match=message):
        coco.prepare(tmp_path, tmp_path / "out", strict=True)
    assert not (tmp_path / "out").exists()


def test_splits_must_share_a_class(tmp_path):
    other = content()
    other["categories"] = [{"id": 3, "name": "lynx"}]
    write_folder(tmp_path, content(), "train", "annotations/instances_train.json")
    write_folder(tmp_path, other, "val", "annotations/instances_val.json")
    message = r"train \('cat', 'dog'\) and validation \('lynx'\) have no class name in common"
    with pytest.raises(InputError, match=message):
        coco.prepare(tmp_path, tmp_path / "out")


def test_strict_refuses_splits_whose_classes_differ(tmp_path):
    other = content()
    other["categories"][0]["name"] = "lynx"
    write_folder(tmp_path, content(), "train", "annotations/instances_train.json")
    write_folder(tmp_path, other, "val", "annotations/instances_val.json")
    with pytest.raises(InputError, match="categories of train and validation differ: .*'lynx'.*'cat'"):
        coco.prepare(tmp_path, tmp_path / "out", strict=True)
