"""Label files of YOLO."""

from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image
from quirks import quirk

from mrcnn_jax.data.dataset import Record, open_dataset, read_metadata
from mrcnn_jax.data.formats.conversion_report import ConversionReport
from mrcnn_jax.data.image_io import decode_image
from mrcnn_jax.data.prepare import prepare
from mrcnn_jax.errors import InputError

BOX, POLYGON = "0 0.5 0.5 0.25 0.5", "1 0.25 0.25 0.75 0.25 0.5 0.75"
HEIGHT, WIDTH = 32, 64


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(
    files: dict[str, str], images: tuple[str, ...] = ("set/images/1.png",), size=(WIDTH, HEIGHT)
) -> None:
    """Writes images, and files by name with their content."""
    for seed, name in enumerate(images):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(name)
    for name, content in files.items():
        Path("set", name).parent.mkdir(parents=True, exist_ok=True)
        Path("set", name).write_text(content, "utf-8")


def read(folder: str = "set", split: str = "train", **options) -> tuple[list[Record], ConversionReport]:
    """Returns the records and the report of a split."""
    directory, reports = prepare(folder, "out", overwrite=True, **options)
    return list(open_dataset(directory, split)), reports[split]


def names() -> tuple[str, ...]:
    return read_metadata("out")[0].category_names


CLASSES = {
    "list": ("names: [cat, 'dog 2']", ("cat", "dog 2"), 0),
    "object": ("names: {0: cat, 1: dog}", ("cat", "dog"), 0),
    "object with gaps": ("names: {1: dog, 0: cat, 7: owl}", ("cat", "dog", "owl"), 0),
    "words of YAML": ("names: [yes, no]", ("yes", "no"), 0),
    "numbers": ("names: [10, 1e3]", ("10", "1e3"), 0),
    "umlauts": ("names: [Größe, 猫]", ("Größe", "猫"), 0),
    "nc alone": ("nc: 2", ("class 0", "class 1"), 0),
    "another nc": ("nc: 3\nnames: [cat, dog]", ("cat", "dog"), 0),
    "a class missing": ("names: [cat]", ("cat",), 1),
    "none": ("path: .", ("class 0", "class 1"), 0),
}


@quirk(
    "`names` as list or object, with gaps, `yes`, `1e3` or umlauts; only `nc`; another `nc`; too few",
    "texts as written; without names by number; objects of other classes are left out",
)
@pytest.mark.parametrize("text, expected, lost", CLASSES.values(), ids=CLASSES)
def test_class_names(text, expected, lost):
    write({"data.yaml": f"train: images\n{text}\n", "labels/1.txt": f"{BOX}\n{POLYGON}\n"})
    _, report = read()
    assert names() == expected and report.annotations - report.kept == lost
    assert ("nc is 3, but 2 classes are named" in str(report)) == ("nc: 3" in text)


PLACES = {
    "beside": ("train: images/train\nval: images/val", "set/images/{}", "labels/{}"),
    "path of the folder": (
        "path: ../set\ntrain: images/train\nval: images/val",
        "set/images/{}",
        "labels/{}",
    ),
    "path elsewhere": (
        "path: /no/such/set\ntrain: images/train\nval: images/val",
        "set/images/{}",
        "labels/{}",
    ),
    "Roboflow": ("train: ../train/images\nval: ../{}/images", "set/{}/images", "{}/labels"),
    "another machine": ("train: C:\\data\\images\\train\nval: D:\\images\\val", "set/images/{}", "labels/{}"),
    "list of folders": ("train: [images/train]\nval:\n- images/val", "set/images/{}", "labels/{}"),
    "labels beside images": ("train: train\nval: val", "set/{}", "{}"),
    "no description": (None, "set/images/{}", "labels/{}"),
    "no description, split first": (None, "set/{}/images", "{}/labels"),
}


@quirk(
    "`path` and `train` relative, of another machine, with `../`; folders with or without `data.yaml`",
    "found; labels are in `labels` in place of `images`, or beside the image",
)
@pytest.mark.parametrize("text, images, labels", PLACES.values(), ids=PLACES)
def test_places(text, images, labels):
    files = {f"{labels.format(split)}/a 1.txt": BOX for split in ("train", "val")}
    if text:
        files["data.yaml"] = "names: [cat]\n" + text.replace("{}", "val")
    write(files, tuple(f"{images.format(split)}/a 1.png" for split in ("train", "val")))
    for split in ("train", "validation"):
        (record,), report = read(split=split)
        assert record.file_name == "a 1.png" and report.kept == 1
        assert record.objects.boxes.tolist() == [[24, 8, 40, 24]]


@quirk(
    "lists of images as `train`: relative to the list, to the set, or of another machine",
    "found by their ends",
)
@pytest.mark.parametrize("prefix", ["./images/", "images/", "/home/ann/set/images/", "C:\\set\\images\\"])
def test_lists_of_images(prefix):
    lists = {"train.txt": f"{prefix}ä 1.png\n{prefix}2.png\n", "val.txt": f"{prefix}3.png\n"}
    labels = {f"labels/{name}.txt": BOX for name in ("ä 1", "2", "3")}
    images = tuple(f"set/images/{name}.png" for name in ("ä 1", "2", "3"))
    write({"data.yaml": "names: [cat]\ntrain: train.txt\nval: val.txt"} | lists | labels, images)
    records, report = read()
    assert [record.file_name for record in records] == ["2.png", "ä 1.png"] and report.kept == 2
    assert len(open_dataset("out", "validation")) == 1


@quirk(
    "images of `val` or `test` that are not there",
    "the split is left out, which is said; without `train`: refused",
)
def test_missing_splits():
    write({"data.yaml": "names: [cat]\ntrain: images\nval: images/val\n", "labels/1.txt": BOX})
    _, report = read()
    assert "set/data.yaml: the images of validation are not there (images/val), so that" in str(report)
    for text in ("names: [cat]\ntrain: nowhere", "names: [cat]\nval: images"):
        write({"data.yaml": text})
        with pytest.raises(
            InputError, match="set/data.yaml.* (correct `path` or `train`|needs the key train)"
        ):
            read()


@quirk("boxes and polygons in one file, empty lines, commas, a byte order mark, CRLF", "read as meant")
def test_boxes_and_polygons_in_one_file():
    write(
        {
            "data.yaml": "names: [a, b]\ntrain: images",
            "labels/1.txt": f"\ufeff{BOX}\r\n\r\n{POLYGON.replace(' ', ', ')}\r\n",
        }
    )
    (record,), report = read()
    assert record.objects.boxes.tolist() == [[24, 8, 40, 24], [16, 8, 48, 24]]
    assert [bool(rle) for rle in record.objects.rles] == [False, True] and report.kept == 2
    assert not report.mended and record.objects.classes.tolist() == [0, 1]


@quirk(
    "an image without a label file, or with an empty one", "an image without objects; the former is counted"
)
def test_images_without_labels():
    labels = {"labels/1.txt": BOX, "labels/2.txt": "\n", "labels/9.txt": BOX}
    images = tuple(f"set/images/{i}.png" for i in (1, 2, 3))
    write({"data.yaml": "names: [a]\ntrain: images"} | labels, images)
    records, report = read()
    assert [len(record.objects.ids) for record in records] == [1, 0, 0]
    assert "1 of 3 images have no label file (3.png): they count as images without objects" in report.warnings
    assert "1 label files have no image (9.txt)" in report.warnings
    Path("set/labels").rename("set/elsewhere")
    with pytest.raises(InputError, match=r"none of 3 images has a label file \(1.txt in labels/"):
        read()


BAD = {
    "words": ("0 a b c d", "line of other things than numbers"),
    "class": ("0.5 0.5 0.5 0.1 0.1", "line whose class is no number from 0"),
    "scores": (f"{BOX} 0.9", "line of 5 numbers, which is no box, polygon or pose"),
    "short": ("0 0.5 0.5 0.1", "line of 3 numbers, which is no box, polygon or pose"),
    "empty box": ("0 0.5 0.5 0 0.1", "box without a positive, finite width and height"),
    "not a number": ("0 nan 0.5 0.1 0.1", "box whose corner is no number within 1,000,000 pixels"),
    "thin": ("0 0.5 0.5 0.5 0.501 0.5 0.5", "mask: polygon thinner than a pixel"),
}


@quirk(
    "lines of other things: words, scores of detections, boxes without a size",
    "left out, named by image and line",
)
@pytest.mark.parametrize("line, kind", BAD.values(), ids=BAD)
def test_bad_lines(line, kind):
    write({"data.yaml": "names: [a]\ntrain: images", "labels/1.txt": f"{BOX}\n{line}\n"})
    _, report = read()
    assert report.left_out == {kind: {"1.png, line 2"}} and report.kept == 1


@quirk("labels in pixels in place of relative ones", "told by all lines together, which is said")
@pytest.mark.parametrize("line", ["0 32 16 16 16", "0 24 8 40 8 40 24 24 24"])
def test_labels_in_pixels(line):
    write({"data.yaml": "names: [a]\ntrain: images", "labels/1.txt": line})
    (record,), report = read()
    assert record.objects.boxes.tolist() == [[24, 8, 40, 24]]
    assert any("labels are in pixels" in warning for warning in report.warnings)


POSES = {
    "3 numbers": (3, "0.5 0.5 2 0.25 0.25 1 0 0 0", [2, 1, 0]),
    "3 numbers, floats": (3, "0.5 0.5 2.0 0.25 0.25 1.0 0 0 0.0", [2, 1, 0]),
    "2 numbers": (2, "0.5 0.5 0.25 0.25 0 0", [2, 2, 0]),
}


@quirk("poses with 2 or 3 numbers a keypoint (`kpt_shape`)", "of 2, those at 0, 0 are not labelled")
@pytest.mark.parametrize("dimensions, numbers, seen", POSES.values(), ids=POSES)
def test_poses(dimensions, numbers, seen):
    text = f"names: [a]\ntrain: images\nkpt_shape: [3, {dimensions}]\nflip_idx: [0, 2, 1]"
    write({"data.yaml": text, "labels/1.txt": f"{BOX} {numbers}\n{BOX}\n"})
    (record,), report = read()
    points = record.objects.keypoints
    assert points[0, :2].tolist() == [[32, 16, seen[0]], [16, 8, seen[1]]] and points[0, 2, 2] == seen[2]
    assert not points[1].any() and not report.mended and report.kept == 2
    assert read_metadata("out")[0].keypoint_flip == (0, 2, 1)


PERSON = "[0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]"
FLIPS = {
    "a person": (f"kpt_shape: [17, 3]\nflip_idx: {PERSON}", "left_eye", (0, 2, 1)),
    "names": ("kpt_shape: [3, 3]\nkpt_names: {0: [tip, l_fin, r_fin]}", "l_fin", (0, 2, 1)),
    "pairs without names": ("kpt_shape: [3, 3]\nflip_idx: [2, 1, 0]", "keypoint 2", (2, 1, 0)),
    "names of no sides": (
        "kpt_shape: [2, 3]\nflip_idx: [1, 0]\nkpt_names: {0: [a, b]}",
        "right keypoint 1",
        (1, 0),
    ),
    "no flip_idx": ("kpt_shape: [2, 3]", "keypoint 2", (0, 1)),
}


@quirk(
    "`flip_idx` with and without names of keypoints",
    "kept; COCO's order is a person's keypoints with tolerances",
)
@pytest.mark.parametrize("text, second, flip", FLIPS.values(), ids=FLIPS)
def test_keypoints_trade_places(text, second, flip):
    write({"data.yaml": f"names: [a]\ntrain: images\n{text}", "labels/1.txt": BOX})
    read()
    info = read_metadata("out")[0]
    assert info.keypoint_names[1] == second and info.keypoint_flip[: len(flip)] == flip
    assert bool(info.keypoint_sigmas) == ("17" in text)


@pytest.mark.parametrize("text", ["kpt_shape: [3, 4]", "kpt_shape: 3", "kpt_shape: [3, 3]\nflip_idx: [0, 1]"])
def test_impossible_keypoints_are_refused(text):
    write({"data.yaml": f"names: [a]\ntrain: images\n{text}", "labels/1.txt": BOX})
    with pytest.raises(InputError, match="set/data.yaml: (kpt_shape|flip_idx)"):
        read()


@quirk("label files whose names are in another Unicode normal form than the images'", "found")
def test_normal_forms():
    write({"data.yaml": "names: [a]\ntrain: images", f"labels/{normalize('NFD', 'ö')}.txt": BOX},
          (f"set/images/{normalize('NFC', 'ö')}.png",))  # fmt: skip
    assert read()[1].kept == 1


@quirk("labels of photos with an EXIF orientation", "relative to the upright picture, as they were drawn")
def test_rotated_photos():
    write({"data.yaml": "names: [a]\ntrain: images", "labels/1.txt": BOX})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open("set/images/1.png").save("set/images/1.jpg", exif=exif)
    Path("set/images/1.png").unlink()
    (record,), _ = read()
    assert record.upright and (record.height, record.width) == (WIDTH, HEIGHT)
    assert record.objects.boxes.tolist() == [[12, 16, 20, 48]]


@pytest.mark.parametrize(
    "orientation, suffix", [(3, "jpg"), (2, "jpg"), (3, "tiff"), (6, "tiff"), (6, "avif")]
)
def test_rotated_photos_whose_sizes_cannot_tell(orientation, suffix):
    """The bright upper left corner of the upright picture is where the label says."""
    write({"labels/1.txt": "0 0.25 0.25 0.5 0.5"})
    exif, pixels = Image.Exif(), np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    exif[0x0112] = orientation
    pixels[: HEIGHT // 2, : WIDTH // 2] = 255
    back = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}
    stored = Image.fromarray(pixels).transpose(back[orientation])
    stored.save(f"set/images/1.{suffix}", exif=exif)
    Path("set/images/1.png").unlink()
    (record,), report = read()
    picture = decode_image(record.image, "1", upright=record.upright)
    assert picture.shape == pixels.shape == (record.height, record.width, 3)
    assert record.objects.boxes.tolist() == [[0, 0, WIDTH / 2, HEIGHT / 2]]
    assert np.abs(picture.astype(int) - pixels).max() < 60 and not report.images_left_out


LAUGHS = "nc: 1\na: &a [x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(99))


@quirk("`data.yaml` that is damaged, no description, or written to exhaust memory", "one sentence")
@pytest.mark.parametrize("text", ["train: [", "- a", LAUGHS, "[" * 500])
def test_damaged_descriptions(text):
    write({"data.yaml": text, "labels/1.txt": BOX})
    with pytest.raises(InputError, match="^set/data.yaml ") as refusal:
        read()
    assert len(str(refusal.value)) < 300


@quirk("`data.yaml` about something else", "not used, which is said; it hides no other format")
def test_other_data_yaml():
    write({"data.yaml": "title: mine\nlicence: [a, b]", "labels/1.txt": BOX})
    _, report = read()
    assert report.kept == 1 and names() == ("class 0",)
    assert any("set/data.yaml has none of the keys of YOLO" in warning for warning in report.warnings)
    for path in sorted(Path("set").glob("labels/*")):
        path.unlink()
    corners = "<xmin>9</xmin><ymin>9</ymin><xmax>24</xmax><ymax>24</ymax>"
    text = f"<annotation><object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>"
    write({"images/1.xml": text})
    assert read()[1].kept == 1 and names() == ("cat",)


def test_folders_named_like_label_files():
    write({"labels/2.txt": BOX}, images=("set/images/1.png", "set/images/2.png"))
    Path("set/labels/1.txt").mkdir()
    assert read()[1].kept == 1


@quirk("`data.yaml` as argument in place of its folder", "read")
def test_description_as_argument():
    write({"data.yaml": "names: [a]\ntrain: images", "labels/1.txt": BOX})
    assert prepare("set/data.yaml").directory == Path("data/set")
    write({"any name.yaml": "names: [a]\ntrain: images", "labels/1.txt": BOX})
    assert read("set/any name.yaml")[1].kept == 1
    assert prepare("set", "other", strict=True).reports["train"].kept == 1


@quirk("`classes.txt`, `obj.names` beside labels without a description", "the classes by line")
@pytest.mark.parametrize("name", ["classes.txt", "obj.names", "labels/classes.txt"])
def test_class_files(name):
    write({name: "cat\ndog\n", "labels/1.txt": POLYGON})
    assert read()[1].kept == 1 and names() == ("cat", "dog")
