"""``prepare`` recognises the format of a folder by its layout; it refuses without writing."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_cityscapes

from mrcnn_jax.data.dataset import open_dataset, split_names
from mrcnn_jax.data.prepare import prepare
from mrcnn_jax.errors import InputError


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def coco_folder(name: str = "pets", category: str = "cat") -> Path:
    folder = Path(name)
    for part in ("annotations", "images"):
        (folder / part).mkdir(parents=True)
    for id_ in (1, 2, 3):
        cv2.imwrite(str(folder / f"images/{id_}.png"), np.full((8, 9, 3), 60 * id_, np.uint8))
    annotations = [{"id": 5, "image_id": 2, "category_id": 4, "bbox": [1, 1, 5, 5], "area": 25}]
    content = {
        "images": [{"id": id_, "file_name": f"{id_}.png"} for id_ in (1, 2, 3)],
        "annotations": annotations,
        "categories": [{"id": 4, "name": category}],
    }
    (folder / "annotations/all.json").write_text(json.dumps(content))
    return folder


def test_prepare_recognises_coco():
    prepared = prepare(coco_folder())
    assert prepared.directory == Path("data/pets")
    assert str(prepared.reports["train"]).startswith("train: 3 images, 1 of 1 annotations kept")
    assert open_dataset("data/pets", "train").info.category_names == ("cat",)


def test_prepare_recognises_cityscapes():
    prepared = prepare(tiny_cityscapes.write(Path("streets")), "out")
    assert list(prepared.reports) == ["train", "validation"] == list(split_names(prepared.directory))
    assert open_dataset("out", "train").info.name == "cityscapes"


def test_prepare_leaves_a_prepared_set_as_it_is():
    directory, _ = prepare(coco_folder())
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert prepare(directory) == prepare(directory, directory.absolute()) == (directory, {})
    assert before == {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert not Path("elsewhere").exists()


def test_prepare_passes_options_to_the_format():
    folder = coco_folder()
    prepared = prepare(folder, "held_out", validation_images=1, name="animals")
    assert [len(open_dataset("held_out", split)) for split in prepared.reports] == [2, 1]
    assert open_dataset("held_out", "train").info.name == "animals"
    with pytest.raises(InputError, match="held_out exists already"):
        prepare(folder, "held_out")
    assert list(prepare(folder, "held_out", overwrite=True).reports) == ["train"]


def test_prepare_takes_explicit_coco_files_from_any_folder():
    streets, pets = tiny_cityscapes.write(Path("streets")), coco_folder()
    files = (pets / "images", pets / "annotations/all.json")
    prepared = prepare(streets, splits={"train": files, "validation": files})
    assert prepared.directory == Path("data/streets") and len(open_dataset("data/streets", "validation")) == 3
    with pytest.raises(InputError, match="given for validation but not for the split train"):
        prepare(streets, splits={"validation": files})


@pytest.mark.parametrize("options", [{"validation_images": 2}, {"keypoints": True}, {"name": "a"}])
def test_prepare_refuses_options_of_another_format(options):
    (name,) = options
    expected = f"streets is laid out like Cityscapes, to which {name} does not apply"
    with pytest.raises(InputError, match=expected):
        prepare(tiny_cityscapes.write(Path("streets")), **options)
    assert [path.name for path in Path().iterdir()] == ["streets"]


def test_prepare_refuses_unknown_layouts():
    Path("photos").mkdir()
    Path("photos/a.txt").write_text("a")
    with pytest.raises(InputError, match="photos is in no known format: ") as refusal:
        prepare("photos")
    assert all(format_ in str(refusal.value) for format_ in ("COCO", "Cityscapes"))
    with pytest.raises(InputError, match="absent is not a folder"):
        prepare("absent")
    assert [path.name for path in Path().iterdir()] == ["photos"]
