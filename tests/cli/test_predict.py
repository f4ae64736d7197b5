"""`mrcnn predict`: pictures, results and messages."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_inputs import HEIGHT, WIDTH, listing, write_image
from stand_in_detector import StandInDetector

from mrcnn_jax.checkpoint import CheckpointStore
from mrcnn_jax.config import DataConfig, Experiment
from mrcnn_jax.data.image_io import read_image
from mrcnn_jax.detections import Detections
from mrcnn_jax.structures import DatasetInfo

INFO = DatasetInfo("things", (3, 90), ("cat", "dog"))


class OneCat(StandInDetector):
    """Stands in for a trained detector: detects a cat in the upper left corner of every image."""

    info = INFO
    class_names = INFO.category_names

    def __call__(self, image: np.ndarray) -> Detections:
        mask = np.zeros((1, *image.shape[:2]), bool)
        mask[:, 2:12, 3:13] = True
        return Detections(np.float32([[3, 2, 13, 12]]), np.float32([0.75]), np.array([0]), mask)


@pytest.fixture
def one_cat(monkeypatch):
    monkeypatch.setattr("mrcnn_jax.inference.predict.load", lambda *_, **__: OneCat())


@pytest.fixture
def run(monkeypatch) -> Path:
    """A run directory whose checkpoint has an experiment and classes, but no parameters of a model."""
    monkeypatch.setattr("mrcnn_jax.inference.detector.expected_arrays", lambda model: {"params/kernel"})
    experiment = Experiment(data=DataConfig(dataset="data/gone"))
    with CheckpointStore("run/checkpoints") as checkpoints:
        state = {"params": {"kernel": np.zeros(2, np.float32)}, "model_state": {}}
        checkpoints.save(5, state, 10, experiment, INFO)
    return Path("run")


def test_directories_without_checkpoints_are_named(rejected):
    write_image("a.png")
    Path("empty").mkdir()
    Path("begun/checkpoints").mkdir(parents=True)
    for name in ("none", "empty"):
        message = rejected("predict", name, "a.png")
        assert message == rejected("evaluate", name)
        assert message.startswith(f"{name} holds no checkpoints: give the directory of a training run")
    assert rejected("predict", "begun", "a.png") == rejected("evaluate", "begun")
    assert rejected("evaluate", "begun") == "begun holds no complete checkpoint yet"


def test_checkpoints_of_another_version_are_named(rejected, monkeypatch):
    monkeypatch.setattr("mrcnn_jax.run_description.to_dict", lambda experiment: {"train": {"epoch": 5}})
    with CheckpointStore("old/checkpoints") as checkpoints:
        checkpoints.save(5, {"params": {"kernel": np.zeros(2)}, "model_state": {}}, 10, Experiment(), INFO)
    write_image("a.png")
    message = rejected("predict", "old", "a.png")
    assert message.startswith("no checkpoint in ") and "epoch @ " in message
    assert "does not describe an experiment of this version: " in message


def test_missing_images_are_named_before_anything_is_done(rejected, run):
    write_image("a.png")
    assert rejected("predict", run, "a.png", "b.png") == "there is no image file or folder b.png"
    Path("folder").mkdir()
    Path("folder/notes.txt").write_text("no image")
    message = "give image files, or folders that hold .avi, .avif, .bmp"
    assert rejected("predict", run, "folder").startswith(f"no image files in folder: {message}")
    assert rejected("predict", run).startswith(f"no image files in the command line: {message}")


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_unreadable_images_are_named_and_leave_no_results(rejected, run, damage):
    data = write_image("broken.jpg", 64, 64).read_bytes()
    content = {"truncated": data[: len(data) // 2], "empty": b"", "text": b"no image"}[damage]
    Path("broken.jpg").write_bytes(content)
    assert "broken.jpg" in rejected("predict", run, "broken.jpg")


def test_predict_writes_pictures_and_results(mrcnn, one_cat):
    files = [write_image("a.png"), write_image("folder/b.jpg", 40, 30)]
    status, out, err = mrcnn("predict", "run", files[0], "folder")
    assert status == 0 and "mrcnn: " not in err and "2 detections in 2 images" in out
    assert out.startswith("a.png: 1 class 0 (") and "\nfolder/b.jpg: 1 class 0 (" in out
    results = json.loads(Path("predictions/results.json").read_text())
    found = [(entry["image_id"], entry["category_id"], entry["bbox"], entry["score"]) for entry in results]
    assert found == [(i, 3, [3, 2, 10, 10], 0.75) for i in (1, 2)]
    assert json.loads(Path("predictions/images.json").read_text()) == [
        {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH, "picture": "0001_a.png"},
        {"id": 2, "file_name": "folder/b.jpg", "height": 40, "width": 30, "picture": "0002_b.png"},
    ]
    assert sorted(path.name for path in Path("predictions").glob("0*.png")) == ["0001_a.png", "0002_b.png"]


def test_predict_without_masks_and_with_keypoints(mrcnn, monkeypatch):
    class CatPose(OneCat):
        info = INFO._replace(
            keypoint_names=("nose", "tail"), keypoint_flip=(0, 1), skeleton=((0, 1),), keypoint_classes=(0,)
        )

        def __call__(self, image: np.ndarray) -> Detections:
            keypoints = np.float32([[[4, 3, 0.9], [12, 11, 0.8]]])
            return replace(super().__call__(image), masks=None, keypoints=keypoints)

    monkeypatch.setattr("mrcnn_jax.inference.predict.load", lambda *_, **__: CatPose())
    status, _, err = mrcnn("predict", "run", write_image("a.png"))
    assert status == 0 and "mrcnn: " not in err
    (entry,) = json.loads(Path("predictions/results.json").read_text())
    assert entry["keypoints"] == pytest.approx([4, 3, 0.9, 12, 11, 0.8]) and "segmentation" not in entry
    posed = read_image("predictions/0001_a.png")
    monkeypatch.setattr(CatPose, "info", CatPose.info._replace(skeleton=()))
    assert mrcnn("predict", "run", "a.png")[0] == 0
    # the line from nose to tail is missing
    assert not np.array_equal(read_image("predictions/0001_a.png"), posed)


def test_unreadable_images_do_not_prevent_results_of_the_others(mrcnn, one_cat):
    files = [write_image("a.png"), Path("b.png"), write_image("c.png"), Path("d.png")]
    files[1].write_text("no image")
    status, out, err = mrcnn("predict", "run", *files[:3])
    assert status == 2 and "2 detections in 2 images" in out
    assert err.splitlines()[-1].startswith("mrcnn: cannot read image b.png: ")
    results = json.loads(Path("predictions/results.json").read_text())
    assert [entry["image_id"] for entry in results] == [1, 3]
    images = json.loads(Path("predictions/images.json").read_text())
    assert [(image["id"], image["file_name"]) for image in images] == [(1, "a.png"), (3, "c.png")]
    files[3].write_bytes(b"")
    status, _, err = mrcnn("predict", "run", *files)
    assert status == 2
    message = "mrcnn: 2 of 4 images cannot be read; the first: cannot read image b.png: "
    assert err.splitlines()[-1].startswith(message)
    assert "b.png" in listing()
