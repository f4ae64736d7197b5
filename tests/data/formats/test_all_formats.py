"""One small set, written in every format, becomes the same prepared data set byte for byte."""

from pathlib import Path

import pytest
from format_writers import CLASSES, WRITERS

from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.data.prepare import prepare

CASES = [(name, kind) for name, (_, kinds) in WRITERS.items() for kind in kinds if name != "COCO"]


def stored(directory: Path) -> list[bytes]:
    """Returns the files of the records: images, names, ids, boxes, masks and keypoints."""
    return [path.read_bytes() for path in sorted(directory.glob("*array_record*"))]


@pytest.fixture(scope="module")
def coco_sets(tmp_path_factory) -> dict[str, Path]:
    """Returns the prepared sets of COCO's format by the kind of their objects."""
    root, (write, kinds) = tmp_path_factory.mktemp("coco"), WRITERS["COCO"]
    return {kind: prepare(write(root / kind, kind), root / f"{kind}_out").directory for kind in kinds}


@pytest.mark.parametrize("name, kind", CASES)
def test_formats_give_the_same_set(tmp_path, coco_sets, name, kind):
    write, _ = WRITERS[name]
    directory, reports = prepare(write(tmp_path / "set", kind), tmp_path / "out", strict=True)
    assert stored(directory) == stored(coco_sets[kind])
    info = open_dataset(directory, "train").info
    expected = open_dataset(coco_sets[kind], "train").info
    first = 0 if name == "YOLO" else 1
    assert info.category_names == CLASSES and info.category_ids == (first, first + 1)
    assert info._replace(name="", category_ids=()) == expected._replace(name="", category_ids=())
    format_ = name if name in ("YOLO", "LabelMe", "Pascal VOC", "CVAT") else "mask files"
    assert str(reports["train"]).startswith(f"train: 3 images, 3 of 3 annotations kept ({format_}: ")
