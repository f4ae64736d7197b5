"""The detector: well-formed detections for any image, one program per orientation, plain errors."""

import cv2
import jax
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import mrcnn_jax
from mrcnn_jax.checkpoint import CheckpointStore
from mrcnn_jax.data import shapes
from mrcnn_jax.data.image_files import find_image_files
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import Detector, load
from mrcnn_jax.inference.image_inputs import is_one_image, list_images, to_rgb

CLASSES = len(shapes.KINDS)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def disk(height: int, width: int) -> np.ndarray:
    """A bright disk on a dark ground."""
    image = np.full((height, width, 3), 40, np.uint8)
    return cv2.circle(image, (width // 2, height // 2), min(height, width) // 3, (230, 60, 60), -1)


def test_load_restores_the_newest_weights_and_keeps_programs(tmp_path, detector, monkeypatch):
    cached = []
    monkeypatch.setattr("mrcnn_jax.inference.detector.enable_compilation_cache", lambda: cached.append(True))
    older, newer = (tiny.variables(detector.experiment.model, seed) for seed in (1, 0))
    with CheckpointStore(tmp_path / "checkpoints") as checkpoints:
        for step, variables in enumerate((older, newer)):
            state = {"params": variables["params"]}
            checkpoints.save(step, state, 0, detector.experiment, shapes.INFO)
    loaded = mrcnn_jax.load(tmp_path)
    assert isinstance(loaded, Detector) and cached == [True]
    assert loaded.experiment == detector.experiment and loaded.info == shapes.INFO
    assert loaded.class_names == shapes.INFO.category_names
    tiny.assert_same(loaded.variables, detector.variables)


@pytest.mark.parametrize(
    "image",
    [
        disk(64, 96), disk(131, 97), noise(480, 640), noise(200, 17), noise(11, 300), noise(1, 1),
        noise(1, 50), noise(2, 1), np.repeat(noise(50, 70)[..., :1], 3, axis=2),
        np.zeros((64, 64, 3), np.uint8),
        np.full((64, 64, 3), 255, np.uint8), noise(90, 120)[::-1, 10:100:2],
    ],
    ids=lambda image: "x".join(map(str, image.shape[:2])),
)  # fmt: skip
def test_detections_are_well_formed_for_any_image(detector, image):
    found = assert_well_formed(detector, image)
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    for box, mask in zip(found.boxes, found.masks, strict=True):
        (x1, y1), (x2, y2) = np.split(box, 2)
        left, top = (box[2:] - box[:2]) / 28 + 1e-3  # half a cell of the 14 x 14 mask
        outside = (x < x1 - left) | (x > x2 + left) | (y < y1 - top) | (y > y2 + top)
        assert not (mask & outside).any()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 9))
def test_detections_are_well_formed_for_any_size(detector, height, width, seed):
    assert_well_formed(detector, noise(height, width, seed))


@pytest.mark.parametrize("height, width", [(8000, 1), (1, 8000), (8000, 8000)])
def test_detections_are_well_formed_for_the_largest_images(detector, height, width):
    assert_well_formed(detector, np.broadcast_to(noise(height, 1), (height, width, 3)))


def assert_well_formed(detector, image):
    height, width = image.shape[:2]
    found = detector(image)
    assert len(found) <= detector.experiment.model.box.max_detections
    assert found.boxes.shape == (len(found), 4) and found.class_ids.shape == (len(found),)
    assert found.keypoints is None and found.class_names == detector.class_names
    assert found.masks.shape == (len(found), height, width) and found.masks.dtype == bool
    assert np.isfinite(found.boxes).all() and (found.boxes >= 0).all()
    assert (found.boxes[:, :2] < found.boxes[:, 2:]).all()
    assert (found.boxes[:, 2:] <= np.array([width, height]) + 1e-3).all()
    assert (np.diff(found.scores) <= 0).all() and (found.scores > 0).all() and (found.scores <= 1).all()
    assert (found.class_ids >= 0).all() and (found.class_ids < CLASSES).all()
    assert (found.masks.areas <= height * width).all()
    return found


def test_objects_are_detected(detector):
    found = detector(disk(64, 96))
    assert len(found) > 0 and found.masks.any()


def test_two_programs_serve_every_image_size(detector):
    compiled = []

    def record(event, _, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(about)

    jax.monitoring.register_event_duration_secs_listener(record)
    for image in (noise(64, 96), noise(96, 64)):
        detector(image)
    compiled.clear()
    for height, width in ((30, 31), (31, 30), (500, 20), (20, 500), (64, 64)):
        detector(noise(height, width))
    assert not compiled


def test_detections_are_in_pixels_of_the_image_as_given(detector):
    """An image twice as large, which the network sees at the same size, gives boxes twice as large."""
    small = disk(64, 96)
    found, doubled = detector(small), detector(small.repeat(2, axis=0).repeat(2, axis=1))
    np.testing.assert_array_equal(found.class_ids, doubled.class_ids)
    np.testing.assert_allclose(2 * found.boxes, doubled.boxes, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(found.scores, doubled.scores, atol=1e-5)
    assert doubled.masks.shape[1:] == (128, 192)


@pytest.mark.parametrize(
    "image, given",
    [
        (noise(8, 8).astype(np.float32), "float32 of shape [8, 8, 3] (levels are 0 to 255)"),
        (noise(8, 8)[..., 0], "uint8 of shape [8, 8] (repeat the channel of a gray image)"),
        (noise(8, 8)[..., :1], "uint8 of shape [8, 8, 1] (repeat the channel of a gray image)"),
        (noise(8, 8).repeat(2, axis=2)[..., :4], "uint8 of shape [8, 8, 4] (drop the alpha channel)"),
        (noise(8, 9).transpose(2, 0, 1), "uint8 of shape [3, 8, 9] (move the channels last)"),
        (noise(8, 8)[None], "uint8 of shape [1, 8, 8, 3] (pass the images of a batch as a list)"),
        (7, "int64 of shape [] (levels are 0 to 255)"),
    ],
)
def test_wrong_images_are_refused(detector, image, given):
    with pytest.raises(InputError) as error:
        detector(image)
    assert str(error.value) == f"an image must be uint8 RGB of shape [H, W, 3], not {given}"


@pytest.mark.parametrize(
    "image, message",
    [
        (noise(8, 8)[:0], r"must have pixels, not the shape \[0, 8, 3\]"),
        (Image.new("RGB", (0, 0)), r"must have pixels, not the shape \[0, 0, 3\]"),
        (Image.new("F", (0, 0)), r"must have pixels, not the shape \[0, 0, 3\]"),
        (b"jpeg", "must be a uint8 array, a Pillow image or a file's path, not bytes"),
        ({"image": 1}, "must be a uint8 array, a Pillow image or a file's path, not dict"),
        (None, "must be a uint8 array, a Pillow image or a file's path, not NoneType"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    assert is_one_image(image)
    with pytest.raises(InputError, match=message):
        to_rgb(image)


def test_deep_pillow_images_are_read_as_files_are(tmp_path):
    deep = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    expected = to_rgb(tmp_path / "deep.png")
    np.testing.assert_array_equal(to_rgb(Image.open(tmp_path / "deep.png")), expected)
    np.testing.assert_array_equal(to_rgb(Image.fromarray(deep.astype(np.int32))), expected)
    levels = Image.fromarray(np.float32([[0, 0.5, 1]]))
    assert to_rgb(levels)[0, :, 0].tolist() == [0, 128, 255]


def test_many_images_are_no_single_one():
    assert len(list(list_images(noise(8, 8)[None]))) == 1
    assert list(list_images(np.array(["a.png", "b.png"]))) == ["a.png", "b.png"]
    for single in (noise(8, 8), Image.fromarray(noise(8, 8)), None, 5):
        with pytest.raises(InputError, match="many images must be a folder or a list of images, not "):
            list_images(single)


def test_paths_of_images_are_a_path_or_a_list(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"")
    assert find_image_files(str(file)).files == find_image_files([file]).files == [file]
    assert list(list_images(file)) == list(list_images(str(file))) == [file]
    with pytest.raises(InputError, match="image files are given by their paths, not as ndarray"):
        find_image_files([noise(8, 8)])
    with pytest.raises(InputError, match="load takes a directory or a name of weights, not None"):
        load(None)


def test_directories_without_weights_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoints: give the directory of a training run"):
        load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="holds no complete checkpoint yet"):
        load(tmp_path)
