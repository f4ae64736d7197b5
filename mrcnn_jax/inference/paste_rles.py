"""Pasting of predicted masks straight into run-length codes, all masks of an image at once.

Down a column of the image, a pasted mask is a piecewise linear function with a knot at each of its M cells.
Where it crosses the threshold follows from the two cells around, so the work grows with the columns of the
boxes and not with their pixels. Columns in which rounding decides on a pixel are sampled as ``paste_masks``
does, so that the masks are the same to the last pixel.
"""

import numpy as np

from mrcnn_jax.inference.paste import (
    Boxes,
    Convention,
    Masks,
    Placement,
    comparison,
    neighbours,
    place,
    sample_columns,
)
from mrcnn_jax.run_length_masks import RunLengthMasks, encode_counts
from mrcnn_jax.typing import Float, Int

_ROUNDING = 5e-7  # bound of the rounding errors of a pasted probability
_CHUNK = 2**17  # cells of columns that are computed at once, unless a single mask has more
_TILE_PIXELS = 2**21  # pixels that are sampled at once

Ints = Int[np.ndarray, "E"]


def paste_rles(
    masks: Masks, boxes: Boxes, height: int, width: int, threshold: float = 0.5,
    convention: Convention = "exact",
) -> RunLengthMasks:  # fmt: skip
    """Pastes masks like ``paste_masks`` into run-length codes, without making full-size masks."""
    masks = np.asarray(masks, np.float32)
    # a value that is not finite leaves no pixel of its mask, as it does in products of matrices
    masks = np.where(np.isfinite(masks).all(axis=(1, 2), keepdims=True), masks, np.float32(0))
    where = place(boxes, masks.shape[-1], height, width, convention)
    work = np.cumsum((where.last - where.first)[:, 0] * (masks.shape[-1] + 2))
    counts: list[str] = []
    for chunk in np.split(np.arange(len(masks)), np.flatnonzero(np.diff(work // _CHUNK)) + 1):
        pasting = _Pasting(masks[chunk], Placement(*(values[chunk] for values in where)), height, width)
        edges = pasting.edges(threshold, comparison(convention))
        counts += encode_counts(*_runs(edges, len(chunk), height * width))
    return RunLengthMasks(counts, height, width)


class _Pasting:
    """Columns of the windows of some masks."""

    def __init__(self, masks: Masks, where: Placement, height: int, width: int):
        self._masks, self._where, self._height = masks, where, height
        widths = (where.last - where.first)[:, 0]
        self._mask = np.repeat(np.arange(len(masks)), widths)
        before = np.cumsum(widths) - widths
        self._x = np.arange(len(self._mask)) + np.repeat(where.first[:, 0] - before, widths)
        self._pixel = self._mask * (height * width + 1) + self._x * height  # at the column's top

    def edges(self, threshold: float, keep: np.ufunc) -> Ints:
        """Returns the pixels where runs of ones begin and the first ones after them, in order.

        Pixels are numbered down the columns of one mask after the other, each with one number more than it
        has pixels. Two edges at one pixel cancel each other.
        """
        excess = self._sample_across(threshold)
        stride = excess.shape[1]
        unsure = np.full(len(excess), threshold <= _ROUNDING)
        unsure[np.flatnonzero(np.abs(excess) <= _ROUNDING) // stride] = True
        inside = (excess > 0).ravel()
        crossing = np.flatnonzero(inside[1:] != inside[:-1])
        column, cell = np.divmod(crossing, stride)
        before, after = np.float64(excess.ravel()[[crossing, crossing + 1]])
        start, scale = (values[self._mask[column], 1] for values in (self._where.start, self._where.scale))
        y = (cell + before / (before - after) - 0.5) / scale + start - 0.5
        unsure[column[np.abs(y - np.rint(y)) * np.abs(after - before) * scale <= _ROUNDING]] = True
        edges = self._pixel[column] + np.clip(np.ceil(y), 0, self._height).astype(int)
        if not unsure.any():
            return edges
        return np.sort(np.concatenate([edges[~unsure[column]], *self._sampled(unsure, threshold, keep)]))

    def _sample_across(self, threshold: float) -> Float[np.ndarray, "W M+2"]:
        """Interpolates between the masks' columns of cells, less the threshold.

        A cell of zeros frames each column at both ends.
        """
        number, cells = self._masks.shape[:2]
        framed = np.zeros((number, cells + 2, cells + 2), np.float32)
        framed[:, 1:-1, 1:-1] = self._masks.swapaxes(1, 2)
        framed = framed.reshape(-1, cells + 2) - np.float32(threshold)
        steps = np.diff(framed, axis=0)
        start, scale = self._where.start[self._mask, 0], self._where.scale[self._mask, 0]
        cell, _, weight = neighbours(self._x, start, scale, cells)
        cell += self._mask * (cells + 2)
        sampled = steps.take(cell, axis=0)
        sampled *= weight[:, None]
        sampled += framed.take(cell, axis=0)
        return sampled

    def _sampled(self, unsure: np.ndarray, threshold: float, keep: np.ufunc) -> list[Ints]:
        """Returns the edges in some columns, found pixel by pixel."""
        found = []
        for index in np.unique(self._mask[unsure]):
            columns = np.flatnonzero(unsure & (self._mask == index))
            top, bottom = self._where.first[index, 1], self._where.last[index, 1]
            for tile in np.array_split(columns, -(-len(columns) * (bottom - top) // _TILE_PIXELS) or 1):
                sampled = sample_columns(self._masks[index], self._where, index, self._x[tile])
                framed = np.zeros((len(tile), bottom - top + 2), bool)
                framed[:, 1:-1] = keep(sampled, threshold).T
                flat = framed.ravel()
                column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), framed.shape[1])
                found.append(self._pixel[tile[column]] + row + top)
        return found


def _runs(edges: Ints, number: int, pixels: int) -> tuple[Ints, Ints]:
    """Computes the lengths of alternating runs of zeros and ones from the edges of masks.

    Returns:
        The lengths, mask after mask; the number of runs of each mask.
    """
    # a run that reaches the bottom continues at the top of the next column: one's end is the other's start
    begins = np.flatnonzero(np.diff(edges, prepend=-1))
    times = np.diff(begins, append=len(edges))
    edges = edges[begins[times % 2 == 1]]
    bounds = np.searchsorted(edges, np.arange(number + 1) * (pixels + 1))
    mask = np.repeat(np.arange(number), np.diff(bounds))
    pixel = edges - mask * (pixels + 1)
    inner = pixel < pixels
    mask, pixel = mask[inner], pixel[inner]
    runs = np.bincount(mask, minlength=number) + 1
    last = np.cumsum(runs) - 1
    ends = np.full(runs.sum(), pixels)
    ends[np.delete(np.arange(len(ends)), last)] = pixel
    lengths = np.diff(ends, prepend=0)
    lengths[(last - runs + 1)[1:]] += pixels  # the first run of a mask begins at its pixel 0
    return lengths, runs
