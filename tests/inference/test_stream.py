"""Many images: order, batches, unreadable ones, and images in every form."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mrcnn_jax.cli import evaluate, predict, serve
from mrcnn_jax.data.image_io import save_image
from mrcnn_jax.detections import Detections
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.program import explaining_exhaustion
from mrcnn_jax.inference.stream import BatchScheduler, PreparedImage, ScaledImage, prefetch


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_alike(found: Detections, expected: Detections) -> None:
    np.testing.assert_array_equal(found.class_ids, expected.class_ids)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert np.mean(np.asarray(found.masks) != np.asarray(expected.masks)) < 1e-3


SIZES = [(64, 96), (96, 64), (64, 64), (30, 200), (200, 30), (50, 60), (90, 70)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images of either orientation, in two levels of folders."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "z").mkdir()
    for number, size in enumerate(SIZES):
        save_image(folder / ("z" if number > 4 else ".") / f"{number}.png", noise(*size, seed=number))
    return folder


def test_many_images_are_detected_like_single_ones_in_their_order(detector, folder):
    single = [detector(noise(*size, seed=number)) for number, size in enumerate(SIZES)]
    arrays = [noise(*size, seed=number) for number, size in enumerate(SIZES)]
    for images, batch_size in ((folder, 2), (arrays, 1), (iter(arrays), 2)):
        for found, expected in zip(detector(images, batch_size=batch_size), single, strict=True):
            assert_alike(found, expected)


def test_every_form_of_an_image_is_accepted(detector, folder):
    expected = detector(noise(64, 96, seed=0))
    for image in (folder / "0.png", str(folder / "0.png"), Image.open(folder / "0.png")):
        assert_alike(detector(image), expected)
    palette = Image.fromarray(np.zeros((20, 30, 3), np.uint8)).convert("P")
    assert detector(palette).masks.shape[1:] == (20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(40, 60)).save(folder.parent / "turned.jpg", exif=exif)
    assert detector(Image.open(folder.parent / "turned.jpg")).masks.shape[1:] == (60, 40)


def test_an_unreadable_image_is_reported_in_its_place(detector, folder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    images = [folder / "0.png", tmp_path / "bad.png", folder / "1.png"]
    results = list(detector.stream(images, batch_size=2))
    assert [result.source for result in results] == images
    assert [result.error is None for result in results] == [True, False, True]
    assert results[0].image.shape == (64, 96, 3) and results[1].detections is None
    answers = detector(images)
    assert len(next(answers).masks) >= 0
    with pytest.raises(InputError, match="bad.png"):
        list(answers)


def test_empty_inputs(detector, tmp_path):
    assert list(detector([])) == []
    with pytest.raises(InputError, match="no image files in"):
        list(detector(tmp_path))
    with pytest.raises(InputError, match="the batch size must be a whole number from 1 to 4,096, not 0"):
        detector.stream([], batch_size=0)


def test_threads_share_a_detector(detector):
    images = [noise(*size, seed=number) for number, size in enumerate(SIZES)]
    expected = [detector(image) for image in images]
    with ThreadPoolExecutor(4) as executor:
        for found, one in zip(executor.map(detector, images), expected, strict=True):
            assert_alike(found, one)


def test_settings_after_training(detector):
    image = noise(64, 96)
    few = detector.with_settings(max_detections=2)
    assert few.variables is detector.variables
    assert_alike(few(image), detector(image)[:2])
    with pytest.raises(InputError, match="a detector has no setting 'conf': choose from score_threshold, "):
        detector.with_settings(conf=0.3)
    with pytest.raises(InputError, match="nms_iou"):
        detector.with_settings(nms_iou=3)


def test_warm_up_compiles_both_orientations(detector, monkeypatch):
    sizes = []

    def stream(self, images, batch_size):
        sizes.extend(one.shape for one in images)
        return []

    monkeypatch.setattr(type(detector), "stream", stream)
    detector.warm_up()
    assert [height > width for height, width, _ in sizes] == [False, True]


# ---- the scheduler ----


def images(*shapes: str) -> list[PreparedImage]:
    """Prepared images named by their number, with a padded size for each letter."""
    sides = {"a": 1, "b": 2, "c": 3}
    return [
        PreparedImage(number, scaled=(ScaledImage((1, 1), np.zeros((sides[one], 1, 3))),))
        for number, one in enumerate(shapes)
    ]


def run(scheduler: BatchScheduler, prepared: list[PreparedImage]) -> tuple[list[int], int]:
    """Returns the sources of the results in order, and the most images that ever waited."""
    given, waiting = [], 0
    for number, one in enumerate(prepared, start=1):
        scheduler.add(one)
        given.extend(result.source for result in scheduler.results())
        waiting = max(waiting, number - len(given))
    given.extend(result.source for result in scheduler.results(finish=True))
    return given, waiting


@pytest.mark.parametrize("order", ["aaaaaaa", "abababab", "baaaaaaaaaaaaaaaa", "abcabcabcabc", "c", ""])
def test_results_come_in_order_and_few_images_wait(order):
    batches = []

    def start(batch):
        batches.append([one.source for one in batch])
        return lambda: [one.source for one in batch]

    given, waiting = run(BatchScheduler(start, 3), images(*order))
    assert given == list(range(len(order)))
    assert sorted(sum(batches, [])) == given and all(len(batch) <= 3 for batch in batches)
    assert all(len({order[one] for one in batch}) == 1 for batch in batches)
    assert waiting <= 9 * 3


def test_few_large_images_wait():
    prepared = images(*"baaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
    for size, most in (((1, 1, 3), 9 * 3), ((9000, 9000, 3), 3 * 3)):
        image = np.broadcast_to(np.uint8(0), size)
        scheduler = BatchScheduler(lambda batch: lambda: [one.source for one in batch], 3)
        assert most - 3 <= run(scheduler, [one._replace(image=image) for one in prepared])[1] <= most


def test_the_next_batch_starts_before_the_last_is_collected():
    events = []

    def start(batch):
        name = batch[0].source
        events.append(f"start {name}")
        return lambda: events.append(f"wait {name}") or [None]

    run(BatchScheduler(start, 1), images("a", "a", "a"))
    assert events == ["start 0", "start 1", "wait 0", "start 2", "wait 1", "wait 2"]


def test_prefetch_keeps_order_and_stops_what_is_not_needed():
    begun = []

    def square(number):
        begun.append(number)
        return number**2

    for size, more in ((2**30, 0), (2**25, 4), (1, 8)):
        begun.clear()
        results = prefetch(square, range(1000), ahead=3, threads=2, bytes_of=lambda _, size=size: size)
        assert [next(results) for _ in range(4)] == [0, 1, 4, 9]
        results.close()
        assert len(begun) <= 4 + 3 + more


def test_advice_against_exhausted_memory_names_options_of_each_command():
    message = r"--batch-size \(of evaluate, --evaluation\.images-per-device\): RESOURCE_EXHAUSTED: 9 GiB$"
    with pytest.raises(InputError, match=message), explaining_exhaustion():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB\nmore lines")
    assert all(hasattr(command.Options, "batch_size") for command in (predict, serve))
    assert not hasattr(evaluate.Options, "batch_size")
