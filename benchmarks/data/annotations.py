"""python -m benchmarks.data.annotations: processor time to read and check a made-up annotation file.

Images are not decoded. With `--against DIR`, a checkout of another revision, both are measured in turns.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from benchmarks._program import RESULTS, check, command_line, processor, rounded, versions, write_files
from mrcnn_jax.atomic_io import write_json

PROGRAM = "python -m benchmarks.data.annotations"
HEIGHT, WIDTH = 480, 640
_MEASURE = """
import sys, time
import numpy as np
from mrcnn_jax.data.formats import coco
if hasattr(coco, "read_stored_image"):
    from mrcnn_jax.data.stored_image import StoredImage
    coco.read_stored_image = lambda path, *_: StoredImage(path.read_bytes(), {height}, {width}, False, ())
else:
    blank = np.zeros(({height}, {width}, 3), np.uint8)
    coco.decode_image = lambda *_: blank
start = time.process_time()
file = coco.CocoFile(sys.argv[1], sys.argv[2])
read = time.process_time()
objects = sum(len(record.objects.ids) for record in file)
print(read - start, time.process_time() - read, objects)
"""


@dataclass(frozen=True)
class Options:
    """Measure the time to read and check an annotation file."""

    images: int = 100_000
    """Number of images."""
    objects: int = 860_000
    """Number of objects, each with a box and a polygon."""
    rounds: int = 3
    """Measurements, of which the median counts."""
    against: Path | None = None
    """Checkout of another revision, measured in turns with this one."""
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


def measure(folder: Path, checkout: Path) -> tuple[float, float, int]:
    """Returns seconds of reading and of judging, and the objects found, by the code in ``checkout``."""
    code = _MEASURE.format(height=HEIGHT, width=WIDTH)
    command = [sys.executable, "-c", code, str(folder / "images"), str(folder / "annotations.json")]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=folder)
    read, judged, objects = run.stdout.split()
    return float(read), float(judged), int(objects)


def run(options: Options) -> list[Path]:
    """Runs the benchmark; returns the files written."""
    check(options, images=1, objects=1, rounds=1)
    checkouts = {"this": Path(__file__).parents[2]}
    if options.against:
        checkouts["other"] = options.against.absolute()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in checkouts}
    with TemporaryDirectory() as folder:
        write_annotations(Path(folder), options.images, options.objects)
        for _ in range(options.rounds):
            for name, checkout in checkouts.items():
                *seconds, objects = measure(Path(folder), checkout)
                if objects != options.objects:
                    raise RuntimeError(f"{checkout} keeps {objects} of {options.objects} objects")
                times[name].append(seconds)
    result = {
        "command": command_line(PROGRAM, options), "images": options.images, "objects": options.objects,
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "versions": versions("numpy", "pycocotools"), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    for name, measured in times.items():
        read, judged = (rounded(median(column)) for column in zip(*measured, strict=True))
        total = rounded(median(sum(seconds) for seconds in measured))
        result[name] = {"read_seconds": read, "judge_seconds": judged, "seconds": total}
    if options.against:
        result["ratio"] = rounded(result["this"]["seconds"] / result["other"]["seconds"])
    write_json(options.out, result)
    return [options.out]


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns the exit status."""
    return write_files(PROGRAM, Options, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
