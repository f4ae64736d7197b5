"""Folders, file names and splits."""

import json
from pathlib import Path
from unicodedata import normalize

import pytest
from quirks import quirk
from small_sets import write_set

from mrcnn_jax.data.dataset import open_dataset, split_names
from mrcnn_jax.data.formats.coco_layout import find_splits
from mrcnn_jax.data.formats.holdout import hold_out
from mrcnn_jax.data.formats.image_location import locate_images
from mrcnn_jax.data.prepare import prepare
from mrcnn_jax.errors import InputError


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def renamed(rename):
    """Returns a change of an annotation file that renames its images."""
    return lambda content: [image.update(file_name=rename(image["file_name"])) for image in content["images"]]


def prefixed(prefix: str):
    return renamed(lambda name: prefix + name)


def require_found(folder: Path | str, count: int = 4) -> None:
    """Prepares a set and asserts that all of its images are there."""
    directory, reports = prepare(folder, "out", validation_images=1)
    assert sum(len(open_dataset(directory, split)) for split in reports) == count
    assert not any(report.images_left_out for report in reports.values())


LAYOUTS = {
    "flat": {"images": ".", "listing": "all.json"},
    "FiftyOne": {"images": "data", "listing": "labels.json"},
    "LabelMe": {"images": "JPEGImages", "listing": "annotations.json", "change": prefixed("JPEGImages/")},
    "beside": {"images": "annotations", "listing": "annotations/all.json"},
    "CVAT": {"images": "images/default", "listing": "annotations/instances_default.json"},
    "CVAT subset": {"images": "images/day 1", "listing": "annotations/instances_day 1.json"},
    "any name": {"images": "my_photos", "listing": "annotations.json"},
    "letter case": {"images": "Images", "listing": "Annotations/All.JSON"},
    "VIA": {"images": "photos/2024", "listing": "via_export_coco.json"},
    "labels folder": {"images": "images", "listing": "labels/coco.json"},
    "unpacked twice": {"images": "set/images", "listing": "set/annotations/instances.json"},
    "Roboflow, one split": {"images": "train", "listing": "train/_annotations.coco.json"},
    "numbers as folders": {"images": "1/img", "listing": "1/result.json"},
}


@quirk(
    "COCO files of LabelMe, FiftyOne, CVAT, VIA, Roboflow; images beside the JSON file or in any folder",
    "found",
)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_of_exporters(layout):
    require_found(write_set(Path("set"), **layout))


@quirk("links to folders of images or annotations", "followed")
def test_linked_folders():
    write_set(Path("elsewhere"))
    Path("set").mkdir()
    Path("set/Annotations").symlink_to(Path("elsewhere/annotations").absolute())
    Path("set/photos").symlink_to(Path("elsewhere/images").absolute())
    Path("elsewhere/images/round").symlink_to(Path("set").absolute())  # no endless walk
    require_found("set")


NAMES = {
    "slash": "images/",
    "backslash": "images\\",
    "up": "..\\images\\",
    "up and elsewhere": "..\\..\\media\\upload\\1\\",
    "address": "http://localhost:8080/images/",
    "bucket": "s3://bucket/some/where/",
    "local files": "/data/local-files/?d=images/",
    "another machine": "C:\\Users\\ann\\Pictures\\",
    "another home": "/home/ann/pictures/",
    "dot": "./",
    "file address": "file:///mnt/disk/images/",
}


@quirk(
    "Label Studio and others: `images/`, backslashes, `..`, addresses, another machine's folders",
    "the file whose path agrees from the end is taken",
)
@pytest.mark.parametrize("prefix", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("listing", ["result.json", "annotations/all.json"])
def test_prefixes_of_names(prefix, listing):
    folder = write_set(Path("set"), prefixed(prefix), listing=listing)
    splits = find_splits(folder)["train"]
    names = [image["file_name"] for image in json.loads(splits.annotations.read_text())["images"]]
    located = locate_images(names, splits.annotations, splits.images)
    expected = {name: folder / f"images/{i}.jpg" for i, name in enumerate(names, 1)}
    assert {name: path.resolve() for name, path in located.paths.items()} == {
        name: path.resolve() for name, path in expected.items()
    }


SPELLINGS = {
    "percent": (["a b.jpg", "ä.jpg"], ["a%20b.jpg", "%C3%A4.jpg"]),
    "percent in the file": (["a%20b.jpg"], ["x/a%20b.jpg"]),
    "letter case": (["IMG_1.JPG", "img_2.jpg"], ["img_1.jpg", "IMG_2.JPG"]),
    "decomposed": ([normalize("NFD", "Fluß-é.jpg")], [normalize("NFC", "Fluß-é.jpg")]),
    "composed": ([normalize("NFC", "é/ö.jpg")], [normalize("NFD", "é/ö.jpg")]),
    "suffix": (["1.jpg", "2.jpg"], ["1.png", "2.jpeg"]),
    "no suffix": (["000001.jpg"], ["000001"]),
    "nested": (["a/1.jpg", "b/2.jpg", "3.jpg"], ["1.jpg", "2.jpg", "3.jpg"]),
    "same name twice": (["a/1.jpg", "b/1.jpg"], ["x\\a\\1.jpg", "x\\b\\1.jpg"]),
    "query": (["1.jpg"], ["https://host/images/1.jpg?token=a/b"]),
}


@quirk(
    "file names of other letter case, Unicode normal form or suffix, with `%20`, or without their folders",
    "found, if one file fits; another suffix is said",
)
@pytest.mark.parametrize("files, names", SPELLINGS.values(), ids=SPELLINGS)
def test_spellings_of_names(tmp_path, files, names):
    for file in files:
        path = tmp_path / "images" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    located = locate_images(names, tmp_path / "all.json", tmp_path / "images")
    assert [path.name for path in located.paths.values()] == [Path(file).name for file in files]
    assert not located.missing
    other_suffix = any(Path(name).suffix not in (".jpg", ".JPG") for name in names if "?" not in name)
    assert any("another suffix" in note for note in located.notes) == other_suffix


@quirk(
    "one image name that fits files in several folders, or one file that fits several names",
    "refused by name",
)
def test_ambiguous_names(tmp_path):
    for file in ("a/1.jpg", "b/1.jpg", "c/2.jpg"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(InputError, match=r"'1.jpg' may be .*a/1.jpg and .*b/1.jpg; give the folder"):
        locate_images(["1.jpg"], tmp_path / "all.json", tmp_path)
    with pytest.raises(InputError, match=r"'x/2.jpg' and 'y/2.jpg' fit the same file .*2.jpg"):
        locate_images(["x/2.jpg", "y/2.jpg"], tmp_path / "all.json", tmp_path)


@quirk("a missing image whose name another split's folder has", "missing: never taken from elsewhere")
def test_missing_images_are_not_replaced():
    folder = write_set(Path("set"), images="train", listing="train.json")
    write_set(folder, images="val", listing="val.json")
    Path("set/train/2.jpg").unlink()
    _, reports = prepare(folder, "out")
    assert reports["train"].images_left_out == {"missing from set/train": ["2.jpg"]}
    assert "left out: 1 x annotation of an image" in " ".join(str(reports["train"]).split())
    assert not reports["validation"].images_left_out


def test_missing_images_without_annotations_leave_none_out():
    folder = write_set(Path("set"), lambda content: content["annotations"].pop(1))
    Path("set/images/2.jpg").unlink()
    _, reports = prepare(folder, "out", max_bad=0.5)
    assert "2.jpg" in str(reports["train"]) and not reports["train"].left_out


def test_images_of_folders_with_the_same_names_are_not_exchanged(tmp_path):
    for file in ("images/seq1/0.png", "images/seq1/1.png", "images/seq2/1.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    names = [f"seq{folder}/{image}.png" for folder in (1, 2) for image in (0, 1)]
    located = locate_images(names, tmp_path / "all.json", tmp_path / "images")
    assert located.missing == ("seq2/0.png",) and not located.notes
    moved = [name.replace("seq", "C:\\data\\seq") for name in names]
    located = locate_images([*names[:1], *moved[1:]], tmp_path / "all.json", tmp_path / "images")
    assert located.missing == (moved[2],)
    assert [path.relative_to(tmp_path / "images").as_posix() for path in located.paths.values()] == [
        "seq1/0.png", "seq1/1.png", "seq2/1.png"
    ]  # fmt: skip
    assert f"({moved[1]} is " in located.notes[0]


@quirk("one missing image among others, and a mask of its name with another suffix", "missing, not replaced")
def test_missing_images_are_not_replaced_by_masks(tmp_path):
    for file in ("images/1.jpg", "images/a/3.jpg", "images/masks/1.png", "images/masks/2.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    located = locate_images(["1.jpg", "2.jpg", "3.jpg"], tmp_path / "all.json", tmp_path / "images")
    assert located.missing == ("2.jpg",) and list(located.paths) == ["1.jpg", "3.jpg"]
    assert located.notes[0].startswith("1 images are not where their names say (3.jpg is ")


@pytest.mark.parametrize("name", ["\ud800.jpg", "a\0b.jpg", "", "/", "..", "x" * 5000, "http://[::1", "?d="])
def test_impossible_names_are_missing(tmp_path, name):
    assert locate_images([name], tmp_path / "all.json", tmp_path).missing == (name,)


LEFTOVERS = [".DS_Store", "._1.jpg", "Thumbs.db", "__MACOSX/1.jpg", "@eaDir/1.jpg"]
LEFTOVERS += [".ipynb_checkpoints/1.jpg"]


@quirk(
    "what systems leave in folders (`.DS_Store`, `._1.jpg`, `Thumbs.db`, `__MACOSX`, `@eaDir`)",
    "passed over",
)
def test_leftovers():
    folder = write_set(Path("set"), prefixed("elsewhere/"), images="photos")
    for name in LEFTOVERS:
        path = folder / "photos" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"junk")
    (folder / "annotations/._all.json").write_bytes(b"junk")
    require_found(folder)


OTHER_JSON = {
    "annotations/licence.json": '{"licence": "x"}',
    ".vscode/settings.json": "{}",
    "info.json": "[1]",
    "annotations/1.json": '{"version": "5.0", "shapes": [], "imagePath": "x.jpg"}',
    "annotations/results.json": '[{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [0, 0, 1, 1]}]',
    "annotations/broken.json": "{",
    "annotations/image_info_test.json": '{"images": [], "categories": []}',
    "annotations/empty.json": "",
}


@quirk("other JSON files beside the COCO file", "not used, which is said")
@pytest.mark.parametrize("path", OTHER_JSON)
def test_other_json_files(path):
    folder, notes = write_set(Path("set"), listing="annotations/data.json"), []
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_text(OTHER_JSON[path])
    prepare(folder, "out", validation_images=1, notify=notes.append)
    expected = f"1 other JSON files are not used ({path})"
    assert notes == ([] if path.startswith(".") else [expected])


FOREIGN = {
    "VIA project": {"via_project.json": '{"_via_settings": {}, "_via_img_metadata": {}}'},
    "JSON Lines": {"all.jsonl": '{"id": 1}\n{"id": 2}\n'},
    "Label Studio JSON": {"project.json": '[{"id": 1, "data": {}, "annotations": [{"result": []}]}]'},
    "CSV": {"labels.csv": "name,x,y\n"},
    "archives: unpack": {"set.zip": "PK"},
    "COCO results": {"results.json": '[{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": []}]'},
}  # fmt: skip


@quirk(
    "folders of VIA projects, Label Studio's own JSON, JSON Lines, CSV, archives, results of a detector",
    "named",
)
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_formats(name):
    for path, content in FOREIGN[name].items():
        Path("set", path).parent.mkdir(parents=True, exist_ok=True)
        Path("set", path).write_text(content)
    with pytest.raises(InputError, match=f"^set is in no known format: it holds .*{name}") as refusal:
        prepare("set", "out")
    assert len(str(refusal.value)) < 200


@quirk("a JSON file as argument in place of its folder", "taken, with the images near it")
@pytest.mark.parametrize("listing", ["annotations/all.json", "all.json", "sub/labels.json"])
def test_json_file_as_argument(listing):
    images = "sub/photos" if listing.startswith("sub") else "images"
    require_found(write_set(Path("set"), images=images, listing=listing) / listing)


@quirk(
    "Roboflow's and FiftyOne's third split in `test/`",
    "becomes the split `test`; without images it is left out",
)
@pytest.mark.parametrize("layout", ["{}/_annotations.coco.json", "{}/labels.json"])
def test_third_split(layout):
    for split in ("train", "valid", "test"):
        images = f"{split}/data" if "labels" in layout else split
        write_set(Path("set"), images=images, listing=layout.format(split))
    directory, _ = prepare("set", "out")
    assert split_names(directory) == ("train", "validation", "test")
    Path("set", layout.format("test")).write_text('{"images": [ ], "annotations": [], "categories": []}')
    assert list(prepare("set", "other").reports) == ["train", "validation"]


@quirk("images in the folder that the annotation file does not list", "counted in the report")
def test_unlisted_images():
    folder = write_set(Path("set"), lambda content: content["images"].pop())
    _, reports = prepare(folder, "out", validation_images=1)
    assert "1 x image that is not listed, so that it is not used (4.jpg)" in str(reports["train"])


@quirk("`--validation-images` with `--train IMAGES ANNOTATIONS`", "images are drawn from those")
def test_validation_images_with_given_files():
    folder = write_set(Path("set"), images=".", listing="all.json")
    files = {"train": (folder, folder / "all.json")}
    assert list(prepare(folder, "out", splits=files, validation_images=2).reports) == ["train", "validation"]
    with pytest.raises(InputError, match="seed is -1, but must be 0 or more"):
        prepare(folder, "other", splits=files, validation_images=2, seed=-1)
    both = files | {"validation": files["train"]}
    with pytest.raises(InputError, match="has validation annotations of its own"):
        prepare(folder, "other", splits=both, validation_images=2)
    with pytest.raises(InputError, match=r"first the image folder, then the annotation file"):
        prepare(folder, "other", splits={"train": (folder / "all.json", folder)})
    with pytest.raises(InputError, match="image folder none of the split train is not a folder"):
        prepare(folder, "other", splits={"train": ("none", folder / "all.json")})


@quirk(
    "images sorted by class, and `--validation-images`",
    "drawn with a seed, every class on both sides if possible",
)
@pytest.mark.parametrize("count", [2, 5, 8])
def test_drawn_images_show_every_class(count):
    classes = {id_: [id_ // 5] for id_ in range(10)}
    drawn = hold_out(classes, count)
    assert len(drawn) == count and drawn == hold_out(dict(reversed(classes.items())), count)
    assert {id_ // 5 for id_ in drawn} == {0, 1} == {id_ // 5 for id_ in set(classes) - drawn}
    assert any(hold_out(classes, count, seed) != drawn for seed in range(1, 4))


def test_drawn_images_follow_the_shares_of_classes():
    classes = {id_: [0] if id_ < 900 else [0, 1] if id_ < 990 else [2] for id_ in range(1000)} | {1000: [3]}
    drawn = hold_out(classes, 100)
    shown = [sum(class_ in classes[id_] for id_ in drawn) for class_ in range(4)]
    assert len(drawn) == 100 and 5 <= shown[1] <= 20 and shown[2] == 1 and shown[3] == 0
    assert hold_out({1: [], 2: [], 3: []}, 2) < {1, 2, 3} and len(hold_out({1: [0], 2: [1]}, 1)) == 1


@quirk("a set without validation split", "said at once, with the command that makes one in the last line")
def test_set_without_validation_split(capsys):
    from mrcnn_jax.cli.main import main

    folder = write_set(Path("my set"))
    assert main(["dataset", str(folder), "--out", "out"]) == 0
    out, err = capsys.readouterr()
    assert "there is no validation split" in err.splitlines()[0]
    assert out.splitlines()[-1] == "mrcnn dataset 'my set' --out out --overwrite --validation-images 1"
    assert main(["dataset", str(folder), "--out", "out", "--overwrite", "--validation-images", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "mrcnn train small --data.dataset out"


@quirk("a prepared set with options of its preparation", "refused: they have no effect on it")
@pytest.mark.parametrize(
    "options",
    [{"out": "other"}, {"validation_images": 2}, {"splits": {"train": ("a", "b")}}, {"overwrite": True}]
    + [{"keypoints": True}, {"name": "x"}, {"max_bad": 0.0}, {"strict": True}, {"rotation": "upright"}],
    ids=lambda options: next(iter(options)),
)
def test_options_for_a_prepared_set(options):
    directory, _ = prepare(write_set(Path("set")), "prepared")
    with pytest.raises(InputError, match="is a prepared data set already, to which .* does not apply"):
        prepare(directory, **options)
    assert prepare(directory, "prepared").directory == directory


@quirk("`--draw` or `--out` that cannot be written", "refused before any image is read")
@pytest.mark.parametrize(
    "options",
    [["--draw", name] for name in ("sheet", "sheet.txt", "set", "set/images/1.jpg/sheet.png", "sheet.ico1")]
    + [["--draw", "/proc/sheet.png"], ["--out", "/proc/out"], ["--out", "set/images/1.jpg/out"]]
    + [["--out", "set/images"], ["--out", "set/images", "--overwrite"]],
    ids=" ".join,
)
def test_outputs_that_cannot_be_written(capsys, options):
    from mrcnn_jax.cli.main import main

    folder = write_set(Path("set"))
    assert main(["dataset", str(folder), *options]) == 2
    out, err = capsys.readouterr()
    assert not out and err.splitlines()[-1].startswith("mrcnn: ") and not Path("data").exists()
