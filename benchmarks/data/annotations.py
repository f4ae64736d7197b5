"""python -m benchmarks.data.annotations: processor time to read and check a made-up annotation file.

Images are not decoded.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from unittest import mock

import cv2
import numpy as np

from benchmarks._program import RESULTS, check, command_line, processor, rounded, versions, write_files
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.data.formats import coco
from mrcnn_jax.data.stored_image import StoredImage

PROGRAM = "python -m benchmarks.data.annotations"
HEIGHT, WIDTH = 480, 640


@dataclass(frozen=True)
class Options:
    """Measure the time to read and check an annotation file."""

    images: int = 100_000
    """Number of images."""
    objects: int = 860_000
    """Number of objects, each with a box and a polygon."""
    rounds: int = 3
    """Measurements, of which the median counts."""
    out: Path = RESULTS / "annotations.json"
    """JSON file of the results."""


def write_annotations(folder: Path, images: int, objects: int) -> None:
    """Writes an annotation file, and a tiny image under every name."""
    random, names = np.random.default_rng(0), [f"{i:012}.png" for i in range(images)]
    (folder / "images").mkdir()
    png = cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes()
    for name in names:
        (folder / "images" / name).write_bytes(png)
    annotations = []
    for id_ in range(1, objects + 1):
        points = int(random.integers(4, 40))
        angles, radius = np.linspace(0, 2 * np.pi, points, endpoint=False), random.uniform(4, 90)
        centre = random.uniform(radius, [WIDTH - radius, HEIGHT - radius])
        outline = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        outline = outline.round(2)
        (left, top), (right, bottom) = outline.min(axis=0), outline.max(axis=0)
        annotations.append({
            "id": id_, "image_id": int(random.integers(images)), "category_id": int(random.integers(1, 81)),
            "segmentation": [outline.ravel().tolist()], "area": float(np.pi * radius**2), "iscrowd": 0,
            "bbox": [round(float(side), 2) for side in (left, top, right - left, bottom - top)],
        })  # fmt: skip
    listed = [{"id": i, "file_name": n, "height": HEIGHT, "width": WIDTH} for i, n in enumerate(names)]
    categories = [{"id": id_, "name": f"class {id_}"} for id_ in range(1, 81)]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))


def measure(folder: Path, objects: int) -> tuple[float, float]:
    """Returns seconds of reading and of judging, in which all objects are kept."""

    def store(path, *_):
        return StoredImage(path.read_bytes(), HEIGHT, WIDTH, False, ())

    with mock.patch.object(coco, "read_stored_image", store):
        start = time.process_time()
        file = coco.CocoFile(folder / "images", folder / "annotations.json")
        read = time.process_time()
        kept = sum(len(record.objects.ids) for record in file)
        end = time.process_time()
    if kept != objects:
        raise RuntimeError(f"{kept} of {objects} objects are kept")
    return read - start, end - read


def run(options: Options) -> list[Path]:
    """Runs the benchmark; returns the files written."""
    check(options, images=1, objects=1, rounds=1)
    with TemporaryDirectory() as folder:
        write_annotations(Path(folder), options.images, options.objects)
        times = [measure(Path(folder), options.objects) for _ in range(options.rounds)]
    read, judged = (rounded(median(column)) for column in zip(*times, strict=True))
    write_json(options.out, {
        "command": command_line(PROGRAM, options), "images": options.images, "objects": options.objects,
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "versions": versions("numpy", "pycocotools"), "date": time.strftime("%Y-%m-%d"),
        "this": {"read_seconds": read, "judge_seconds": judged, "seconds": rounded(median(map(sum, times)))},
    })  # fmt: skip
    return [options.out]


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns the exit status."""
    return write_files(PROGRAM, Options, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
