"""Files of LabelMe."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from quirks import quirk

from mrcnn_jax.data.dataset import Record, open_dataset, split_names
from mrcnn_jax.data.formats.conversion_report import ConversionReport
from mrcnn_jax.data.prepare import prepare
from mrcnn_jax.errors import InputError

HEIGHT, WIDTH = 32, 64
SQUARE = {"label": "cat", "points": [[8, 8], [24, 8], [24, 24], [8, 24]], "shape_type": "polygon"}
OTHER = SQUARE | {"points": [[40, 8], [56, 8], [56, 24], [40, 24]]}


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def picture() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "png")
    return file.getvalue()


def write(*shapes: dict, path: str = "set/1.json", image: str | None = "set/1.png", **fields) -> None:
    """Writes an annotation file and its image."""
    content = {
        "version": "5.0.1",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": "1.png",
        "imageData": None,
    }
    content |= {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content | fields))
    if image:
        Path(image).parent.mkdir(parents=True, exist_ok=True)
        Path(image).write_bytes(picture())


def read(split: str = "train", **options) -> tuple[list[Record], ConversionReport]:
    """Returns the records and the report of a split."""
    directory, reports = prepare("set", "out", overwrite=True, **options)
    return list(open_dataset(directory, split)), reports[split]


def mask_shape(mask: np.ndarray, x: int, y: int) -> dict:
    Image.fromarray(mask).save(file := io.BytesIO(), "png")
    corners = [[x, y], [x + mask.shape[1] - 1, y + mask.shape[0] - 1]]
    text = base64.b64encode(file.getvalue()).decode()
    return {"label": "cat", "points": corners, "shape_type": "mask", "mask": text}


FULL = np.full((16, 16), 255, np.uint8)
SHAPES = {
    "polygon": (SQUARE, [8, 8, 24, 24], 256),
    "closed polygon": (SQUARE | {"points": [*SQUARE["points"], [8, 8]]}, [8, 8, 24, 24], 256),
    "no shape_type": ({key: SQUARE[key] for key in ("label", "points")}, [8, 8, 24, 24], 256),
    "rectangle": (SQUARE | {"shape_type": "rectangle", "points": [[24, 8], [8, 24]]}, [8, 8, 24, 24], None),
    "circle": (SQUARE | {"shape_type": "circle", "points": [[16, 16], [24, 16]]}, [8, 8, 24, 24], 208),
    "oriented rectangle": (SQUARE | {"shape_type": "oriented_rectangle"}, [8, 8, 24, 24], 256),
    "mask": (mask_shape(FULL, 8, 8), [8, 8, 24, 24], 256),
    "mask of one bit": (mask_shape(FULL > 0, 8, 8), [8, 8, 24, 24], 256),
    "mask beyond the image": (mask_shape(FULL, 56, -8), [56, 0, 64, 8], 64),
}


@quirk(
    "polygons, also closed, rectangles, circles, masks as PNG in base64", "masks; a rectangle is a box alone"
)
@pytest.mark.parametrize("shape, box, area", SHAPES.values(), ids=SHAPES)
def test_shapes(shape, box, area):
    write(shape)
    (record,), report = read(strict=True)
    np.testing.assert_allclose(record.objects.boxes, [box], atol=1e-9)
    assert bool(record.objects.rles[0]) == (area is not None)
    assert record.objects.areas[0] == pytest.approx(area or 256, abs=2) and report.kept == 1


LEFT_OUT = {
    "line": (SQUARE | {"shape_type": "linestrip"}, "shape of the type linestrip, which has no area"),
    "point": (
        SQUARE | {"shape_type": "point", "points": [[1, 1]]},
        "shape of the type point, which has no area",
    ),
    "two corners": (SQUARE | {"points": [[1, 1], [20, 20]]}, "mask: polygon with fewer than 3 points"),
    "background": (SQUARE | {"label": "_background_"}, "shape labelled '_background_'"),
    "no label": (SQUARE | {"label": None}, "shape without a label"),
    "no points": (SQUARE | {"points": []}, "shape without points that are pairs of numbers"),
    "words": (SQUARE | {"points": [["a", "b"]] * 3}, "shape without points that are pairs of numbers"),
    "no object": (5, "shape without a label"),
    "mask": (mask_shape(FULL, 8, 8) | {"mask": "AAAA"}, "mask that is no PNG file in base64"),
    "no mask": (mask_shape(FULL, 8, 8) | {"mask": None}, "mask that is no PNG file in base64"),
}


@quirk(
    "lines, points, `_background_`, shapes without a label or of too few points",
    "left out, named by their number",
)
@pytest.mark.parametrize("shape, kind", LEFT_OUT.values(), ids=LEFT_OUT)
def test_shapes_that_are_left_out(shape, kind):
    write(OTHER, shape)
    (record,), report = read()
    assert report.left_out == {kind: {"1.png, shape 2"}} and record.objects.boxes.tolist() == [
        [40, 8, 56, 24]
    ]


def test_copies_are_left_out_by_their_place():
    write(OTHER, SQUARE, SQUARE)
    _, report = read()
    assert report.left_out == {"copy of another annotation": {"1.png, shape 3"}} and report.kept == 2


@quirk("several shapes of one label and `group_id`", "one object")
@pytest.mark.parametrize("group", [0, 3, "a"])
def test_groups(group):
    dog = OTHER | {"label": "dog", "group_id": group}
    rectangle = {"shape_type": "rectangle", "points": [[0, 0], [4, 4]]}
    write(SQUARE | {"group_id": group}, dog, OTHER | {"group_id": group}, SQUARE, SQUARE | rectangle)
    (record,), report = read(strict=True)
    assert record.objects.boxes.tolist() == [[8, 8, 56, 24], [40, 8, 56, 24], [8, 8, 24, 24], [0, 0, 4, 4]]
    assert record.objects.areas.tolist() == [512, 256, 256, 16] and report.kept == 4
    parts = [mask_shape(FULL, 8, 8), OTHER | {"label": "cat"}]
    write(*[part | {"group_id": group} for part in parts])
    (record,), report = read()
    assert record.objects.boxes.tolist() == [[8, 8, 56, 24]] and record.objects.areas.tolist() == [512]


PATHS = {
    "backslashes": ("..\\images\\1.png", "set/labels/1.json", "set/images/1.png"),
    "slashes": ("../images/1.png", "set/labels/1.json", "set/images/1.png"),
    "another machine": ("C:\\Users\\ann\\1.png", "set/1.json", "set/1.png"),
    "another folder": ("D:/photos/1.png", "set/labels/1.json", "set/photos/1.png"),
    "renamed": ("IMG_0001.png", "set/1.json", "set/1.png"),
    "missing": (None, "set/1.json", "set/1.png"),
    "umlauts": ("ä ö.png", "set/ä ö.json", "set/ä ö.png"),
}


@quirk(
    "`imagePath` with backslashes, of another machine, of a renamed image or missing",
    "the image that is there",
)
@pytest.mark.parametrize("given, path, image", PATHS.values(), ids=PATHS)
def test_paths_of_images(given, path, image):
    write(SQUARE, path=path, image=image, imagePath=given)
    records, report = read()
    assert len(records) == report.kept == 1 and records[0].image == picture()


@quirk("`imageData`, where the image is there or not", "the image's file, or what is embedded")
def test_embedded_images():
    text = base64.b64encode(picture()).decode()
    write(SQUARE, imageData=text)
    assert read()[0][0].image == picture()
    write(SQUARE, path="set/2.json", image=None, imagePath="2.png", imageData=text)
    write(SQUARE, path="set/3.json", image=None, imagePath="3.png", imageData="AAAA")
    write(SQUARE, path="set/4.json", image=None, imagePath="4.png")
    records, report = read(max_bad=0.5)
    assert [record.file_name for record in records] == ["1.png", "2.png"] and records[1].image == picture()
    assert "4.png" in str(report.images_left_out) and "3.png" in str(report.images_left_out)


def test_embedded_images_are_not_replaced_by_files_of_the_same_name():
    dark = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(dark, "png")
    text = base64.b64encode(dark.getvalue()).decode()
    write(SQUARE, path="set/a/1.json", image="set/a/1.png")
    write(SQUARE, path="set/b/1.json", image=None, imageData=text)
    write(SQUARE, path="set/b/2.json", image=None, imagePath="2.png", imageData=text)
    Path("holiday.png").write_bytes(picture())  # beside the set, not in it
    records, report = read()
    assert [record.image for record in records] == [picture(), dark.getvalue(), dark.getvalue()]
    assert "listed again" not in str(report) and "holiday" not in str(report)


@quirk(
    "images without shapes, sizes that are missing, files of folders named by splits", "used; splits are kept"
)
def test_sizes_and_splits():
    write(path="set/train/1.json", image="set/train/1.png", imageHeight=None)
    write(SQUARE, path="set/val/1.json", image="set/val/1.png", imageHeight=None, imageWidth=None)
    records, _ = read()
    assert len(records[0].objects.ids) == 0 and split_names("out") == ("train", "validation")
    write(SQUARE, path="set/val/1.json", image="set/val/1.png", imageHeight=99)
    with pytest.raises(InputError, match=r"1.png: is 64x32 \(width x height\), but annotated as 64x99"):
        read()


@quirk(
    "a file of LabelMe that is cut or is no object, and two files of one image", "refused; the first is used"
)
def test_damaged_files():
    write(SQUARE)
    write(OTHER, path="set/2.json", image=None)
    (record,), report = read()
    assert record.objects.boxes.tolist() == [[8, 8, 24, 24]]
    assert report.warnings[0] == "set/2.json describes the image 1.png once more: it is not used"
    text = Path("set/2.json").read_text()
    Path("set/2.json").write_text(text[:-9])
    with pytest.raises(InputError, match="set/2.json is not valid JSON.* cut short"):
        read()
