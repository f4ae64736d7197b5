"""Folders of images and mask files."""

from pathlib import Path

import numpy as np
import pytest
from format_writers import png
from PIL import Image
from pycocotools import mask as coco_mask
from quirks import quirk

from mrcnn_jax.data.dataset import Record, open_dataset, read_metadata, split_names
from mrcnn_jax.data.formats.conversion_report import ConversionReport
from mrcnn_jax.data.formats.label_images import encode, split_values
from mrcnn_jax.data.prepare import prepare
from mrcnn_jax.errors import InputError

HEIGHT, WIDTH = 32, 64


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def squares(*values: int, dtype=np.uint8) -> np.ndarray:
    """Returns squares of 8 pixels of some values, beside each other."""
    numbers = np.zeros((HEIGHT, WIDTH), dtype)
    for i, value in enumerate(values):
        numbers[8:16, 2 + 10 * i : 10 + 10 * i] = value
    return numbers


def write(masks: dict[str, np.ndarray | bytes], *images: str) -> None:
    """Writes images, and masks by name."""
    for name in images:
        Path("set", name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(name)).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(Path("set", name))
    for name, mask in masks.items():
        Path("set", name).parent.mkdir(parents=True, exist_ok=True)
        Path("set", name).write_bytes(mask if isinstance(mask, bytes) else png(mask))


def read(split: str = "train", **options) -> tuple[list[Record], ConversionReport]:
    """Returns the records and the report of a split."""
    directory, reports = prepare("set", "out", overwrite=True, **options)
    return list(open_dataset(directory, split)), reports[split]


def of_palette() -> bytes:
    return png(squares(1, 7, 255), palette=True)


def of_colours(alpha: bool = False) -> np.ndarray:
    numbers = squares(1, 2, 3)
    colours = np.array([[0, 0, 0, 255], [255, 0, 0, 255], [0, 255, 0, 255], [255, 0, 1, 255]], np.uint8)
    colours[0] = (9, 9, 9, 0) if alpha else colours[0]
    return colours[numbers][..., : 4 if alpha else 3]


NUMBERS = {
    "8 bits": squares(1, 7, 255),
    "16 bits": squares(1, 300, 65535, dtype=np.uint16),
    "palette": of_palette,
    "colours": of_colours,
    "transparent": lambda: of_colours(alpha=True),
}


def test_all_values_at_once_give_the_codes_of_each_mask():
    numbers = np.random.default_rng(0).integers(0, 5, (9, 7)).repeat(3, axis=0)
    for image in (numbers, numbers + 70_000, np.full((3, 2), 4), np.zeros((3, 2), int)):
        expected = {value: encode(image == value) for value in np.unique(image).tolist() if value}
        assert split_values(image) == expected


@quirk(
    "masks of 8 or 16 bits, of a palette, of colours, transparent",
    "an object a value; 0, black, transparent: none",
)
@pytest.mark.parametrize("mask", NUMBERS.values(), ids=NUMBERS)
def test_numbers(mask):
    write({"masks/1.png": mask() if callable(mask) else mask}, "images/1.png")
    (record,), report = read(strict=True)
    boxes = sorted(record.objects.boxes.tolist())
    assert boxes == [[2, 8, 10, 16], [12, 8, 20, 16], [22, 8, 30, 16]] and report.kept == 3
    code = {"size": [HEIGHT, WIDTH], "counts": record.objects.rles[0]}
    assert coco_mask.area(code) == record.objects.areas[0] == 64
    assert read_metadata("out")[0].category_names == ("object",)


ONE, TWO = squares(255), squares(0, 255)
LAYOUTS = {
    "beside": (["images/1.jpg"], {"masks/1.png": squares(1, 2)}, ["object"]),
    "other names": (["imgs/1.jpg"], {"labels/1.tif": squares(1, 2)}, ["object"]),
    "endings": (["images/a.jpg"], {"masks/a_mask.png": squares(1, 2)}, ["object"]),
    "split first": (["train/images/1.jpg"], {"train/masks/1.png": squares(1, 2)}, ["object"]),
    "split last": (["images/train/1.jpg"], {"masks/train/1.png": squares(1, 2)}, ["object"]),
    "images above": (["1.jpg"], {"masks/1.png": squares(1, 2)}, ["object"]),
    "a folder an image": (["images/1.jpg"], {"masks/1/a.png": ONE, "masks/1/b.png": TWO}, ["object"]),
    "numbered": (["images/a_1.jpg"], {"masks/a_1_0.png": ONE, "masks/a_1_1.png": TWO}, ["object"]),
    "Data Science Bowl": (["1/images/1.jpg"], {"1/masks/x.png": ONE, "1/masks/y.png": TWO}, ["object"]),
    "classes": (["images/1.jpg"], {"masks/dog/1.png": ONE, "masks/cat/1.png": TWO}, ["cat", "dog"]),
    "classes and folders": (["images/1.jpg"], {"masks/ä b/1/x.png": ONE, "masks/ä b/1/y.png": TWO}, ["ä b"]),
    "folders and classes": (
        ["images/1.jpg"],
        {"masks/1/cat/x.png": ONE, "masks/1/dog/x.png": TWO},
        ["cat", "dog"],
    ),
    "umlauts": (["images/ü 1.jpg"], {"masks/u\u0308 1.png": squares(1, 2)}, ["object"]),
}


@quirk(
    "masks in folders named by image, by class, or both; numbered; in a folder an image (Data Science Bowl)",
    "found",
)
@pytest.mark.parametrize("images, masks, classes", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(images, masks, classes):
    if "labels/1.tif" in masks:
        Path("set/labels").mkdir(parents=True)
        Image.fromarray(masks["labels/1.tif"]).save("set/labels/1.tif")
        masks = {}
    write(masks, *images)
    (record,), report = read()
    assert sorted(record.objects.boxes.tolist()) == [[2, 8, 10, 16], [12, 8, 20, 16]]
    assert list(read_metadata("out")[0].category_names) == classes and report.kept == 2
    assert not report.left_out and record.file_name == Path(images[0]).name


@quirk("a file an object with soft edges or values other than 255", "pixels above half of the largest value")
def test_soft_edges():
    soft = squares(200)
    soft[7, 2:10], soft[16, 2:10] = 90, 110
    write({"masks/1/a.png": soft, "masks/1/b.png": squares(0)}, "images/1.png")
    (record,), report = read()
    assert record.objects.boxes.tolist() == [[2, 8, 10, 17]] and report.kept == 1


@quirk("masks of one value in several pieces (semantic masks)", "one object an image, and a warning")
def test_semantic_masks():
    write(
        {"masks/1.png": squares(255, 255), "masks/2.png": squares(255, 255, 255)},
        "images/1.png",
        "images/2.png",
    )
    records, report = read()
    assert [len(record.objects.ids) for record in records] == [1, 1]
    assert report.warnings[0].startswith(
        "2 of 2 masks have one value in several pieces (1.png): each is read as"
    )


@quirk("images without a mask, masks without an image", "without objects; not used; both are counted")
def test_unpaired_files():
    write({"masks/1.png": squares(1), "masks/9.png": squares(1)}, "images/1.png", "images/2.png")
    records, report = read()
    assert [len(record.objects.ids) for record in records] == [1, 0]
    assert "1 of 2 images have no mask (2.png): they count as images without objects" in report.warnings
    assert "1 mask files have no image (masks/9.png): they are not used" in report.warnings


@quirk("a test split without masks", "left out, which is said")
def test_split_without_masks():
    masks = {"stage1_train/a/masks/1.png": ONE, "stage1_train/b/masks/1.png": TWO}
    images = ("stage1_train/a/images/a.png", "stage1_train/b/images/b.png", "stage1_test/c/images/c.png")
    write(masks, *images)
    records, report = read()
    assert [record.file_name for record in records] == ["a/images/a.png", "b/images/b.png"]
    assert split_names("out") == ("train",)
    assert "no image of test has a mask: the split is left out" in report.warnings


def of_noise() -> np.ndarray:
    return np.random.default_rng(0).permutation(200 * 100).astype(np.uint16).reshape(100, 200)


BAD = {
    "JPEG": (lambda: Path("set/images/2.jpg").read_bytes(), "JPEG does not keep values exactly"),
    "damaged": (lambda: png(squares(1))[:-30], "it is truncated or damaged"),
    "text": (lambda: b"mask", "it is damaged, or no image"),
    "noise": (lambda: png(of_noise()), "it has 19,999 different values, too many for objects"),
    "another size": (lambda: png(squares(1)[:-1]), "run-length code of another size than the image"),
}


@quirk("masks as JPEG, damaged, of another size, or of too many values", "left out, named with the reason")
@pytest.mark.parametrize("make, reason", BAD.values(), ids=BAD)
def test_bad_masks(make, reason):
    write({"masks/1.png": squares(1)}, "images/1.png", "images/2.jpg")
    Path("set/masks/2.png").write_bytes(make())
    records, report = read()
    assert [len(record.objects.ids) for record in records] == [1, 0]
    ((kind, labels),) = report.left_out.items()
    assert reason in kind and len(labels) == 1 and next(iter(labels)).startswith("2.")


def test_masks_that_all_fail_are_refused():
    write({"masks/1.png": squares(0)}, "images/1.png")
    with pytest.raises(InputError, match="none of the annotations has an object"):
        read()
