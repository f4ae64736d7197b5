"""Seconds per image of detectors, live and exported, measured in turn on the same images."""

import os
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.table import Table

from mrcnn_jax.config.validation import LARGEST_BATCH, require_whole
from mrcnn_jax.data.image_files import find_image_files
from mrcnn_jax.data.transforms import padded_size
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import Detector, load
from mrcnn_jax.inference.image_inputs import to_rgb
from mrcnn_jax.inference.stream import Pipeline
from mrcnn_jax.inference.tta import is_augmented

Size = tuple[int, int]
"""Height and width of an image."""
Progress = Callable[[int, int], None]
_LARGEST_SIDE = 20_000


class Timing(NamedTuple):
    """Median seconds of a detector for images of one size, in batches of one size."""

    model: str
    format: str  # "live", "stablehlo" or "onnx"
    size: Size
    batch_size: int
    network: float  # seconds per image of the network alone, from padded images to predictions on the host
    whole: float  # seconds per image from pixels to detections: resizing, network, pasting
    objects: float  # detections per image


class _Case:
    """A detector that is to be measured with a batch of images."""

    def __init__(self, name: str, detector: Detector, images: list[np.ndarray]):
        self._name, self._detector, self._images = name, detector, images
        self._pipeline = Pipeline(detector, len(images))
        prepared = [self._pipeline.prepare(image) for image in images]
        self._padded = np.stack([one.scaled[0].padded for one in prepared])
        self._sizes = np.array([one.scaled[0].size for one in prepared], np.int32)
        self._program = detector.program()
        self._seconds: list[tuple[float, float]] = []
        self._objects = 0.0

    def run(self) -> None:
        """Measures once."""
        begin = time.perf_counter()
        jax.device_get(self._program(self._detector.variables, self._padded, self._sizes))
        middle = time.perf_counter()
        found = self._pipeline.start([self._pipeline.prepare(image) for image in self._images])()
        end = time.perf_counter()
        self._seconds.append((middle - begin, end - middle))
        self._objects = sum(map(len, found)) / len(found)

    def timing(self) -> Timing:
        """Returns the medians of all measurements but the first, which compiles."""
        count, (height, width) = len(self._images), self._images[0].shape[:2]
        network, whole = (median(column) / count for column in zip(*self._seconds[1:], strict=True))
        manifest = getattr(self._detector, "manifest", None)
        kind = manifest.format if manifest else "live"
        return Timing(self._name, kind, (height, width), count, network, whole, self._objects)


def benchmark(
    models: Sequence[str | os.PathLike], *, images: str | os.PathLike | None = None,
    sizes: Sequence[Size] = (), batch_sizes: Sequence[int] = (1,), rounds: int = 5,
    progress: Progress = lambda done, total: None,
) -> list[Timing]:  # fmt: skip
    """Measures detectors in turn, so that whatever else the machine does slows all of them alike.

    Args:
        models: that ``load`` accepts.
        images: a file, or a folder whose first image is taken; None makes images of noise, in which
            detections are arbitrary.
        sizes: heights and widths of images of noise; by default that which the first detector pads to.
        batch_sizes: images that are computed at once.
        rounds: measurements, after one that compiles.
        progress: called with the number of measurements done and of all.

    Raises:
        InputError: there is no model, a model or an image cannot be read, test-time augmentation is on, a
            number is out of range, or sizes are given besides an image.
    """
    if not models:
        raise InputError("name at least one detector to measure")
    if images is not None and sizes:
        raise InputError("sizes are those of images of noise: leave them out, or the image")
    models, sizes, batch_sizes = ([*dict.fromkeys(each)] for each in (models, sizes, batch_sizes))
    require_whole("the number of rounds", rounds, 1, 10_000)
    for batch_size in batch_sizes:
        require_whole("the batch size", batch_size, 1, LARGEST_BATCH)
    for side in (side for size in sizes for side in size):
        require_whole("the side of an image", side, 1, _LARGEST_SIDE)
    detectors = [(str(model), load(model)) for model in models]
    for name, detector in detectors:
        if is_augmented(detector.experiment):
            raise InputError(f"{name} has test-time augmentation, which is not measured")
    pictures = _pictures(images, sizes or [padded_size(detectors[0][1].experiment.data, False)])
    cases = [_Case(name, detector, [picture] * batch_size) for picture in pictures
             for batch_size in batch_sizes for name, detector in detectors]  # fmt: skip
    for turn in range(rounds + 1):
        for number, case in enumerate(cases):
            progress(turn * len(cases) + number, (rounds + 1) * len(cases))
            case.run()
    return [case.timing() for case in cases]


def _pictures(images: str | os.PathLike | None, sizes: Sequence[Size]) -> list[np.ndarray]:
    if images is not None:
        return [to_rgb(find_image_files([images]).files[0])]
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def timing_table(timings: Sequence[Timing]) -> Table:
    """Returns the timings as a table for ``rich.print``: a row for each size and batch, models side by side.
    """
    table = Table(caption="seconds per image: network alone / whole, from pixels to detections")
    names = list(dict.fromkeys((timing.model, timing.format) for timing in timings))
    for column in ("image", "batch", *(f"{model}\n{kind}" for model, kind in names)):
        table.add_column(column, justify="right", overflow="fold")
    rows: dict[Any, list[str]] = {}
    for timing in timings:
        row = rows.setdefault((timing.size, timing.batch_size), [])
        row.append(f"{timing.network:.3g} / {timing.whole:.3g}")
    for ((height, width), batch_size), cells in rows.items():
        table.add_row(f"{height} x {width}", str(batch_size), *cells)
    return table
