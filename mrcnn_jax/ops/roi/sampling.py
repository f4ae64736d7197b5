"""Where the bins of RoIs read features, along one axis and then the other: samples between cells, or whole cells."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mrcnn_jax.typing import Array, Float, Int

FARTHEST = 2.0**20  # cells; still exact in float32 and far from the end of int32


class Reading(NamedTuple):
    """What an operation reads; static.

    Attributes:
        reduction: "average" of samples, "max" of samples, or "cells", the largest of whole cells.
        bins: along y and x.
        samples: of a bin along each axis; 0 for as many as the RoI needs. Without meaning for cells.
        aligned: see ``roi_align``. Without meaning for cells.
    """

    reduction: str
    bins: tuple[int, int]
    samples: int = 0
    aligned: bool = False

    @property
    def fixed(self) -> bool:
        """Whether every bin reads equally often, whatever its RoI."""
        return self.samples > 0


class Strips(NamedTuple):
    """Rows of bins, [n] of them: each is one row of bins of a RoI."""

    boxes: Float[Array, "n 4"]  # the RoI, in cells of its map
    row: Int[Array, "n"]  # which of the RoI's rows of bins
    start: Int[Array, "n"]  # the table's row at which the map begins
    height: Int[Array, "n"]  # of the map
    width: Int[Array, "n"]


class Samples(NamedTuple):
    """Bins along one axis and the samples in them, arrays that broadcast to [n, bins, samples]."""

    start: Array  # of the RoI
    size: Array
    bin: Array
    bins: Array
    number: Array  # samples of a bin, a whole floating point number
    limit: Array  # cells of the map
    first: Array  # of the samples, or of the cells, that are visited
    last: Array

    def count(self, each: int) -> Int[Array, "n"]:
        """Blocks of ``each`` samples or cells that hold all visits of a strip's bins."""
        return _count(self.last - self.first + 1, each)

    def nothing(self) -> Array:
        """Bins that read nothing, [n, bins]."""
        return jnp.broadcast_to(self.last < self.first, jnp.broadcast_shapes(self.bin.shape, self.last.shape))[..., 0]

    def points(self, k: Int[Array, "n"], each: int) -> tuple[Array, Array, Array]:
        """Block k of samples: the two cells around each, [n, bins, each, 2], their weights, and whether it is one of the bin's samples."""
        index = self.first + (each * k[:, None, None] + jnp.arange(each)).astype(self.first.dtype)
        real, index = index <= self.last, jnp.clip(index, 0.0, jnp.maximum(self.last, 0.0))
        low, high, fraction, inside = self._between(index)
        cells, weights = jnp.stack([low, high], axis=-1), jnp.where(inside[..., None], jnp.stack([1 - fraction, fraction], axis=-1), 0.0)
        shape = (k.shape[0], jnp.broadcast_shapes(self.bin.shape, index.shape)[1], each)
        return jnp.broadcast_to(cells, (*shape, 2)), jnp.broadcast_to(weights, (*shape, 2)), jnp.broadcast_to(real, shape)

    def cells(self, k: Int[Array, "n"], each: int) -> tuple[Array, Array]:
        """Block k of cells, and their mean weight in the samples of each bin: two [n, bins, each]."""
        cell = self.first + (each * k[:, None, None] + jnp.arange(each)).astype(self.first.dtype)
        weight = jnp.where(cell <= self.last, self.share(cell), 0.0)
        return jnp.clip(cell, 0.0, self.limit.astype(cell.dtype) - 1).astype(jnp.int32), weight

    def dense(self, limit: int, fixed: int) -> Float[Array, "n p limit"]:
        """The mean weight of every cell of the axis in the samples of each bin; of ``fixed`` samples, or 0 for adaptive sampling."""
        every = jnp.arange(limit)
        if not fixed:
            return jnp.where(self.nothing()[..., None], 0.0, self.share(every.astype(self.size.dtype)))
        cells, weights, _ = self.points(jnp.zeros(self.size.shape[0], jnp.int32), fixed)
        cells, weights = (array.reshape(*array.shape[:2], -1, 1) for array in (cells, weights))
        return sum(jnp.where(cells[:, :, i] == every, weights[:, :, i], 0.0) for i in range(cells.shape[2])) / fixed

    def share(self, cell: Array) -> Array:
        """Mean weight of a cell in the samples of each bin.

        Of three samples or more in a bin of adaptive sampling, neighbours are more than two thirds of a cell apart, so that at most three lie within the two
        cells' length from which a cell is read (at the border that includes the cell's length outside). One more is looked at, because rounding may miss the
        first.
        """
        limit = self.limit.astype(cell.dtype)
        earliest = jnp.maximum(jnp.floor(self.samples_until(cell - 1)), 0.0)
        total = 0.0
        for sample in (earliest + i for i in range(4)):
            distance = jnp.abs(jnp.clip(self.position(sample), 0.0, limit - 1) - cell)
            total += jnp.where((sample < self.number) & self.inside(sample), jnp.maximum(1 - distance, 0.0), 0.0)
        return total / jnp.maximum(self.number, 1.0)

    def position(self, sample: Array) -> Array:
        """In cells, where cell i's value lies at i."""
        return self.start + (self.bin * self._number() + sample + 0.5) * (self.size / (self.bins * self._number()))

    def inside(self, sample: Array) -> Array:
        """Whether a sample is read. Compared before it is divided, so that one just at the border, where reading ends, is inside whatever the rounding."""
        offset, parts = (self.bin * self._number() + sample + 0.5) * self.size, self.bins * self._number()
        return (offset >= (-1.0 - self.start) * parts) & (offset <= (self.limit.astype(self.size.dtype) - self.start) * parts)

    def samples_until(self, position: Array) -> Array:
        """How many samples of each bin lie before a position, as a fraction; 0 for bins of fewer than two."""
        several = self.number > 1
        return jnp.where(several, (position - self.position(0.0)) * self.bins * self.number / jnp.where(several, self.size, 1.0), 0.0)

    def _between(self, sample):
        last = self.limit - 1
        position = jnp.clip(self.position(sample), 0.0, last.astype(self.size.dtype))
        low = jnp.floor(position).astype(jnp.int32)
        return low, jnp.minimum(low + 1, last), position - low.astype(position.dtype), self.inside(sample)

    def _number(self):
        return jnp.maximum(self.number, 1.0)


class Cells(NamedTuple):
    """Bins of whole cells along one axis: [n, bins]."""

    begin: Int[Array, "n p"]
    end: Int[Array, "n p"]  # not included

    def count(self, each: int) -> Int[Array, "n"]:
        """Blocks of ``each`` cells that hold all cells of a strip's bins."""
        return _count((self.end - self.begin)[..., None], each)

    def nothing(self) -> Array:
        """Bins without a cell, [n, bins]."""
        return self.end <= self.begin

    def block(self, k: Int[Array, "n"], each: int) -> Int[Array, "n p each"]:
        """Block k of cells. Where a bin ends its last cell is taken again, which no maximum minds."""
        cell = self.begin[..., None] + each * k[:, None, None] + jnp.arange(each)
        return jnp.clip(cell, 0, jnp.maximum(self.end - 1, 0)[..., None])


def axes(reading: Reading, strips: Strips) -> tuple["Samples | Cells", "Samples | Cells"]:
    """The bins of strips along y, one for each strip, and along x."""
    return _axes(reading, strips.boxes, strips.height, strips.width, strips.row[:, None])


def axes_of_rois(
    reading: Reading, boxes: Float[Array, "n 4"], height: Int[Array, "n"], width: Int[Array, "n"]
) -> tuple["Samples | Cells", "Samples | Cells"]:
    """The bins of whole RoIs along y and along x."""
    return _axes(reading, boxes, height, width, jnp.arange(reading.bins[0])[None])


def _axes(reading, boxes, height, width, rows):
    boxes = jnp.clip(jnp.nan_to_num(boxes), -FARTHEST, FARTHEST)
    columns = jnp.arange(reading.bins[1])[None]
    if reading.reduction == "cells":
        x1, y1, x2, y2 = round_half_away(boxes).astype(jnp.int32).T
        return _cells(y1, y2, height, rows, reading.bins[0]), _cells(x1, x2, width, columns, reading.bins[1])
    boxes = boxes - 0.5 if reading.aligned else boxes
    size = boxes[:, 2:] - boxes[:, :2]
    size = size if reading.aligned else jnp.maximum(size, 1.0)
    y, x = (boxes[:, 1], size[:, 1]), (boxes[:, 0], size[:, 0])
    return _samples(reading, *y, height, rows, reading.bins[0]), _samples(reading, *x, width, columns, reading.bins[1])


def round_half_away(values: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The nearest whole number, of two equally near ones the one farther from 0, as C's ``round``."""
    size = jnp.abs(values)
    whole = jnp.floor(size)
    return jnp.sign(values) * (whole + (size - whole >= 0.5).astype(values.dtype))


def _cells(first, last, limit, index, bins):
    count = jnp.maximum(last - first + 1, 1)[:, None]
    begin = first[:, None] + index * count // bins
    end = first[:, None] - -(index + 1) * count // bins
    return Cells(jnp.clip(begin, 0, limit[:, None]), jnp.clip(end, 0, limit[:, None]))


def _samples(reading, start, size, limit, index, bins):
    start, size, limit = (array[:, None, None] for array in (start, size, limit))
    number = jnp.full_like(size, reading.samples)
    if not reading.fixed:  # ceil(size / bins), but k also where the division gives a little more than k for a size of exactly k cells a bin
        number = jnp.floor(jax.lax.stop_gradient(size) / bins)
        number = jnp.maximum(number + (number * bins < size).astype(size.dtype), 0.0)
    nothing = jnp.zeros_like(size)
    axis = Samples(start, size, index[..., None].astype(size.dtype), jnp.full_like(size, bins), number, limit, nothing, nothing)
    return axis._replace(**dict(zip(("first", "last"), _visits(axis, reading), strict=True)))


def _visits(axis, reading):
    """First and last sample, or cell of an average of adaptive sampling, that each bin visits.

    Only what lies on the map is worth a visit, and a few of the samples outside, which all read 0: a RoI far larger than the map costs what the map costs.
    """
    number, limit = axis.number, axis.limit.astype(axis.size.dtype)
    if reading.fixed:
        return jnp.zeros_like(axis.size), number - 1
    if reading.reduction == "average":
        first = jnp.floor(jnp.clip(axis.position(0.0), 0.0, limit - 1))
        last = jnp.minimum(jnp.floor(jnp.clip(axis.position(number - 1), 0.0, limit - 1)) + 1, limit - 1)
    else:
        final = jnp.maximum(number - 1, 0.0)
        first = jnp.clip(jnp.floor(axis.samples_until(-1.0)) - 1, 0.0, final)
        last = jnp.clip(jnp.ceil(axis.samples_until(limit)) + 1, 0.0, final)
    first, last = jax.lax.stop_gradient((first, last))
    return first, jnp.where(number > 0, last, first - 1)


def _count(visits, each):
    most = jnp.max(visits, axis=(1, 2), initial=0).astype(jnp.int32)
    return -(-most // each)
