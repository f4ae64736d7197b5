"""Files of Pascal VOC."""

from pathlib import Path

import numpy as np
import pytest
from format_writers import png
from PIL import Image
from pycocotools import mask as coco_mask
from quirks import quirk

from mrcnn_jax.data.dataset import Record, open_dataset, split_names
from mrcnn_jax.data.formats.conversion_report import ConversionReport
from mrcnn_jax.data.prepare import prepare
from mrcnn_jax.errors import InputError

HEIGHT, WIDTH = 32, 64


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def thing(name: str = "cat", corners: tuple[float, ...] = (9, 9, 24, 24), more: str = "") -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=False)
    box = "".join(f"<{side}>{number}</{side}>" for side, number in sides)
    return f"<object><name>{name}</name><pose>Left</pose>{more}<bndbox>{box}</bndbox></object>"


def write(
    *objects: str,
    name: str = "1",
    annotations: str = "set/Annotations",
    images: str = "set/JPEGImages",
    filename: str | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> None:
    """Writes an annotation file and its image."""
    for folder in (annotations, images):
        Path(folder).mkdir(parents=True, exist_ok=True)
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    filename = f"{name}.png" if filename is None else filename
    content = f"<annotation><filename>{filename}</filename>{sides}{''.join(objects)}</annotation>"
    Path(annotations, f"{name}.xml").write_text(content, "utf-8")
    pixels = np.random.default_rng(len(name)).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(Path(images, f"{name}.png"))


def read(split: str = "train", **options) -> tuple[list[Record], ConversionReport]:
    """Returns the records and the report of a split."""
    directory, reports = prepare("set", "out", overwrite=True, **options)
    return list(open_dataset(directory, split)), reports[split]


COUNTS = {
    "pixels from 1": ((1, 1, WIDTH, HEIGHT), [0, 0, WIDTH, HEIGHT], False),
    "pixels from 0": ((0, 0, WIDTH, HEIGHT), [0, 0, WIDTH, HEIGHT], True),
    "fractions": ((8.5, 9, 24, 24), [8.5, 9, 24, 24], True),
    "floats": (("9.0", "9.00", "24.0", "24.0"), [8, 8, 24, 24], False),
}


@quirk(
    "boxes whose pixels count from 1, from 0, or with fractions",
    "from 1, unless one in the set is 0, or more than 1% are fractions",
)
@pytest.mark.parametrize("corners, box, zero", COUNTS.values(), ids=COUNTS)
def test_first_pixel(corners, box, zero):
    write(thing(corners=corners), thing("dog"))
    (record,), report = read()
    assert record.objects.boxes.tolist() == [box, [9, 9, 24, 24] if zero else [8, 8, 24, 24]]
    assert any("boxes count from 0, not from 1" in warning for warning in report.warnings) == zero


def test_a_few_fractions_do_not_shift_a_set():
    write(*[thing()] * 149, thing(corners=(9, 9, 24, 45.7)))
    (record,), report = read()
    assert record.objects.boxes[0].tolist() == [8, 8, 24, 24]
    assert not any("boxes count from 0" in warning for warning in report.warnings)


@quirk("`difficult` and `truncated`", "a crowd region, neither learned nor scored; no effect")
def test_flags():
    flags = "<truncated>1</truncated><difficult>{}</difficult><occluded>1</occluded>"
    write(thing(more=flags.format(1)), thing(more=flags.format(0)), thing())
    (record,), _ = read(strict=True)
    assert record.objects.crowd.tolist() == [True, False, False]


def write_masks() -> np.ndarray:
    numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
    numbers[8:24, 8:24], numbers[8:24, 40:56], numbers[7, :] = 1, 3, 255
    Path("set/SegmentationObject").mkdir(parents=True, exist_ok=True)
    Path("set/SegmentationObject/1.png").write_bytes(png(numbers, palette=True))
    return numbers


@quirk("`SegmentationObject` with borders of 255, objects without pixels, pixels without an object",
       "masks by the order of objects; boxes alone; left out")  # fmt: skip
def test_masks():
    numbers = write_masks()
    write(thing(), thing("dog", (30, 9, 33, 12)))
    (record,), report = read()
    assert record.objects.boxes.tolist() == [[8, 8, 24, 24], [29, 8, 33, 12]]
    code = {"size": [HEIGHT, WIDTH], "counts": record.objects.rles[0]}
    np.testing.assert_array_equal(coco_mask.decode(code), numbers == 1)
    assert record.objects.rles[1] == "" and record.objects.areas.tolist() == [256, 16]
    assert report.left_out == {"mask without an object in the XML file": {"1.xml, object 3"}}
    Path("set/SegmentationObject/1.png").write_bytes(b"junk")
    (record,), report = read()
    assert record.objects.rles == ["", ""] and "its objects have no masks" in report.warnings[0]


@quirk("`ImageSets/Main` and `ImageSets/Segmentation`", "splits; the latter where there are masks")
def test_lists():
    for name in ("1", "b 2", "3", "4", "5"):
        write(thing(), name=name)
    lists = {"train": "1\nb 2", "val": "3 \n", "trainval": "1\nb 2\n3", "test": "4"}
    Path("set/ImageSets/Main").mkdir(parents=True)
    Path("set/ImageSets/Main/cat_train.txt").write_text("5  1\n")
    for name, text in lists.items():
        Path(f"set/ImageSets/Main/{name}.txt").write_text(text)
    records, report = read()
    assert [record.file_name for record in records] == ["1.png", "b 2.png"]
    assert split_names("out") == ("train", "validation", "test")
    assert "1 annotation files are in no list of ImageSets (5.xml)" in report.warnings[0]
    write_masks()
    Path("set/ImageSets/Segmentation").mkdir()
    Path("set/ImageSets/Segmentation/trainval.txt").write_text("1\n5\n")
    assert [record.file_name for record in read()[0]] == ["1.png", "5.png"] and split_names("out") == (
        "train",
    )
    Path("set/ImageSets/Segmentation/trainval.txt").write_text("9")
    with pytest.raises(InputError, match="no annotation file is listed in ImageSets"):
        read()


PLACES = {
    "VOC": {},
    "Roboflow": {"annotations": "set/train", "images": "set/train"},
    "images": {"images": "set/images"},
    "no filename": {"filename": ""},
    "filename of another": {"filename": "/home/ann/pictures/IMG_1.jpg"},
    "backslashes": {"filename": "C:\\pictures\\1.png"},
    "umlauts": {"name": "ä &amp; ö".replace("&amp;", "und")},
    "devkit": {"annotations": "set/VOC2012/Annotations", "images": "set/VOC2012/JPEGImages"},
}


@quirk(
    "images in `JPEGImages`, `images` or beside the XML files; `filename` missing or of another image",
    "found",
)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_places(place):
    write(thing(), **place)
    (record,), report = read(strict=True)
    assert report.kept == 1 and record.file_name == f"{place.get('name', 1)}.png"


def test_missing_images_are_left_out():
    write(thing()), write(thing(), name="2"), write(thing(), name="3", size=(10, 10))
    Path("set/JPEGImages/2.png").unlink()
    records, report = read(max_bad=1)
    assert len(records) == 1 and report.kept == 1
    assert list(report.images_left_out.values()) == [["2.png"], ["3.png"]]


@quirk(
    "objects without a name or a box, sizes of 0, parts of objects, polygons",
    "left out; not used; passed over; masks",
)
def test_objects():
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    polygon = "<polygon><x1>8</x1><y1>8</y1><x2>24</x2><y2>8</y2><x3>24</x3><y3>24</y3></polygon>"
    write(thing(more=part), thing(""), thing(corners=()), thing(more=polygon), size=(0, 0))
    (record,), report = read()
    assert record.objects.boxes.tolist() == [[8, 8, 24, 24]] * 2 and bool(record.objects.rles[1])
    assert report.left_out == {
        "object without a name": {"1.xml, object 2"}, "neither a box nor a mask": {"1.xml, object 3"}
    }  # fmt: skip


LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
DAMAGED = {
    "cut": ("<annotation><object>", "is not valid XML.*cut short"),
    "entities": (LAUGHS + "]><annotation>&i;</annotation>", "declares XML entities"),
    "deep": ("<annotation>" + "<a>" * 10**5, "nests XML elements deeper than 50 levels"),
    "unknown encoding": ("<?xml version='1.0' encoding='x'?><annotation/>", "is not valid XML"),
    "long characters": ("<?xml version='1.0' encoding='gb2312'?><annotation/>", "is not valid XML.*encoding"),
    "file of the system": ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
                           "<annotation>&x;</annotation>",
                           "declares XML entities"),
}  # fmt: skip


@quirk(
    "XML that is cut, too deep, or declares entities to exhaust memory or read other files", "one sentence"
)
@pytest.mark.parametrize("text, message", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files(text, message):
    write(thing())
    Path("set/Annotations/2.xml").write_text(text)
    with pytest.raises(InputError, match=f"^set/Annotations/2.xml {message}"):
        read()
