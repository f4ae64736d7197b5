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


BAD = {
    "zero width": ({"bbox": [5, 5, 0, 9]}, "box without a positive"),
    "negative height": ({"bbox": [5, 5, 9, -1]}, "box without a positive"),
    "not a number": ({"bbox": [5, math.nan, 9, 9]}, "box without a positive"),
    "infinite": ({"bbox": [5, 5, math.inf, 9]}, "box without a positive"),
    "three numbers": ({"bbox": [5, 5, 9]}, "box without a positive"),
    "text in the box": ({"bbox": [5, 5, "9", 9]}, "box without a positive"),
    "right of the image": ({"bbox": [WIDTH, 5, 9, 9]}, "box wholly outside"),
    "above the image": ({"bbox": [5, -9, 9, 9]}, "box wholly outside"),
    "vanishes in float32": ({"bbox": [50, 5, 1e-9, 9]}, "box wholly outside"),
    "two points": ({"segmentation": [[1, 1, 9, 9]]}, "polygon with fewer than 3 points"),
    "odd numbers": ({"segmentation": [[1, 1, 9, 9, 4, 4, 5]]}, "malformed polygon"),
    "infinite corner": ({"segmentation": [[1, 1, 9, math.inf, 4, 4]]}, "malformed polygon"),
    "far corner": ({"segmentation": [[1, 1, 9, 1e15, 4, 4]]}, "malformed polygon"),
    "flat list": ({"segmentation": TRIANGLE}, "malformed polygon"),
    "polygon outside": ({"segmentation": [[100, 100, 120, 100, 120, 120]]}, "empty mask"),
    "all background": ({"segmentation": uncompressed(mask_of(0, 0, 0, 0))}, "empty mask"),
    "transposed RLE": ({"segmentation": {"size": [WIDTH, HEIGHT], "counts": [2400]}}, "RLE of another size"),
    "runs too short": ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [10, 20]}}, "malformed RLE"),
    "runs too long": ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [10, 9999]}}, "malformed RLE"),
    "negative run": ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-10, 2410]}}, "malformed RLE"),
    "short string": ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "12"}}, "malformed RLE"),
    "cut string": ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "1P"}}, "malformed RLE"),
    "wrong letters": ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "1 ü"}}, "malformed RLE"),
    "no counts": ({"segmentation": {"size": [HEIGHT, WIDTH]}}, "malformed RLE"),
    "nothing": ({"bbox": ..., "segmentation": ...}, "neither a box nor a mask"),
}


@pytest.mark.parametrize("changes, kind", BAD.values(), ids=BAD.keys())
def test_bad_annotation_is_left_out_and_reported(tmp_path, changes, kind):
    objects, report = read_one(tmp_path, annotation(1), annotation(2, **changes), annotation(3))
    assert objects.ids.tolist() == [1, 3]
    ((found, ids),) = report.left_out.items()
    assert found.startswith(kind) and ids == {2} and report.kept == 2
    assert f"left out: 1 x {found} (annotation 2)" in str(report)


def test_stray_polygon_parts_are_dropped(tmp_path):
    objects, report = read_one(tmp_path, annotation(8, segmentation=[[1, 1, 9, 9], TRIANGLE]), annotation(9))
    assert objects.rles[0] == objects.rles[1]
    assert report.mended == {"polygon parts with fewer than 3 points dropped": {8}}


def test_unusable_ids_are_replaced(tmp_path):
    objects, report = read_one(tmp_path, *map(annotation, (0, 5, 5, ..., 3)))
    assert objects.ids.tolist() == [6, 5, 7, 8, 3]
    assert list(report.mended.values()) == [{6, 7, 8}]


def test_report_shortens_long_lists(tmp_path):
    _, report = read_one(tmp_path, *(annotation(i, bbox=[1, 1, 0, 0]) for i in range(1, 9)))
    assert str(report).splitlines() == [
        "all.json: 1 images, 0 of 8 annotations kept",
        "  left out: 8 x box without a positive, finite width and height (annotation 1, 2, 3, 4, 5, ...)",
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
    "image twice": (
        edited(lambda c: c["images"].append(c["images"][0])),
        "image id 7 is given more than once",
    ),
    "category twice": (
        edited(lambda c: c["categories"].append({"id": 90, "name": "x"})),
        "category id 90 is given more than once",
    ),
    "text id": (edited(lambda c: c["images"][1].update(id="a")), "image number 1, from 0, has no integer id"),
    "no file name": (edited(lambda c: c["images"][1].pop("file_name")), "image 4 has no file_name"),
    "no name": (edited(lambda c: c["categories"][0].pop("name")), "category 3 has no name"),
    "unknown image": (
        edited(lambda c: c["annotations"][0].update(image_id=99)),
        "annotation 31 has image_id 99",
    ),
    "unknown category": (
        edited(lambda c: c["annotations"][0].update(category_id=2)),
        "annotation 31 has category_id 2",
    ),
    "no image id": (edited(lambda c: c["annotations"][0].pop("image_id")), "annotation 31 has image_id None"),
    "list as id": (
        edited(lambda c: c["annotations"][0].update(image_id=[7])),
        r"annotation 31 has image_id \[7\]",
    ),
    "not an object": (edited(lambda c: c["annotations"].append(5)), "annotation number 1, from 0, is not"),
    "two lists of keypoints": (
        edited(lambda c: [k.update(keypoints=[k["name"]]) for k in c["categories"]]),
        "must list the same keypoints",
    ),
    "skeleton": (
        edited(lambda c: c["categories"][0].update(keypoints=["nose"], skeleton=[[1, 2]])),
        r"skeleton refers to a keypoint outside 1..1",
    ),
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
    with pytest.raises(InputError, match="absent.json: there is no such annotation file"):
        CocoFile(tmp_path, tmp_path / "absent.json")
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(InputError, match="half.json is not valid JSON"):
        CocoFile(tmp_path, tmp_path / "half.json")


def test_missing_images_are_named(tmp_path):
    write_folder(tmp_path, content(image_ids=(1, 2, 3, 4, 5, 6)))
    for id_ in (2, 3, 5, 6):
        (tmp_path / "images" / f"{id_}.jpg").unlink()
    expected = r"4 of 6 images are missing from .*images \(2.jpg, 3.jpg, 5.jpg, ...\)"
    with pytest.raises(InputError, match=expected):
        CocoFile(tmp_path / "images", tmp_path / "annotations/all.json")


@pytest.mark.parametrize("format_", ["jpg", "png"])
@pytest.mark.parametrize("kept", [0.5, 0.9, 0.999])
def test_truncated_images_are_named_and_nothing_is_written(tmp_path, format_, kept):
    given = content(annotation())
    for image in given["images"]:
        image["file_name"] = f"{image['id']}.{format_}"
    write_folder(tmp_path, given)
    path = tmp_path / "images" / f"7.{format_}"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(InputError, match=rf"7.{format_}: it is truncated or damaged"):
        coco.prepare(tmp_path, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["annotations", "images"]


def test_other_files_than_jpeg_and_png_are_refused(tmp_path):
    file = write_folder(tmp_path, content())
    for data in (b"", b"GIF89a..."):
        (tmp_path / "images" / "7.jpg").write_bytes(data)
        with pytest.raises(InputError, match="7.jpg is not an image in JPEG or PNG format"):
            list(file)


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
    with pytest.raises(InputError, match=r"image 7 is annotated as 40x60 .*7.jpg is 60x40"):
        list(write_folder(tmp_path, given))


def test_exif_rotation_is_not_applied(tmp_path):
    given = content()
    file = write_folder(tmp_path, given)
    path = tmp_path / "images" / "7.jpg"
    tag = b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"  # orientation, one short: turn by 90 degrees
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01" + tag + bytes(4)
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
    assert cv2.imread(str(path)).shape[:2] == (WIDTH, HEIGHT)
    assert (file[1].height, file[1].width) == (HEIGHT, WIDTH)
    given["images"][0].update(height=WIDTH, width=HEIGHT)
    (tmp_path / "annotations/all.json").write_text(json.dumps(given))
    with pytest.raises(InputError, match="as stored, without EXIF rotation"):
        list(CocoFile(tmp_path / "images", tmp_path / "annotations/all.json"))


def test_splits_must_share_their_categories(tmp_path):
    other = content()
    other["categories"][0]["name"] = "lynx"
    write_folder(tmp_path, content(), "train", "annotations/instances_train.json")
    write_folder(tmp_path, other, "val", "annotations/instances_val.json")
    with pytest.raises(InputError, match="categories of the splits train and validation differ"):
        coco.prepare(tmp_path, tmp_path / "out")
