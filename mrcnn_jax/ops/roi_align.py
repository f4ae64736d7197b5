"""RoIAlign (Mask R-CNN, section 3): bilinear reading of features at regularly spaced points of each RoI, nothing quantised."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mrcnn_jax.ops.roi_table import Rois, on_one_map, pair, read_largest, read_sum

FARTHEST = 2.0**20  # cells
PIECE = 2**18  # bytes of gradient that a CPU scatters at a time


@partial(jax.jit, static_argnames=("output_size", "spatial_scale", "sampling_ratio", "aligned", "reduction"))
def roi_align(
    features: Float[Array, "H W C"],
    boxes: Float[Array, "N 4"],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
    reduction: str = "average",
) -> Float[Array, "N PH PW C"]:
    """RoIAlign from one feature map.

    Args:
        features: one image's features, channels last.
        boxes: RoIs in image pixels.
        output_size: bins along y and x, or one number for both.
        spatial_scale: feature pixels per image pixel.
        sampling_ratio: samples per bin and axis. 0 is adaptive: ceil(size in cells / bins), so that samples lie at most one cell apart, as in
            torchvision and Detectron2. An aligned RoI without height or width then has no samples, and its bins are 0.
        aligned: image coordinate x is read at feature coordinate x * spatial_scale - 0.5, where a cell's value lies at its centre
            (Detectron2's ROIAlignV2). False is the original code's reading: no half pixel, and RoIs at least one feature pixel wide.
        reduction: "average" or "max" over the samples of a bin, channel by channel (table 2c compares them).
    Samples more than one cell outside the map read 0, as in Detectron, and these 0 count; those less far outside read the border.

    Differentiable in features and boxes; the maximum through its first largest sample. Unless a fixed number of samples is averaged, boxes end 2**20
    cells from the map's origin. Raises ValueError for another reduction or a negative number of samples.
    """
    return align(*on_one_map(features, boxes, spatial_scale), pair(output_size), sampling_ratio, aligned, reduction)


def align(
    table: Float[Array, "R C"], rois: Rois, output_size: tuple[int, int], sampling_ratio: int, aligned: bool, reduction: str
) -> Float[Array, "N PH PW C"]:
    """RoIAlign of RoIs on the maps of a table."""
    if reduction not in ("average", "max") or sampling_ratio < 0:
        raise ValueError(f'RoIAlign takes the "average" or "max" of at least 0 samples, not {reduction!r} of {sampling_ratio}')
    if reduction == "average" and sampling_ratio > 0:
        (y1, height), (x1, width) = _extent(rois.boxes, aligned)
        y, wy = _taps(y1, height, rois.height, output_size[0], sampling_ratio)
        x, wx = _taps(x1, width, rois.width, output_size[1], sampling_ratio)
        return _read(table, rois.start, rois.width, y, wy, x, wx)
    extent = _extent(jnp.clip(jnp.nan_to_num(rois.boxes), -FARTHEST, FARTHEST), aligned)
    sides = _sides(extent, (rois.height, rois.width), output_size, sampling_ratio)
    spans = (_span(side, reduction, sampling_ratio) for side in sides)
    down, across = (jnp.max(last - first + 1, axis=(1, 2, 3)).astype(jnp.int32) for first, last in spans)
    reading = partial(_reading, reduction, output_size, sampling_ratio)
    read = read_sum if reduction == "average" else read_largest
    return read(reading, output_size, table, extent, (rois.start, rois.height, rois.width, across), down * across)


def _extent(boxes, aligned):
    """Begin and length along y and along x, in the coordinates in which cell i's value lies at i."""
    if aligned:
        boxes = boxes - 0.5
    size = boxes[:, 2:] - boxes[:, :2]
    if not aligned:
        size = jnp.maximum(size, 1.0)
    return (boxes[:, 1], size[:, 1]), (boxes[:, 0], size[:, 0])


@jax.custom_vjp
def _read(table, start, width, y, wy, x, wx):
    """Sum over the taps (t, s) of bin (p, q): wy[n, p, t] wx[n, q, s] table[start[n] + y[n, p, t] width[n] + x[n, q, s]].

    The taps are unrolled so that XLA fuses every gather into one loop that writes the output and nothing else: as one gather, or as an einsum,
    the [N, PH, taps, PW, taps, C] samples would go through memory, 16 times the output. The gradient scatters tap by tap for the same reason.
    """
    out = 0
    for row, weight in _each_tap(start, width, y, wy, x, wx):
        out += table.at[row].get(mode="promise_in_bounds") * weight.astype(table.dtype)[..., None]
    return out


def _each_tap(start, width, y, wy, x, wx):
    for t in range(y.shape[2]):
        for s in range(x.shape[2]):
            row = start[:, None, None] + y[:, :, None, t] * width[:, None, None] + x[:, None, :, s]
            yield row, wy[:, :, None, t] * wx[:, None, :, s]


def _read_forward(table, *taps):
    return _read(table, *taps), (table, taps)


def _read_backward(residuals, gradient):
    table, (start, width, y, wy, x, wx) = residuals
    taps = y.shape[2], x.shape[2]
    # every row of bins for itself: the table's rows at which its taps begin, their weights, and the taps across
    begin, down = (start[:, None, None] + y * width[:, None, None]).reshape(-1, taps[0]), wy.reshape(-1, taps[0])
    cells, across = (jnp.repeat(array, y.shape[1], axis=0) for array in (x, wx))
    bins = begin, down, cells, across, gradient.reshape(-1, *gradient.shape[2:])
    to_table = jax.lax.platform_dependent(jnp.zeros_like(table), bins, cpu=_scatter_in_pieces, default=_scatter)
    # what the boxes get through the weights; compiled only where somebody asks for it
    products = [jnp.sum(table.at[row].get(mode="promise_in_bounds") * gradient, axis=-1) for row, _ in _each_tap(start, width, y, wy, x, wx)]
    products = jnp.stack(products, axis=-1).reshape(*gradient.shape[:3], *taps).astype(wy.dtype)
    to_wy = jnp.einsum("npqts,nqs->npt", products, wx)
    to_wx = jnp.einsum("npqts,npt->nqs", products, wy)
    return to_table, None, None, None, to_wy, None, to_wx


_read.defvjp(_read_forward, _read_backward)


def _scatter(total, bins):
    """The table with what rows of bins give to the cells that they read, tap by tap."""
    begin, down, cells, across, gradient = bins

    def add_tap(index, total):
        t, s = index // cells.shape[2], index % cells.shape[2]
        weight = (down[:, None, t] * across[:, :, s]).astype(gradient.dtype)
        return total.at[begin[:, None, t] + cells[:, :, s]].add(gradient * weight[..., None], mode="promise_in_bounds")

    return jax.lax.fori_loop(0, begin.shape[1] * cells.shape[2], add_tap, total)


def _scatter_in_pieces(total, bins):
    """The same, some rows of bins after the others: XLA writes the weighted gradient of each tap to memory before it is added up, and on CPU that memory
    should be cache."""
    number, gradient = len(bins[0]), bins[-1]
    piece = max(1, PIECE // (math.prod(gradient.shape[1:]) * gradient.dtype.itemsize))
    pieces = -(-number // piece)

    def cut(array):  # filled up with rows of weight 0
        padding = [(0, pieces * piece - number)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(pieces, piece, *array.shape[1:])

    return jax.lax.scan(lambda total, bins: (_scatter(total, bins), None), total, tuple(map(cut, bins)))[0]


def _taps(start, size, limit, bins, samples):
    """Cells that each bin reads along one axis, and their weights: [N, bins, 2 * samples], two cells a sample."""
    offsets = (jnp.arange(bins * samples, dtype=start.dtype) + 0.5) / samples
    position, limit = start[:, None] + offsets * (size / bins)[:, None], limit[:, None]
    cells, weights = _between(position, (position >= -1.0) & (position <= limit.astype(position.dtype)), limit)
    shape = (start.shape[0], bins, 2 * samples)
    return jnp.stack(cells, axis=-1).reshape(shape), jnp.stack(weights, axis=-1).reshape(shape) / samples


def _between(position, inside, limit):
    """The two cells between which a position on one axis lies, and their weights."""
    last = limit - 1
    position = jnp.clip(position, 0.0, last.astype(position.dtype))
    low = jnp.floor(position).astype(jnp.int32)
    fraction = position - low.astype(position.dtype)
    weight = jnp.where(inside, 1.0, 0.0)
    return (low, jnp.minimum(low + 1, last)), (weight * (1 - fraction), weight * fraction)


class _Side(NamedTuple):
    """Bins of RoIs along one axis and the samples in them; arrays that broadcast to [N, PH, PW, 1]."""

    start: Array  # of the RoI
    size: Array
    bin: Array
    bins: Array
    number: Array  # samples of a bin, a whole floating point number
    limit: Array  # cells of the map

    def position(self, sample):
        return self.start + (self.bin * self._number() + sample + 0.5) * self.size / (self.bins * self._number())

    def inside(self, sample):
        """Whether a sample is read. Compared before it is divided, so that one just at the border, where reading ends, is inside whatever the rounding."""
        offset, parts = (self.bin * self._number() + sample + 0.5) * self.size, self.bins * self._number()
        return (offset >= (-1.0 - self.start) * parts) & (offset <= (self.limit.astype(self.size.dtype) - self.start) * parts)

    def _number(self):
        return jnp.maximum(self.number, 1.0)

    def samples_until(self, position):
        """How many samples of each bin lie before a position, as a fraction; 0 for bins of fewer than two."""
        several = self.number > 1
        return jnp.where(several, (position - self.position(0.0)) * self.bins * self.number / jnp.where(several, self.size, 1.0), 0.0)


def _sides(extent, limits, output_size, samples):
    """The side along y and the one along x."""
    sides = []
    for axis, ((start, size), limit, bins) in enumerate(zip(extent, limits, output_size, strict=True)):
        start, size, limit = (array[:, None, None, None] for array in (start, size, limit))
        index = jnp.arange(bins, dtype=size.dtype).reshape((1, bins, 1, 1) if axis == 0 else (1, 1, bins, 1))
        number = jnp.full_like(size, samples)
        if samples == 0:  # ceil(size / bins), but k also where the division gives a little more than k for a size of exactly k cells a bin
            number = jnp.floor(jax.lax.stop_gradient(size) / bins)
            number = jnp.maximum(number + (number * bins < size).astype(size.dtype), 0.0)
        sides.append(_Side(start, size, index, jnp.full_like(size, bins), number, limit))
    return sides


def _reading(reduction, output_size, samples, extent, maps, k):
    """``roi_table.Reading``: of an average, all that a bin's samples take from one cell; of a maximum, one sample."""
    start, _, width, across = (array[:, None, None, None] for array in maps)
    across = jnp.maximum(across, 1)
    real, taps = True, []
    for side, offset in zip(_sides(extent, maps[1:3], output_size, samples), (k // across, k % across), strict=True):
        first, last = _span(side, reduction, samples)
        index = first + offset.astype(first.dtype)
        real &= index <= last
        taps.append(_share_of_cell(side, index) if reduction == "average" else _between(side.position(index), side.inside(index), side.limit))
    (ys, wys), (xs, wxs) = taps
    return tuple(start + y * width + x for y in ys for x in xs), tuple(wy * wx for wy in wys for wx in wxs), real


def _span(side, reduction, samples):
    """First and last cell (of an average) or sample (of a maximum) that each bin visits along one axis.

    Only what lies on the map is worth a visit, and a few of the samples outside, which all read 0: a RoI far larger than the map costs what the map costs.
    """
    number, limit = side.number, side.limit.astype(side.size.dtype)
    if reduction == "average":
        first = jnp.floor(jnp.clip(side.position(0.0), 0.0, limit - 1))
        last = jnp.minimum(jnp.floor(jnp.clip(side.position(number - 1), 0.0, limit - 1)) + 1, limit - 1)
    elif samples == 0:
        final = jnp.maximum(number - 1, 0.0)
        first = jnp.clip(jnp.floor(side.samples_until(-1.0)) - 1, 0.0, final)
        last = jnp.clip(jnp.ceil(side.samples_until(limit)) + 1, 0.0, final)
    else:
        first, last = jnp.zeros_like(side.size), jnp.full_like(side.size, samples - 1)
    return first, jnp.where(number > 0, last, first - 1)


def _share_of_cell(side, cell):
    """A cell along one axis, and its mean weight in the samples of each bin.

    Of three samples or more in a bin of adaptive sampling, neighbours are more than two thirds of a cell apart, so that at most three lie within the two cells'
    length from which a cell is read (at the border that includes the cell's length outside). One more is looked at, because rounding may miss the first.
    """
    limit = side.limit.astype(cell.dtype)
    earliest = jnp.maximum(jnp.floor(side.samples_until(cell - 1)), 0.0)
    total = 0.0
    for sample in (earliest + i for i in range(4)):
        distance = jnp.abs(jnp.clip(side.position(sample), 0.0, limit - 1) - cell)
        total += jnp.where((sample < side.number) & side.inside(sample), jnp.maximum(1 - distance, 0.0), 0.0)
    return (jnp.minimum(cell, limit - 1).astype(jnp.int32),), (total / jnp.maximum(side.number, 1.0),)
