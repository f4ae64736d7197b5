"""Masks as runs down the columns of an image: sampled at points, and cut into segments."""

from functools import cached_property

import numpy as np
from jaxtyping import Float, Int, UInt8

from mrcnn_jax.run_length_masks import RunLengthMasks, decode_counts

Window = tuple[int, int, int, int]
"""Top, left, bottom and right of a part of an image, in pixels."""


class MaskRuns:
    """A mask in COCO's compressed run-length code, decoded when it is first read.

    Args:
        rle: its counts.
        height, width: of the image, in pixels.
        window: part of the image outside which the mask is 0; None is all of it.
    """

    def __init__(self, rle: str, height: int, width: int, window: Window | None = None):
        self._rle, self._height, self._width = rle, height, width
        self._window = window or (0, 0, height, width)

    @cached_property
    def _ends(self) -> Int[np.ndarray, "R"]:
        return np.cumsum(decode_counts(self._rle))

    def sample(self, x: Float[np.ndarray, "*x"], y: Float[np.ndarray, "*y"]) -> UInt8[np.ndarray, "*s"]:
        """Returns the mask at points: 1 or 0 of the pixel, 0 outside the window; x and y broadcast.

        Each point is looked up in the code, so that the cost does not grow with the image.
        """
        x, y = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        top, left, bottom, right = self._window
        inside = (y >= top) & (y < bottom) & ((x >= left) & (x < right))
        pixels = x.clip(0, self._width - 1) * self._height + y.clip(0, self._height - 1)
        return (np.searchsorted(self._ends, pixels, side="right") % 2 * inside).astype(np.uint8)

    def crop(self, box: Float[np.ndarray, "4"], size: int) -> UInt8[np.ndarray, "M M"]:
        """Samples the mask at the centres of size x size cells of a box."""
        return self.sample(*cell_centres(box, size))

    def decode(self) -> tuple[tuple[int, int], UInt8[np.ndarray, "h w"]]:
        """Returns the part of the mask that holds all its pixels, after its first row and column."""
        (rows, columns), pixels = RunLengthMasks([self._rle], self._height, self._width).crop(0)
        top, left, bottom, right = self._window
        first, last = max(top, rows.start), max(left, columns.start)
        height, width = max(0, bottom - rows.start), max(0, right - columns.start)
        part = pixels[first - rows.start : height, last - columns.start : width]
        return (first, last), np.ascontiguousarray(part, np.uint8)

    def segments(self) -> tuple[Int[np.ndarray, "R 3"], float]:
        """Returns column, first row and end row of each run within a column of the window.

        Also returns the fraction of the whole mask that they hold.
        """
        top, left, bottom, right = self._window
        ends = self._ends[: len(self._ends) // 2 * 2].reshape(-1, 2)
        ends = ends[ends[:, 0] < ends[:, 1]]
        first = ends[:, 0] // self._height
        columns = (ends[:, 1] - 1) // self._height - first + 1  # over which a run extends
        place = np.arange(columns.sum()) - np.repeat(np.cumsum(columns) - columns, columns)
        column = np.repeat(first, columns) + place
        rows = (np.repeat(ends, columns, axis=0) - column[:, None] * self._height).clip(0, self._height)
        total, rows = np.diff(rows).sum(), rows.clip(top, bottom)
        inside = (column >= left) & (column < right) & (rows[:, 0] < rows[:, 1])
        segments = np.column_stack([column, rows])[inside]
        return segments, np.diff(segments[:, 1:]).sum() / max(1, total)


def cell_centres(
    box: Float[np.ndarray, "4"], size: int
) -> tuple[Float[np.ndarray, "M"], Float[np.ndarray, "M 1"]]:
    """Returns x and y of the centres of size x size cells of a box."""
    steps = (np.arange(size) + 0.5) / size
    return box[0] + steps * (box[2] - box[0]), (box[1] + steps * (box[3] - box[1]))[:, None]
