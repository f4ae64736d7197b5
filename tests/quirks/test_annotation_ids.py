"""Ids, images and classes of COCO files."""

import pytest
from converted_sets import change_first, convert, kinds
from quirks import quirk
from rich.console import Console
from small_sets import rectangle, write_set

from mrcnn_jax.data.dataset import open_dataset, read_metadata
from mrcnn_jax.data.formats import coco
from mrcnn_jax.data.statistics import summary
from mrcnn_jax.errors import InputError


def every(kind):
    """Returns a change of all ids."""

    def change(content):
        for image in content["images"]:
            image["id"] = kind(image["id"])
        for annotation in content["annotations"]:
            annotation |= {key: kind(annotation[key]) for key in ("id", "image_id", "category_id")}
        for category in content["categories"]:
            category["id"] = kind(category["id"])

    return change


IDS = {
    "text": every(str),
    "float": every(float),
    "float text": every(lambda id_: f"{id_}.0"),
    "padded text": every(lambda id_: f" {id_:05} "),
    "names": every(lambda id_: f"b7{id_}c-e1"),
    "one image": lambda d: d["images"][0].update(id="1"),
    "one image_id": change_first(image_id=1.0),
    "one category_id": change_first(category_id="2"),
    "one category": lambda d: d["categories"][0].update(id=1.0),
}


@quirk('ids as whole floats or text ("1", 1.0, file names, UUIDs)', "read as numbers; others get numbers")
@pytest.mark.parametrize("change", IDS.values(), ids=IDS.keys())
def test_ids(tmp_path, change):
    records, report = convert(tmp_path, change)
    assert [record.file_name for record in records] == [f"{i}.jpg" for i in range(1, 5)]
    assert [record.objects.classes.tolist() for record in records] == [[1], [0], [1], [0]]
    assert report.kept == 4 and all(type(record.image_id) is int for record in records)


NAMES = [
    ["10", "1_0", "1e1", "010"], ["1", "01", " 1", "1."], [7, "07", "7e0", "\u0667"], [1, "x", "2", "+2"],
]  # fmt: skip


@quirk('ids that are nearly numbers ("01", "1_0", "1e1", " 1", "²")', "names of their own, matched exactly")
@pytest.mark.parametrize("ids", NAMES)
def test_ids_that_are_names(tmp_path, ids):
    def change(content):
        for image, annotation, id_ in zip(content["images"], content["annotations"], ids, strict=True):
            image["id"] = annotation["image_id"] = id_
            annotation["bbox"][0] = 20 + int(image["file_name"][0])

    records, report = convert(tmp_path, change)
    assert report.kept == 4 and not report.images_left_out
    assert {r.file_name: r.objects.boxes[0, 0] - 20 for r in records} == {f"{i}.jpg": i for i in range(1, 5)}


ELSEWHERE = {
    "underscore": (lambda d: d["images"][0].update(id="10"), "1_0"),
    "leading zero": (lambda d: None, "01"),
    "number that a name was given": (lambda d: d["images"][3].update(id="name"), 4),
}


@quirk("annotations whose image_id or category_id is nearly that of another", "left out, not attached to it")
@pytest.mark.parametrize("change, id_", ELSEWHERE.values(), ids=ELSEWHERE)
def test_annotations_are_attached_to_no_other_image(tmp_path, change, id_):
    def both(content):
        change(content)
        content["annotations"] = [content["annotations"][1] | {"id": 9, "image_id": id_}, rectangle(8, 2, 1)]

    records, report = convert(tmp_path, both)
    assert report.left_out == {"annotation of an image that is not listed": {9}}
    assert [record.file_name for record in records if len(record.objects.ids)] == ["2.jpg"]


@quirk("ids beyond 2**53, as of databases", "kept as they are; the ids of annotations are new")
@pytest.mark.parametrize("kind", [int, str], ids=["number", "text"])
def test_ids_of_64_bits(tmp_path, kind):
    def change(content):
        every(lambda id_: kind(2**63 - 5 + id_))(content)

    records, report = convert(tmp_path, change)
    assert [record.image_id for record in records] == [2**63 - 5 + id_ for id_ in range(1, 5)]
    assert [record.objects.classes.tolist() for record in records] == [[1], [0], [1], [0]]
    assert read_metadata(tmp_path / "out")[0].category_ids == (2**63 - 4, 2**63 - 3) and report.kept == 4


@pytest.mark.parametrize("id_", [2**63, 1.5, 2.0**60, True, []])
def test_ids_that_are_none(tmp_path, id_):
    _, report = convert(tmp_path, lambda d: d["images"][0].update(id=id_))
    flaw = "whose id is neither a whole number of 64 bits nor a text"
    assert report.images_left_out == {flaw: ["1.jpg"]}
    _, report = convert(tmp_path, lambda d: d["categories"].append({"id": id_, "name": "c"}))
    assert "category c is left out: its id is neither a whole number of 64 bits" in str(report)


@quirk("annotation ids missing, repeated, 0, negative, too large or no numbers", "new ids are given")
@pytest.mark.parametrize("id_", [None, 2, 0, -5, "b7c-e1", 1.5, True, [1], 10**400, float("inf")])
def test_annotation_ids(tmp_path, id_):
    records, report = convert(tmp_path, change_first(id=id_))
    assert len({record.objects.ids.item() for record in records}) == 4 and report.kept == 4
    assert "id missing, repeated or not a positive number: new id given" in report.mended


def change_last(**fields):
    return lambda content: content["annotations"][3].update(fields)


UNPLACED = {
    "unlisted image": (lambda d: d["images"].pop(), "annotation of an image that is not listed"),
    "null image": (change_last(image_id=None), "annotation of an image that is not listed"),
    "list as image": (change_last(image_id=[4]), "annotation of an image that is not listed"),
    "unlisted category": (change_last(category_id=9), "annotation of a category that is not listed"),
    "true as category": (change_last(category_id=True), "annotation of a category that is not listed"),
    "null": (lambda d: d["annotations"].insert(0, None), "annotation that is not an object"),
    "text": (lambda d: d["annotations"].__setitem__(3, "x"), "annotation that is not an object"),
}


@quirk("annotations of unlisted images or categories, or that are no objects", "left out, counted with ids")
@pytest.mark.parametrize("change, kind", UNPLACED.values(), ids=UNPLACED.keys())
def test_annotations_that_belong_nowhere(tmp_path, change, kind):
    _, report = convert(tmp_path, change)
    assert list(report.left_out) == [kind] and report.kept == report.annotations - 1
    assert f"1 of {report.annotations} annotations are left out" in str(report)
    assert list(report.left_out.values()) in ([{4}], [{"number 3, from 0"}], [{"number 0, from 0"}])


@quirk("sizes of images as text or floats", "read as numbers; -1, 0, null, a word: the file's own size")
@pytest.mark.parametrize(
    "width, height, noted",
    [("96", "64", True), (96.0, 64.0, False), ("96.0", 64, True), (-1, -1, True), (0, 0, False),
     (None, None, False), ("wide", [], True), ("", "", False), (10**400, 1, True)],
)  # fmt: skip
def test_sizes(tmp_path, width, height, noted):
    change = {"width": width} | ({} if height == 1 else {"height": height})
    records, report = convert(tmp_path, lambda d: d["images"][0].update(change))
    assert (records[0].width, records[0].height) == (96, 64) and report.kept == 4
    assert sum(map(len, report.images_mended.values())) == noted


BAD_IMAGES = {
    "null": (lambda d: d["images"].__setitem__(0, None), "without an id"),
    "no id": (lambda d: d["images"][0].pop("id"), "without an id"),
    "no name": (lambda d: d["images"][0].pop("file_name"), "without a file_name"),
    "number as name": (lambda d: d["images"][0].update(file_name=1), "without a file_name"),
    "missing": (lambda d: d["images"][0].update(file_name="gone.jpg"), "missing from "),
    "impossible name": (lambda d: d["images"][0].update(file_name="a\0\ud800"), "missing from "),
    "other size": (lambda d: d["images"][0].update(width=95), "is 96x64"),
}


@quirk(
    "a single image that is missing, damaged, of another size, without id or name",
    "left out (`--max-bad`)",
)
@pytest.mark.parametrize("change, kind", BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_single_bad_images(tmp_path, change, kind):
    records, report = convert(tmp_path, change)
    assert len(records) == 3 and report.kept == 3
    assert kinds(report.images_left_out).startswith(kind)
    with pytest.raises(InputError, match="1 of 4 images cannot be used"):
        convert(tmp_path, change, max_bad=0)


@quirk("an image listed twice", "once if the entries name one file; both left out if they name two")
def test_images_listed_twice(tmp_path):
    records, report = convert(tmp_path, lambda d: d["images"].append(d["images"][0]))
    assert len(records) == 4 and report.images_mended == {"listed more than once": ["1.jpg"]}
    records, report = convert(tmp_path, lambda d: d["images"][1].update(id=1), max_bad=0.5)
    assert [record.file_name for record in records] == ["3.jpg", "4.jpg"]
    assert report.images_left_out == {"whose id is given to several images": ["1.jpg", "2.jpg"]}


@quirk("one file listed under several ids", "said")
def test_files_listed_under_two_ids(tmp_path):
    _, report = convert(tmp_path, lambda d: d["images"].append(d["images"][0] | {"id": 9}))
    assert "1 images are listed again under other ids (1.jpg)" in str(report)


def add_group(content):
    group = {"id": 0, "name": "all", "supercategory": "none"}
    content["categories"] = [group, *(c | {"supercategory": "all"} for c in content["categories"])]


CATEGORIES = {
    "null": (lambda d: d["categories"].append(None), "category number 2, from 0 is left out", 2),
    "no id": (lambda d: d["categories"].append({"name": "c"}), "category c is left out", 2),
    "no name": (lambda d: d["categories"][0].pop("name"), "categories without a name", 2),
    "null name": (lambda d: d["categories"][0].update(name=None), "categories without a name", 2),
    "repeated": (lambda d: d["categories"].append(d["categories"][0]), "", 2),
    "same name": (lambda d: d["categories"][1].update(name="a"), "2 categories are named 'a' (ids 1, 2)", 2),
    "number": (lambda d: d["categories"][0].update(name=7), "", 2),
    "surrogate": (lambda d: d["categories"][0].update(name="\ud800"), "", 2),
    "brackets": (lambda d: d["categories"][0].update(name="[/red] [b]"), "", 2),
    "line feed": (lambda d: d["categories"][0].update(name="a\nb"), "", 2),
    "group": (add_group, "'all') without objects, which cannot be learned; 'all' is the group", 3),
}


@quirk(
    "categories that are null, unnamed, repeated, of one name, or a group (Roboflow's id 0)",
    "used and said",
)
@pytest.mark.parametrize("change, warning, count", CATEGORIES.values(), ids=CATEGORIES.keys())
def test_categories(tmp_path, change, warning, count):
    records, report = convert(tmp_path, change)
    assert report.kept == len(records) == 4
    assert warning in str(report) and len(str(report).splitlines()) == 1 + bool(warning)
    info, _ = read_metadata(tmp_path / "out")
    with (console := Console(width=200)).capture() as shown:
        console.print(summary(tmp_path / "out"))
    assert info.num_classes == count
    assert ("[/red] [b]" in shown.get()) == ("[/red] [b]" in info.category_names)


def pair(tmp_path, change):
    write_set(tmp_path / "set", images="train", listing="annotations/train.json")
    write_set(tmp_path / "set", change, images="val", listing="annotations/val.json")
    reports = coco.prepare(tmp_path / "set", tmp_path / "out")
    classes = [r.objects.classes.tolist() for r in open_dataset(tmp_path / "out", "validation")]
    return read_metadata(tmp_path / "out")[0], str(reports["validation"]), sum(classes, [])


def renumber(content):
    content["categories"] = [{"id": 2, "name": "a"}, {"id": 1, "name": "b"}]


def drop_b(content):
    content["categories"].pop()
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 1]


def rename(function):
    return lambda content: [c.update(name=function(c["name"])) for c in content["categories"]]


SPLITS = {
    "renumbered": (renumber, "ab", "2 classes have other ids than in train, matched by name", [0, 1, 0, 1]),
    "order": (lambda d: d["categories"].reverse(), "ab", "", [1, 0, 1, 0]),
    "lacks": (drop_b, "ab", "classes of train are not listed in validation: 'b'", [0, 0]),
    "extra": (lambda d: d["categories"].append({"id": 3, "name": "c"}), "abc", "added", [1, 0, 1, 0]),
    "same id": (rename({"a": "c", "b": "b"}.get), "abc", "though none can be learned: 'c'", [1, 2, 1, 2]),
    "letter case": (rename(lambda name: name.upper() + " "), "ab", "", [1, 0, 1, 0]),
    "text ids": (every(str), "ab", "", [1, 0, 1, 0]),
}


@quirk(
    "splits that number, order or list their classes differently",
    "matched by name; the difference is said",
)
@pytest.mark.parametrize("change, names, warning, classes", SPLITS.values(), ids=SPLITS.keys())
def test_splits_are_matched_by_class_name(tmp_path, change, names, warning, classes):
    info, report, found = pair(tmp_path, change)
    assert "".join(info.category_names) == names and found == classes and warning in report


@quirk("splits without a common class", "refused, naming the classes")
def test_splits_without_a_common_class(tmp_path):
    with pytest.raises(InputError, match=r"train \('a', 'b'\) and validation \('x', 'y'\) have no class"):
        pair(tmp_path, rename({"a": "x", "b": "y"}.get))


@quirk("an annotation that is listed again under another id or the same: class, box and mask are equal",
       "left out once for each copy, and counted")  # fmt: skip
@pytest.mark.parametrize("id_", [90, 1, None])
def test_copies_of_an_annotation(tmp_path, id_):
    def change(content):
        first = content["annotations"][0]
        content["annotations"] += [first | {"id": id_}, first | {"id": 91, "area": 5}]
        content["annotations"] += [rectangle(92, 1, 2, x=21), rectangle(93, 1, 1), rectangle(94, 2, 2)]

    records, report = convert(tmp_path, change)
    assert [len(record.objects.ids) for record in records] == [3, 2, 1, 1]
    assert records[0].objects.ids.tolist() == [1, 92, 93]
    (kind,) = report.left_out
    assert kind == "copy of another annotation" and len(report.left_out[kind]) == 2 and report.kept == 7
    assert "left out: 2 x copy of another annotation" in str(report)


def test_annotations_that_differ_are_no_copies(tmp_path):
    def change(content):
        first = content["annotations"][0]
        content["annotations"] += [first | {"id": 90, "iscrowd": 1}, first | {"id": 91, "segmentation": []}]
        content["annotations"] += [{"id": 92, "image_id": 1, "category_id": 2}] * 2

    _, report = convert(tmp_path, change)
    assert "copy of another annotation" not in kinds(report.left_out) and report.kept == 6


@quirk("class names that differ in spaces around them, or in their Unicode form alone",
       "stay different classes, with a warning that they may be the same")  # fmt: skip
@pytest.mark.parametrize("name", ["a ", "\ta", "a\u0301"])
def test_class_names_that_look_the_same(tmp_path, name):
    def change(content):
        content["categories"][1]["name"] = name
        content["categories"][0]["name"] = "\xe1" if "\u0301" in name else "a"

    records, report = convert(tmp_path, change)
    assert [record.objects.classes.tolist() for record in records] == [[1], [0], [1], [0]]
    (warning,) = report.warnings
    assert warning.startswith("2 categories are named ") and "may be the same name" in warning


@quirk("LVIS: no `file_name`, but a `coco_url`", "the image is found by the last parts of the address")
@pytest.mark.parametrize("folder", ["http://images.cocodataset.org/images", "https://a.b/train2017", "x"])
def test_file_names_in_addresses(tmp_path, folder):
    def change(content):
        for image in content["images"]:
            image["coco_url"] = f"{folder}/{image.pop('file_name')}?size=1"

    records, report = convert(tmp_path, change)
    assert [record.file_name.rpartition("/")[2] for record in records] == [f"{i}.jpg" for i in range(1, 5)]
    assert report.kept == 4
