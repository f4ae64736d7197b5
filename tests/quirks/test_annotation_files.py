"""Annotation files in JSON."""

import pytest
from converted_sets import convert
from quirks import quirk
from small_sets import rectangle, write_set

from mrcnn_jax.data.formats import coco
from mrcnn_jax.data.formats.coco import CocoFile
from mrcnn_jax.errors import InputError

FILES = {
    "empty": (b"", "is not valid JSON: it is empty"),
    "gzip": (b"\x1f\x8b\x08", "compressed by gzip"),
    "web page": (b"<!DOCTYPE html>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "cut": (b'{"images": [{"id": 1}, ', "may have been cut short"),
    "lines": (b'{"images": []}\n{"images": []}', "from line 2, column 1 on, it holds more than one value"),
    "rest": (b'{"images": []} </html>', "it holds more than one value"),
    "Latin-1": ('{"images": "ä"}'.encode("latin-1"), "byte 12 is no text in UTF-8"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "digits": (b"[" + b"1" * 5000 + b"]", "is not valid JSON: Exceeds the limit"),
    "list": (b"[]", "has no list 'images'.*this one is a list"),
    "number": (b"1", "has no list 'images'"),
    "object of images": (b'{"images": {}, "annotations": [], "categories": []}', "has no list 'images'"),
}


@quirk("JSON that is empty, cut, compressed, a web page, too deep, several values, no COCO", "one sentence")
@pytest.mark.parametrize("data, message", FILES.values(), ids=FILES.keys())
def test_files_that_are_refused(tmp_path, data, message):
    (tmp_path / "all.json").write_bytes(data)
    with pytest.raises(InputError, match=message) as refusal:
        CocoFile(tmp_path, tmp_path / "all.json")
    assert len(str(refusal.value).splitlines()) == 1


@quirk("annotation files in UTF-16 or UTF-32, or with a byte order mark", "read")
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"])
def test_encodings(tmp_path, encoding):
    file = write_set(tmp_path / "set") / "annotations/all.json"
    file.write_bytes(file.read_text().encode(encoding))
    assert CocoFile(tmp_path / "set/images", file).info.category_names == ("a", "b")
    coco.prepare(tmp_path / "set", tmp_path / "out")


@quirk("`annotations: null`", "no annotations")
def test_null_annotations(tmp_path):
    _, report = convert(tmp_path, lambda d: d.update(annotations=None))
    assert report.annotations == 0 and "no object is left in train" in str(report)


@quirk("the first page of a list (`next`, or a `total` above what is listed)", "a warning")
@pytest.mark.parametrize("fields", [{"next": "http://host/?page=2"}, {"total": 900}, {"count": 5}])
def test_first_page_of_several(tmp_path, fields):
    _, report = convert(tmp_path, lambda d: d.update(fields))
    assert "may be one page of several" in str(report)


def test_clean_set_has_no_flaws_even_if_strict(tmp_path):
    records, report = convert(tmp_path, lambda d: d["annotations"].append(rectangle(9, 1, 1)), strict=True)
    source = f"COCO: {tmp_path / 'set/annotations/all.json'}"
    assert str(report) == f"train: 4 images, 5 of 5 annotations kept ({source})"
    assert records[0].objects.boxes.tolist() == [[20, 10, 60, 40]] * 2
