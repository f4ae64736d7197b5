"""Reports on data sets: literal numbers of made-up sets, prepared or as folders, and the page."""

import json
import shutil

import cv2
import numpy as np
import pytest
import tiny
from example_records import letter, record
from pages import Page
from small_sets import rectangle, write_set

from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.data.image_io import read_image
from mrcnn_jax.data.object_table import build_table, read_table
from mrcnn_jax.data.prepare import prepare
from mrcnn_jax.errors import InputError
from mrcnn_jax.inspection import contents, inspect
from mrcnn_jax.inspection.dataset import report_dataset
from mrcnn_jax.inspection.duplicates import ALIKE, make_thumbnails
from mrcnn_jax.inspection.report import write_data, write_page
from mrcnn_jax.structures import DatasetInfo

HEIGHT, WIDTH = 64, 96
INFO = DatasetInfo("made", (3, 7, 9), ("a", '<b>b</b> "$x$"', "c"))
SIDES = "side, pixels", "side after the resize, pixels"


def noise(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 12, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def image(id_: int, picture: np.ndarray, *boxes, **fields):
    return record(picture, boxes, **fields)._replace(image_id=id_, file_name=f"{id_}.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A set of three training and two validation images, of which two are in both splits."""
    boxes = [0, 0, 8, 8], [8, 8, 10, 10], [90, 10, 100, 20], [10, 10, 50, 50]
    train = [
        image(1, noise(1), *boxes, classes=[0, 0, 1, 1], crowd=[False, False, False, True]),
        image(2, noise(2)),
        image(3, noise(1), [4, 4, 36, 20], classes=[0]),
    ]
    brighter = (noise(2) * 0.8 + 20).astype(np.uint8)
    validation = [image(4, noise(1), [0, 0, 60, 60], classes=[1]), image(5, brighter)]
    directory = tmp_path_factory.mktemp("inspect") / "made"
    write_dataset(directory, INFO, {"train": train, "validation": validation})
    return directory


def report(directory, **options):
    with contents.open_contents(directory) as opened:
        return report_dataset(directory, opened, tiny.experiment(), near=10, **options)


def texts(found) -> str:
    return "\n".join(found.findings)


def test_numbers_of_a_set(made):
    found = report(made)
    data = found.data["dataset"]
    train, validation = data["splits"]["train"], data["splits"]["validation"]
    names = "images", "objects", "crowd", "empty_images", "without_mask", "tiny", "boxes_beyond_images"
    assert [train[name] for name in names] == [3, 5, 1, 1, 5, 1, 1]
    assert [validation[name] for name in names] == [2, 1, 0, 1, 1, 0, 0]
    assert (train["repeated_images"], validation["repeated_images"]) == (1, 0)
    assert (train["images_beyond_max_objects"], train["objects_beyond_max_objects"]) == (0, 0)
    assert train["quantiles"]["objects per image"] == [0, 0.1, 0.5, 1, 2.5, 3.7, 4]
    least, *_, most = train["quantiles"][SIDES[0]]  # images keep their size, but boxes are clipped
    assert (least, most) == (2, 22.63)
    assert train["quantiles"][SIDES[1]][-1] == 22.63 and train["quantiles"][SIDES[1]][3] == 7.87
    assert [row["class"] for row in data["classes"]] == ["a", INFO.category_names[1], "c"]
    assert data["classes"][0]["splits"]["train"] == {"objects": 3, "images": 2}
    assert data["classes"][1]["splits"]["train"] == {"objects": 2, "images": 1}
    assert data["classes"][2]["splits"]["validation"] == {"objects": 0, "images": 0}
    json.dumps(data)


def test_overlap_with_anchors(made):
    """8 x 8 on a cell's corner is an anchor, of which 2 x 2 is a sixteenth; 6 x 10, clipped, has 48 of 76."""
    rows = {row["from"]: row for row in report(made).data["dataset"]["splits"]["train"]["anchors"]}
    assert [row["objects"] for row in rows.values()] == [2, 1, 1, 0, 0, 0, 0, 0, 0]
    median = round((1 / 16 + 48 / 76) / 2, 3)
    assert rows[0] == {"from": 0, "to": 8, "objects": 2, "median": median, "poor": 1, "fair": 1}
    assert rows[8]["median"] == 1 and rows[16]["to"] == 32
    # 32 x 16 around (20, 12), and the anchor of size 32, half as high as wide, around (16, 16)
    overlap = 32 * (20 - (16 - 16 / 2**0.5))
    assert rows[16]["median"] == round(overlap / (32 * 16 + 32 * 32 - overlap), 3)
    assert (rows[16]["poor"], rows[32]["median"]) == (1, None)


def test_duplicates_between_splits(made):
    found = report(made)
    data = found.data["dataset"]["duplicates"]
    assert data["compared"] == {"train": 3, "validation": 2}
    between = {"splits": ["train", "validation"], "images": 1}
    assert data["same"]["between"] == data["alike"]["between"] == [between]
    one, other, correlation = data["same"]["first"][0]
    assert (one, other) == ({"split": "train", "file": "1.png"}, {"split": "validation", "file": "4.png"})
    assert correlation == 1
    one, other, correlation = data["alike"]["first"][0]
    assert (one["file"], other["file"]) == ("2.png", "5.png") and 0.95 <= correlation <= 1
    assert "1 images of the split 'validation' are also in 'train'" in texts(found)
    assert "1 images of the split 'validation' look like images of 'train'" in texts(found)
    assert "1 images of the split 'train' are there more than once" in texts(found)


@pytest.mark.parametrize("folder", ["dsb2018_nuclei/val", "coco_instances/val"])
def test_copies_of_real_images_are_alike_and_others_are_not(test_data, folder):
    """Copies are smaller, brighter and compressed."""
    files = sorted((test_data / folder).iterdir())[:20]
    records, copies = [], []
    for number, file in enumerate(files):
        picture = read_image(file)
        small = cv2.resize(picture, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)
        jpeg = cv2.imencode(".jpg", cv2.convertScaleAbs(small, alpha=0.9, beta=8)[..., ::-1], [1, 60])[1]
        records.append(image(number, picture))
        copies.append(image(number, small)._replace(image=jpeg.tobytes()))
    vectors = [make_thumbnails(each, len(files)).vectors for each in (records, copies)]
    assert vectors[0].shape == vectors[1].shape == (20, 256)
    alike = vectors[0] @ vectors[1].T
    assert alike.diagonal().min() > ALIKE + 0.02
    assert (alike - 2 * np.eye(20)).max() < ALIKE - 0.1


def test_flat_and_unreadable_images_resemble_nothing():
    flat = image(1, np.full((40, 40, 3), 90, np.uint8))
    found = make_thumbnails([flat, flat._replace(image=b"\xff\xd8nothing"), image(2, noise(2))], 10)
    assert found.images.tolist() == [2] and found.vectors.shape == (1, 256)


def test_page_is_whole_and_escaped(made, tmp_path):
    found = report(made, pictures=2)
    write_page(found, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert page.tags["b"] == page.tags["script"] == 0 and "http" not in text and len(text) < 3_000_000
    assert page.tags["img"] == 6 + 2 + 1  # figures, sheets, a pair that looks alike
    assert '<b>b</b> "$x$"' in page.texts
    write_data(found, tmp_path / "data.json")
    assert json.loads((tmp_path / "data.json").read_text())["findings"] == found.findings


def test_older_and_damaged_sets_are_read_record_by_record(made, tmp_path):
    split, seen = open_dataset(made, "train"), []
    older = shutil.copytree(made, tmp_path / "older")
    (older / "train_objects.npz").unlink()
    with contents.open_contents(older, lambda *progress: seen.append(progress)) as opened:
        assert opened.splits["train"].table.counts.tolist() == [4, 0, 1]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    stored, built = read_table(made, "train", 3), build_table(split)
    for one, other in zip(stored, built, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert read_table(made, "train", 4) is None and read_table(tmp_path, "train", 3) is None
    for content in (b"", b"PK\x03\x04", b"\x93NUMPY"):
        (tmp_path / "train_objects.npz").write_bytes(content)
        assert read_table(tmp_path, "train", 3) is None


def test_set_without_objects_and_without_validation(tmp_path):
    write_dataset(tmp_path / "empty", INFO, {"train": [image(1, noise(1))]})
    found = inspect.inspect(tmp_path / "empty", pictures=1)
    assert found.data["dataset"]["splits"]["train"]["quantiles"][SIDES[0]] is None
    assert "none of the 1 images of the split 'train' has an object: there is nothing" in texts(found)
    assert "no validation split" in texts(found)
    write_page(found, tmp_path / "page.html")


def test_folder_is_like_the_set_prepared_from_it(tmp_path):
    def change(content):
        content["annotations"].append(rectangle(90, 1, 1, x=500))  # wholly outside

    folder = write_set(tmp_path / "folder", change)
    before = sorted(tmp_path.rglob("*"))
    opened = inspect.inspect(folder)
    assert sorted(tmp_path.rglob("*")) == before
    prepare(folder, tmp_path / "prepared")
    prepared = inspect.inspect(tmp_path / "prepared")
    given, stored = opened.data["dataset"]["splits"], prepared.data["dataset"]["splits"]
    assert given == stored
    assert "box wholly outside the image (annotation 90)" in "".join(opened.data["dataset"]["notes"])
    assert "not prepared yet" in opened.subtitle and opened.data["dataset"]["experiment"] == "small"


def test_masks_are_counted(tmp_path):
    mask, box = letter()
    write_dataset(tmp_path / "set", INFO, {"train": [image(1, noise(1, 20, 30), box, masks=[mask])]})
    data = inspect.inspect(tmp_path / "set").data["dataset"]["splits"]["train"]
    assert (data["masks"], data["without_mask"], data["small"]) == (1, 0, 1)


@pytest.mark.parametrize(
    "name, message",
    [
        ("nothing", "there is nothing at nothing"),
        ("", "what is inspected has an empty name"),
        ("https://a.b/c.pth", "is an address"),
        ("torchvision/maskrcnn_resnet50_fpn", "is not on this machine yet"),
        ("file.txt", "file.txt is no annotation file"),
        ("folder", "folder is in no known format"),
    ],
)
def test_what_cannot_be_inspected_is_refused(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MRCNN_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file.txt").write_text("nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=message):
        inspect.inspect(name)


def test_experiments_are_named(made):
    with pytest.raises(InputError, match="there is no experiment 'nothing'"):
        inspect.inspect(made, "nothing")
    assert inspect.inspect(made, "nuclei").data["dataset"]["experiment"] == "nuclei"
