"""COCO files: records equal pycocotools' own reading."""

import copy
import json
import math
import os
from pathlib import Path

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
from pycocotools.coco import COCO
from pycocotools.cocoeval import Params

from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.data.formats import coco
from mrcnn_jax.data.formats.coco import CocoFile
from mrcnn_jax.data.formats.coco_layout import find_splits

REAL_DATA = os.environ.get("MRCNN_TEST_DATA")

def test_round_trip_equals_pycocotools(tmp_path):
    blob = mask_of(20, 10, 13, 9)
    given = content(
        annotation(11, segmentation=[TRIANGLE, [40, 2, 55.7, 3, 50, 20, 41, 18]]),
        annotation(
            12, segmentation=uncompressed(blob), bbox=[20, 10, 13, 9], category_id=90, iscrowd=1, area=117
        ),
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
    """Asserts that both dictionaries mean the same to pycocotools: ids, boxes, areas, keypoints, masks."""
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


def test_records_are_in_the_order_of_image_ids(tmp_path):
    given = content(annotation(1), annotation(2, image_id=4))
    forwards = list(write_folder(tmp_path, given))
    given["images"].reverse()
    backwards = list(write_folder(tmp_path, given))
    assert [r.image_id for r in forwards] == [r.image_id for r in backwards] == [4, 7]


def test_reading_a_record_twice_counts_its_faults_once(tmp_path):
    file = write_folder(tmp_path, content(annotation(1), annotation(2, bbox=[1, 1, 0, 5], segmentation=[])))
    assert len(file[1].objects.ids) == len(file[1].objects.ids) == 1
    assert file.report.kept == 1 and sum(map(len, file.report.left_out.values())) == 1


def test_keypoints_are_read_and_bad_ones_dropped(tmp_path):
    seen = [10, 11, 2, 0, 0, 0, 20.5, 12, 1]
    objects, report = read_one(
        tmp_path,
        annotation(1, keypoints=seen, num_keypoints=2),
        annotation(2, keypoints=[0] * 9, num_keypoints=0),
        annotation(3),
        annotation(4, keypoints=[1] * 5),
        annotation(5, keypoints=[10, 11, 7, 0, 0, 0, 20.5, 12, 1]),
        annotation(6, keypoints=[math.nan, 11, 2, 0, 0, 0, 20.5, 12, 1]),
        annotation(7, keypoints=seen, category_id=90),
        keypoints=True,
    )
    assert objects.ids.tolist() == [1, 2, 3, 4, 5, 6, 7] and not report.left_out
    np.testing.assert_array_equal(objects.keypoints[0], np.float32(seen).reshape(3, 3))
    assert objects.keypoints.shape == (7, 3, 3) and not objects.keypoints[[1, 2, 3, 6]].any()
    np.testing.assert_array_equal(objects.keypoints[4:6, 0], 0)
    np.testing.assert_array_equal(objects.keypoints[4:6, 1:], objects.keypoints[[0, 0], 1:])
    assert sorted(map(sorted, report.mended.values())) == [[5], [6]]
    assert sorted(map(sorted, report.dropped.values())) == [[4], [7]]
    info = CocoFile(tmp_path / "images", tmp_path / "annotations/all.json").info
    assert info.keypoint_flip == (0, 2, 1) and info.skeleton == ((0, 1), (0, 2))


PERSON = [
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee",
    "left_ankle", "right_ankle",
]  # fmt: skip


@pytest.mark.parametrize("names, known", [(PERSON, True), (PERSON[::-1], False), (PERSON[:3], False)])
def test_only_keypoints_of_a_person_have_sigmas(tmp_path, names, known):
    given = content()
    person = {"id": 3, "name": "person", "keypoints": names}
    given["categories"] = [{"id": 1, "name": "bag"}, person, {"id": 2, "name": "cat"}]
    info = write_folder(tmp_path, given).info
    assert info.category_names == ("bag", "cat", "person") and info.keypoint_classes == (2,)
    sigmas = Params("keypoints").kpt_oks_sigmas.tolist() if known else ()
    assert info.keypoint_sigmas == pytest.approx(sigmas)


def test_file_without_keypoints_has_no_keypoint_classes(tmp_path):
    info = write_folder(tmp_path, content()).info
    assert info.keypoint_names == info.keypoint_classes == info.keypoint_sigmas == ()


def test_sizes_may_be_missing(tmp_path):
    given = content(annotation())
    for image in given["images"]:
        del image["height"], image["width"]
    assert {(r.height, r.width) for r in write_folder(tmp_path, given)} == {(HEIGHT, WIDTH)}


@pytest.mark.skipif(not REAL_DATA, reason="MRCNN_TEST_DATA is not set")
@pytest.mark.parametrize("name, held_out", [("fruits_nuts", 3), ("coco_instances", 0), ("coco_person", 0)])
def test_published_annotations_are_kept_completely(tmp_path, name, held_out):
    folder = Path(REAL_DATA) / name
    splits = find_splits(folder)
    splits.setdefault("validation", splits["train"])
    reports = coco.prepare(folder, tmp_path / "out", validation_images=held_out)
    assert list(reports) == ["train", "validation"]
    for split, report in reports.items():
        given = json.loads(splits[split].annotations.read_text())
        chosen = {record.image_id for record in open_dataset(tmp_path / "out", split)}
        images = [image for image in given["images"] if image["id"] in chosen]
        annotations = [a for a in given["annotations"] if a["image_id"] in chosen]
        given |= {"images": images, "annotations": annotations}
        assert (report.images, report.kept) == (len(images), len(annotations))
        assert not report.left_out and not report.mended
        assert_same_truth(open_dataset(tmp_path / "out", split).ground_truth(), given)
