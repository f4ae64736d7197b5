"""XML files of CVAT."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from quirks import quirk

from mrcnn_jax.data.dataset import Record, open_dataset, read_metadata, split_names
from mrcnn_jax.data.formats.conversion_report import ConversionReport
from mrcnn_jax.data.prepare import prepare
from mrcnn_jax.errors import InputError

HEIGHT, WIDTH = 32, 64
LABELS = "<label><name>dog</name><attributes/></label><label><name>cat</name></label>"
BOX = '<box label="cat" occluded="1" xtl="8" ytl="8" xbr="24" ybr="24" {}/>'
SQUARE = '<polygon label="cat" points="8,8;24,8;24,24;8,24" {}/>'


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def image(shapes: str = "", name: str = "1.png", more: str = "") -> str:
    return f'<image id="0" name="{name}" width="{WIDTH}" height="{HEIGHT}" {more}>{shapes}</image>'


def write(*elements: str, labels: str = LABELS, names: tuple[str, ...] = ("images/1.png",)) -> None:
    """Writes an XML file and images."""
    Path("set").mkdir(exist_ok=True)
    meta = f"<meta><task><id>1</id><labels>{labels}</labels></task></meta>"
    content = f"<annotations><version>1.1</version>{meta}{''.join(elements)}</annotations>"
    Path("set/annotations.xml").write_text(content, "utf-8")
    for name in names:
        Path("set", name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(name)).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(Path("set", name))


def read(split: str = "train", **options) -> tuple[list[Record], ConversionReport]:
    """Returns the records and the report of a split."""
    directory, reports = prepare("set", "out", overwrite=True, **options)
    return list(open_dataset(directory, split)), reports[split]


MASK = '<mask label="cat" rle="{}" left="8" top="8" width="4" height="3"/>'
ELLIPSE = '<ellipse label="cat" cx="24" cy="16" rx="8" ry="4" {}/>'
SHAPES = {
    "box": (BOX, [8, 8, 24, 24], 0),
    "rotated box": (BOX.format('rotation="90.0"').replace('ybr="24"', 'ybr="16"'), [12, 4, 20, 20], 0),
    "polygon": (SQUARE, [8, 8, 24, 24], 256),
    "ellipse": (ELLIPSE, [16, 12, 32, 20], 100),
    "rotated ellipse": (ELLIPSE.format('rotation="90"'), [20, 8, 28, 24], 100),
    "mask": (MASK.format("0, 12"), [8, 8, 12, 11], 12),
    "mask with a hole": (MASK.format("0, 5, 2, 5"), [8, 8, 12, 11], 10),
    "mask whose corner is empty": (MASK.format("4,8"), [8, 9, 12, 11], 8),
}


@quirk(
    "boxes, also rotated, polygons, ellipses and masks", "the box around a rotated one; masks of the others"
)
@pytest.mark.parametrize("shape, box, area", SHAPES.values(), ids=SHAPES)
def test_shapes(shape, box, area):
    write(image(shape.format("")))
    (record,), report = read(strict=True)
    np.testing.assert_allclose(record.objects.boxes, [box], atol=1e-6)
    assert bool(record.objects.rles[0]) == bool(area) and report.kept == 1
    assert not area or record.objects.areas[0] == pytest.approx(area, abs=3)


@quirk("several tasks below one folder, with images of the same names", "each with those beside its file")
@pytest.mark.parametrize("images", ["images/", ""])
def test_several_tasks(images):
    for task, shift in (("task 1", 0), ("task 2", 8)):
        write(image(BOX.format("").replace('xtl="8"', f'xtl="{shift}"')), names=(f"{task}/{images}1.png",))
        Path("set/annotations.xml").rename(Path("set", task, "annotations.xml"))
    records, report = read()
    assert [record.file_name for record in records] == [f"task {task}/{images}1.png" for task in (1, 2)]
    assert [record.objects.boxes[0, 0] for record in records] == [0, 8]
    assert not any("once more" in warning for warning in report.warnings)


def test_masks_are_read_row_by_row():
    write(image(MASK.format("1, 4, 7")))
    (record,), _ = read()
    mask = coco_mask.decode({"size": [HEIGHT, WIDTH], "counts": record.objects.rles[0]})
    assert np.argwhere(mask).tolist() == [[8, 9], [8, 10], [8, 11], [9, 8]]


LEFT_OUT = {
    "line": ('<polyline label="cat" points="1,1;9,9"/>', "polyline, which has no area"),
    "points": ('<points label="cat" points="1,1"/>', "points, which has no area"),
    "cuboid": ('<cuboid label="cat" xtl1="1"/>', "cuboid, which has no area"),
    "box": ('<box label="cat" xtl="1"/>', "box without the numbers xtl, ytl, xbr, ybr"),
    "words": ('<polygon label="cat" points="a,b"/>', "polygon whose points are not numbers"),
    "thin": ('<polygon label="cat" points="1,1;9,9"/>', "mask: polygon with fewer than 3 points"),
    "runs": (MASK.format("3"), "mask whose runs do not fill its box, or whose box is larger than the image"),
    "skeleton": ('<skeleton label="cat"/>', "skeleton without points inside the image"),
}


@quirk("polylines, points, cuboids, masks whose runs do not fill them", "left out, named by their number")
@pytest.mark.parametrize("shape, kind", LEFT_OUT.values(), ids=LEFT_OUT)
def test_shapes_that_are_left_out(shape, kind):
    write(image(SQUARE.format("") + shape))
    _, report = read()
    assert report.left_out == {kind: {"1.png, shape 2"}} and report.kept == 1


@quirk("attributes, tags of images, labels in their own order, objects of labels that are not listed", "read")
def test_labels():
    attribute = '<attribute name="age">3</attribute>'
    shapes = '<tag label="night" source="manual"/>' + SQUARE.format("").replace(
        "/>", f">{attribute}</polygon>"
    )
    write(image(shapes + BOX.format("").replace("cat", "owl")))
    (record,), report = read(strict=True)
    info = read_metadata("out")[0]
    assert info.category_names == ("dog", "cat", "owl") and info.category_ids == (1, 2, 3)
    assert record.objects.classes.tolist() == [1, 2] and report.kept == 2


@quirk("shapes of one label and `group_id`", "one object")
def test_groups():
    other = '<polygon label="cat" points="40,8;56,8;56,24;40,24" {}/>'
    grouped = [shape.format('group_id="4"') for shape in (SQUARE, other)]
    write(image("".join([*grouped, SQUARE.format('group_id="0"'), BOX.format('group_id="5"')])))
    (record,), report = read(strict=True)
    assert record.objects.boxes.tolist() == [[8, 8, 56, 24], [8, 8, 24, 24], [8, 8, 24, 24]]
    assert record.objects.areas.tolist() == [512, 256, 256] and report.kept == 3


SVG = (
    '&lt;line data-type="edge" data-node-from="1" data-node-to="2"&gt;&lt;/line&gt;'
    + "".join(
        f'&lt;circle data-type="element node" data-node-id="{i}" data-label-name="{name}"&gt;&lt;/circle&gt;'
        for i, name in ((1, "nose"), (2, "l_ear"), (3, "r_ear"))
    )
)  # fmt: skip
SKELETON = f"<label><name>animal</name><type>skeleton</type><svg>{SVG}</svg></label>" + "".join(
    f"<label><name>{name}</name><type>points</type><parent>animal</parent></label>"
    for name in ("nose", "l_ear", "r_ear")
)


@quirk(
    "skeletons: hidden points, points outside, in any order",
    "keypoints; the box around those that are labelled",
)
def test_skeletons():
    points = (
        '<points label="r_ear" outside="0" occluded="1" points="20,6"/>'
        '<points label="nose" outside="0" occluded="0" points="10.5,12"/>'
        '<points label="l_ear" outside="1" occluded="0" points="1,1"/>'
    )
    write(
        image(f'<skeleton label="animal" z_order="0">{points}</skeleton>{BOX.format("")}'),
        labels=LABELS + SKELETON,
    )
    (record,), report = read(strict=True)
    assert record.objects.keypoints[0].tolist() == [[10.5, 12, 2], [0, 0, 0], [20, 6, 1]]
    assert record.objects.boxes[0].tolist() == [10.5, 6, 20, 12] and not record.objects.keypoints[1].any()
    info = read_metadata("out")[0]
    assert info.keypoint_names == ("nose", "l_ear", "r_ear") and info.keypoint_flip == (0, 2, 1)
    assert info.skeleton == ((0, 1),) and report.kept == 2


@quirk("deleted frames, whose images are still there", "not used, which is counted")
def test_deleted_frames():
    second = image(SQUARE.format(""), "3.png").replace('id="0"', 'id="2"')
    write(image(), second, names=("images/1.png", "images/2.png", "images/3.png"))
    records, report = read()
    assert [len(record.objects.ids) for record in records] == [0, 1]
    assert report.image_notes["that is not listed, so that it is not used"] == ["2.png"]


@quirk(
    "subsets of a project, images in folders, names with umlauts, `&amp;` and backslashes", "splits; found"
)
def test_subsets_and_names():
    subsets = {"Train": "a/ä &amp; b.png", "Validation": "c\\2.png", "Test": "3.png"}
    elements = [image(SQUARE.format(""), name, f'subset="{subset}"') for subset, name in subsets.items()]
    names = ("images/Train/a/ä & b.png", "images/Validation/c/2.png", "images/Test/3.png")
    write(*elements, names=names)
    assert [record.file_name for record in read()[0]] == ["a/ä & b.png"]
    assert split_names("out") == ("train", "validation", "test")


@quirk("an image listed twice, without a name, or missing", "the first; said; left out")
def test_images_listed_twice():
    write(image(SQUARE.format("")), image(), image(name=""), image(SQUARE.format(""), "2.png"))
    records, report = read(max_bad=1)
    assert len(records) == 1 and report.kept == 1 and len(report.warnings) >= 2
    assert report.images_left_out == {"missing from set": ["2.png"]}


REFUSED = {
    "video": ('<track id="0" label="cat"><box frame="0"/></track>', "is of CVAT for video: export the task"),
    "no images": ("", "holds no images"),
    "cut": ("<image", "is not valid XML"),
}


@quirk("tracks of CVAT for video, a file without images, a file that is cut", "one sentence")
@pytest.mark.parametrize("element, message", REFUSED.values(), ids=REFUSED)
def test_refused_files(element, message):
    write(element)
    with pytest.raises(InputError, match=f"^set/annotations.xml {message}"):
        read()
    with pytest.raises(InputError, match=f"^set/annotations.xml {message}"):
        prepare("set/annotations.xml", "other")
