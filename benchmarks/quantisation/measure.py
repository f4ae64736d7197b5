"""Measures how far from their places RoI operations read, and which mask IoU that leaves attainable.

    python -m benchmarks.quantisation.measure [--rois N] [--bins N] [--seed N] [--out FILE]

**Displacement.** The channels of the features are the image x and y of each cell's centre, so that pooled values are
the places they were read at. A bin that reads several places counts with their middle: half the difference of the
operation on the field and on its negative (for an average the mean, for RoIPool the centre of the bin's cells). RoIs
lie well inside the image. A displacement that is the same for all RoIs, in cells, is harmless, as features are learned
and may describe what lies half a cell aside; what varies from RoI to RoI cannot be learned away. The constant part is
the median over all bins of all RoIs of an operation and stride.

**Attainable masks.** A mask head that makes no mistake, with two cells a side for each bin, predicts for each cell the
share of it that the object covers at the place where it was read. Pasted over the RoI and compared with the object,
that gives the attainable IoU: as read, and with the constant part of the displacement undone. The objects are
silhouettes of the embedded data set stretched over their RoIs. A feature is taken to describe its own place only, so
that operations differ by their places alone. Tables 2c and 2d of Mask R-CNN ask the same of trained models.
"""

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# pasting is many small matrix products, whose threads would wait for each other where cores are busy
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from rich.console import Console
from rich.progress import track

from benchmarks._program import check, command_line, versions, write_files
from benchmarks.quantisation import report
from benchmarks.quantisation.report import OPERATIONS, SIZES, STRIDES
from mrcnn_jax.atomic_io import replacing, write_json
from mrcnn_jax.data.shapes import KINDS
from mrcnn_jax.inference.paste import paste_masks
from mrcnn_jax.ops import pool_rois

PROGRAM = "python -m benchmarks.quantisation.measure"
RESULT = Path(__file__).parents[1] / "results" / "quantisation.json"
IMAGE = 1024  # pixels a side
BORDER = 64  # pixels between RoIs and the border: two cells of the largest stride
FINE = 8  # raster cells of a silhouette along each side of a mask cell
Places = Float[np.ndarray, "*n bins bins 2"]
Masks = Bool[np.ndarray, "N side side"]


@dataclass(frozen=True)
class Options:
    """Measure how far from their places RoI operations read, and which mask IoU that leaves attainable."""

    rois: int = 512
    """RoIs, each with an object, of each size."""
    bins: int = 14
    """Bins along each side of a RoI, 14 for the paper's masks and 7 for its boxes; masks have twice as many cells."""
    seed: int = 0
    """Seed of the RoIs' places and the objects' outlines."""
    out: Path = RESULT
    """JSON file of the measurements; beside it a page (NAME.md, in capitals), plots (.png) and an example
    (_example.png)."""


def regions(rois: int, seed: int) -> Float[np.ndarray, "S N 4"]:
    """Draws RoIs of each size, with aspect ratios from 1/2 to 2, at any place between the cells of every stride."""
    random = np.random.default_rng(seed)
    size = np.array(SIZES, float)[:, None]
    aspect = 2.0 ** random.uniform(-1, 1, (len(SIZES), rois))
    sides = np.stack([size * np.sqrt(aspect), size / np.sqrt(aspect)], axis=-1)
    corner = BORDER + random.uniform(0, 4 * max(STRIDES), sides.shape)
    return np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)


def bin_centres(boxes: Float[np.ndarray, "*n 4"], bins: int) -> Places:
    """Returns the places where bins should be read: x and y in image pixels."""
    share = (np.arange(bins) + 0.5) / bins
    grid = np.stack(np.meshgrid(share, share), axis=-1)
    return boxes[..., None, None, :2] + grid * (boxes[..., 2:] - boxes[..., :2])[..., None, None, :]


def coordinate_field(stride: int) -> Float[np.ndarray, "1 h w 4"]:
    """Makes features that hold x and y of each cell's centre in image pixels, then -x and -y."""
    centres = (np.arange(IMAGE // stride, dtype=np.float32) + 0.5) * stride
    field = np.stack(np.meshgrid(centres, centres), axis=-1)
    return np.concatenate([field, -field], axis=-1)[None]


def read_places(operation: str, boxes: Float[np.ndarray, "*n 4"], bins: int) -> Float[np.ndarray, "L *n bins bins 2"]:
    """Measures the middle of what each bin reads, x and y in image pixels, for features of each of the L strides."""
    flat = np.tile(boxes.reshape(-1, 4), (len(STRIDES), 1))
    levels = np.repeat(np.arange(len(STRIDES), dtype=np.int32), len(flat) // len(STRIDES))
    pool = jax.jit(partial(pool_rois, strides=STRIDES, output_size=bins, **OPERATIONS[operation]))
    pyramid = [jnp.asarray(coordinate_field(stride)) for stride in STRIDES]
    pooled = np.asarray(pool(pyramid, jnp.asarray(flat)[None], jnp.asarray(levels)[None]))
    middle = (pooled[0, ..., :2] - pooled[0, ..., 2:]) / 2
    return middle.reshape(len(STRIDES), *boxes.shape[:-1], bins, bins, 2)


def silhouettes(number: int, side: int, seed: int) -> Masks:
    """Draws outlines of the embedded data set's classes in turn, each stretched until it fills the raster."""
    random = np.random.default_rng([seed, 1])
    rasters = np.zeros((number, side, side), np.uint8)
    shift = 4  # bits of fraction; OpenCV puts the centre of a raster cell at its index, hence the half below
    for index, raster in enumerate(rasters):
        kind = KINDS[index % len(KINDS)]
        angle = random.uniform(-kind.turn, kind.turn)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        outline = kind.outline(random)
        points = np.concatenate(outline.parts) @ turn
        low, high = points.min(axis=0), points.max(axis=0)
        for contours, value in ((outline.parts, 1), (outline.holes, 0)):
            for contour in contours:
                corners = (contour @ turn - low) / (high - low) * side - 0.5
                cv2.fillPoly(raster, [np.rint(corners * 2**shift).astype(np.int32)], value, shift=shift)
    return rasters.astype(bool)


def covered_shares(objects: Masks) -> Float[np.ndarray, "N _ _"]:
    """Computes the share of a mask cell that each object covers, for cells anywhere on the raster with a rim of FINE.

    Entry i is of the cell that begins at i - FINE / 2.
    """
    framed = np.pad(objects, ((0, 0), (FINE, FINE), (FINE, FINE))).astype(np.float32)
    blur = partial(cv2.blur, ksize=(FINE, FINE), anchor=(FINE // 2, FINE // 2), borderType=cv2.BORDER_CONSTANT)
    return np.stack([blur(one) for one in framed])


def attainable_masks(shares: Float[np.ndarray, "N _ _"], displacement: Places) -> Masks:
    """Pastes the masks of a head without mistakes over the RoI, on the raster of the objects.

    Args:
        shares: ``covered_shares`` of the objects, each of which fills its RoI.
        displacement: of each bin, x and y in sides of the RoI.
    """
    cells = 2 * displacement.shape[-2]
    side = cells * FINE
    centres = (np.arange(cells) + 0.5) * FINE
    grid = np.stack(np.meshgrid(centres, centres), axis=-1)
    masks = np.empty((len(shares), cells, cells), np.float32)
    for mask, covered, offset in zip(masks, shares, displacement, strict=True):
        offset = cv2.resize(offset.astype(np.float32), (cells, cells), interpolation=cv2.INTER_LINEAR)
        place = (grid + FINE + offset * side).astype(np.float32)
        cv2.remap(covered, place, None, cv2.INTER_LINEAR, dst=mask, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return paste_masks(masks, np.tile(np.float32([0, 0, side, side]), (len(masks), 1)), side, side)


def mask_iou(masks: Masks, others: Masks) -> Float[np.ndarray, "N"]:
    """Computes the IoU of masks of the same index, at least one of which is not empty."""
    return np.sum(masks & others, axis=(1, 2)) / np.sum(masks | others, axis=(1, 2))


def measure(options: Options, boxes: Float[np.ndarray, "S N 4"], objects: Masks) -> dict[str, Any]:
    """Measures a row for each operation, stride and size, and the constant part for each operation and stride."""
    rows, constants = [], []
    sides = (boxes[..., 2:] - boxes[..., :2])[..., None, None, :]
    attainable = partial(_attainable, objects, covered_shares(objects))
    ceiling = attainable(np.zeros((options.rois, options.bins, options.bins, 2)))
    for operation in track(OPERATIONS, description="operations", console=Console(stderr=True), transient=True):
        displacements = read_places(operation, boxes, options.bins) - bin_centres(boxes, options.bins)
        for stride, displacement in zip(STRIDES, displacements, strict=True):
            constant = np.median(displacement, axis=(0, 1, 2, 3))
            rest, at = displacement - constant, {"operation": operation, "stride": stride}
            constants.append(at | {"x": _short(constant[0]), "y": _short(constant[1]), "rest_rms": _rms(rest)})
            for size, place, moved, side in zip(SIZES, displacement, rest, sides, strict=True):
                row = at | {"size": size} | _distances(place) | {"rest_rms": _rms(moved)}
                rows.append(row | {"as_read": attainable(place / side), "constant_undone": attainable(moved / side)})
    about = {name: getattr(options, name) for name in ("rois", "bins", "seed")}
    installed = versions("jax", "numpy", "opencv-python-headless")
    return {
        "command": command_line(PROGRAM, options), **about, "versions": installed, "platform": jax.default_backend(),
        "constants": constants, "ceiling": ceiling, "rows": rows,
    }  # fmt: skip


def _distances(displacement):
    distance = np.linalg.norm(displacement, axis=-1)
    statistics = {"mean": np.mean, "percentile_95": partial(np.percentile, q=95), "largest": np.max}
    return {name: _short(statistic(distance)) for name, statistic in statistics.items()}


def _attainable(objects, shares, displacement):
    iou = mask_iou(attainable_masks(shares, displacement), objects)
    return {"iou": round(float(iou.mean()), 4), "above_075": round(float((iou > 0.75).mean()), 4)}


def _rms(vectors):
    return _short(np.sqrt(np.mean(np.sum(np.square(vectors), axis=-1))))


def _short(value):
    return float(f"{value:.4g}")


def run(options: Options) -> list[Path]:
    """Measures and writes all files or none; returns them. Raises InputError for options out of range."""
    check(options, rois=1, bins=1, seed=0)
    stem, place = options.out.stem, options.out.parent
    files = options.out, place / f"{stem.upper()}.md", place / f"{stem}.png", place / f"{stem}_example.png"
    objects = silhouettes(options.rois, 2 * options.bins * FINE, options.seed)
    result = measure(options, regions(options.rois, options.seed), objects)
    with ExitStack() as stack:
        numbers, page, picture, example = (stack.enter_context(replacing(file)) for file in files)
        write_json(numbers, result)
        page.write_text(report.markdown(result, files[2].name, files[3].name))
        report.plot(result, picture)
        report.draw_example(result, objects, example)
    return list(files)


if __name__ == "__main__":
    sys.exit(write_files(PROGRAM, Options, run, sys.argv[1:]))
