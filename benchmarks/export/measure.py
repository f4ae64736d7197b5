"""python -m benchmarks.export.measure: exported detectors against the live one, on one photo.

Weights of presets are random, with class scores far enough apart to be ranked. A call measures some of the
detectors and keeps the results of the others.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks._markdown import fill, table, write_page
from benchmarks._program import RESULTS, check, processor, rounded, versions, write_files
from benchmarks.model._synthetic import make_photos, standalone
from mrcnn_jax import export, load, presets
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.data.image_io import read_image, save_image
from mrcnn_jax.detections import Detections
from mrcnn_jax.inference.benchmark import Timing, benchmark
from mrcnn_jax.models.systems import init_variables, make_model
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.weights.folder import Weights, write_model_folder

PROGRAM = "python -m benchmarks.export.measure"
PAGE = "EXPORT.md"
FORMATS = ("stablehlo", "onnx")
PADDED = "live, padded to two sizes"
CLASSES = 80
RECORDED = Path(__file__).parents[2] / "tests" / "golden" / "models"
"""Recorded models of other libraries, whose outputs were computed in float32 and in float64."""


@dataclass(frozen=True)
class Options:
    """Measure exported detectors: their detections, files and speed."""

    models: tuple[str, ...] = ("mask_rcnn_r50_fpn", "keypoint_rcnn_r50_fpn", "mask_rcnn_r50_c4")
    """Presets that are measured."""
    imported: tuple[Path, ...] = ()
    """Folders of imported weights, whose detections are compared on --images."""
    images: tuple[Path, ...] = ()
    """Images for --imported."""
    height: int = 800
    """Height of the photo."""
    width: int = 1333
    """Width of the photo."""
    rounds: int = 3
    """Measurements of each format, interleaved."""
    out: Path = RESULTS / "export.json"
    """JSON file of the results; the page is EXPORT.md beside it."""


def write_model(name: str, folder: Path, size: tuple[int, int]) -> None:
    """Writes a detector with random weights whose class scores differ."""
    experiment = standalone(presets.get(name), CLASSES, 17)
    short, long = sorted(size)
    data = replace(experiment.data, short_edge=(short,), short_edge_test=short, long_edge=long)
    experiment = replace(experiment, data=data)
    variables = jax.device_get(init_variables(make_model(experiment.model), jax.random.key(0)))
    for part, layer, factor in (("box", "classes", 5), ("rpn", "objectness", 10)):
        parameters = variables["params"][part][layer]
        parameters["kernel"] = parameters["kernel"] * np.float32(factor)
    classes = range(experiment.model.num_classes)
    info = DatasetInfo("random", tuple(one + 1 for one in classes), tuple(f"class {one}" for one in classes))
    write_model_folder(folder, Weights(experiment, info, variables))


def compare(found: Detections, expected: Detections) -> dict[str, Any]:
    """Compares detections that may have changed places, where their scores are equal but for rounding."""
    distance = np.abs(found.boxes[:, None] - expected.boxes[None]).max(axis=2, initial=0)
    distance[found.class_ids[:, None] != expected.class_ids[None]] = np.inf
    own = distance.argmin(axis=0)
    nearest = distance[own, np.arange(len(expected))]
    same = nearest < 0.1
    result = {
        "detections": len(expected), "same": int(same.sum()), "pixels": rounded(nearest[same].max(initial=0)),
        "score": rounded(np.abs(found.scores[own] - expected.scores)[same].max(initial=0)),
    }  # fmt: skip
    if found.masks is not None:
        pairs = [(found.masks[one], expected.masks[other]) for other, one in enumerate(own) if same[other]]
        result["mask_pixels"] = rounded(np.mean([np.mean(one != other) for one, other in pairs]))
    if found.keypoints is not None:
        moved = np.abs(found.keypoints[own] - expected.keypoints)[same][..., :2]
        result["keypoint_pixels"] = rounded(float(np.quantile(moved, 0.99)))
    return result


def compare_imported(folder: Path, images: Sequence[Path]) -> dict[str, Any]:
    """Exports imported weights in all formats and compares detections with the live detector's.

    StableHLO pads images to two sizes; it is compared with a live detector that pads likewise, and that one
    with the detector as imported.

    Returns:
        By format, or that padded detector, sums of counts and the largest differences over the images.
    """
    result: dict[str, Any] = {kind: {} for kind in (*FORMATS, PADDED)}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {"live": folder} | {kind: Path(temporary, kind) for kind in FORMATS}
        for kind in FORMATS:
            export(folder, folders[kind], format=kind)
        detectors = {kind: load(path) for kind, path in folders.items()}
        detectors[PADDED] = load(folder, {"data.padding_divisor": 0})
        for image in images:
            found = {kind: detector(image) for kind, detector in detectors.items()}
            for kind, other in (("stablehlo", PADDED), ("onnx", "live"), (PADDED, "live")):
                for name, value in compare(found[kind], found[other]).items():
                    before = result[kind].get(name, 0)
                    result[kind][name] = before + value if isinstance(value, int) else max(before, value)
    return result


def measure(name: str, options: Options) -> dict[str, Any]:
    """Exports a preset in all formats and measures them beside the live detector."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = {kind: Path(temporary, kind) for kind in ("live", *FORMATS)}
        photo = Path(temporary, "photo.png")
        save_image(photo, make_photos(1, options.height, options.width)[0])
        write_model(name, folders["live"], (options.height, options.width))
        result: dict[str, Any] = {}
        for kind in FORMATS:
            begin = time.perf_counter()
            export(folders["live"], folders[kind], format=kind)
            result[kind] = {
                "export_seconds": rounded(time.perf_counter() - begin),
                "megabytes": {file.name: rounded(file.stat().st_size / 1e6)
                              for file in sorted(folders[kind].iterdir()) if file.stat().st_size > 10_000},
            }  # fmt: skip
        expected = load(folders["live"])(photo)
        for kind in FORMATS:
            result[kind] |= compare(load(folders[kind])(photo), expected)
        timings = benchmark(list(folders.values()), images=photo, rounds=options.rounds)
    return result | {"seconds": {timing.format: _seconds(timing) for timing in timings}}


def _seconds(timing: Timing) -> dict[str, float]:
    return {"network": rounded(timing.network), "whole": rounded(timing.whole)}


def run(options: Options) -> list[Path]:
    """Runs the benchmark; returns the files written."""
    check(options, rounds=1, height=64, width=64)
    result = json.loads(options.out.read_text()) if options.out.exists() else {"models": {}}
    result |= {"command": PROGRAM, "versions": versions("jax", "numpy", "onnx", "onnxruntime")}
    if options.models:  # all of whose seconds are of one machine
        result |= {
            "date": time.strftime("%Y-%m-%d"), "machine": {"processor": processor(), "cores": os.cpu_count()},
            "image": [options.height, options.width],
        }  # fmt: skip
    for name in options.models:
        result["models"][name] = measure(name, options)
        write_json(options.out, result)
    for folder in options.imported:
        result.setdefault("imported", {})[folder.name] = compare_imported(folder, options.images)
        sizes = [list(read_image(image).shape[:2]) for image in options.images]
        result |= {"imported_sizes": sizes, "imported_processor": processor()}
        write_json(options.out, result)
    return [options.out, *write_page(options.out.with_name(PAGE), make_page(result))]


def make_page(result: dict[str, Any]) -> str:
    """Returns the page of the results."""
    files, speed = [], []
    for name, one in result["models"].items():
        for kind in FORMATS:
            own = one[kind]
            sizes = ", ".join(f"{file} {size:.1f}" for file, size in own["megabytes"].items())
            files.append([name, kind, sizes, f"{sum(own['megabytes'].values()):.0f}"])
        cells = [f"{one['seconds'][kind][part]:.2f}" for part in ("network", "whole")
                 for kind in ("live", *FORMATS)]  # fmt: skip
        speed.append([name, *cells])
    columns = [f"{part}, {kind}" for part in ("network", "whole") for kind in ("live", *FORMATS)]
    return fill(
        PAGE, agreement=_agreement(result["models"]), imported=_agreement(result["imported"]),
        rounding=_rounding(result["imported"]),
        sizes=", ".join(f"{height} x {width}" for height, width in result["imported_sizes"]),
        speed=table(("preset", *columns), speed),
        files=table(("preset", "format", "files, MB", "together"), files),
        **{key: result[key] for key in ("command", "machine", "versions", "image", "imported_processor")},
    )  # fmt: skip


def _agreement(models: dict[str, Any]) -> str:
    """Returns the table of how detections agree."""
    heads = ("model", "format", "same detections", "largest difference of boxes, pixels", "of scores",
             "share of mask pixels that differ", "keypoints, pixels (99th percentile)")  # fmt: skip
    names = "pixels", "score", "mask_pixels", "keypoint_pixels"
    rows = [
        [
            model, kind, f"{one[kind]['same']} of {one[kind]['detections']}",
            *(f"{one[kind][name]:.2g}" if name in one[kind] else "" for name in names),
        ]
        for model, one in models.items() for kind in (*FORMATS, PADDED) if kind in one
    ]  # fmt: skip
    return table(heads, rows)


def _rounding(models: Iterable[str]) -> str:
    """Returns the table of what rounding does to the recorded models in the libraries themselves."""
    rows = []
    for model in models:
        recorded = json.loads((RECORDED / model / "tolerance.json").read_text())
        boxes = {name: one["max_abs_diff"] for name, one in recorded.items() if name.endswith("_boxes")}
        rows.append([model, f"{boxes['det_boxes']:.2g}", f"{max(boxes.values()):.2g}"])
    return table(("model", "boxes of the first image, pixels", "of any recorded image"), rows)


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns the exit status."""
    return write_files(PROGRAM, Options, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
