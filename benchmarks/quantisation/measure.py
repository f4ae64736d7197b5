"""Measures how far from their places RoI operations read, and which mask IoU that leaves attainable.

**Displacement.** The channels of the features are the image x and y of their cell's centre, so pooled values
say where they were read. A bin that reads several places counts with their middle, half the difference of the
operation on the field and on its negative. A displacement that is the same for all RoIs, in cells, is
harmless, as features are learned. The constant part is the median over all bins of all RoIs.

**Attainable masks.** A mask head without mistakes, with two cells a side for each bin, predicts the share of
each cell that the object covers at the place where it was read. Pasted over the RoI and compared with the
object, that gives the attainable IoU. Objects are silhouettes of the embedded data set stretched over their
RoIs. A feature describes its own place only, so operations differ by their places alone.
"""

import os
import sys
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

from benchmarks._markdown import write_page
from benchmarks._program import RESULTS, check, command_line, rounded, versions, write_files
from benchmarks.quantisation import report
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.data.shapes import INFO, KINDS
from mrcnn_jax.inference.paste import paste_masks
from mrcnn_jax.ops import pool_rois

PROGRAM = "python -m benchmarks.quantisation.measure"
IMAGE, BORDER = 1024, 64  # sides of the image and its border without RoIs, in pixels
STRIDES, SIZES = (4, 8, 16, 32), (16, 32, 64, 128, 256, 512)  # sizes: square roots of areas, in pixels
OPERATIONS = {
    "RoIAlign": {"operation": "align", "half_pixel": True},
    "RoIAlign, aligned=False": {"operation": "align", "half_pixel": False},
    "RoIWarp": {"operation": "warp"},
    "RoIPool": {"operation": "pool", "reduction": "max"},
}
FINE = 8  # raster cells of a silhouette along each side of a mask cell
EXAMPLE, EXAMPLE_BOX = INFO.category_names.index("puppet"), np.float32([101.3, 86.6, 201.3, 236.6])
Boxes, Places = Float[np.ndarray, "*n 4"], Float[np.ndarray, "*n bins bins 2"]
Masks = Bool[np.ndarray, "N h w"]


@dataclass(frozen=True)
class Options:
    """Measure how far from their places RoI operations read, and which mask IoU that leaves attainable."""

    rois: int = 512
    """RoIs, each with an object, of each size."""
    bins: int = 14
    """Bins along each side of a RoI, 14 for the paper's masks and 7 for its boxes."""
    seed: int = 0
    """Seed of the RoIs' places and the objects' outlines."""
    out: Path = RESULTS / "quantisation.json"
    """JSON file of the measurements; a page (NAME.md, in capitals) and pictures are written beside it."""


def regions(rois: int, seed: int) -> Float[np.ndarray, "S N 4"]:
    """Draws RoIs of each size, with aspect ratios from 1/2 to 2, anywhere between cells."""
    random = np.random.default_rng(seed)
    size = np.array(SIZES, float)[:, None]
    aspect = 2.0 ** random.uniform(-1, 1, (len(SIZES), rois))
    sides = np.stack([size * np.sqrt(aspect), size / np.sqrt(aspect)], axis=-1)
    corner = BORDER + random.uniform(0, 4 * max(STRIDES), sides.shape)
    return np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)


def bin_centres(boxes: Boxes, bins: int) -> Places:
    """Returns the places where bins should be read: x and y in image pixels."""
    share = (np.arange(bins) + 0.5) / bins
    grid = np.stack(np.meshgrid(share, share), axis=-1)
    return boxes[..., None, None, :2] + grid * (boxes[..., 2:] - boxes[..., :2])[..., None, None, :]


def read_places(operation: str, boxes: Boxes, bins: int) -> Float[np.ndarray, "L *n bins bins 2"]:
    """Measures the middle of what each bin reads, x and y in image pixels, for features of each stride."""
    pyramid = []
    for stride in STRIDES:
        centres = (np.arange(IMAGE // stride, dtype=np.float32) + 0.5) * stride
        field = np.stack(np.meshgrid(centres, centres), axis=-1)
        pyramid.append(jnp.asarray(np.concatenate([field, -field], axis=-1)[None]))
    flat = np.tile(boxes.reshape(-1, 4), (len(STRIDES), 1))
    levels = np.repeat(np.arange(len(STRIDES), dtype=np.int32), len(flat) // len(STRIDES))
    pool = jax.jit(partial(pool_rois, strides=STRIDES, output_size=bins, **OPERATIONS[operation]))
    pooled = np.asarray(pool(pyramid, jnp.asarray(flat)[None], jnp.asarray(levels)[None]))[0]
    return ((pooled[..., :2] - pooled[..., 2:]) / 2).reshape(len(STRIDES), *boxes.shape[:-1], bins, bins, 2)


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
        for contour, value in [(part, 1) for part in outline.parts] + [(hole, 0) for hole in outline.holes]:
            corners = (contour @ turn - low) / (high - low) * side - 0.5
            cv2.fillPoly(raster, [np.rint(corners * 2**shift).astype(np.int32)], value, shift=shift)
    return rasters.astype(bool)


def covered_shares(objects: Masks) -> Float[np.ndarray, "N _ _"]:
    """Computes the share that an object covers of the mask cell around each raster cell, with a rim."""
    framed = np.pad(objects, ((0, 0), (FINE, FINE), (FINE, FINE))).astype(np.float32)
    anchored = {"anchor": (FINE // 2, FINE // 2), "borderType": cv2.BORDER_CONSTANT}
    return np.stack([cv2.blur(one, (FINE, FINE), **anchored) for one in framed])


def attainable_masks(shares: Float[np.ndarray, "N _ _"], displacement: Places) -> Masks:
    """Pastes the masks of a head without mistakes over the RoI, on the raster of the objects.

    Args:
        shares: ``covered_shares`` of the objects, each of which fills its RoI.
        displacement: of each bin, x and y in sides of the RoI.
    """
    cells = 2 * displacement.shape[-2]
    side, centres = cells * FINE, (np.arange(cells) + 0.5) * FINE
    grid = np.stack(np.meshgrid(centres, centres), axis=-1)
    masks = np.empty((len(shares), cells, cells), np.float32)
    for mask, covered, offset in zip(masks, shares, displacement, strict=True):
        offset = cv2.resize(offset.astype(np.float32), (cells, cells), interpolation=cv2.INTER_LINEAR)
        place = (grid + FINE + offset * side).astype(np.float32)
        cv2.remap(covered, place, None, cv2.INTER_LINEAR, mask, cv2.BORDER_CONSTANT, 0)
    return paste_masks(masks, np.tile(np.float32([0, 0, side, side]), (len(masks), 1)), side, side)


def mask_iou(masks: Masks, others: Masks) -> Float[np.ndarray, "N"]:
    """Computes the IoU of masks of the same index, at least one of which is not empty."""
    return np.sum(masks & others, axis=(1, 2)) / np.sum(masks | others, axis=(1, 2))


def attainable(shares: Float[np.ndarray, "N _ _"], displacement: Places, objects: Masks) -> dict[str, float]:
    """Returns the mean IoU of attainable masks, and the share of objects with more than 0.75."""
    iou = mask_iou(attainable_masks(shares, displacement), objects)
    return {"iou": round(float(iou.mean()), 4), "above_075": round(float((iou > 0.75).mean()), 4)}


def measure(options: Options, boxes: Float[np.ndarray, "S N 4"], objects: Masks) -> dict[str, Any]:
    """Measures a row per operation, stride and size, and the constant part per operation and stride."""
    rows, constants, shares = [], [], covered_shares(objects)
    sides = (boxes[..., 2:] - boxes[..., :2])[..., None, None, :]
    for operation in OPERATIONS:
        displacements = read_places(operation, boxes, options.bins) - bin_centres(boxes, options.bins)
        for stride, displacement in zip(STRIDES, displacements, strict=True):
            at, constant = {"operation": operation, "stride": stride}, np.median(displacement, (0, 1, 2, 3))
            rest, (x, y) = displacement - constant, map(rounded, constant)
            constants.append(at | {"x": x, "y": y, "rest_rms": _rms(rest)})
            for size, place, moved, side in zip(SIZES, displacement, rest, sides, strict=True):
                distance = np.linalg.norm(place, axis=-1)
                rows.append(at | {
                    "size": size, "mean": rounded(distance.mean()),
                    "percentile_95": rounded(np.percentile(distance, 95)), "largest": rounded(distance.max()),
                    "rest_rms": _rms(moved), "as_read": attainable(shares, place / side, objects),
                    "constant_undone": attainable(shares, moved / side, objects),
                })  # fmt: skip
    return {
        "command": command_line(PROGRAM, options),
        "rois": options.rois, "bins": options.bins, "seed": options.seed,
        "versions": versions("jax", "numpy", "opencv-python-headless"), "platform": jax.default_backend(),
        "constants": constants, "ceiling": attainable(shares, np.zeros_like(rest[0]), objects), "rows": rows,
    }  # fmt: skip


def _rms(vectors):
    return rounded(np.sqrt(np.mean(np.sum(np.square(vectors), axis=-1))))


def example(result: dict[str, Any], truth: Masks) -> report.Panels:
    """Measures one object: places, attainable masks and their IoU by operation and stride."""
    panels, shares, (x1, y1, x2, y2) = {}, np.repeat(covered_shares(truth), 2, axis=0), EXAMPLE_BOX
    read = {operation: read_places(operation, EXAMPLE_BOX, result["bins"]) for operation in OPERATIONS}
    for constant in result["constants"]:
        operation, stride = at = constant["operation"], constant["stride"]
        places = read[operation][STRIDES.index(stride)]
        offset = places - bin_centres(EXAMPLE_BOX, result["bins"])
        offsets = np.stack([offset, offset - [constant["x"], constant["y"]]])
        masks = attainable_masks(shares, offsets / [x2 - x1, y2 - y1])
        panels[at] = places, masks, mask_iou(masks, truth)
    return panels


def run(options: Options) -> list[Path]:
    """Measures and writes all files; returns them. Raises InputError for options out of range."""
    check(options, rois=1, bins=1, seed=0)
    out, objects = options.out, silhouettes(options.rois, 2 * options.bins * FINE, options.seed)
    result = measure(options, regions(options.rois, options.seed), objects)
    chosen = objects[min(EXAMPLE, len(objects) - 1)][None]
    write_json(out, result)
    drawing = report.draw_example(example(result, chosen), chosen[0], EXAMPLE_BOX)
    text = report.markdown(result, f"{out.stem}.png", f"{out.stem}_example.png")
    figures = {out.stem: report.plot(result), f"{out.stem}_example": drawing}
    return [out, *write_page(out.with_name(f"{out.stem.upper()}.md"), text, **figures)]


def main(arguments: list[str]) -> int:
    """Runs the program; returns the exit status."""
    return write_files(PROGRAM, Options, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
