"""A trained run as a detector: any image in, well-formed detections out, the same from Python and from the command line."""

import json
import shutil
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
import tiny
import tiny_run
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import mrcnn_jax
from mrcnn_jax.cli.main import main
from mrcnn_jax.config import read_experiment
from mrcnn_jax.data import dataset as records
from mrcnn_jax.data import shapes
from mrcnn_jax.data.transforms import decode_image
from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.coco import coco_results
from mrcnn_jax.inference import evaluate as scoring
from mrcnn_jax.inference.detector import Detector, load
from mrcnn_jax.visualize.draw import read_image

CLASSES = len(shapes.KINDS)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tiny_run.trained_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def validation(tmp_path_factory) -> records.DatasetSplit:
    return records.open_dataset(tiny_run.dataset(tmp_path_factory.getbasetemp()), "validation")


@pytest.fixture(scope="module")
def detector(run) -> Detector:
    return load(run)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(height: int, width: int) -> np.ndarray:
    """A bright disk on a dark ground."""
    image = np.full((height, width, 3), 40, np.uint8)
    return cv2.circle(image, (width // 2, height // 2), min(height, width) // 3, (230, 60, 60), -1)


# ---- from Python ----


def test_a_run_is_loaded_with_its_newest_weights(run, detector):
    assert detector.experiment == read_experiment(run / "experiment.json")
    assert detector.info == shapes.INFO and detector.class_names == shapes.INFO.category_names
    state, _ = tiny_run.saved_state(run, tiny_run.STEPS)
    tiny.assert_same(detector.variables, {"params": state.params, **state.model_state})
    assert isinstance(mrcnn_jax.load(run), Detector)


@pytest.mark.parametrize(
    "image",
    [
        picture(64, 96), picture(131, 97), noise(480, 640), noise(200, 17), noise(11, 300), noise(1, 1), noise(1, 50), noise(2, 1),
        np.repeat(noise(50, 70)[..., :1], 3, axis=2), np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8),
        noise(90, 120)[::-1, 10:100:2],
    ],
    ids=lambda image: "x".join(map(str, image.shape[:2])),
)  # fmt: skip
def test_detections_are_well_formed_whatever_the_image(detector, image):
    height, width = image.shape[:2]
    found = detector(image)
    number = len(found.scores)
    assert number <= detector.experiment.model.box.detections
    assert found.boxes.shape == (number, 4) and found.class_ids.shape == (number,) and found.keypoints is None
    assert found.masks.shape == (number, height, width) and found.masks.dtype == bool
    assert np.isfinite(found.boxes).all() and (found.boxes >= 0).all()
    assert (found.boxes[:, :2] < found.boxes[:, 2:]).all()
    assert (found.boxes[:, 2:] <= np.array([width, height]) + 1e-3).all()
    assert (np.diff(found.scores) <= 0).all() and (found.scores > 0).all() and (found.scores <= 1).all()
    assert (found.class_ids >= 0).all() and (found.class_ids < CLASSES).all()
    y, x = np.mgrid[:height, :width] + 0.5
    for box, mask in zip(found.boxes, found.masks, strict=True):
        margin = (box[2:] - box[:2]) / 28 + 1e-3  # half a cell of the 14 x 14 mask
        outside = (x < box[0] - margin[0]) | (x > box[2] + margin[0]) | (y < box[1] - margin[1]) | (y > box[3] + margin[1])
        assert not (mask & outside).any()


def test_something_is_detected(detector):
    found = detector(picture(64, 96))
    assert len(found.scores) > 0 and found.masks.any()


def test_two_programs_serve_every_size(detector):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **about: compiled.append(about) if event == "/jax/core/compile/backend_compile_duration" else None
    )
    for image in (noise(64, 96), noise(96, 64)):
        detector(image)
    compiled.clear()
    for height, width in ((30, 31), (31, 30), (500, 20), (20, 500), (64, 64)):
        detector(noise(height, width))
    assert not compiled


def test_detections_are_in_pixels_of_the_image_as_given(detector):
    """An image twice as large, shown to the network at the same size, gives boxes twice as large."""
    small = picture(64, 96)
    large = small.repeat(2, axis=0).repeat(2, axis=1)
    found, doubled = detector(small), detector(large)
    np.testing.assert_array_equal(found.class_ids, doubled.class_ids)
    np.testing.assert_allclose(2 * found.boxes, doubled.boxes, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(found.scores, doubled.scores, atol=1e-5)
    assert doubled.masks.shape[1:] == (128, 192)


@pytest.mark.parametrize(
    "image, given",
    [
        (noise(8, 8).astype(np.float32), r"float32 of shape \[8, 8, 3\]"), (noise(8, 8)[..., 0], r"uint8 of shape \[8, 8\]"),
        (noise(8, 8).repeat(2, axis=2)[..., :4], r"uint8 of shape \[8, 8, 4\]"), (noise(8, 8)[None], r"uint8 of shape \[1, 8, 8, 3\]"),
        (noise(8, 8)[:0], r"uint8 of shape \[0, 8, 3\]"), ("image.png", r"<U9 of shape \[\]"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused(detector, image, given):
    with pytest.raises(InputError, match=rf"^an image must be uint8 RGB of shape \[H, W, 3\], not {given}$"):
        detector(image)


def test_one_by_one_and_batch_by_batch_are_the_same(detector, validation):
    told = []
    results = scoring.detect_all(detector, validation, told.append)
    assert sum(told) == len(validation) and results
    for record in validation:
        found = detector(decode_image(record.image, record.file_name))
        single = coco_results(record.image_id, found, detector.info)
        batched = [entry for entry in results if entry["image_id"] == record.image_id]
        assert len(single) == len(batched) > 0
        for one, other in zip(single, batched, strict=True):
            assert one["category_id"] == other["category_id"]
            np.testing.assert_allclose(one["bbox"], other["bbox"], atol=0.02)
            assert one["score"] == pytest.approx(other["score"], abs=1e-4)
            assert one["segmentation"]["size"] == other["segmentation"]["size"] == [record.height, record.width]
            areas = [int(coco_mask.area(entry["segmentation"])) for entry in (one, other)]
            overlap = coco_mask.iou([one["segmentation"]], [other["segmentation"]], [0])[0, 0]
            assert overlap > 0.98 or areas == [0, 0]


def test_a_folder_that_is_no_run_is_refused(tmp_path, run):
    with pytest.raises(InputError, match="holds no checkpoints: give the directory of a training run"):
        load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="holds no complete checkpoint yet"):
        load(tmp_path)


# ---- from the command line ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two images, one of them gray and higher than wide, and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    cv2.imwrite(str(folder / "a.png"), picture(64, 96)[..., ::-1])
    cv2.imwrite(str(folder / "b.jpg"), picture(150, 90)[..., 0])
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_predict_writes_pictures_and_coco_results(run, folder, tmp_path, detector):
    assert main(["predict", str(run), str(folder), "--out", str(tmp_path), "--score", "0"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"0001_a.png", "0002_b.png", "results.json", "images.json"}
    images = json.loads((tmp_path / "images.json").read_text())
    assert images == [
        {"id": 1, "file_name": str(folder / "a.png"), "height": 64, "width": 96},
        {"id": 2, "file_name": str(folder / "b.jpg"), "height": 150, "width": 90},
    ]
    coco = COCO()
    coco.dataset = {"images": images, "annotations": [], "categories": [{"id": id_} for id_ in detector.info.category_ids]}
    coco.createIndex()
    loaded = coco.loadRes(str(tmp_path / "results.json"))
    for image in images:
        entries = loaded.loadAnns(loaded.getAnnIds(imgIds=image["id"]))
        pixels = read_image(image["file_name"])
        expected = coco_results(image["id"], detector(pixels), detector.info)
        assert [(e["category_id"], e["bbox"], e["score"]) for e in entries] == [(e["category_id"], e["bbox"], e["score"]) for e in expected]
        assert all(loaded.annToMask(entry).shape == (image["height"], image["width"]) for entry in entries)
        assert {entry["category_id"] for entry in entries} <= set(detector.info.category_ids)


def test_predict_draws_what_scores_enough_and_takes_the_order_given(run, folder, tmp_path):
    files = [str(folder / name) for name in ("b.jpg", "a.png")]
    for score in ("0", "1"):
        assert main(["predict", str(run), *files, "--out", str(tmp_path / score), "--score", score]) == 0
        assert [image["file_name"] for image in json.loads((tmp_path / score / "images.json").read_text())] == files
    for name in ("0001_b.png", "0002_a.png"):
        everything, nothing = (read_image(tmp_path / score / name) for score in ("0", "1"))
        assert everything.shape == nothing.shape and (everything != nothing).any()
    height, width = nothing.shape[:2]
    assert width * 64 == height * 96  # small images are drawn enlarged
    reduced = cv2.resize(nothing, (96, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(reduced.astype(float) - picture(64, 96)).mean() < 1
    assert (tmp_path / "0" / "results.json").read_text() == (tmp_path / "1" / "results.json").read_text()


def test_evaluate_repeats_the_figures_of_the_training(run, validation, tmp_path):
    assert main(["evaluate", str(run), "--out", str(tmp_path), "--pictures", "2"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "results.json", "predictions.png"}
    metrics, trained = (json.loads((directory / "metrics.json").read_text()) for directory in (tmp_path, run))
    assert metrics == trained
    coco = COCO()
    coco.dataset = records.ground_truth(validation)
    coco.createIndex()
    loaded = coco.loadRes(str(tmp_path / "results.json"))
    assert set(loaded.getImgIds()) == {record.image_id for record in validation}
    assert {entry["image_id"] for entry in loaded.anns.values()} <= set(coco.getImgIds())
    assert {entry["category_id"] for entry in loaded.anns.values()} <= set(coco.getCatIds())
    drawn, of_training = read_image(tmp_path / "predictions.png"), read_image(run / "predictions.png")
    np.testing.assert_array_equal(drawn, of_training)


def test_evaluate_on_another_split(run, tmp_path):
    assert main(["evaluate", str(run), "--split", "train", "--out", str(tmp_path), "--pictures", "0"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "results.json"}
    assert max(entry["image_id"] for entry in json.loads((tmp_path / "results.json").read_text())) > 10  # there are 20, not 10


def refused(capsys, *arguments) -> str:
    """The one line that the command line says before it exits with status 2."""
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("mrcnn: ") and "\n" not in said
    return said


def test_the_command_line_says_what_is_wrong_in_one_line(run, folder, tmp_path, capsys):
    assert str(tmp_path / "no.png") in refused(capsys, "predict", run, tmp_path / "no.png", "--out", tmp_path)
    assert "notes.txt" in refused(capsys, "predict", run, folder / "notes.txt", "--out", tmp_path)
    assert "holds no checkpoints" in refused(capsys, "predict", folder, folder / "a.png", "--out", tmp_path)
    assert "holds no checkpoints" in refused(capsys, "evaluate", tmp_path)
    assert "test" in refused(capsys, "evaluate", run, "--split", "test", "--out", tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_data_sets_classes_are_refused(run, tmp_path, tmp_path_factory, capsys):
    copy = tmp_path / "renamed"
    shutil.copytree(tiny_run.dataset(tmp_path_factory.getbasetemp()), copy)
    for path in copy.glob("*.json"):
        path.write_text(path.read_text().replace("puppet", "person"))
    assert "person" in refused(capsys, "evaluate", run, "--dataset", copy, "--out", tmp_path / "out")
