"""python -m benchmarks.quantisation.measure [--rois N] [--bins N] [--seed N] [--out FILE]: how far from their places RoI operations read, and what it costs.

**Displacement.** Features whose channels are the image x and y of their cell's centre say where they were read. Each bin of a RoI should be read at
its own centre; how far off it was is measured in image pixels. A bin that reads several places counts with their middle: half the difference of what
the operation makes of the field and of its negative. For a mean that is the mean itself, for RoIPool the centre of the bin's cells, as the two maxima
are the last cell and the first. RoIs lie well inside the image, where no border changes what is read.

The part of a displacement that is the same for all RoIs, in cells, is harmless: features are learned, and may as well describe what lies half a cell
to the side. What varies from RoI to RoI cannot be learned away, because nothing tells the heads how a RoI was rounded. The constant part is taken to
be the median over all bins of all RoIs of an operation and stride, for x and for y, the shift that leaves least. (RoIPool also makes RoIs a cell
longer, since both end cells belong to them; how many bins that is depends on the RoI's size, so it counts as varying. So does what RoIWarp and
RoIAlign with aligned=False do to RoIs of less than a cell: they read them as a whole one.)

**Attainable masks.** A mask head that makes no mistake, with twice as many cells a side as there are bins, says of each cell which share of it the
object covers, there where it was read: the bins' displacements, interpolated. Pasted over the RoI where it should be and compared with the object,
that is the IoU which is still attainable; once as it is read, and once with the constant part of the displacement undone. The objects are the
silhouettes of the embedded data set, stretched over their RoIs, and areas are compared, not pixels of an image. A feature is taken to describe its
own place only: what a head may infer from the neighbourhood, or lose because features are coarse, is left out, so that operations differ by their
places alone. Tables 2c and 2d of Mask R-CNN ask the same question of trained models.
"""

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")  # as the command line does
# pasting is many small matrix products, whose threads would wait for each other where cores are busy
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from rich.console import Console
from rich.progress import track

from benchmarks._program import check, command_line, versions, write_files
from mrcnn_jax.atomic_io import replacing, write_json
from mrcnn_jax.data.shapes import INFO, KINDS
from mrcnn_jax.ops import paste_masks, pool_rois

PROGRAM = "python -m benchmarks.quantisation.measure"
RESULT = Path(__file__).parents[1] / "results" / "quantisation.json"
IMAGE = 1024  # pixels a side
BORDER = 64  # pixels between RoIs and the border: two cells of the largest stride
STRIDES = (4, 8, 16, 32)
SIZES = (16, 32, 64, 128, 256, 512)  # the square root of a RoI's area, in pixels
OPERATIONS = {
    "RoIAlign": {"operation": "align", "aligned": True},
    "RoIAlign, aligned=False": {"operation": "align", "aligned": False},
    "RoIWarp": {"operation": "warp"},
    "RoIPool": {"operation": "pool", "reduction": "max"},
}
COLOURS = dict(zip(OPERATIONS, ("#0072b2", "#56b4e9", "#009e73", "#d55e00"), strict=True))
FINE = 8  # raster cells of a silhouette along each side of a mask cell
EXAMPLE = "puppet"
EXAMPLE_BOX = np.float32([101.3, 86.6, 201.3, 236.6])
EXAMPLE_STRIDES = (16, 32)


@dataclass(frozen=True)
class Options:
    """Measure how far from their places RoIAlign, RoIWarp and RoIPool read, and which mask IoU that leaves attainable."""

    rois: int = 512
    """RoIs, each with an object, of each size."""
    bins: int = 14
    """Bins along each side of a RoI, 14 for the paper's masks and 7 for its boxes; masks have twice as many cells."""
    seed: int = 0
    """Of the RoIs' places and the objects' outlines."""
    out: Path = RESULT
    """Where the figures go, as JSON; beside it tables (NAME.md, in capitals), plots (.png) and an example (_example.png)."""


# ---- displacement


def regions(rois: int, seed: int) -> Float[np.ndarray, "S N 4"]:
    """RoIs of each size with aspect ratios from 1/2 to 2, in image pixels, anywhere between the cells of every stride."""
    random = np.random.default_rng(seed)
    size = np.array(SIZES, float)[:, None]
    aspect = 2.0 ** random.uniform(-1, 1, (len(SIZES), rois))
    sides = np.stack([size * np.sqrt(aspect), size / np.sqrt(aspect)], axis=-1)
    corner = BORDER + random.uniform(0, 4 * max(STRIDES), sides.shape)
    return np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)


def bin_centres(boxes: Float[np.ndarray, "*n 4"], bins: int) -> Float[np.ndarray, "*n bins bins 2"]:
    """Where each bin of each RoI should be read: x and y in image pixels."""
    share = (np.arange(bins) + 0.5) / bins
    grid = np.stack(np.meshgrid(share, share), axis=-1)
    return boxes[..., None, None, :2] + grid * (boxes[..., 2:] - boxes[..., :2])[..., None, None, :]


def coordinate_field(stride: int) -> Float[np.ndarray, "1 h w 4"]:
    """Features that say where they are: x and y of each cell's centre in image pixels, then -x and -y."""
    centres = (np.arange(IMAGE // stride, dtype=np.float32) + 0.5) * stride
    field = np.stack(np.meshgrid(centres, centres), axis=-1)
    return np.concatenate([field, -field], axis=-1)[None]


def read_places(operation: str, boxes: Float[np.ndarray, "*n 4"], bins: int) -> Float[np.ndarray, "L *n bins bins 2"]:
    """The middle of what each bin reads, x and y in image pixels, for features of each of the L strides."""
    flat = np.tile(boxes.reshape(-1, 4), (len(STRIDES), 1))
    levels = np.repeat(np.arange(len(STRIDES), dtype=np.int32), len(flat) // len(STRIDES))
    pool = jax.jit(partial(pool_rois, strides=STRIDES, output_size=bins, **OPERATIONS[operation]))
    pooled = np.asarray(pool([jnp.asarray(coordinate_field(stride)) for stride in STRIDES], jnp.asarray(flat)[None], jnp.asarray(levels)[None]))
    middle = (pooled[0, ..., :2] - pooled[0, ..., 2:]) / 2
    return middle.reshape(len(STRIDES), *boxes.shape[:-1], bins, bins, 2)


# ---- attainable masks


def silhouettes(number: int, side: int, seed: int) -> Bool[np.ndarray, "N {side} {side}"]:
    """Outlines of the embedded data set's classes in turn, each stretched until it fills the raster."""
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


def covered_shares(objects: Bool[np.ndarray, "N side side"]) -> Float[np.ndarray, "N _ _"]:
    """How much of a mask cell each object covers, wherever the cell lies on the raster with a rim of FINE: entry i begins at i - FINE / 2."""
    framed = np.pad(objects, ((0, 0), (FINE, FINE), (FINE, FINE))).astype(np.float32)
    return np.stack([cv2.blur(one, (FINE, FINE), anchor=(FINE // 2, FINE // 2), borderType=cv2.BORDER_CONSTANT) for one in framed])


def attainable_masks(shares: Float[np.ndarray, "N _ _"], displacement: Float[np.ndarray, "N bins bins 2"]) -> Bool[np.ndarray, "N side side"]:
    """What a mask head without mistakes gives, pasted over the RoI, on the objects' raster of FINE cells along each side of a mask cell.

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


def mask_iou(masks: Bool[np.ndarray, "N h w"], others: Bool[np.ndarray, "N h w"]) -> Float[np.ndarray, "N"]:
    """IoU of each mask with the other one of the same index; none may be empty in both."""
    return np.sum(masks & others, axis=(1, 2)) / np.sum(masks | others, axis=(1, 2))


# ---- figures


def measure(options: Options, boxes: Float[np.ndarray, "S N 4"], objects: Bool[np.ndarray, "N side side"]) -> dict[str, Any]:
    """All figures: a row for each operation, stride and size, the constant part for each operation and stride."""
    rows, constants = [], []
    sides = (boxes[..., 2:] - boxes[..., :2])[..., None, None, :]
    centres = bin_centres(boxes, options.bins)
    reached = partial(_iou, objects, covered_shares(objects))
    ceiling = reached(np.zeros((options.rois, options.bins, options.bins, 2)))
    steps = [(operation, level) for operation in OPERATIONS for level in range(len(STRIDES))]
    for operation, level in track(steps, description="operations x strides", console=Console(stderr=True), transient=True):
        if level == 0:
            displacements = read_places(operation, boxes, options.bins) - centres
        displacement = displacements[level]
        constant = np.median(displacement, axis=(0, 1, 2, 3))
        rest = displacement - constant
        at = {"operation": operation, "stride": STRIDES[level]}
        constants.append(at | {"x": _short(constant[0]), "y": _short(constant[1]), "rest_rms": _short(_rms(rest))})
        for size, place, moved, side in zip(SIZES, displacement, rest, sides, strict=True):
            row = at | {"size": size} | _distances(place) | {"rest_rms": _short(_rms(moved))}
            rows.append(row | {"as_read": reached(place / side), "constant_undone": reached(moved / side)})
    return {
        "command": command_line(PROGRAM, options),
        "rois": options.rois,
        "bins": options.bins,
        "seed": options.seed,
        "versions": versions("jax", "numpy", "opencv-python-headless"),
        "platform": jax.default_backend(),
        "constants": constants,
        "ceiling": ceiling,
        "rows": rows,
    }


def _distances(displacement):
    distance = np.linalg.norm(displacement, axis=-1)
    return {"mean": _short(distance.mean()), "percentile_95": _short(np.percentile(distance, 95)), "largest": _short(distance.max())}


def _iou(objects, shares, displacement):
    iou = mask_iou(attainable_masks(shares, displacement), objects)
    return {"iou": round(float(iou.mean()), 4), "above_075": round(float((iou > 0.75).mean()), 4)}


def _rms(vectors):
    return np.sqrt(np.mean(np.sum(np.square(vectors), axis=-1)))


def _short(value):
    return float(f"{value:.4g}")


def _row(result, operation, stride, size):
    return next(row for row in result["rows"] if (row["operation"], row["stride"], row["size"]) == (operation, stride, size))


def _constant(result, operation, stride):
    return next(entry for entry in result["constants"] if (entry["operation"], entry["stride"]) == (operation, stride))


# ---- tables


def markdown(result: dict[str, Any], picture: str, example: str) -> str:
    """The figures as tables, and what they say, from the JSON's content."""
    displacement = _table(result, lambda row: f"{row['mean']:.1f} ({row['percentile_95']:.1f})", ("constant x, y", "rest", "largest"), _summary)
    as_read, undone = (_table(result, lambda row, kind=kind: f"{row[kind]['iou']:.2f}") for kind in ("as_read", "constant_undone"))
    above = _table(result, lambda row: f"{100 * row['constant_undone']['above_075']:.0f}")
    bins, cells, ceiling = result["bins"], 2 * result["bins"], result["ceiling"]
    return f"""# What quantisation costs

Made by `{result["command"]}`: {result["rois"]} RoIs of each size, {bins} x {bins} bins, masks of {cells} x {cells} cells.
No training; `benchmarks/quantisation.py` says how it is measured.

![Displacement and attainable mask IoU by stride and RoI size]({picture})

{_reading(result)}

## Displacement

Distance in image pixels between the place where a bin is read and where it should be: mean (95th percentile). The constant part is the median over
all RoIs of an operation and stride, in cells; "rest" is the root mean square of what is left without it, "largest" the largest distance of any bin,
both in pixels. RoIWarp and RoIAlign with aligned=False read RoIs of less than a cell as a whole one, hence their figures for small RoIs.

{displacement}

## Attainable mask IoU

Mean IoU of the masks of a head that makes no mistake except for where its features were read. Without any displacement it is {ceiling["iou"]:.2f},
which is what a grid of {cells} x {cells} cells can say of these outlines.

### As read

{as_read}

### With the constant part undone

{undone}

### Objects above IoU 0.75, percent, with the constant part undone

Without any displacement: {100 * ceiling["above_075"]:.0f}.

{above}

## One object

![Places and masks of one object]({example})
"""


def _table(result, cell, more=(), summary=lambda result, operation, stride: ()):
    heads = ["operation", "stride", *(f"{size} px" for size in SIZES), *more]
    lines = [heads, ["---"] * len(heads)]
    for operation in OPERATIONS:
        for stride in STRIDES:
            cells = [cell(_row(result, operation, stride, size)) for size in SIZES]
            lines.append([operation, str(stride), *cells, *summary(result, operation, stride)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _summary(result, operation, stride):
    constant = _constant(result, operation, stride)
    largest = max(_row(result, operation, stride, size)["largest"] for size in SIZES)
    cells = ", ".join(f"{constant[axis] / stride:z.2f}" for axis in "xy")
    return cells, f"{constant['rest_rms']:.1f}", f"{largest:.1f}"


def _reading(result):
    """Sentences whose every figure comes from the result."""
    exact = max(row["largest"] for row in result["rows"] if row["operation"] == "RoIAlign")
    means = {stride: np.mean([_row(result, "RoIPool", stride, size)["mean"] for size in SIZES]) for stride in STRIDES}
    reached = {name: [f"{_row(result, name, stride, 64)['constant_undone']['iou']:.2f}" for stride in (16, 32)] for name in ("RoIPool", "RoIWarp")}
    return f"""RoIAlign reads every bin within {exact:.1g} pixels of its place, the rounding of float32. RoIPool reads its bins at a mean distance of
{_listed(f"{mean:.1f}" for mean in means.values())} pixels from their places, at strides {_listed(map(str, means))}. For objects of 64 pixels,
with the constant part undone, the attainable mask IoU falls from {result["ceiling"]["iou"]:.2f} to {_listed(reached["RoIPool"])} for RoIPool
at strides 16 and 32, and to {_listed(reached["RoIWarp"])} for RoIWarp, which rounds RoIs but not their bins."""


def _listed(words):
    *words, last = words
    return f"{', '.join(words)} and {last}"


# ---- pictures


def plot(result: dict[str, Any], path: Path) -> None:
    """Save displacement (above) and attainable mask IoU (below) over RoI sizes, one column a stride, as a PNG."""
    figure = Figure(figsize=(13, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(STRIDES), sharex=True, sharey="row")
    for (above, below), stride in zip(axes.T, STRIDES, strict=True):
        below.axhline(result["ceiling"]["iou"], color="0.5", linewidth=1, linestyle=":")
        for operation, colour in COLOURS.items():
            rows = [_row(result, operation, stride, size) for size in SIZES]
            style = {"color": colour, "marker": "o", "markersize": 3.5}
            broad = 4 if operation == "RoIAlign" else 1.8  # what lies on it leaves it visible
            mean, high = ([row[name] for row in rows] for name in ("mean", "percentile_95"))
            above.fill_between(SIZES, mean, high, color=colour, alpha=0.12, linewidth=0)
            above.plot(SIZES, mean, **style, linewidth=broad)
            below.plot(SIZES, [row["constant_undone"]["iou"] for row in rows], **style, linewidth=broad)
            below.plot(SIZES, [row["as_read"]["iou"] for row in rows], "--", **style, linewidth=1.2)
        above.set_title(f"stride {stride}", fontsize=11)
        above.set_xscale("log", base=2)
        below.set_xticks(SIZES, [str(size) for size in SIZES])
        below.set_xlabel("RoI size, pixels")
        for axis in (above, below):
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set(ylabel="displacement of a bin, pixels", ylim=(-0.5, None))
    axes[1, 0].set(ylabel="attainable mask IoU", ylim=(0, 1.02))
    operations = [Line2D([], [], color=colour, linewidth=2.5, label=operation) for operation, colour in COLOURS.items()]
    styles = [
        Patch(color="0.5", alpha=0.25, label="mean to 95th percentile"),
        Line2D([], [], color="0.3", linestyle="--", label="as read"),
        Line2D([], [], color="0.3", label="constant part undone"),
        Line2D([], [], color="0.5", linestyle=":", label="no displacement"),
    ]
    figure.legend(handles=operations, frameon=False, ncols=len(operations), loc="outside upper center", fontsize=11)
    figure.legend(handles=styles, frameon=False, ncols=len(styles), loc="outside lower center")
    figure.savefig(path, dpi=110)


def draw_example(result: dict[str, Any], objects: Bool[np.ndarray, "N side side"], path: Path) -> None:
    """Save one object as a PNG: where each operation reads its bins, and the masks that are attainable from there."""
    truth = objects[min(INFO.category_names.index(EXAMPLE), len(objects) - 1)]
    strides, bins, sides = EXAMPLE_STRIDES, result["bins"], EXAMPLE_BOX[2:] - EXAMPLE_BOX[:2]
    centres, shares = bin_centres(EXAMPLE_BOX, bins), covered_shares(truth[None])
    x1, y1, x2, y2 = EXAMPLE_BOX
    figure = Figure(figsize=(12, 4.6 * len(strides)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(strides), len(OPERATIONS), sharex=True, sharey=True)
    for column, (operation, colour) in zip(axes.T, COLOURS.items(), strict=True):
        places = read_places(operation, EXAMPLE_BOX, bins)
        for axis, stride in zip(column, strides, strict=True):
            for line in range(0, IMAGE, stride):
                axis.axvline(line, color="0.88", linewidth=0.7, zorder=0.5)
                axis.axhline(line, color="0.88", linewidth=0.7, zorder=0.5)
            axis.contourf(*_raster(truth), levels=[0.5, 1], colors=["0.8"])
            axis.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color="0.3", linewidth=1)
            place = places[STRIDES.index(stride)]
            axis.plot(*place.reshape(-1, 2).T, ".", color="0.15", markersize=2.2)
            constant = _constant(result, operation, stride)
            reached = []
            for undone, line, width in ((0, "--", 1.2), ([constant["x"], constant["y"]], "-", 1.8)):
                (mask,) = attainable_masks(shares, ((place - centres - undone) / sides)[None])
                axis.contour(*_raster(mask), levels=[0.5], colors=[colour], linewidths=width, linestyles=line)
                reached.append(f"{mask_iou(mask[None], truth[None])[0]:.2f}")
            axis.set(xlim=(x1 - 24, x2 + 40), ylim=(y2 + 40, y1 - 24), aspect="equal", xticks=[], yticks=[])
            axis.set_title(f"{operation}, stride {stride}\nIoU {reached[0]}, {reached[1]} undone", fontsize=10)
    words = "grey: object in its RoI; dots: where the bins are read; lines: cells; attainable mask dashed: as read, solid: constant part undone"
    figure.supxlabel(words, fontsize=10)
    figure.savefig(path, dpi=110)


def _raster(mask):
    """A mask of the example's RoI for contours: x, y, and values with a rim of zeros, so that outlines along the RoI's edge are closed."""
    framed = np.pad(mask.astype(float), 1)
    share = (np.arange(len(framed)) - 0.5) / len(mask)
    return *(EXAMPLE_BOX[axis] + share * (EXAMPLE_BOX[2 + axis] - EXAMPLE_BOX[axis]) for axis in (0, 1)), framed


# ---- command line


def run(options: Options) -> list[Path]:
    """Measures, and writes figures, tables and pictures: the files. Raises InputError for options out of range."""
    check(options, rois=1, bins=1, seed=0)
    stem, place = options.out.stem, options.out.parent
    files = options.out, place / f"{stem.upper()}.md", place / f"{stem}.png", place / f"{stem}_example.png"
    boxes = regions(options.rois, options.seed)
    objects = silhouettes(options.rois, 2 * options.bins * FINE, options.seed)
    result = measure(options, boxes, objects)
    with ExitStack() as stack:  # all files or none
        figures, tables, picture, example = (stack.enter_context(replacing(file)) for file in files)
        write_json(figures, result)
        tables.write_text(markdown(result, files[2].name, files[3].name))
        plot(result, picture)
        draw_example(result, objects, example)
    return list(files)


def main(arguments: list[str]) -> int:
    """The program; returns the exit status."""
    return write_files(PROGRAM, Options, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
