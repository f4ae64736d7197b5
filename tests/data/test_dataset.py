"""Prepared data sets: records come back as written and in order; sets are written whole or not at all."""

import io
import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import Params
from rich.console import Console

from mrcnn_jax.data.coco_keypoints import PERSON_SIGMAS
from mrcnn_jax.data.dataset import Objects, Record, open_dataset, split_names
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.data.image_io import decode_image
from mrcnn_jax.data.statistics import summary
from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import DatasetInfo

INFO = DatasetInfo("things", category_ids=(2, 5, 90), category_names=("cat", "dog", "ähre"))
PERSON = DatasetInfo(
    "people",
    category_ids=(1,),
    category_names=("person",),
    keypoint_names=("nose", "left_eye", "right_eye"),
    keypoint_flip=(0, 2, 1),
    skeleton=((0, 1),),
    keypoint_classes=(0,),
    keypoint_sigmas=(0.026, 0.025, 0.025),
)


def make_record(i: int, num_objects: int, num_keypoints: int = 0) -> Record:
    rng = np.random.default_rng(i)
    height, width = 20 + i, 30
    image = cv2.imencode(".png", rng.integers(0, 255, (height, width, 3), np.uint8))[1].tobytes()
    corners = rng.uniform(0, 10, (num_objects, 2))
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[2:7, 3 : 5 + i] = 1
    rle = coco_mask.encode(mask)["counts"].decode()
    return Record(
        image=image,
        image_id=10 * i + 2**40,
        file_name=f"bild_ä{i}.png",
        height=height,
        width=width,
        objects=Objects(
            ids=np.arange(num_objects) + 2**33 + 100 * i,
            boxes=np.concatenate([corners, corners + rng.uniform(1, 9, (num_objects, 2))], axis=1),
            classes=rng.integers(0, 1 if num_keypoints else 3, num_objects).astype(np.int32),
            areas=rng.uniform(1, 20000, num_objects),
            crowd=rng.integers(0, 2, num_objects).astype(bool),
            rles=[rle if k % 2 == 0 else "" for k in range(num_objects)],
            keypoints=rng.integers(0, 3, (num_objects, num_keypoints, 3)).astype(np.float32),
        ),
    )


def assert_equal(a: Record, b: Record) -> None:
    assert a._replace(objects=None) == b._replace(objects=None)
    assert a.objects.rles == b.objects.rles
    for field in set(Objects._fields) - {"rles"}:
        x, y = getattr(a.objects, field), getattr(b.objects, field)
        assert x.dtype == y.dtype and x.shape == y.shape, field
        np.testing.assert_array_equal(x, y, err_msg=field)


@pytest.mark.parametrize("info", [INFO, PERSON], ids=["boxes", "keypoints"])
def test_records_come_back_in_order_over_several_shards(tmp_path, info):
    # images 0, 4 and 8 have no object
    written = [make_record(i, i % 4, len(info.keypoint_names)) for i in range(11)]
    splits = {"train": iter(written), "validation": written[3:5]}
    write_dataset(tmp_path / "set", info, splits, images_per_shard=3)
    source = open_dataset(tmp_path / "set", "train")
    assert len(list((tmp_path / "set").glob("*train.array_record*"))) == 4
    assert len(source) == 11 and source.info == info
    for a, b in zip(source, written, strict=True):
        assert_equal(a, b)
    assert_equal(source[-1], written[-1])
    assert source.sizes.dtype == np.int32
    np.testing.assert_array_equal(source.sizes, [(r.height, r.width) for r in written])
    assert [r.image_id for r in open_dataset(tmp_path / "set", "validation")] == [2**40 + 30, 2**40 + 40]
    with pytest.raises(IndexError):
        source[11]


def test_arrays_of_a_record_are_writable(tmp_path):
    write_dataset(tmp_path / "set", INFO, {"train": [make_record(1, 3)]})
    objects = open_dataset(tmp_path / "set", "train")[0].objects
    assert all(getattr(objects, field).flags.writeable for field in set(Objects._fields) - {"rles"})


def test_set_is_readable_with_tfds_alone(tmp_path):
    record = make_record(1, 3)
    write_dataset(tmp_path / "set", INFO, {"train": [record, make_record(0, 0)]})
    full, empty = tfds.builder_from_directory(tmp_path / "set").as_data_source("train")
    np.testing.assert_array_equal(full["image"], decode_image(record.image, "image"))
    np.testing.assert_array_equal(full["objects"]["boxes"], record.objects.boxes)
    np.testing.assert_array_equal(full["objects"]["areas"], record.objects.areas)
    assert [rle.decode() for rle in full["objects"]["rles"]] == record.objects.rles
    assert empty["objects"]["boxes"].shape == (0, 4) and empty["image_id"] == 2**40


def test_same_records_give_the_same_files(tmp_path):
    for name in ("a", "b"):
        records = (make_record(i, i) for i in range(5))
        write_dataset(tmp_path / name, INFO, {"train": records}, images_per_shard=2)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_pickled_split_is_read_from_threads(tmp_path):
    written = [make_record(i, i) for i in range(8)]
    write_dataset(tmp_path / "set", INFO, {"train": written}, images_per_shard=2)
    source = pickle.loads(pickle.dumps(open_dataset(tmp_path / "set", "train")))
    order = list(range(8)) * 10
    with ThreadPoolExecutor(8) as pool:
        for i, record in zip(order, pool.map(source.__getitem__, order), strict=True):
            assert_equal(record, written[i])


def test_nothing_is_left_when_writing_fails(tmp_path):
    def failing():
        yield make_record(0, 1)
        raise InputError("image 1 is broken")

    with pytest.raises(InputError, match="image 1 is broken"):
        write_dataset(tmp_path / "set", INFO, {"train": failing()})
    with pytest.raises(InputError, match="'validation' has no images"):
        write_dataset(tmp_path / "set", INFO, {"train": [make_record(0, 1)], "validation": []})
    assert list(tmp_path.iterdir()) == []


def test_writing_keeps_few_images_in_memory(tmp_path):
    alive = []

    class Image(bytes):
        def __del__(self):
            alive.remove(id(self))

    most = 0

    def stream():
        nonlocal most
        for i in range(20):
            image = Image(make_record(0, 0).image)
            alive.append(id(image))
            most = max(most, len(alive))
            yield make_record(0, 0)._replace(image=image, image_id=i)
            del image

    write_dataset(tmp_path / "set", INFO, {"train": stream()})
    assert len(open_dataset(tmp_path / "set", "train")) == 20
    assert most <= 3


def test_only_prepared_sets_are_overwritten_and_only_on_request(tmp_path):
    target = tmp_path / "set"
    write_dataset(target, INFO, {"train": [make_record(0, 1)]})
    with pytest.raises(InputError, match="exists already"):
        write_dataset(target, INFO, {"train": [make_record(1, 1)]})
    write_dataset(target, INFO, {"train": [make_record(1, 1), make_record(2, 1)]}, overwrite=True)
    assert len(open_dataset(target, "train")) == 2
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not a prepared data set, so it is not overwritten"):
        write_dataset(tmp_path / "home", INFO, {"train": [make_record(0, 1)]}, overwrite=True)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "set"]


def test_a_set_that_cannot_be_replaced_is_put_back(tmp_path, monkeypatch):
    target, rename = tmp_path / "set", Path.rename
    write_dataset(target, INFO, {"train": [make_record(0, 1)]})

    def fail(source, destination):
        if source.name == "new":
            raise KeyboardInterrupt
        return rename(source, destination)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(target, INFO, {"train": [make_record(1, 1)]}, overwrite=True)
    assert [one.image_id for one in open_dataset(target, "train")] == [make_record(0, 1).image_id]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_directory_that_appears_meanwhile_is_not_touched(tmp_path):
    def records():
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "notes.txt").write_text("mine")
        yield make_record(0, 1)

    with pytest.raises(InputError, match="set exists already: another process has written it"):
        write_dataset(tmp_path / "set", INFO, {"train": records()})
    assert (tmp_path / "set" / "notes.txt").read_text() == "mine"


def test_the_set_behind_a_link_is_replaced(tmp_path):
    write_dataset(tmp_path / "disk" / "set", INFO, {"train": [make_record(0, 1)]})
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "set")
    write_dataset(tmp_path / "link", INFO, {"train": [make_record(1, 2)]}, overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert_equal(open_dataset(tmp_path / "disk" / "set", "train")[0], make_record(1, 2))


KILLED = """
import os, sys
sys.path[:0] = {path}
from test_dataset import INFO, make_record, write_dataset
from mrcnn_jax.data import dataset_writer
def records():
    yield make_record(0, 1)
    if not {late}:
        os.kill(os.getpid(), 9)
def rename(path, target):
    os.rename(path, target)
    os.kill(os.getpid(), 9)
if {late}:
    dataset_writer.Path.rename = rename
write_dataset("set", INFO, {{"train": records()}}, overwrite={late})
"""


@pytest.mark.parametrize("late", [False, True])
def test_what_a_killed_process_left_is_removed_and_what_it_replaced_put_back(tmp_path, late):
    if late:
        write_dataset(tmp_path / "set", INFO, {"train": [make_record(5, 1)]})
    (tmp_path / ".set.of mine").mkdir()
    others = tmp_path / ".set.2.abcdefgh"  # of a killed process that wrote a set named "set.2"
    others.mkdir()
    (others / ".lock").touch()
    code = KILLED.format(path=[*sys.path, str(Path(__file__).parent)], late=late)
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == -9
    assert not (tmp_path / "set").exists() and len(list(tmp_path.glob(".set.*"))) == 3
    if late:
        with pytest.raises(InputError, match="set exists already"):
            write_dataset(tmp_path / "set", INFO, {"train": [make_record(1, 2)]})
        assert_equal(open_dataset(tmp_path / "set", "train")[0], make_record(5, 1))
    else:
        write_dataset(tmp_path / "set", INFO, {"train": [make_record(1, 2)]})
    assert {path.name for path in tmp_path.glob(".set.*")} == {".set.of mine", others.name}


@pytest.mark.parametrize("file, content", [
    ("train_sizes.npy", b""), ("train_sizes.npy", b"\x93NUMPY\x01"), ("dataset_info.json", b'{"name"'),
    ("features.json", None), ("train_sizes.npy", "short"),
    ("metadata.json", b'{"dataset": 1, "statistics": 2}'),
])  # fmt: skip
def test_damaged_sets_are_named(tmp_path, file, content):
    write_dataset(tmp_path / "set", INFO, {"train": [make_record(1, 2), make_record(2, 1)]})
    path = tmp_path / "set" / file
    if content is None:
        path.unlink()
    elif content == "short":
        np.save(path, np.load(path)[:1])
    else:
        path.write_bytes(content)
    message = "set: it is damaged .*: prepare the set again|set is not a prepared"
    with pytest.raises(InputError, match=message):
        open_dataset(tmp_path / "set", "train")


def test_moved_set_opens(tmp_path):
    write_dataset(tmp_path / "set", INFO, {"train": [make_record(1, 2)]})
    (tmp_path / "set").rename(tmp_path / "moved")
    assert_equal(open_dataset(tmp_path / "moved", "train")[0], make_record(1, 2))


@pytest.mark.parametrize("number, sigmas", [(0, ()), (3, ()), (17, PERSON_SIGMAS)])
def test_set_of_an_older_version_gets_keypoint_classes_and_sigmas(tmp_path, number, sigmas):
    names = tuple(f"k{j}" for j in range(number))
    info = INFO._replace(keypoint_names=names, keypoint_classes=(1,), keypoint_sigmas=(1.0,) * number)
    write_dataset(tmp_path / "set", info, {"train": [make_record(1, 2, number)]})
    path = tmp_path / "set" / "metadata.json"
    metadata = json.loads(path.read_text())
    for field in ("keypoint_classes", "keypoint_sigmas"):
        del metadata["dataset"][field]
    path.write_text(json.dumps(metadata))
    source = open_dataset(tmp_path / "set", "train")
    assert source.info == info._replace(keypoint_classes=(0, 1, 2) if number else (), keypoint_sigmas=sigmas)
    assert_equal(source[0], make_record(1, 2, number))


def test_person_sigmas_equal_those_of_pycocotools():
    np.testing.assert_allclose(PERSON_SIGMAS, Params("keypoints").kpt_oks_sigmas, rtol=1e-12)


def test_missing_sets_and_splits_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty"):
        with pytest.raises(InputError, match=f"{name} is not a prepared data set"):
            open_dataset(tmp_path / name, "train")
    write_dataset(tmp_path / "set", INFO, {"train": [make_record(0, 0)], "validation": [make_record(1, 0)]})
    with pytest.raises(InputError, match="no split 'test', only train, validation"):
        open_dataset(tmp_path / "set", "test")
    assert split_names(tmp_path / "set") == ("train", "validation")


def test_ground_truth(tmp_path):
    record = make_record(4, 3, num_keypoints=3)
    record.objects.keypoints[0, :, 2] = 0
    record.objects.keypoints[1, :, 2] = [2, 0, 1]
    write_dataset(tmp_path / "set", PERSON, {"train": [record, make_record(0, 0, 3)]})
    truth = open_dataset(tmp_path / "set", "train").ground_truth()
    assert [image["id"] for image in truth["images"]] == [2**40 + 40, 2**40]
    assert truth["images"][0] == {"id": 2**40 + 40, "file_name": "bild_ä4.png", "height": 24, "width": 30}
    assert truth["categories"] == [
        {"id": 1, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2]]}
    ]
    assert [a["num_keypoints"] for a in truth["annotations"][:2]] == [0, 2]
    first, second, _ = truth["annotations"]
    assert first["keypoints"] == record.objects.keypoints[0].ravel().tolist()
    assert first["segmentation"] == {"size": [24, 30], "counts": record.objects.rles[0]}
    assert "segmentation" not in second
    x1, y1, x2, y2 = record.objects.boxes[0]
    assert first["bbox"] == [x1, y1, x2 - x1, y2 - y1] and first["area"] == record.objects.areas[0]


def test_ground_truth_is_read_once(tmp_path, monkeypatch):
    write_dataset(tmp_path / "set", INFO, {"train": [make_record(1, 2)]})
    split = open_dataset(tmp_path / "set", "train")
    truth = split.ground_truth()
    monkeypatch.setattr(split, "_source", None)
    assert split.ground_truth() is truth
    assert pickle.loads(pickle.dumps(split)).ground_truth() == truth


def test_ground_truth_names_keypoints_of_classes_that_have_some(tmp_path):
    names = ("chair", "person", "cup")
    info = PERSON._replace(category_ids=(1, 3, 7), category_names=names, keypoint_classes=(1,))
    record = make_record(0, 3, num_keypoints=3)
    record.objects.classes[:] = [0, 1, 2]
    record.objects.keypoints[[0, 2]] = 0
    record.objects.keypoints[1, :, 2] = 2
    write_dataset(tmp_path / "set", info, {"train": [record]})
    truth = open_dataset(tmp_path / "set", "train").ground_truth()
    chair, person, cup = truth["categories"]
    assert (chair, cup) == ({"id": 1, "name": "chair"}, {"id": 7, "name": "cup"})
    keypoints = {"keypoints": list(PERSON.keypoint_names), "skeleton": [[1, 2]]}
    assert person == {"id": 3, "name": "person"} | keypoints
    # pycocotools reads both fields of every object, and leaves those out that have no keypoint
    counts = [(a["num_keypoints"], len(a["keypoints"])) for a in truth["annotations"]]
    assert counts == [(0, 9), (3, 9), (0, 9)]


def test_ground_truth_keeps_category_ids_with_gaps(tmp_path):
    record = make_record(0, 30)
    write_dataset(tmp_path / "set", INFO, {"train": [record]})
    truth = open_dataset(tmp_path / "set", "train").ground_truth()
    names = [(category["id"], category["name"]) for category in truth["categories"]]
    assert names == [(2, "cat"), (5, "dog"), (90, "ähre")]
    expected = np.array([2, 5, 90])[record.objects.classes]
    assert {2, 5, 90} == set(expected)
    assert [a["category_id"] for a in truth["annotations"]] == expected.tolist()


def test_summary_counts_images_and_objects(tmp_path):
    few = make_record(0, 3)
    areas = np.array([1023.9, 1024.0, 9216.0])
    few = few._replace(objects=few.objects._replace(areas=areas, crowd=np.array([True, False, False])))
    few = few._replace(objects=few.objects._replace(classes=np.array([0, 2, 2], np.int32)))
    write_dataset(tmp_path / "set", INFO, {"train": [few, make_record(1, 0), make_record(2, 0)]})
    console = Console(file=io.StringIO(), width=120)
    console.print(summary(tmp_path / "set"))
    text = console.file.getvalue()
    lines = [line.strip("│").split("│") for line in text.splitlines() if "│" in line]
    rows = [[cell.strip() for cell in line] for line in lines]
    table = {row[0]: row[1:] for row in rows}
    assert table["images"] == ["3"] and table["objects"] == ["3"] and table["images without objects"] == ["2"]
    assert table["height (min / median / max)"] == ["20 / 21 / 22"]
    assert table["objects per image (min / median / max)"] == ["0 / 0 / 3"]
    assert table["small / medium / large"] == ["1 / 1 / 1"]
    assert table["crowd"] == ["1"] and table["without a mask"] == ["1"]
    assert table["2"] == ["cat", "1"] and table["5"] == ["dog", "0"] and table["90"] == ["ähre", "2"]
