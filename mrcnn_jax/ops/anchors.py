"""Anchors of the RPN. They are ordered by level, row, column, and cell anchor."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from mrcnn_jax.typing import Float

Rounding = Literal["none", "corners", "sides"]


def cell_anchors(
    sizes: Sequence[float], ratios: Sequence[float], rounding: Rounding = "none", stride: float = 1.0
) -> Float[np.ndarray, "n 4"]:
    """Computes anchors around the origin: for each size all aspect ratios.

    Args:
        sizes: sides, in pixels, of the squares of equal area.
        ratios: height / width.
        rounding: "none" (Detectron2); "corners" to integers (torchvision); or "sides" of the anchor whose
            size is the stride, from which those of other sizes are scaled (Detectron). Halves are rounded to
            even.
        stride: in pixels; only used for "sides".

    Raises:
        ValueError: for another rounding.

    References:
        Ren et al., "Faster R-CNN", 2015, section 3.1.1.
    """
    if rounding not in get_args(Rounding):
        raise ValueError(f'rounding must be "none", "corners" or "sides", not {rounding!r}')
    size = np.repeat(np.asarray(sizes, np.float64), len(ratios))
    ratio = np.tile(np.asarray(ratios, np.float64), len(sizes))
    if rounding == "sides":
        width = np.round(stride / np.sqrt(ratio))
        width, height = width * size / stride, np.round(width * ratio) * size / stride
    else:
        width, height = size / np.sqrt(ratio), size * np.sqrt(ratio)
    cells = np.stack([-width, -height, width, height], axis=1) / 2
    return (np.round(cells) if rounding == "corners" else cells).astype(np.float32)


def grid_anchors(
    cells: Float[np.ndarray, "n 4"], grid: tuple[int, int], stride: tuple[float, float], offset: float = 0.0
) -> Float[np.ndarray, "m 4"]:
    """Repeats cell anchors over a grid.

    Args:
        cells: anchors around the origin.
        grid: rows and columns.
        stride: along y and x, in pixels.
        offset: of the first centre, in strides: 0 in torchvision and Detectron2; 0.5, the centre of the cell,
            in Detectron.
    """
    y = (np.arange(grid[0], dtype=np.float32) + np.float32(offset)) * np.float32(stride[0])
    x = (np.arange(grid[1], dtype=np.float32) + np.float32(offset)) * np.float32(stride[1])
    y, x = np.meshgrid(y, x, indexing="ij")
    shifts = np.stack([x, y, x, y], axis=-1)
    return (shifts[:, :, None] + cells).reshape(-1, 4)


def pyramid_anchors(
    sizes: Sequence[float | Sequence[float]],
    ratios: Sequence[float],
    grids: Sequence[tuple[int, int]],
    strides: Sequence[int | tuple[int, int]],
    rounding: Rounding = "none",
    offset: float = 0.0,
) -> list[Float[np.ndarray, "n 4"]]:
    """Computes the anchors of each pyramid level.

    Args:
        sizes: of each level, one (FPN, section 4.1) or several.
        ratios: height / width.
        grids: rows and columns of each level.
        strides: of each level, a number or (y, x). Detectron2 uses the level's; torchvision divides the sides
            of the padded image by those of the grid, in whole pixels, which on P6 gives less where the grid
            was rounded up.
        rounding: see ``cell_anchors``.
        offset: see ``grid_anchors``.

    Raises:
        ValueError: for sizes, grids and strides of different numbers of levels, or another rounding.

    References:
        Lin et al., "Feature pyramid networks for object detection", 2017, section 4.1.
    """
    if not len(sizes) == len(grids) == len(strides):
        given = f"{len(sizes)} sizes, {len(grids)} grids and {len(strides)} strides"
        raise ValueError(f"each level must have sizes, a grid and a stride, not {given}")
    pairs = [tuple(np.broadcast_to(stride, 2).tolist()) for stride in strides]
    return [
        grid_anchors(
            cell_anchors(np.atleast_1d(size).tolist(), ratios, rounding, stride[0]), grid, stride, offset
        )
        for size, grid, stride in zip(sizes, grids, pairs, strict=True)
    ]


def best_anchor_iou(
    boxes: Float[np.ndarray, "N 4"], cells: Float[np.ndarray, "n 4"], grid: tuple[int, int],
    stride: tuple[float, float], offset: float = 0.0,
) -> Float[np.ndarray, "N"]:  # fmt: skip
    """Computes the best IoU of each box with the anchors of a level, without making them all.

    Of the anchors of one shape the one whose centre is nearest along both axes is the best.

    Args:
        boxes: in pixels of the padded image, with sides above 0.
        cells: anchors around the origin, symmetric to it as those of ``cell_anchors``.
        grid: see ``grid_anchors``.
        stride: likewise.
        offset: likewise.
    """
    step, last = np.array(stride[::-1], np.float64), np.array(grid[::-1]) - 1
    nearest = np.round((boxes[:, :2] + boxes[:, 2:]) / 2 / step - offset).clip(0, last)
    centres, area = (nearest + offset) * step, (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    best = np.zeros(len(boxes))
    for cell in np.asarray(cells, np.float64):
        ends = np.minimum(boxes[:, 2:], centres + cell[2:]), np.maximum(boxes[:, :2], centres + cell[:2])
        overlap = (ends[0] - ends[1]).clip(0).prod(axis=1)
        union = area + (cell[2:] - cell[:2]).prod() - overlap
        best = np.maximum(best, overlap / union)
    return best
