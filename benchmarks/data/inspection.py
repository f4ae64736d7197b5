"""python -m benchmarks.data.inspection: processor time to inspect a made-up prepared set of COCO's size.

Images are not decoded.
"""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from benchmarks._program import RESULTS, check, command_line, processor, rounded, versions, write_files
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.data.dataset import Objects, Record
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.inspection.inspect import inspect
from mrcnn_jax.structures import DatasetInfo

PROGRAM = "python -m benchmarks.data.inspection"
HEIGHT, WIDTH, CLASSES, VALIDATION = 480, 640, 80, 20


@dataclass(frozen=True)
class Options:
    """Measure the time to inspect a data set."""

    images: int = 100_000
    """Number of images, of which a twentieth is for validation."""
    objects: int = 860_000
    """Number of objects."""
    rounds: int = 3
    """Measurements, of which the median counts."""
    out: Path = RESULTS / "inspect.json"
    """JSON file of the results."""


def make_records(images: range, objects: int) -> Iterator[Record]:
    """Yields records of different tiny files, which claim to be of an ordinary size, with boxes."""
    random = np.random.default_rng(images.start)
    per_image = np.bincount(random.integers(len(images), size=objects), minlength=len(images))
    png = cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes()
    for id_, count in zip(images, per_image, strict=True):
        corners = random.uniform(0, [WIDTH - 100, HEIGHT - 100], (count, 2))
        boxes = np.concatenate([corners, corners + np.exp(random.uniform(1, 4.6, (count, 2)))], axis=1)
        found = Objects(
            np.arange(count) + 1, boxes, random.integers(CLASSES, size=count).astype(np.int32),
            (boxes[:, 2:] - boxes[:, :2]).prod(axis=1), np.zeros(count, bool), [""] * count,
            np.zeros((count, 0, 3), np.float32),
        )  # fmt: skip
        yield Record(png + str(id_).encode(), id_, f"{id_}.png", HEIGHT, WIDTH, found)


def run(options: Options) -> list[Path]:
    """Runs the benchmark; returns the files written."""
    check(options, images=VALIDATION, objects=1, rounds=1)
    held = options.images // VALIDATION
    sides = {"train": range(held, options.images), "validation": range(held)}
    share = {split: options.objects * len(images) // options.images for split, images in sides.items()}
    info = DatasetInfo("made", tuple(range(1, CLASSES + 1)), tuple(f"class {i}" for i in range(CLASSES)))
    times = []
    with TemporaryDirectory() as folder:
        splits = {split: make_records(images, share[split]) for split, images in sides.items()}
        write_dataset(Path(folder, "set"), info, splits)
        for _ in range(options.rounds):
            start = time.process_time()
            found = inspect(Path(folder, "set"), near=0)
            times.append(time.process_time() - start)
    counted = sum(split["objects"] for split in found.data["dataset"]["splits"].values())
    if counted != sum(share.values()):
        raise RuntimeError(f"{counted} of {sum(share.values())} objects were counted")
    write_json(options.out, {
        "command": command_line(PROGRAM, options), "images": options.images, "objects": counted,
        "machine": {"processor": processor(), "cores": os.cpu_count()}, "versions": versions("numpy"),
        "date": time.strftime("%Y-%m-%d"), "this": {"seconds": rounded(median(times))},
    })  # fmt: skip
    return [options.out]


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns the exit status."""
    return write_files(PROGRAM, Options, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
