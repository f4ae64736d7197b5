"""Sampling of RoI bins along one axis: points between cells with bilinear weights, or whole cells."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.roi.spec import PoolSpec
from mrcnn_jax.typing import Array, Bool, Float, Int

MAX_COORDINATE = 2.0**20  # cells; still exact in float32 and far from the end of int32


class BinRows(NamedTuple):
    """Rows of bins, n of them, each with the place of its feature map among the flat features."""

    boxes: Float[Array, "n 4"]  # the RoI, in cells of its map
    row: Int[Array, "n"]  # index of the row within the RoI
    offset: Int[Array, "n"]  # of the map's first cell in the flat features
    height: Int[Array, "n"]  # of the map
    width: Int[Array, "n"]


class SampledBins(NamedTuple):
    """Bins along one axis with point samples; arrays that broadcast to [n, bins, samples]."""

    start: Array  # of the RoI
    size: Array
    bin: Array
    num_bins: Array
    num_samples: Array  # of a bin; a whole floating point number
    limit: Array  # cells of the map
    first: Array  # sample, or cell, that is visited
    last: Array

    def num_blocks(self, size: int) -> Int[Array, "n"]:
        """Number of blocks of ``size`` samples or cells that cover all bins of a row."""
        return _num_blocks(self.last - self.first + 1, size)

    def is_empty(self) -> Array:
        """Bins without samples, [n, bins]."""
        shape = jnp.broadcast_shapes(self.bin.shape, self.last.shape)
        return jnp.broadcast_to(self.last < self.first, shape)[..., 0]

    def sample_block(self, k: Int[Array, "n"], size: int) -> tuple[Array, Array, Array]:
        """Block k of samples: the two cells around each, [n, bins, size, 2], their weights, and validity."""
        index = self.first + (size * k[:, None, None] + jnp.arange(size)[None, None]).astype(self.first.dtype)
        valid, index = index <= self.last, jnp.clip(index, 0.0, jnp.maximum(self.last, 0.0))
        low, high, fraction, inside = self._neighbours(index)
        cells = jnp.stack([low, high], axis=-1)
        weights = jnp.where(inside[..., None], jnp.stack([1 - fraction, fraction], axis=-1), 0.0)
        shape = (k.shape[0], jnp.broadcast_shapes(self.bin.shape, index.shape)[1], size)
        broadcast = jnp.broadcast_to
        return broadcast(cells, (*shape, 2)), broadcast(weights, (*shape, 2)), broadcast(valid, shape)

    def cell_block(self, k: Int[Array, "n"], size: int) -> tuple[Array, Array]:
        """Block k of cells and their mean weight in the samples of each bin, both [n, bins, size]."""
        cell = self.first + (size * k[:, None, None] + jnp.arange(size)[None, None]).astype(self.first.dtype)
        weight = jnp.where(cell <= self.last, self.mean_weight(cell), 0.0)
        return jnp.clip(cell, 0.0, self.limit.astype(cell.dtype) - 1).astype(jnp.int32), weight

    def weight_matrix(self, limit: int, sampling_ratio: int) -> Float[Array, "n p limit"]:
        """Mean weight of every cell of the axis in the samples of each bin."""
        every = jnp.arange(limit)[None, None]
        if not sampling_ratio:
            return jnp.where(self.is_empty()[..., None], 0.0, self.mean_weight(every.astype(self.size.dtype)))
        cells, weights, _ = self.sample_block(jnp.zeros(self.size.shape[0], jnp.int32), sampling_ratio)
        cells, weights = (array.reshape(*array.shape[:2], -1, 1) for array in (cells, weights))
        parts = (jnp.where(cells[:, :, i] == every, weights[:, :, i], 0.0) for i in range(cells.shape[2]))
        return sum(parts) / sampling_ratio

    def mean_weight(self, cell: Array) -> Array:
        """Mean weight of a cell in the samples of each bin.

        With three or more adaptive samples in a bin, neighbours are more than two thirds of a cell apart,
        so at most three fall within the two cells' length that reads a cell (at the border this includes
        one cell's length outside). A fourth is examined because rounding may miss the first.
        """
        limit = self.limit.astype(cell.dtype)
        earliest = jnp.maximum(jnp.floor(self.samples_before(cell - 1)), 0.0)
        total = 0.0
        for sample in (earliest + i for i in range(4)):
            distance = jnp.abs(jnp.clip(self.position(sample), 0.0, limit - 1) - cell)
            valid = (sample < self.num_samples) & self.is_inside(sample)
            total += jnp.where(valid, jnp.maximum(1 - distance, 0.0), 0.0)
        return total / jnp.maximum(self.num_samples, 1.0)

    def samples_before(self, position: Array | float) -> Array:
        """Number of a bin's samples before a position, as a fraction; 0 for bins of fewer than two."""
        several = self.num_samples > 1
        parts = (position - self.position(0.0)) * self.num_bins * self.num_samples
        return jnp.where(several, parts / jnp.where(several, self.size, 1.0), 0.0)

    def position(self, sample: Array | float) -> Array:
        """Position in cells, where the value of cell i lies at i."""
        index = self.bin * self._divisor() + sample + 0.5
        return self.start + index * (self.size / (self.num_bins * self._divisor()))

    def is_inside(self, sample: Array) -> Array:
        """Returns whether a sample lies on the map or at most one cell outside.

        Compared before dividing, so that a sample exactly on the limit is inside whatever the rounding.
        """
        offset = (self.bin * self._divisor() + sample + 0.5) * self.size
        parts = self.num_bins * self._divisor()
        end = self.limit.astype(self.size.dtype)
        return (offset >= (-1.0 - self.start) * parts) & (offset <= (end - self.start) * parts)

    def _neighbours(self, sample):
        last = self.limit - 1
        position = jnp.clip(self.position(sample), 0.0, last.astype(self.size.dtype))
        low = jnp.floor(position).astype(jnp.int32)
        return low, jnp.minimum(low + 1, last), position - low.astype(position.dtype), self.is_inside(sample)

    def _divisor(self):
        return jnp.maximum(self.num_samples, 1.0)


class CellBins(NamedTuple):
    """Bins of whole cells along one axis, [n, bins]."""

    begin: Int[Array, "n p"]
    end: Int[Array, "n p"]  # exclusive

    def num_blocks(self, size: int) -> Int[Array, "n"]:
        """Number of blocks of ``size`` cells that cover all bins of a row."""
        return _num_blocks((self.end - self.begin)[..., None], size)

    def is_empty(self) -> Array:
        """Bins without cells, [n, bins]."""
        return self.end <= self.begin

    def cells(self, k: Int[Array, "n"], size: int) -> Int[Array, "n p size"]:
        """Block k of cells; past the end of a bin its last cell repeats, which leaves a maximum unchanged."""
        cell = self.begin[..., None] + size * k[:, None, None] + jnp.arange(size, dtype=jnp.int32)[None, None]
        return jnp.clip(cell, 0, jnp.maximum(self.end - 1, 0)[..., None])


class AveragedCells(CellBins):
    """Bins of whole cells along one axis whose average is taken, [n, bins]."""

    def cell_block(self, k: Int[Array, "n"], size: int) -> tuple[Array, Array]:
        """Block k of cells and their weight in each bin, both [n, bins, size]."""
        cells = self.cells(k, size)
        index = size * k[:, None, None] + jnp.arange(size)[None, None]
        count = (self.end - self.begin)[..., None]
        return cells, jnp.where(index < count, 1 / jnp.maximum(count, 1), 0.0)

    def weight_matrix(self, limit: int, sampling_ratio: int) -> Float[Array, "n p limit"]:
        """Weight of every cell of the axis in each bin."""
        count = (self.end - self.begin)[..., None]
        return jnp.where(belongs(self.begin, self.end, limit), 1 / jnp.maximum(count, 1), 0.0)


Bins = SampledBins | CellBins


def bins_of_rows(spec: PoolSpec, rows: BinRows) -> tuple[Bins, Bins]:
    """Returns the bins of rows along y, one for each row, and along x."""
    return _bins(spec, rows.boxes, rows.height, rows.width, rows.row[:, None])


def bins_of_rois(
    spec: PoolSpec, boxes: Float[Array, "n 4"], height: Int[Array, "n"], width: Int[Array, "n"]
) -> tuple[Bins, Bins]:
    """Returns the bins of whole RoIs along y and along x."""
    return _bins(spec, boxes, height, width, jnp.arange(spec.output_size[0], dtype=jnp.int32)[None])


def clip_coordinates(boxes: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Limits coordinates in cells to +-2**20; NaN becomes 0."""
    return jnp.clip(jnp.nan_to_num(boxes), -MAX_COORDINATE, MAX_COORDINATE)


def round_to_cells(boxes: Float[Array, "*n 4"], gradient: bool = False) -> Float[Array, "*n 4"]:
    """Rounds boxes in cells to whole cells, halves away from 0; a ``gradient`` passes straight through."""
    rounded = jax.lax.stop_gradient(jax.lax.round(boxes))
    if not gradient:
        return rounded
    finite = clip_coordinates(boxes)
    return rounded + (finite - jax.lax.stop_gradient(finite))  # plus 0, which has the gradient


def _bins(spec, boxes, height, width, rows):
    boxes = clip_coordinates(boxes)
    columns = jnp.arange(spec.output_size[1], dtype=jnp.int32)[None]
    if spec.reduction == "cells":
        x1, y1, x2, y2 = jax.lax.round(boxes).astype(jnp.int32).T
        y = cell_ranges(y1, y2, height, rows, spec.output_size[0])
        return CellBins(*y), CellBins(*cell_ranges(x1, x2, width, columns, spec.output_size[1]))
    if spec.whole_cells:
        x1, y1, x2, y2 = boxes.T
        y = touched_cells(y1, y2, height - spec.unread_cells, rows, spec.output_size[0])
        x = touched_cells(x1, x2, width - spec.unread_cells, columns, spec.output_size[1])
        return AveragedCells(*y), AveragedCells(*x)
    boxes = boxes - 0.5 if spec.half_pixel else boxes
    size = boxes[:, 2:] - boxes[:, :2]
    size = size if spec.half_pixel else jnp.maximum(size, 1.0)
    y = _sampled_bins(spec, boxes[:, 1], size[:, 1], height, rows, spec.output_size[0])
    return y, _sampled_bins(spec, boxes[:, 0], size[:, 0], width, columns, spec.output_size[1])


def belongs(begin: Int[Array, "n p"], end: Int[Array, "n p"], cells: int) -> Bool[Array, "n p {cells}"]:
    """Returns whether each cell of an axis belongs to each bin, from ``begin`` up to, excluding, ``end``."""
    cell = jnp.arange(cells)[None, None]
    return (cell >= begin[..., None]) & (cell < end[..., None])


def cell_ranges(
    first: Int[Array, "n"],
    last: Int[Array, "n"],
    limit: Int[Array, "n"],
    index: Int[Array, "#n p"],
    num_bins: int,
) -> tuple[Int[Array, "n p"], Int[Array, "n p"]]:
    """Returns the cells of each bin: bin p of P over n cells is floor(p n / P) to ceil((p + 1) n / P)."""
    count = jnp.maximum(last - first + 1, 1)[:, None]
    begin = first[:, None] + index * count // num_bins
    end = first[:, None] - -(index + 1) * count // num_bins
    return jnp.clip(begin, 0, limit[:, None]), jnp.clip(end, 0, limit[:, None])


def touched_cells(
    start: Float[Array, "n"],
    end: Float[Array, "n"],
    limit: Int[Array, "n"],
    index: Int[Array, "#n p"],
    num_bins: int,
) -> tuple[Int[Array, "n p"], Int[Array, "n p"]]:
    """Returns the cells that each bin of a RoI from ``start`` to ``end`` touches: first, and after the last.

    Quotients are rounded exactly, as a bin that ends where a cell does must not touch the next.
    """
    start, size, index = start[:, None] * num_bins, (end - start)[:, None], index.astype(start.dtype)
    begin, end = (start + index * size) // num_bins, -(-(start + (index + 1) * size) // num_bins)
    begin, end = begin.astype(jnp.int32), end.astype(jnp.int32)
    return jnp.clip(begin, 0, limit[:, None]), jnp.clip(end, 0, limit[:, None])


def _sampled_bins(spec, start, size, limit, index, num_bins):
    start, size, limit = (array[:, None, None] for array in (start, size, limit))
    number = jnp.full_like(size, spec.sampling_ratio)
    if not spec.is_fixed:
        # ceil(size / bins), but k also where the division of exactly k cells a bin gives a little more than k
        number = jnp.floor(jax.lax.stop_gradient(size) / num_bins)
        number = jnp.maximum(number + (number * num_bins < size).astype(size.dtype), 0.0)
    zero, index = jnp.zeros_like(size), index[..., None].astype(size.dtype)
    bins = SampledBins(start, size, index, jnp.full_like(size, num_bins), number, limit, zero, zero)
    first, last = _visited(bins, spec)
    return bins._replace(first=first, last=last)


def _visited(bins, spec):
    """First and last sample that each bin visits, or first and last cell for the adaptive average.

    Only what lies on the map needs a visit, besides a few of the samples outside, which all read 0: a RoI far
    larger than the map costs no more than the map.
    """
    number, limit = bins.num_samples, bins.limit.astype(bins.size.dtype)
    if spec.is_fixed:
        return jnp.zeros_like(bins.size), number - 1
    if spec.reduction == "average":
        first = jnp.floor(jnp.clip(bins.position(0.0), 0.0, limit - 1))
        last = jnp.minimum(jnp.floor(jnp.clip(bins.position(number - 1), 0.0, limit - 1)) + 1, limit - 1)
    else:
        final = jnp.maximum(number - 1, 0.0)
        first = jnp.clip(jnp.floor(bins.samples_before(-1.0)) - 1, 0.0, final)
        last = jnp.clip(jnp.ceil(bins.samples_before(limit)) + 1, 0.0, final)
    first, last = jax.lax.stop_gradient((first, last))
    return first, jnp.where(number > 0, last, first - 1)


def _num_blocks(visits, size):
    most = jnp.max(visits, axis=(1, 2), initial=0).astype(jnp.int32)
    return -(-most // size)
