"""python -m benchmarks.nms.measure: non-maximum suppression of usual and of the worst inputs.

Beside it, in turn: torchvision's, by the Python in MRCNN_TORCHVISION_PYTHON. Both must keep the same boxes.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import _torchvision
from benchmarks._program import RESULTS, check, command_line, processor, rounded, versions, write_files
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.ops import nms

PROGRAM = "python -m benchmarks.nms.measure"
NAMES = ("boxes", "scores", "groups")


@dataclass(frozen=True)
class Options:
    """Measure non-maximum suppression."""

    scale: float = 1.0
    """Factor of the numbers of boxes."""
    repeats: int = 7
    """Measurements of each case, of which the median counts."""
    out: Path = RESULTS / "nms.json"
    """JSON file of the results."""


def cases(scale: float) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """Makes boxes [batch, N, 4], scores, groups and the threshold of each case."""
    rng = np.random.default_rng(0)

    def boxes(batch, number, image=800.0, side=100.0):
        corner = rng.uniform(0, image, (batch, number, 2))
        return np.concatenate([corner, corner + 10 + rng.uniform(0, side, corner.shape)], -1).astype(
            np.float32
        )

    def case(boxes, threshold, classes=1, equal=False):
        scores = np.zeros(boxes.shape[:2]) if equal else rng.random(boxes.shape[:2])
        return boxes, scores.astype(np.float32), rng.integers(0, classes, scores.shape), threshold

    def size(number):
        return max(2, int(number * scale))

    left = np.arange(size(4000), dtype=np.float32)
    chain = np.stack([left, 0 * left, left + 3, 0 * left + 1], axis=1)[None]
    return {
        "proposals: 2 images x 5 levels x 1,000": case(boxes(10, size(1000)), 0.7),
        "proposals: 2 images x 5 levels x 2,000": case(boxes(10, size(2000)), 0.7),
        "proposals of equal scores: 2 x 5 x 2,000": case(boxes(10, size(2000)), 0.7, equal=True),
        "detections: 2 images x 1,000, 80 classes": case(boxes(2, size(1000)), 0.5, classes=80),
        "random: 1,000": case(boxes(1, size(1000)), 0.5),
        "random: 4,000": case(boxes(1, size(4000)), 0.5),
        "equal scores: 4,000": case(boxes(1, size(4000)), 0.5, equal=True),
        "chain of overlaps: 4,000": (chain, -left[None] / 4096, np.zeros((1, len(left)), int), 0.4),
        "random: 20,000": case(boxes(1, size(20_000), 4000, 60), 0.5),
        "random: 50,000": case(boxes(1, size(50_000), 4000, 60), 0.5),
    }  # fmt: skip


def ours(threshold: float, *arrays: np.ndarray) -> Callable[[], tuple[float, int]]:
    """Returns a function that times NMS, compiled and mapped over the batch, and counts the boxes kept."""
    program = jax.jit(jax.vmap(lambda boxes, scores, groups: nms(boxes, scores, threshold, None, groups)))

    def run():
        begin = time.perf_counter()
        keep = jax.block_until_ready(program(*arrays))
        return time.perf_counter() - begin, int(keep.sum())

    return run


def measure(options: Options) -> list[dict[str, Any]]:
    """Measures all cases, the implementations in turn."""
    rows, process = [], _torchvision.start("benchmarks.roi._torchvision", jax.default_backend())
    for name, (*arrays, threshold) in cases(options.scale).items():
        timers = {"ours": ours(threshold, *arrays)}
        if process:
            named = dict(zip(NAMES, arrays, strict=True))
            timers["torchvision"] = partial(process, "nms", named, threshold=threshold)
        runs = [{key: run() for key, run in timers.items()} for _ in range(options.repeats + 1)][1:]
        kept = {run[key][1] for run in runs for key in timers}
        milliseconds = {key: rounded(1e3 * np.median([run[key][0] for run in runs])) for key in timers}
        rows.append({"case": name, "kept": sorted(kept), "milliseconds": milliseconds})
        print(rows[-1])
    if process:
        process.close()
    return rows


def run(options: Options) -> list[Path]:
    """Measures and writes the JSON file."""
    check(options, scale=0, repeats=1)
    described = {"command": command_line(PROGRAM, options), "processor": processor(), "cores": os.cpu_count()}
    write_json(options.out, described | versions("jax", "numpy") | {"rows": measure(options)})
    return [options.out]


if __name__ == "__main__":
    sys.exit(write_files(PROGRAM, Options, run))
