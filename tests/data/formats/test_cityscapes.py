"""Cityscapes folders: prepared objects equal the painted pixels; faults are named and nothing is written."""

import cv2
import numpy as np
import pytest
import tiny_cityscapes as tiny

from mrcnn_jax.data.dataset import open_dataset, split_names
from mrcnn_jax.data.formats import cityscapes
from mrcnn_jax.errors import InputError
from mrcnn_jax.run_length_masks import RunLengthMasks

SPLITS = {"train": "train", "validation": "val"}
SCENE = "val/munster/munster_000000_000019"


@pytest.fixture
def root(tmp_path):
    return tiny.write(tmp_path / "cityscapes")


@pytest.fixture
def refused(root):
    """``refused()`` returns the message of a preparation that fails and writes nothing."""

    def call() -> str:
        with pytest.raises(InputError) as error:
            cityscapes.prepare(root, root.parent / "out")
        assert [path.name for path in root.parent.iterdir()] == ["cityscapes"]
        return str(error.value)

    return call


def expected_objects(scene: str) -> list[tuple[int, int, bool]]:
    """Value, label and crowd flag of the visible objects of the eight classes."""
    values = [int(value) for value in np.unique(tiny.instance_ids(scene))]
    labels = [value if value < 1000 else value // 1000 for value in values]
    known = zip(values, labels, strict=True)
    scored = (24, 25, 26, 27, 28, 31, 32, 33)
    return [(value, label, value < 1000) for value, label in known if label in scored]


@pytest.mark.parametrize("split, part", SPLITS.items())
def test_prepared_objects_equal_the_painted_ones(root, split, part):
    cityscapes.prepare(root, root.parent / "out")
    source = open_dataset(root.parent / "out", split)
    assert [record.image_id for record in source] == [1, 2, 3]
    names = [f"leftImg8bit/{scene}_leftImg8bit.png" for scene in tiny.scenes(part)]
    assert [record.file_name for record in source] == names
    for record, scene in zip(source, tiny.scenes(part), strict=True):
        assert record.image == tiny.image_path(root, scene).read_bytes()
        assert (record.height, record.width) == (tiny.HEIGHT, tiny.WIDTH)
        expected, objects = expected_objects(scene), record.objects
        assert len(objects.ids) == len(expected) and objects.keypoints.shape == (len(expected), 0, 3)
        labels = [source.info.category_ids[class_] for class_ in objects.classes]
        assert labels == [label for _, label, _ in expected]
        assert objects.crowd.tolist() == [crowd for *_, crowd in expected]
        stored = zip(expected, objects.boxes, objects.areas, objects.rles, strict=True)
        for (value, *_), box, area, rle in stored:
            mask = tiny.instance_ids(scene) == value
            (decoded,) = RunLengthMasks([rle], tiny.HEIGHT, tiny.WIDTH)
            np.testing.assert_array_equal(decoded, mask)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            np.testing.assert_array_equal(box, [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert area == mask.sum()
    ids = [id_ for record in source for id_ in record.objects.ids]
    assert ids == list(range(1, len(ids) + 1))


def test_objects_of_one_scene_by_hand(root):
    """The car that a bicycle stands in front of, beside a group of cars."""
    record = next(iter(cityscapes.CityscapesSplit(root, "train")))
    assert record.objects.crowd.tolist() == [True, False, False, False]
    np.testing.assert_array_equal(record.objects.classes, [2, 0, 2, 7])
    boxes = [[60, 0, 120, 12], [5, 10, 20, 40], [60, 20, 100, 50], [70, 25, 80, 45]]
    np.testing.assert_array_equal(record.objects.boxes, boxes)
    np.testing.assert_array_equal(record.objects.areas, [60 * 12, 15 * 30, 40 * 30 - 10 * 20, 10 * 20])


def test_classes_have_the_label_ids_of_cityscapes(root):
    cityscapes.prepare(root, root.parent / "out")
    info = open_dataset(root.parent / "out", "train").info
    assert info == cityscapes.INFO
    assert dict(zip(info.category_names, info.category_ids, strict=True)) == {
        "person": 24, "rider": 25, "car": 26, "truck": 27,
        "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
    }  # fmt: skip


def test_counts_are_reported(root):
    reports = cityscapes.prepare(root, root.parent / "out")
    assert list(reports) == ["train", "validation"]
    train = reports["train"]
    assert train.instances == {"person": 2, "car": 1, "bicycle": 1} and train.empty_images == 1
    assert train.groups == {"car": 1, "bicycle": 1}
    lines = str(reports["validation"]).splitlines()
    assert lines[0] == "validation: 3 images, 1 of them without objects"
    assert lines[1:3] == ["  person: 1 instances, 1 groups", "  rider: 1 instances, 0 groups"]
    assert lines[3] == "  car: 2 instances, 0 groups"
    assert lines[6] == "  train: 1 instances, 0 groups" and len(lines) == 9


def test_reading_a_split_again_counts_it_once(root):
    split = cityscapes.CityscapesSplit(root, "train")
    first, text = list(split), str(split.report)
    again = [record.objects.ids.tolist() for record in split]
    assert str(split.report) == text
    assert again == [record.objects.ids.tolist() for record in first] == [[1, 2, 3, 4], [], [5, 6]]


def test_one_split_is_enough(root):
    (root / "gtFine/train").rename(root / "gtFine/train_extra")
    assert list(cityscapes.prepare(root, root.parent / "out")) == ["validation"]
    assert split_names(root.parent / "out") == ("validation",)


def test_layout_is_recognised(root, tmp_path):
    assert cityscapes.recognises(root)
    assert not cityscapes.recognises(tmp_path) and not cityscapes.recognises(tmp_path / "none")


def test_truth_name_is_the_file_of_the_image(root):
    for scene in tiny.SCENES:
        name = tiny.image_path(root, scene).relative_to(root).as_posix()
        assert root / cityscapes.truth_name(name) == tiny.truth_path(root, scene)


# ---- what is refused


def test_missing_images_are_named(root, refused):
    gone = tiny.scenes("train")[:2]
    for scene in gone:
        tiny.image_path(root, scene).unlink()
    names = ", ".join(f"leftImg8bit/{scene}_leftImg8bit.png" for scene in gone)
    assert refused() == f"{root}: 2 of 3 images annotated in gtFine/train are missing ({names})"


def test_missing_folders_are_named(root, refused):
    (root / "gtFine").rename(root / "elsewhere")
    assert refused() == f"{root} has no folder gtFine with the annotations (gtFine_trainvaltest)"
    (root / "gtFine/test").mkdir(parents=True)
    assert refused() == f"{root / 'gtFine'} has neither of the folders train and val"
    (root / "gtFine/val/frankfurt").mkdir(parents=True)
    assert refused() == f"{root / 'gtFine/val'} holds no CITY/*_gtFine_instanceIds.png"


def test_different_sizes_are_refused(root, refused):
    truth, image = tiny.truth_path(root, SCENE), tiny.image_path(root, SCENE)
    cv2.imwrite(str(truth), np.zeros((32, 64), np.uint16))
    assert refused() == f"{truth} is 64x32 (width x height), but {image} is 128x64"


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((64, 128), np.uint8), np.zeros((64, 128, 3), np.uint16)],
    ids=["8 bits", "3 channels"],
)
def test_instance_ids_have_one_channel_of_16_bits(root, refused, pixels):
    path = tiny.truth_path(root, SCENE)
    cv2.imwrite(str(path), pixels)
    assert refused() == f"{path} is not an image of instance ids: it must have one channel of 16 bits"


@pytest.mark.parametrize("path_of", [tiny.image_path, tiny.truth_path])
def test_unreadable_files_are_named(root, refused, path_of):
    path = path_of(root, SCENE)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert refused() == f"cannot read {path}: it is truncated or damaged"
    path.write_bytes(b"")
    assert refused() == f"{path} is not an image in JPEG or PNG format"


def test_missing_instance_ids_are_named(tmp_path):
    with pytest.raises(InputError, match="gone.png: there is no such file"):
        cityscapes.read_instance_ids(tmp_path / "gone.png")
