"""Annotations of COCO files."""

import json

import pytest
from converted_sets import change_first, convert, kinds
from pycocotools import mask as coco_mask
from quirks import quirk

from mrcnn_jax.data.dataset import Record
from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.coco_values import read_crowd

POLYGON = [20, 10, 60, 10, 60, 40, 20, 40]
COUNTS = [20 * 64 + 10, *[30, 34] * 39, 30, 24 + 36 * 64]
CODE = {"size": [64, 96], "counts": COUNTS}
COMPRESSED = coco_mask.frPyObjects(CODE, 64, 96)["counts"].decode()


def mask_area(record: Record) -> int:
    (rle,) = record.objects.rles
    return int(coco_mask.area({"size": [record.height, record.width], "counts": rle})) if rle else 0


# ---- masks


@quirk(
    "`segmentation` is `[]`, `[[]]`, `{}`, `null`, `false`, an empty text or missing",
    "an object without a mask",
)
@pytest.mark.parametrize("empty", [[], [[]], [[[]]], {}, None, False, "", [None], [{}], [[], []]])
def test_empty_masks(tmp_path, empty):
    records, report = convert(tmp_path, change_first(segmentation=empty))
    assert [mask_area(record) for record in records] == [0, 1200, 1200, 1200] and report.kept == 4
    assert not report.mended and not report.dropped and "1 of 4 objects have no mask" in str(report)


SPELLINGS = {
    "flat": POLYGON,
    "flat, as text": [str(number) for number in POLYGON],
    "text numbers": [["20", "10.0", "60", "10", " 60 ", "4e1", "20", "40"]],
    "pairs": [[20, 10], [60, 10], [60, 40], [20, 40]],
    "pairs in a list": [[[20, 10], [60, 10], [60, 40], [20, 40]]],
    "points by name": [{"x": 20, "y": 10}, {"x": 60, "y": 10}, {"x": 60, "y": 40}, {"x": 20, "y": 40}],
    "a list too many": [[[20, 10, 60, 10, 60, 40, 20, 40]]],
    "whole text": json.dumps([POLYGON]),
    "words": " ".join(map(str, POLYGON)),
    "code in a list": [CODE],
    "code as text": {"size": ["64", "96"], "counts": [str(count) for count in COUNTS]},
    "code with floats": {"size": [64.0, 96.0], "counts": [float(count) for count in COUNTS]},
    "code without size": {"counts": COUNTS},
    "printed bytes": {"size": [64, 96], "counts": f"b'{COMPRESSED}'"},
}


@quirk(
    "flat polygons, points as pairs or by name, lists too many, numbers as text, RLE in a list",
    "read as meant",
)
@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_other_spellings_of_masks(tmp_path, spelling):
    records, report = convert(tmp_path, change_first(segmentation=spelling))
    assert [mask_area(record) for record in records] == [1200] * 4
    assert not report.dropped and not report.left_out
    assert list(report.mended.values()) == [{1}] * len(report.mended) or spelling == CODE
    with pytest.raises(InputError, match="as --strict asks: 1 x "):
        convert(tmp_path, change_first(segmentation=spelling), strict=True)


UNUSABLE = {
    "two points": [[20, 10, 60, 40]],
    "odd number": [[20, 10, 60, 10, 60, 40, 20]],
    "nulls": [[20, 10, None, 10, 60, 40]],
    "words": "polygon",
    "a number": 7,
    "true": True,
    "nested": [[[[[[[[20, 10, 60, 10, 60, 40]]]]]]]],
    "thin": [[20, 10.1, 60, 10.2, 60, 10.3, 20, 10.2]],
    "outside": [[200, 10, 260, 10, 260, 40, 200, 40]],
    "too large": [[20, 10, 1e300, 10, 60, 40]],
    "beyond float": [[20, 10, 10**400, 10, 60, 40]],
    "RLE of another size": {"size": [96, 64], "counts": [64 * 96]},
    "empty RLE": {"size": [64, 96], "counts": [64 * 96]},
    "truncated RLE": {"size": [64, 96], "counts": COUNTS[:-1]},
    "truncated text": {"size": [64, 96], "counts": COMPRESSED[:-3]},
    "counts of words": {"size": [64, 96], "counts": ["a", {}]},
}


@quirk("a mask that cannot be used beside a good box", "the box is kept, the mask counted as not used")
@pytest.mark.parametrize("mask", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_good_box_survives_its_mask(tmp_path, mask):
    records, report = convert(tmp_path, change_first(segmentation=mask))
    assert records[0].objects.boxes.tolist() == [[20, 10, 60, 40]] and mask_area(records[0]) == 0
    assert list(report.dropped.values()) == [{1}] and report.kept == 4


@quirk("one odd part of a mask of two", "the good part is kept")
@pytest.mark.parametrize(
    "part", [[1, 2, 3], [1, 2, 3, 4], [1, 2, "a", 4, 5, 6], {"size": [1, 1], "counts": [1]}]
)
def test_good_part_survives(tmp_path, part):
    records, report = convert(tmp_path, change_first(segmentation=[POLYGON, part]))
    assert mask_area(records[0]) == 1200 and "part of a mask left out: " in kinds(report.mended)


# ---- boxes


@quirk("`bbox` is `[0, 0, 0, 0]`, empty, null or missing beside a mask", "the box is derived from the mask")
@pytest.mark.parametrize("box", [[0, 0, 0, 0], [0.0, 0, 0, 0], [], None, {}, "", [[]], [None] * 4])
def test_empty_boxes(tmp_path, box):
    records, report = convert(tmp_path, change_first(bbox=box))
    assert records[0].objects.boxes.tolist() == [[20, 10, 60, 40]]
    assert report.mended == {"box derived from the mask": {1}} and report.kept == 4


BAD_BOXES = [
    [float("nan"), 10, 40, 30], [20, 10, float("inf"), 30], [60, 40, -40, -30], [200, 10, 40, 30],
    [20, 10, 40], [20, 10, 40, 30, 0.5], "box", 5, True, [1e400, 0, 1, 1], [10**400, 0, 1, 1],
    [0, 0, 1e9, 1], ["a", 1, 2, 3], [[20, 10], [60, 40]],
]  # fmt: skip


@quirk("a box that cannot be used beside a good mask", "the box is derived from the mask")
@pytest.mark.parametrize("box", BAD_BOXES, ids=map(str, range(len(BAD_BOXES))))
def test_good_mask_survives_its_box(tmp_path, box):
    records, report = convert(tmp_path, change_first(bbox=box))
    assert records[0].objects.boxes.tolist() == [[20, 10, 60, 40]] and mask_area(records[0]) == 1200
    assert kinds(report.mended).startswith("box derived from the mask: box ")


@quirk("a box as text, as an object, or in a list too many", "read as meant")
@pytest.mark.parametrize(
    "box",
    [["20", "10", "40", "30"], "[20, 10, 40, 30]", "20,10,40,30", "20 10 40 30", [[20, 10, 40, 30]],
     {"x": 20, "y": 10, "width": 40, "height": 30}, {"x": 20, "y": 10, "w": "40", "h": 30}],
)  # fmt: skip
def test_other_spellings_of_boxes(tmp_path, box):
    records, report = convert(tmp_path, change_first(bbox=box, segmentation=[]))
    assert records[0].objects.boxes.tolist() == [[20, 10, 60, 40]]
    assert report.mended == {"box in another form than four numbers": {1}}


@quirk("neither the box nor the mask can be used", "the annotation is left out, counted with its id")
@pytest.mark.parametrize("box", [None, [20, 10, 0, 30], "box"])
@pytest.mark.parametrize("mask", [None, [[1, 2, 3]], 7])
def test_nothing_usable(tmp_path, box, mask):
    records, report = convert(tmp_path, change_first(bbox=box, segmentation=mask))
    assert report.kept == 3 and len(records[0].objects.ids) == 0
    assert list(report.left_out.values()) == [{1}] and "(annotation 1)" in str(report)


# ---- flags, areas


@quirk('`iscrowd` as `"0"`, `"false"`, `false`, `null`; as `"1"`, `"true"`, `true`', "no crowd; a crowd")
@pytest.mark.parametrize(
    "flag, crowd",
    [("0", False), ("false", False), (False, False), (None, False), ("", False), (0.0, False), ("No", False),
     ("0.0", False), ([], False), ("1", True), ("True", True),
     (True, True), (1.0, True), ("1.0", True)],
)  # fmt: skip
def test_crowd_flags(tmp_path, flag, crowd):
    records, report = convert(tmp_path, change_first(iscrowd=flag))
    assert [bool(record.objects.crowd[0]) for record in records] == [crowd, False, False, False]
    assert report.kept == 4 and read_crowd(flag, "") == crowd
    assert report.mended == ({"iscrowd written as text": {1}} if flag and isinstance(flag, str) else {})


@quirk("`iscrowd` that is neither 0 nor 1: 5, -1, 0.5, a word, NaN",
       "`dataset` takes it as 0 and counts it; `evaluate` refuses the file")  # fmt: skip
@pytest.mark.parametrize("flag", [5, -1, 0.5, "5", "maybe", float("nan"), [1], {"a": 1}])
def test_crowd_flags_without_a_meaning(tmp_path, flag):
    records, report = convert(tmp_path, change_first(iscrowd=flag))
    assert not records[0].objects.crowd[0] and report.kept == 4
    assert report.mended == {"iscrowd that is neither 0 nor 1: taken as 0": {1}}
    with pytest.raises(InputError, match="an object has iscrowd .*, but it must be 0 or 1"):
        read_crowd(flag, "an object")


@quirk("`area` as text, NaN, negative, beyond float, missing", "derived from the mask or the box")
@pytest.mark.parametrize("area", ["1200", float("nan"), -5, 0, 10**400, 1e300, None, [1], True])
def test_areas(tmp_path, area):
    records, report = convert(tmp_path, change_first(area=area))
    assert records[0].objects.areas.tolist() == [1200]
    assert report.mended == {"area derived from the mask or the box": {1}}
