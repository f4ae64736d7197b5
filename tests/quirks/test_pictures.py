"""Pictures and contact sheets."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from quirks import quirk

from mrcnn_jax.detections import Detections
from mrcnn_jax.run_length_masks import RunLengthMasks, encode_masks
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.visualize import text
from mrcnn_jax.visualize.draw import draw_detections
from mrcnn_jax.visualize.files import reduced, save_picture
from mrcnn_jax.visualize.sheets import contact_sheet, ground_truth_sheet, prediction_sheet

INFO = DatasetInfo("pets", (1, 2), ("a", "b"))


def one_object(height: int, width: int) -> Detections:
    """An object in the upper left corner."""
    masks = np.zeros((1, height, width), bool)
    masks[0, :8, :9] = True
    codes = RunLengthMasks([encode_masks(masks)[0]["counts"]], height, width)
    names = INFO.category_names
    return Detections(np.float32([[0, 0, 9, 8]]), np.float32([0.75]), np.array([0]), codes, None, names)


@quirk("photos of any size with many objects", "masks are run-length codes, pictures reduced to 2048 pixels")
def test_large_photos_cost_no_full_size_masks(tmp_path, monkeypatch):
    height, width, count = 3000, 4000, 8
    code = encode_masks(np.pad(np.ones((1, 900, 900), bool), ((0, 0), (0, 2100), (0, 3100))))[0]["counts"]
    masks = RunLengthMasks([code] * count, height, width)
    monkeypatch.setattr(RunLengthMasks, "__array__", None)  # all masks at once
    boxes = np.float32([[0, 0, 900, 900]] * count)
    found = Detections(boxes, np.ones(count, np.float32), np.zeros(count, int), masks, class_names=("a",))
    drawn = draw_detections(np.zeros((height, width, 3), np.uint8), found, max_side=2048)
    assert drawn.shape == (1536, 2048, 3) and drawn[200, 200].any() and not drawn[480, 480].any()
    assert [detection.score for detection in found] == [1.0] * count  # masks are decoded when they are read


@pytest.mark.parametrize("size, side", [((300, 400), 200), ((501, 333), 250), ((97, 1200), 100)])
def test_reduced_drawings_equal_drawings_of_full_masks(size, side):
    y, x = np.mgrid[: size[0], : size[1]]
    masks = np.stack([((x - c * 0.4) ** 2 / 4 + (y - c * 0.5) ** 2) < (0.2 * c) ** 2 for c in (size[0], 60)])
    codes = RunLengthMasks([rle["counts"] for rle in encode_masks(masks)], *size)
    boxes = np.float32([[1, 2, 50, 60], [3, 4, 90, 91]])
    full = Detections(boxes, np.ones(2, np.float32), np.zeros(2, int), masks, class_names=("a",))
    image = np.full((*size, 3), 100, np.uint8)
    drawn = draw_detections(image, full, max_side=side)
    assert max(drawn.shape) == side
    np.testing.assert_array_equal(drawn, draw_detections(image, replace(full, masks=codes), max_side=side))


@quirk("overlay pictures and contact sheets of photos", "at most 3 MB: PNG, or else JPEG")
def test_pictures_stay_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    assert save_picture(tmp_path / "a.png", noise).name == "a.png"
    file = save_picture(tmp_path / "b.png", noise, max_bytes=400_000)
    assert file.name == "b.jpg" and Path(file).stat().st_size <= 400_000
    with Image.open(file) as image:
        assert image.size == (900, 700)
    tiny = save_picture(tmp_path / "c.png", noise, max_bytes=30_000)
    assert Path(tiny).stat().st_size <= 30_000
    assert reduced(noise, 500).shape == (350, 450, 3) and reduced(noise, 900).shape == noise.shape


class Split(list):
    """Two records of large images, one object each."""

    info = INFO

    def __init__(self):
        mask = np.zeros((1, 1200, 1600), bool)
        mask[0, 100:700, 200:900] = True
        objects = SimpleNamespace(
            ids=[1], boxes=np.float64([[200, 100, 900, 700]]), classes=np.array([0]), keypoints=None,
            rles=[encode_masks(mask)[0]["counts"]],
        )  # fmt: skip
        shared = {"height": 1200, "width": 1600, "objects": objects}
        super().__init__(SimpleNamespace(image_id=id_, file_name=f"{id_}.jpg", **shared) for id_ in (1, 2))


@quirk("contact sheets", "name their files, annotated beside detected, and say where nothing was detected")
def test_sheets_show_what_was_annotated_and_detected(monkeypatch):
    titles, images = [], []

    def decode(record):
        images.append(record.image_id)
        return np.full((1200, 1600, 3), 90, np.uint8)

    def fit(title, *_):
        titles.append(title)
        return title

    monkeypatch.setattr("mrcnn_jax.visualize.sheets.decode_record", decode)
    monkeypatch.setattr("mrcnn_jax.visualize.sheets.fit", fit)
    one = one_object(1200, 1600)
    sheet = prediction_sheet(Split(), {1: one, 2: one[:0]}, 0.5)
    said = "1 detected above 0.5", "nothing detected above 0.5"
    assert titles == [f"{name}.jpg: 1 annotated, {words}" for name, words in zip("12", said, strict=True)]
    assert images == [1, 2] and sheet.shape[1] < 2700 and sheet.shape[0] < 600  # tiles are reduced
    assert ground_truth_sheet(Split(), 2).shape[1] < 1400


def test_colours_by_class(tmp_path):
    image = np.full((60, 400, 3), 90, np.uint8)
    boxes = np.float32([[10 + 90 * i, 10, 80 + 90 * i, 50] for i in range(4)])
    masks = np.zeros((4, 60, 400), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    found = Detections(boxes, np.ones(4, np.float32), np.array([0, 1, 0, 1]), masks, class_names=("", ""))
    for color_by, expected in (("class", 2), ("object", 4)):
        tints = draw_detections(image, found, scale=1, color_by=color_by)[45, 45::90][:4]
        assert len(np.unique(tints, axis=0)) == expected


@quirk("names in any script, of any length, with control characters", "in a font that has them, or escaped")
@pytest.mark.parametrize(
    "name, shown",
    [
        ("Bär", "Bär"), ("cafe\u0301", "café"), ("Бабочка", "Бабочка"), ("قطة", "قطة"),
        ("[red]x[/]", "[red]x[/]"),
        ("two\nlines\t\x07", "two\\nlines\\t\\x07"), ("\ud800", "\\ud800"), ("a\u202eb\u200b", "ab"),
        ("汽车", "\\u6c7d\\u8f66"), ("x" * 99, "x" * 20 + "…" + "x" * 19), ("", ""),
    ],
)  # fmt: skip
def test_names_are_legible(name, shown, monkeypatch):
    monkeypatch.setattr(text, "_system_fonts", list)
    text._font_file.cache_clear()
    assert text.legible(name) == shown
    contact_sheet([np.zeros((9, 90, 3), np.uint8)], 1, [name])
    found = replace(one_object(90, 90), class_names=(name, ""))
    assert draw_detections(np.zeros((90, 90, 3), np.uint8), found).any()
    text._font_file.cache_clear()


def test_another_font_is_taken_where_it_has_the_characters(monkeypatch):
    other = text.DEFAULT_FONT.with_name("STIXGeneral.ttf")
    private = set(range(0xE000, 0xF900))
    symbol = min(text._characters(other) - text._characters(text.DEFAULT_FONT) - private)
    monkeypatch.setattr(text, "_system_fonts", lambda: [other])
    text._font_file.cache_clear()
    assert text.legible(chr(symbol)) == chr(symbol)
    assert text.load_font(12, chr(symbol)).getname()[0].startswith("STIX")
    text._font_file.cache_clear()


def test_titles_fit_their_column():
    name = "a_long_name_of_a_file_" * 20
    for width in (40, 200, 700):
        title = text.fit(f"{name}.jpg: 3 annotated, nothing detected above 0.5", 15, width)
        assert text.load_font(15).getlength(title) <= max(width, 60)
    assert title.endswith("nothing detected above 0.5")
