"""Anchors: the reference boxes of the RPN. Order everywhere: level, row, column, then cell anchor."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float], rounded: bool = False) -> Float[np.ndarray, "n 4"]:
    """Anchors around the origin, size-major: for each size (side of the square of equal area) all ratios (height / width).

    ``rounded`` rounds the corners to integers, halves to even (torchvision); Detectron2 does not round.
    """
    size = np.repeat(np.asarray(sizes, np.float64), len(ratios))
    ratio = np.tile(np.asarray(ratios, np.float64), len(sizes))
    width, height = size / np.sqrt(ratio), size * np.sqrt(ratio)
    cells = np.stack([-width, -height, width, height], axis=1) / 2
    return (np.round(cells) if rounded else cells).astype(np.float32)


def grid_anchors(cells: Float[np.ndarray, "n 4"], grid: tuple[int, int], stride: tuple[float, float], offset: float = 0.0) -> Float[np.ndarray, "m 4"]:
    """Cell anchors repeated over a (rows, columns) grid with a (y, x) stride in pixels.

    ``offset``, in strides, is where the first centre lies: 0 in torchvision and Detectron2, 0.5 is the centre of the cell.
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
    rounded: bool = False,
) -> list[Float[np.ndarray, "n 4"]]:
    """The anchors of each level: of one size (FPN, section 4.1) or of several, in all ratios.

    Strides are numbers or (y, x) pairs. Detectron2's are those of the levels; torchvision divides the sides of the padded image by those of the
    grid, in whole pixels, which on P6 gives less where the grid was rounded up.
    """
    pairs = [tuple(np.broadcast_to(stride, 2)) for stride in strides]
    return [grid_anchors(cell_anchors(np.atleast_1d(size), ratios, rounded), *level) for size, *level in zip(sizes, grids, pairs, strict=True)]
