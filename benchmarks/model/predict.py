"""python -m benchmarks.model.predict: many photos in batches against one at a time, and peak memory.

Photos of MRCNN_TEST_DATA are enlarged to mixed sizes; weights are random. A call measures some of the cases
and keeps the results of the others.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import jax
import numpy as np

from benchmarks._markdown import fill, table, write_page
from benchmarks._program import RESULTS, check, processor, rounded, versions, write_files
from benchmarks.model._synthetic import standalone
from mrcnn_jax import presets
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import Detector
from mrcnn_jax.inference.predict import predict_files
from mrcnn_jax.models.systems import init_variables, make_model
from mrcnn_jax.runtime import enable_compilation_cache
from mrcnn_jax.structures import DatasetInfo

PROGRAM = "python -m benchmarks.model.predict"
CLASSES = 80
SCALES = (1, 1, 2, 3, 6)
"""Factors by which photos are enlarged, in turn."""


@dataclass(frozen=True)
class Options:
    """Measure the detection in many photos, and the memory of large ones."""

    models: tuple[str, ...] = ("demo", "small", "mask_rcnn_r50_fpn")
    """Presets that are measured."""
    memory: bool = False
    """Measure the memory of the first model too."""
    photos: int = 100
    """Number of photos."""
    batch_size: int = 4
    """Images that are computed at once."""
    rounds: int = 3
    """Measurements of each way, interleaved; medians of their ratios count."""
    out: Path = RESULTS / "predict.json"
    """JSON file of the results; the page is PREDICT.md beside it."""


def make_detector(name: str) -> Detector:
    """Returns a detector with random weights, which finds as many objects as it may."""
    experiment = standalone(presets.get(name), CLASSES)
    box = replace(experiment.model.box, score_threshold=0.02)
    experiment = replace(experiment, model=replace(experiment.model, box=box))
    classes = range(experiment.model.num_classes)
    info = DatasetInfo("random", tuple(one + 1 for one in classes), tuple(f"class {one}" for one in classes))
    return Detector(experiment, info, init_variables(make_model(experiment.model), jax.random.key(0)))


def photo_folder() -> Path:
    """Returns the folder of the photos, or raises InputError."""
    folder = os.environ.get("MRCNN_TEST_DATA")
    if not folder:
        raise InputError("MRCNN_TEST_DATA is not set: it must name a folder with photos in coco_instances/")
    return Path(folder, "coco_instances")


def write_photos(folder: Path, sizes: list[tuple[int, int] | int]) -> list[Path]:
    """Writes photos enlarged by factors, or to heights and widths; returns their paths."""
    photos = sorted(photo_folder().glob("*/*.jpg"))
    for index, (photo, size) in enumerate(zip(photos, sizes, strict=False)):
        image = cv2.imread(str(photo))
        height, width = (image.shape[0] * size, image.shape[1] * size) if isinstance(size, int) else size
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{index:03}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return sorted(folder.glob("*.jpg"))


def measure_batches(detector: Detector, photos: list[Path], options: Options) -> dict[str, Any]:
    """Measures seconds and busy cores of each way, interleaved, and in how many photos boxes are the same."""
    ways: dict[str, Callable[[], list]] = {
        "one at a time": lambda: [detector(photo) for photo in photos],
        "stream": lambda: list(detector(photos)),
        "batches": lambda: list(detector(photos, batch_size=options.batch_size)),
    }
    seconds, cores, found = {way: [] for way in ways}, {way: [] for way in ways}, {}
    for _ in range(options.rounds):
        for way, run in ways.items():
            begin, busy = time.perf_counter(), _cpu_seconds()
            found[way] = run()
            seconds[way].append(rounded(time.perf_counter() - begin))
            cores[way].append(rounded((_cpu_seconds() - busy) / seconds[way][-1]))
    pairs = zip(found["one at a time"], found["batches"], strict=True)
    same = [len(a) == len(b) and np.allclose(a.boxes, b.boxes, atol=0.1) for a, b in pairs]
    return {"photos": len(photos), "detections": sum(map(len, found["stream"])), "same": sum(same),
            "batch_size": options.batch_size, "seconds": seconds, "cores": cores}  # fmt: skip


def measure_memory(detector: Detector, sizes: list[tuple[int, int]]) -> dict[str, Any]:
    """Measures the peak of memory beyond the loaded model of a whole prediction, with pictures."""
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder), sizes)
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        found = predict_files(detector, photos, Path(folder, "out"), score_threshold=0)
        peak = _status("VmHWM") - before
        pictures = [file.stat().st_size for file in Path(folder, "out").glob("*.[pj][np]g")]
        return {"megabytes": peak, "detections": found.counts[0], "largest_picture_bytes": max(pictures)}


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1000 for line in lines if line.startswith(name))


def run(options: Options) -> list[Path]:
    """Runs the benchmark; returns the files written."""
    check(options, photos=1, batch_size=1, rounds=1)
    photo_folder()
    enable_compilation_cache()
    result = json.loads(options.out.read_text()) if options.out.exists() else {"models": {}, "memory": {}}
    result |= {
        "command": PROGRAM, "versions": versions("jax", "numpy"), "date": time.strftime("%Y-%m-%d"),
        "machine": {"processor": processor(), "cores": os.cpu_count()},
    }  # fmt: skip
    for name in options.models:
        detector = make_detector(name)
        for size in (1, options.batch_size):
            detector.warm_up(size)
        if options.memory:
            one, many = [(6000, 8000)], [(3000, 4000)] * 16
            result["memory"] = {"one photo of 8000 x 6000": measure_memory(detector, one),
                                "16 photos of 12 megapixels": measure_memory(detector, many)}  # fmt: skip
            continue
        with tempfile.TemporaryDirectory() as folder:
            photos = write_photos(Path(folder), [SCALES[i % len(SCALES)] for i in range(options.photos)])
            result["models"][name] = measure_batches(detector, photos, options)
    write_json(options.out, result)
    return [options.out, *write_page(options.out.with_name("PREDICT.md"), make_page(result))]


def make_page(result: dict[str, Any]) -> str:
    """Returns the page of the results."""
    rows = []
    for name, one in result["models"].items():
        alone, *others = one["seconds"].values()
        speeds = [median(a / b for a, b in zip(alone, other, strict=True)) for other in others]
        cores = [median(taken) for taken in one["cores"].values()]
        milliseconds = 1000 * median(alone) / one["photos"]
        shown = (milliseconds, *speeds, *cores)
        formats = ("{:.0f}", *["{:.2f}"] * 5)
        rows.append([name, one["photos"], *map(str.format, formats, shown), f"{one['same']}"])
    heads = ("preset", "photos", "ms a photo, one at a time", "speed, stream", "speed, batches",
             "cores, one at a time", "cores, stream", "cores, batches", "same boxes")  # fmt: skip
    memory = [[name, one["detections"], one["megabytes"], f"{one['largest_picture_bytes'] / 1e6:.1f}"]
              for name, one in result["memory"].items()]  # fmt: skip
    names = ("prediction", "detections", "peak beyond the loaded model, MB", "largest picture, MB")
    return fill("PREDICT.md", speed=table(heads, rows), memory=table(names, memory), **{
        key: value for key, value in result.items() if key != "memory"
    })  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns the exit status."""
    return write_files(PROGRAM, Options, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
