"""Detection in image files: pictures, results and the order of files."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from stand_in_detector import StandInDetector

from mrcnn_jax.data.image_files import find_image_files
from mrcnn_jax.data.image_io import read_image
from mrcnn_jax.detections import Detections
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.predict import predict_files
from mrcnn_jax.structures import DatasetInfo


class CatDetector(StandInDetector):
    """Stands in for a trained detector: finds two cats, in the corners of every image."""

    info = DatasetInfo("pets", (3, 90), ("cat", "dog"))

    def __call__(self, image: np.ndarray) -> Detections:
        height, width = image.shape[:2]
        masks = np.zeros((2, height, width), bool)
        masks[0, 2:12, 3:13] = masks[1, height - 12 : height - 2, width - 13 : width - 3] = True
        boxes = np.float32([[3, 2, 13, 12], [width - 13, height - 12, width - 3, height - 2]])
        names = self.info.category_names
        return Detections(boxes, np.float32([0.75, 0.25]), np.array([0, 0]), masks, class_names=names)


def write_image(path: Path, height: int = 40, width: int = 60) -> Path:
    path.parent.mkdir(exist_ok=True)
    image = np.full((height, width, 3), 40, np.uint8)
    cv2.imwrite(str(path), cv2.circle(image, (width // 2, height // 2), 15, (60, 60, 230), -1))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of two images, one of them higher than wide, and of another file."""
    write_image(tmp_path / "images/a.png")
    write_image(tmp_path / "images/b.jpg", 75, 45)
    (tmp_path / "images/notes.txt").write_text("not an image")
    return tmp_path / "images"


def test_predict_files_writes_pictures_and_coco_results(folder, tmp_path):
    detector, out, advanced = CatDetector(), tmp_path / "out", []
    found = predict_files(detector, [folder], out, progress=lambda *counts: advanced.append(counts))
    names = {"0001_a.png", "0002_b.png", "results.json", "images.json"}
    assert {path.name for path in out.iterdir()} == names
    assert advanced == [(0, 2), (1, 2), (2, 2)] and found.unreadable == []
    images = [
        {"id": 1, "file_name": str(folder / "a.png"), "height": 40, "width": 60,
         "picture": "0001_a.png"},
        {"id": 2, "file_name": str(folder / "b.jpg"), "height": 75, "width": 45,
         "picture": "0002_b.png"},
    ]  # fmt: skip
    assert json.loads((out / "images.json").read_text()) == found.images == images
    assert json.loads((out / "results.json").read_text()) == found.results
    detected = [detector(read_image(image["file_name"])) for image in images]
    expected = [one.to_coco(id_, detector.info) for id_, one in enumerate(detected, start=1)]
    assert found.results == expected[0] + expected[1]
    coco = COCO()
    categories = [{"id": id_} for id_ in detector.info.category_ids]
    coco.dataset = {"images": images, "annotations": [], "categories": categories}
    coco.createIndex()
    loaded = coco.loadRes(str(out / "results.json"))
    shapes = [loaded.annToMask(entry).shape for entry in loaded.anns.values()]
    assert shapes == [(40, 60)] * 2 + [(75, 45)] * 2


def test_score_threshold_concerns_pictures_alone(folder, tmp_path):
    files = [folder / "b.jpg", folder / "a.png"]
    found = {
        score: predict_files(CatDetector(), files, tmp_path / str(score), score_threshold=score)
        for score in (0, 0.5, 1)
    }
    assert found[0].results == found[0.5].results == found[1].results
    assert [image["file_name"] for image in found[0].images] == list(map(str, files))  # in the order given
    for name in ("0001_b.png", "0002_a.png"):
        everything, one, nothing = (read_image(tmp_path / str(score) / name) for score in (0, 0.5, 1))
        assert (everything != one).any() and (one != nothing).any()
    reduced = cv2.resize(nothing, (60, 40), interpolation=cv2.INTER_AREA)  # small images are drawn enlarged
    assert np.abs(reduced.astype(float) - read_image(folder / "a.png")).mean() < 1


def test_nothing_is_written_without_out(folder, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert len(predict_files(CatDetector(), [folder]).results) == 4
    assert sorted(tmp_path.rglob("*")) == before


def test_photographs_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    (image,) = predict_files(CatDetector(), [tmp_path / "a.jpg"]).images
    assert (image["height"], image["width"]) == (60, 40)


def test_unreadable_files_do_not_stop_the_others(folder, tmp_path):
    files = [folder / "a.png", folder / "notes.txt", folder / "b.jpg"]
    found = predict_files(CatDetector(), files, tmp_path / "out")
    assert [image["id"] for image in found.images] == [1, 3]
    assert {entry["image_id"] for entry in found.results} == {1, 3}
    with pytest.raises(InputError, match=r"^cannot read image .*notes\.txt"):
        found.raise_unreadable()
    message = r"^2 of 4 images cannot be read; the first: cannot read image .*notes\.txt"
    with pytest.raises(InputError, match=message):
        replace(found, unreadable=found.unreadable * 2).raise_unreadable()
    replace(found, unreadable=[]).raise_unreadable()


def test_missing_and_empty_paths_are_refused(folder, tmp_path):
    expected = [folder / name for name in ("a.png", "b.jpg", "notes.txt")]
    assert find_image_files([folder, folder / "notes.txt"]).files == expected
    with pytest.raises(InputError, match="there is no image file or folder .*no.png"):
        find_image_files([folder, tmp_path / "no.png"])
    (tmp_path / "empty").mkdir()
    message = "no image files in .*empty: give image files, or folders that hold .*.jpg"
    with pytest.raises(InputError, match=message):
        find_image_files([tmp_path / "empty"])
