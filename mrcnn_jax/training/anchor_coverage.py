"""Overlap of a data set's objects with the anchors of an experiment, by the size of the objects."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mrcnn_jax.config import Experiment
from mrcnn_jax.config.model import STRIDES
from mrcnn_jax.data.object_table import ObjectTable
from mrcnn_jax.data.resize import resized_sizes
from mrcnn_jax.data.transforms import is_portrait, padded_size
from mrcnn_jax.models.rpn import anchor_layout
from mrcnn_jax.ops import best_anchor_iou, cell_anchors

EDGES = (0, 8, 16, 32, 64, 128, 256, 512, 1024, math.inf)
"""Bounds of the sizes of objects, the square roots of their boxes' areas after the resize, in pixels."""
POOR, GOOD = 0.5, 0.7
"""Best IoUs that are counted; from the second on an anchor is foreground by itself, by default."""


class Resized(NamedTuple):
    """The M boxes of a split as training sees them, clipped to their images."""

    boxes: Float[np.ndarray, "M 4"]
    best: Float[np.ndarray, "M"]  # IoU with the best anchor; 0 for boxes without area and crowds

    @property
    def sides(self) -> Float[np.ndarray, "M"]:
        """Square roots of the areas of the boxes, in pixels."""
        return np.sqrt((self.boxes[:, 2:] - self.boxes[:, :2]).prod(axis=1))


def resize_boxes(table: ObjectTable, experiment: Experiment) -> Resized:
    """Resizes the boxes of a split to the middle of the experiment's short edges, and compares anchors."""
    data = experiment.data
    short = sorted(data.short_edge)[len(data.short_edge) // 2]
    rounding = experiment.model.conventions.size_rounding
    sizes = resized_sizes(table.sizes, short, data.long_edge, rounding)
    limits, scales = np.tile(table.sizes[:, ::-1], 2), np.tile((sizes / table.sizes)[:, ::-1], 2)
    boxes = table.boxes.astype(np.float64).clip(0, limits[table.images]) * scales[table.images]
    usable = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & ~table.crowd
    best, portrait = np.zeros(len(boxes)), is_portrait(table.sizes)[table.images]
    for turned in (False, True):
        chosen = usable & (portrait == turned)
        best[chosen] = _best_iou(boxes[chosen], experiment, padded_size(data, turned))
    return Resized(boxes, best)


def _best_iou(
    boxes: Float[np.ndarray, "n 4"], experiment: Experiment, padded: tuple[int, int]
) -> Float[np.ndarray, "n"]:
    model, best = experiment.model, np.zeros(len(boxes))
    grids = [tuple(-(-side // stride) for side in padded) for stride in STRIDES[model.backbone.features]]
    layout = zip(*anchor_layout(model, grids, padded), grids, strict=True)
    for sizes, stride, grid in layout:
        rounding, offset = model.conventions.anchor_rounding, model.conventions.anchor_offset
        cells = cell_anchors(sizes, model.rpn.aspect_ratios, rounding, stride[0])
        best = np.maximum(best, best_anchor_iou(boxes, cells, grid, stride, offset))
    return best


def coverage(resized: Resized, table: ObjectTable) -> list[dict[str, Any]]:
    """Counts objects that are no crowds by their size, and those that no anchor overlaps well.

    Returns:
        [{"from", "to", "objects", "median", "poor", "fair"}], ``to`` None for the last: "median" is that of
        the best IoUs, "poor" the number below 0.5, "fair" from 0.5 to below 0.7.
    """
    counted, rows = ~table.crowd, []
    sides, best = resized.sides[counted], resized.best[counted]
    for low, high in zip(EDGES, EDGES[1:], strict=False):
        chosen = best[(sides >= low) & (sides < high)]
        rows.append({
            "from": low, "to": None if high == math.inf else high, "objects": len(chosen),
            "median": round(float(np.median(chosen)), 3) if len(chosen) else None,
            "poor": int((chosen < POOR).sum()), "fair": int(((chosen >= POOR) & (chosen < GOOD)).sum()),
        })  # fmt: skip
    return rows
