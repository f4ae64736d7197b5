"""COCO folders: what is read equals pycocotools' own reading, what is wrong is named or counted."""

import copy
import json
import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import Params

from mrcnn_jax.data.dataset import Objects, open_dataset
from mrcnn_jax.data.formats import coco
from mrcnn_jax.data.formats.coco import CocoFile
from mrcnn_jax.data.formats.coco_layout import CocoSplit, find_splits
from mrcnn_jax.data.formats.report import Report
from mrcnn_jax.errors import InputError

HEIGHT, WIDTH = 40, 60
TRIANGLE = [5.0, 5.0, 25.5, 6.0, 10.0, 30.2]
REAL_DATA = os.environ.get("MRCNN_TEST_DATA")


def mask_of(x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    return mask


def uncompressed(mask: np.ndarray) -> dict:
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    return {"size": list(mask.shape), "counts": np.diff(edges, prepend=0, append=flat.size).tolist()}


def compressed(mask: np.ndarray) -> dict:
    return {"size": list(mask.shape), "counts": coco_mask.encode(mask)["counts"].decode()}


def annotation(id_: int = 1, image_id: int = 7, **changes) -> dict:
    given = {
        "id": id_,
        "image_id": image_id,
        "category_id": 3,
        "bbox": [5, 5, 20.5, 25.2],
        "area": 250.25,
        "iscrowd": 0,
        "segmentation": [TRIANGLE],
    }
    return {key: value for key, value in (given | changes).items() if value is not ...}  # ... takes a key away


def content(*annotations: dict, image_ids: tuple[int, ...] = (7, 4), keypoints: bool = False) -> dict:
    categories = [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}]
    if keypoints:
        names = ["nose", "left_eye", "right_eye"]
        categories[0] |= {"keypoints": names, "skeleton": [[1, 2], [1, 3]]}
    images = [{"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in image_ids]
    return {"images": images, "annotations": list(annotations), "categories": categories}


def write_folder(
    folder: Path, given: dict, images: str = "images", annotations: str = "annotations/all.json"
) -> CocoFile:
    """Writes the images a content lists, and the content, and opens them."""
    (folder / images).mkdir(parents=True, exist_ok=True)
    (folder / annotations).parent.mkdir(parents=True, exist_ok=True)
    for image in given["images"]:
        picture = np.random.default_rng(image["id"]).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        cv2.imwrite(str(folder / images / image["file_name"]), picture)
    (folder / annotations).write_text(json.dumps(given))
    return CocoFile(folder / images, folder / annotations)


def read_one(tmp_path: Path, *annotations: dict, **kwargs) -> tuple[Objects, Report]:
    """The objects of image 7, which has all the annotations, and the report."""
    file = write_folder(tmp_path, content(*annotations, image_ids=(7,), **kwargs))
    (record,) = file
    return record.objects, file.report


# ---- what is right


def test_round_trip_equals_pycocotools(tmp_path):
    blob = mask_of(20, 10, 13, 9)
    given = content(
        annotation(11, segmentation=[TRIANGLE, [40, 2, 55.7, 3, 50, 20, 41, 18]]),
        annotation(12, segmentation=uncompressed(blob), bbox=[20, 10, 13, 9], category_id=90, iscrowd=1, area=117),
        annotation(900, segmentation=compressed(blob), bbox=[20.25, 10.1, 12.7, 8.4], image_id=5),
        annotation(14, image_id=5, area=3.125),
        image_ids=(7, 4, 5),
    )
    write_folder(tmp_path, given)
    coco.prepare(tmp_path, tmp_path / "out")
    source = open_dataset(tmp_path / "out", "train")
    assert [record.image_id for record in source] == [4, 5, 7]
    assert [record.file_name for record in source] == ["4.jpg", "5.jpg", "7.jpg"]
    assert [len(record.objects.ids) for record in source] == [0, 2, 2]
    assert source[0].objects.boxes.shape == (0, 4) and source[0].objects.keypoints.shape == (0, 0, 3)
    assert all(r.image == (tmp_path / "images" / r.file_name).read_bytes() for r in source)
    np.testing.assert_array_equal(source[2].objects.boxes[1], [20, 10, 33, 19])
    np.testing.assert_array_equal(source[2].objects.classes, [0, 1])
    assert_same_truth(source.ground_truth(), given)


def assert_same_truth(rebuilt: dict, given: dict) -> None:
    """Asserts that both dictionaries mean the same to pycocotools: every id, box, area, flag, keypoint and mask."""
    ours, theirs = COCO(), COCO()
    ours.dataset, theirs.dataset = rebuilt, copy.deepcopy(given)
    ours.createIndex()
    theirs.createIndex()
    assert sorted(ours.getImgIds()) == sorted(theirs.getImgIds())
    assert sorted(ours.getAnnIds()) == sorted(theirs.getAnnIds())
    assert {i: c["name"] for i, c in ours.cats.items()} == {i: c["name"] for i, c in theirs.cats.items()}
    for id_, expected in theirs.anns.items():
        annotation = ours.anns[id_]
        for key in ("image_id", "category_id", "iscrowd", "area", "num_keypoints"):
            assert annotation.get(key) == expected.get(key), (id_, key)
        np.testing.assert_allclose(annotation["bbox"], expected["bbox"], rtol=0, atol=1e-9)
        if "keypoints" in expected:
            assert annotation["keypoints"] == expected["keypoints"]
        masks = theirs.annToRLE(expected), annotation["segmentation"]
        assert coco_mask.iou([masks[0]], [masks[1]], [0]) == 1 and masks[0]["size"] == masks[1]["size"], id_


def test_polygon_becomes_the_same_string_as_in_pycocotools(tmp_path):
    polygons = [TRIANGLE, [40, 2, 55.7, 3, 50, 20, 41, 18]]
    objects, _ = read_one(tmp_path, annotation(segmentation=polygons))
    expected = coco_mask.merge(coco_mask.frPyObjects(polygons, HEIGHT, WIDTH))["counts"].decode()
    assert objects.rles == [expected]


def test_compressed_rle_comes_back_unchanged(tmp_path):
    noise = np.asfortranarray(np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH)), np.uint8)
    full = np.ones_like(noise)
    noise, full = compressed(noise), compressed(full)
    objects, report = read_one(tmp_path, annotation(1, segmentation=noise), annotation(2, segmentation=full))
    assert objects.rles == [noise["counts"], full["counts"]] and not report.left_out


def test_order_does_not_depend_on_the_file(tmp_path):
    given = content(annotation(1), annotation(2, image_id=4))
    forwards = list(write_folder(tmp_path, given))
    given["images"].reverse()
    backwards = list(write_folder(tmp_path, given))
    assert [r.image_id for r in forwards] == [r.image_id for r in backwards] == [4, 7]


def test_reading_a_record_twice_counts_once(tmp_path):
    file = write_folder(tmp_path, content(annotation(1), annotation(2, bbox=[1, 1, 0, 5])))
    assert len(file[1].objects.ids) == len(file[1].objects.ids) == 1
    assert file.report.kept == 1 and sum(map(len, file.report.left_out.values())) == 1


def test_keypoints(tmp_path):
    seen = [10, 11, 2, 0, 0, 0, 20.5, 12, 1]
    objects, report = read_one(
        tmp_path,
        annotation(1, keypoints=seen, num_keypoints=2),
        annotation(2, keypoints=[0] * 9, num_keypoints=0),
        annotation(3),
        annotation(4, keypoints=[0] * 6),
        annotation(5, keypoints=[10, 11, 7, 0, 0, 0, 20.5, 12, 1]),
        annotation(6, keypoints=[math.nan, 11, 2, 0, 0, 0, 20.5, 12, 1]),
        keypoints=True,
    )
    assert objects.ids.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(objects.keypoints[0], np.float32(seen).reshape(3, 3))
    assert objects.keypoints.shape == (3, 3, 3) and not objects.keypoints[1:].any()
    assert sorted(map(sorted, report.left_out.values())) == [[4], [5, 6]]
    info = CocoFile(tmp_path / "images", tmp_path / "annotations/all.json").info
    assert info.keypoint_flip == (0, 2, 1) and info.skeleton == ((0, 1), (0, 2))


PERSON = [
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow", "right_elbow",
    "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
]  # fmt: skip


@pytest.mark.parametrize("names, known", [(PERSON, True), (PERSON[::-1], False), (PERSON[:3], False)])
def test_tolerances_are_known_for_the_keypoints_of_a_person_only(tmp_path, names, known):
    given = content()
    given["categories"] = [{"id": 1, "name": "bag"}, {"id": 3, "name": "person", "keypoints": names}, {"id": 2, "name": "cat"}]
    info = write_folder(tmp_path, given).info
    assert info.category_names == ("bag", "cat", "person") and info.keypoint_classes == (2,)
    assert info.keypoint_sigmas == (pytest.approx(Params("keypoints").kpt_oks_sigmas.tolist()) if known else ())


def test_without_keypoints_there_are_no_classes_with_any(tmp_path):
    info = write_folder(tmp_path, content()).info
    assert info.keypoint_names == info.keypoint_classes == info.keypoint_sigmas == ()


def test_sizes_may_be_absent(tmp_path):
    given = content(annotation())
    for image in given["images"]:
        del image["height"], image["width"]
    assert {(r.height, r.width) for r in write_folder(tmp_path, given)} == {(HEIGHT, WIDTH)}


# ---- what is mended or left out


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
def test_a_bad_annotation_is_left_out_and_counted(tmp_path, changes, kind):
    objects, report = read_one(tmp_path, annotation(1), annotation(2, **changes), annotation(3))
    assert objects.ids.tolist() == [1, 3]
    ((found, ids),) = report.left_out.items()
    assert found.startswith(kind) and ids == {2} and report.kept == 2
    assert f"left out: 1 x {found} (annotation 2)" in str(report)


def test_stray_polygon_parts_are_dropped(tmp_path):
    objects, report = read_one(tmp_path, annotation(8, segmentation=[[1, 1, 9, 9], TRIANGLE]), annotation(9))
    assert objects.rles[0] == objects.rles[1]
    assert report.mended == {"polygon parts with fewer than 3 points dropped": {8}}


def test_ids_that_cannot_serve_are_replaced(tmp_path):
    objects, report = read_one(tmp_path, annotation(0), annotation(5), annotation(5), annotation(...), annotation(3))
    assert objects.ids.tolist() == [6, 5, 7, 8, 3]
    assert list(report.mended.values()) == [{6, 7, 8}]


def test_report_shortens_long_lists(tmp_path):
    _, report = read_one(tmp_path, *(annotation(i, bbox=[1, 1, 0, 0]) for i in range(1, 9)))
    assert str(report).splitlines() == [
        "all.json: 1 images, 0 of 8 annotations kept",
        "  left out: 8 x box without a positive, finite width and height (annotation 1, 2, 3, 4, 5, ...)",
    ]


# ---- what is refused


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
    "image twice": (edited(lambda c: c["images"].append(c["images"][0])), "image id 7 is given more than once"),
    "category twice": (
        edited(lambda c: c["categories"].append({"id": 90, "name": "x"})),
        "category id 90 is given more than once",
    ),
    "text id": (edited(lambda c: c["images"][1].update(id="a")), "image number 1, from 0, has no integer id"),
    "no file name": (edited(lambda c: c["images"][1].pop("file_name")), "image 4 has no file_name"),
    "no name": (edited(lambda c: c["categories"][0].pop("name")), "category 3 has no name"),
    "unknown image": (edited(lambda c: c["annotations"][0].update(image_id=99)), "annotation 31 has image_id 99"),
    "unknown category": (
        edited(lambda c: c["annotations"][0].update(category_id=2)),
        "annotation 31 has category_id 2",
    ),
    "no image id": (edited(lambda c: c["annotations"][0].pop("image_id")), "annotation 31 has image_id None"),
    "list as id": (edited(lambda c: c["annotations"][0].update(image_id=[7])), r"annotation 31 has image_id \[7\]"),
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
def test_an_untrustworthy_file_is_refused(tmp_path, given, message):
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(given))
    write_folder(tmp_path, content())  # the images are there
    with pytest.raises(InputError, match=message) as refusal:
        CocoFile(tmp_path / "images", path)
    assert str(path) in str(refusal.value)


def test_missing_and_malformed_json(tmp_path):
    with pytest.raises(InputError, match="absent.json: there is no such annotation file"):
        CocoFile(tmp_path, tmp_path / "absent.json")
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(InputError, match="half.json is not valid JSON"):
        CocoFile(tmp_path, tmp_path / "half.json")


def test_missing_images_are_named(tmp_path):
    write_folder(tmp_path, content(image_ids=(1, 2, 3, 4, 5, 6)))
    for id_ in (2, 3, 5, 6):
        (tmp_path / "images" / f"{id_}.jpg").unlink()
    with pytest.raises(InputError, match=r"4 of 6 images are missing from .*images \(2.jpg, 3.jpg, 5.jpg, ...\)"):
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


def test_other_files_are_not_images(tmp_path):
    file = write_folder(tmp_path, content())
    for data in (b"", b"GIF89a..."):
        (tmp_path / "images" / "7.jpg").write_bytes(data)
        with pytest.raises(InputError, match="7.jpg is not an image in JPEG or PNG format"):
            list(file)


def test_a_truncated_jpeg_with_a_whole_thumbnail_is_noticed(tmp_path):
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


def test_the_file_decides_about_the_size(tmp_path):
    given = content()
    given["images"][0].update(height=WIDTH, width=HEIGHT)
    with pytest.raises(InputError, match=r"image 7 is annotated as 40x60 .*7.jpg is 60x40"):
        list(write_folder(tmp_path, given))


def test_an_exif_rotation_is_not_applied(tmp_path):
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


# ---- finding the splits


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
    ),
    "train only": (["annotations/train.json", "images"], ("images", "annotations/train.json"), None),
}


@pytest.mark.parametrize("paths, train, validation", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_usual_layouts_are_found(tmp_path, paths, train, validation):
    folder = touch(tmp_path / "my_train_data", *paths)
    expected = {"train": train} | ({"validation": validation} if validation else {})
    assert find_splits(folder) == {s: CocoSplit(folder / i, folder / a) for s, (i, a) in expected.items()}


def test_keypoint_files_on_request(tmp_path):
    found = find_splits(touch(tmp_path, *LAYOUTS["coco"][0]), keypoints=True)
    names = [source.annotations.name for source in found.values()]
    assert names == ["person_keypoints_train2017.json", "person_keypoints_val2017.json"]


def test_last_images_of_a_single_file_become_the_validation_split(tmp_path):
    given = content(annotation(1, image_id=2), image_ids=(9, 2, 30, 4))
    write_folder(tmp_path, given, annotations="annotations/trainval.json")
    reports = coco.prepare(tmp_path, tmp_path / "out", validation_images=2)
    ids = {split: [r.image_id for r in open_dataset(tmp_path / "out", split)] for split in reports}
    assert ids == {"train": [2, 4], "validation": [9, 30]}
    assert str(reports["validation"]) == "validation: 2 images, 0 of 0 annotations kept"
    assert (reports["train"].images, reports["train"].annotations, reports["train"].kept) == (2, 1, 1)
    assert list(find_splits(tmp_path)) == ["train"]
    with pytest.raises(InputError, match="none of its 4 images is left"):
        coco.prepare(tmp_path, tmp_path / "none", validation_images=4)


@pytest.mark.parametrize(
    "paths, message",
    [
        ([], r"JSON files: none\); name them with --train IMAGES ANNOTATIONS"),
        (["a.json", "b.json"], "annotation files .* are ambiguous .*a.json, b.json"),
        (["annotations/train_a.json", "annotations/train_b.json"], "annotation files of the splits are ambiguous"),
        (["annotations/trainval.json"], "no image folder found for trainval.json; name them"),
    ],
)
def test_what_cannot_be_told_asks_for_flags(tmp_path, paths, message):
    with pytest.raises(InputError, match=message):
        find_splits(touch(tmp_path, *paths))


def test_validation_images_must_make_sense(tmp_path):
    folder = touch(tmp_path, *LAYOUTS["flat"][0])
    with pytest.raises(InputError, match="validation annotations of its own"):
        find_splits(folder, 5)
    with pytest.raises(InputError, match="validation_images is -1"):
        find_splits(folder, -1)
    with pytest.raises(InputError, match="absent is not a folder"):
        find_splits(tmp_path / "absent")


def test_explicit_splits(tmp_path):
    write_folder(tmp_path, content(annotation()), "photos", "labels.json")
    source = CocoSplit(tmp_path / "photos", tmp_path / "labels.json")
    coco.prepare({"train": source}, tmp_path / "cats")
    assert open_dataset(tmp_path / "cats", "train").info.name == "cats"


# ---- real data


@pytest.mark.skipif(not REAL_DATA, reason="MRCNN_TEST_DATA is not set")
@pytest.mark.parametrize("name, held_out", [("fruits_nuts", 3), ("coco_instances", 0), ("coco_person", 0)])
def test_real_data(tmp_path, name, held_out):
    folder = Path(REAL_DATA) / name
    splits = find_splits(folder, held_out)
    reports = coco.prepare(folder, tmp_path / "out", validation_images=held_out)
    assert list(reports) == ["train", "validation"]
    for split, report in reports.items():
        given = json.loads(splits[split].annotations.read_text())
        images = sorted(given["images"], key=lambda image: image["id"])[splits[split].part]
        chosen = {image["id"] for image in images}
        given |= {"images": images, "annotations": [a for a in given["annotations"] if a["image_id"] in chosen]}
        assert (report.images, report.kept) == (len(images), len(given["annotations"]))
        assert not report.left_out and not report.mended
        assert_same_truth(open_dataset(tmp_path / "out", split).ground_truth(), given)
