"""Anchors: the reference boxes of the RPN. Order everywhere: level, row, column, then cell anchor."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

Rounding = Literal["none", "corners", "sides"]


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float], rounding: Rounding = "none", stride: float = 1.0) -> Float[np.ndarray, "n 4"]:
    """Anchors around the origin, size-major: for each size (side of the square of equal area) all ratios (height / width).

    Args:
        rounding: "none" (Detectron2); "corners" of an anchor to integers (torchvision); or "sides" of the anchor whose size is the stride, from
            which those of other sizes are scaled (Detectron). Halves go to the even number.
        stride: needed for "sides" alone.
    """
    size = np.repeat(np.asarray(sizes, np.float64), len(ratios))
    ratio = np.tile(np.asarray(ratios, np.float64), len(sizes))
    if rounding == "sides":
        width = np.round(stride / np.sqrt(ratio))
        width, height = width * size / stride, np.round(width * ratio) * size / stride
    else:
        width, height = size / np.sqrt(ratio), size * np.sqrt(ratio)
    cells = np.stack([-width, -height, width, height], axis=1) / 2
    return (np.round(cells) if rounding == "corners" else cells).astype(np.float32)


def grid_anchors(cells: Float[np.ndarray, "n 4"], grid: tuple[int, int], stride: tuple[float, float], offset: float = 0.0) -> Float[np.ndarray, "m 4"]:
    """Cell anchors repeated over a (rows, columns) grid with a (y, x) stride in pixels.

    ``offset``, in strides, is where the first centre lies: 0 in torchvision and Detectron2, 0.5, the centre of the cell, in Detectron.
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
    """The anchors of each level: of one size (FPN, section 4.1) or of several, in all ratios.

    Strides are numbers or (y, x) pairs. Detectron2's are those of the levels; torchvision divides the sides of the padded image by those of the
    grid, in whole pixels, which on P6 gives less where the grid was rounded up.
    """
    pairs = [tuple(np.broadcast_to(stride, 2)) for stride in strides]
    return [
        grid_anchors(cell_anchors(np.atleast_1d(size), ratios, rounding, stride[0]), grid, stride, offset)
        for size, grid, stride in zip(sizes, grids, pairs, strict=True)
    ]
