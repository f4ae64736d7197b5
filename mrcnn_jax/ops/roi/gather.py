"""Reading features for rows of bins, block of readings by block, and the gradient of that.

Features are the rows of a table. The readings of a block are unrolled, each a gather of its own, which XLA fuses on CPU and GPU into one loop that writes the
result and nothing else: as one gather, or as an einsum, what is read would go through memory first, sixteen times the result. On TPU, where gathers are fused
with nothing, they are made one after another for the same reason.
"""

from functools import partial

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.roi.sampling import Reading, Strips, axes
from mrcnn_jax.typing import Array, Float, Int

# what a block holds along each axis: either way 4 x 4 cells
SAMPLES = 2
CELLS = 4


def pool(reading: Reading, table: Float[Array, "R C"], strips: Strips) -> Float[Array, "n q C"]:
    """The strips' bins."""
    y, x = axes(reading, strips)
    side = _side(reading)
    across = x.count(side)
    start = jnp.full(
        (strips.row.shape[0], reading.bins[1], table.shape[1]), 0.0 if reading.reduction == "average" else -jnp.inf, computing(table.dtype)
    )

    def visit(k, total):
        rows, weights = _block(reading, strips, y, x, *_split(k, across), side)
        if reading.reduction == "cells":
            return _fold(rows.shape[-1], lambda i, total: larger(total, _take(table, rows[..., i])), total)
        if reading.reduction == "max":
            return _fold(
                rows.shape[-1] // 4,
                lambda i, total: larger(total, sum(_weighted(table, rows[..., 4 * i + j], weights[..., 4 * i + j]) for j in range(4))),
                total,
            )
        return _fold(rows.shape[-1], lambda i, total: total + _weighted(table, rows[..., i], weights[..., i]), total)

    total = _repeat(reading, y.count(side) * across, visit, start)
    return jnp.where(_nothing(y, x), 0, total).astype(table.dtype)


def add_gradient(
    reading: Reading, total: Float[Array, "R C"], table: Float[Array, "R C"], strips: Strips, pooled: Float[Array, "n q C"] | None,
    gradient: Float[Array, "n q C"], scatter: str,
) -> Float[Array, "R C"]:  # fmt: skip
    """``total`` with what the table gets from the gradient of the strips' bins.

    Args:
        pooled: the bins; asked for where reading.reduction is "cells".
        scatter: how it is added up. "rows": a row of channels to every cell that a bin read, of a maximum 0 where it was not the largest. "elements": of a
            maximum, each channel's part to what was its largest alone; an element costs a CPU many times as much as one in a row. "sorted": of an average
            of a fixed number of samples, everything that all bins read, sorted by cells.
    """
    y, x = axes(reading, strips)
    gradient = jnp.where(_nothing(y, x), 0, gradient).astype(total.dtype)
    add = {"average": _add_averages, "max": _add_largest_samples, "cells": partial(_add_largest_cells, pooled)}[reading.reduction]
    return add(reading, total, table, strips, y, x, gradient, scatter)


def most_cells(reading: Reading, strips: Strips) -> Int[Array, "n"]:
    """How many cells, or samples, the largest bin of each strip reads."""
    y, x = axes(reading, strips)
    return y.count(1) * x.count(1)


@jax.custom_jvp
def larger(first: Float[Array, "*n"], second: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The maximum; of two equal numbers the first gets the gradient."""
    return jnp.maximum(first, second)


@larger.defjvp
def _larger_jvp(values, tangents):
    (first, second), (of_first, of_second) = values, tangents
    return larger(first, second), jnp.where(second > first, of_second, of_first)


def computing(dtype: jnp.dtype) -> jnp.dtype:
    """In which numbers features are weighted and added up."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def as_bits(array: Array) -> Array:
    """Numbers of 16 bits as integers. To read or write a part of an array of such numbers, XLA's CPU compiler converts all of it to float32 and back."""
    return jax.lax.bitcast_convert_type(array, jnp.uint16) if array.dtype.itemsize == 2 else array


def from_bits(bits: Array, dtype: jnp.dtype) -> Array:
    """Numbers of a dtype from what ``as_bits`` gave."""
    return jax.lax.bitcast_convert_type(bits, dtype) if jnp.dtype(dtype).itemsize == 2 else bits


def _add_averages(reading, total, table, strips, y, x, gradient, scatter):
    side = _side(reading)
    across = x.count(side)

    def visit(k, total):
        rows, weights = _block(reading, strips, y, x, *_split(k, across), side)
        if scatter == "sorted":
            order = jnp.argsort(rows.reshape(-1))
            parts = gradient.reshape(-1, gradient.shape[-1])[order // rows.shape[-1]] * weights.reshape(-1, 1)[order].astype(total.dtype)
            return total.at[rows.reshape(-1)[order]].add(parts, mode="promise_in_bounds", indices_are_sorted=True)
        return jax.lax.fori_loop(
            0, rows.shape[-1], lambda i, total: _add(total, rows[..., i], gradient * weights[..., i, None].astype(total.dtype)), total
        )

    return _repeat(reading, y.count(side) * across, visit, total)


def _add_largest_samples(reading, total, table, strips, y, x, gradient, scatter):
    """To the first largest sample of each bin and channel; they are compared again, one after another."""
    across = x.count(1)
    number = reading.samples**2 if reading.fixed else jnp.max(y.count(1) * across, initial=0)

    def sample(k):
        rows, weights = _block(reading, strips, y, x, *_split(k, across), 1)
        return rows, weights.astype(total.dtype)

    def compare(k, found):
        best, chosen = found
        rows, weights = sample(k)
        value = sum(_weighted(table, rows[..., j], weights[..., j]) for j in range(4))
        better = (k == 0) | (value > best) | jnp.isnan(value)  # what is not a number stays visible
        now = tuple(array[:, :, None] for array in (rows, weights)) if scatter == "elements" else (jnp.full((1, 1, 1, 1), k),)
        return jnp.where(better, value, best), tuple(jnp.where(better[..., None], new, old) for new, old in zip(now, chosen, strict=True))

    kinds = (jnp.int32, total.dtype) if scatter == "elements" else (jnp.int32,)
    nothing = tuple(jnp.zeros((*gradient.shape, 4 if scatter == "elements" else 1), kind) for kind in kinds)
    _, chosen = jax.lax.fori_loop(0, number, compare, (jnp.zeros(gradient.shape, computing(table.dtype)), nothing))
    if scatter == "elements":
        rows, weights = chosen
        return jax.lax.fori_loop(0, 4, lambda j, total: _add_elements(total, rows[..., j], gradient * weights[..., j]), total)
    which = chosen[0][..., 0]

    def add(k, total):
        rows, weights = sample(k)
        part = jnp.where(which == k, gradient, 0)
        return jax.lax.fori_loop(0, 4, lambda j, total: _add(total, rows[..., j], part * weights[..., j, None]), total)

    return jax.lax.fori_loop(0, number, add, total)


def _add_largest_cells(pooled, reading, total, table, strips, y, x, gradient, scatter):
    """To the first largest cell of each bin and channel, found by its value."""
    across = x.count(CELLS)
    nowhere = jnp.iinfo(jnp.int32).max

    def find(k, first):
        rows, _ = _block(reading, strips, y, x, *_split(k, across), CELLS)

        def closer(i, first):
            value = _take(table, rows[..., i])
            return jnp.where((value == pooled) | jnp.isnan(value), jnp.minimum(first, rows[..., i, None]), first)

        return _fold(rows.shape[-1], closer, first)

    first = jax.lax.fori_loop(0, jnp.max(y.count(CELLS) * across, initial=0), find, jnp.full(gradient.shape, nowhere))
    if scatter == "elements":
        return _add_elements(total, jnp.where(_nothing(y, x), nowhere, first), gradient)  # nowhere is dropped
    across = x.count(1)

    def add(k, total):
        ky, kx = _split(k, across)
        row = _block(reading, strips, y, x, ky, kx, 1)[0][..., 0]
        once = (ky[:, None] < y.end - y.begin) & (kx[:, None] < x.end - x.begin)
        return _add(total, row, jnp.where(once[..., None] & (first == row[..., None]), gradient, 0))

    return jax.lax.fori_loop(0, jnp.max(y.count(1) * across, initial=0), add, total)


def _side(reading):
    if reading.reduction == "cells" or (reading.reduction == "average" and not reading.fixed):
        return CELLS
    return min(SAMPLES, reading.samples) if reading.fixed else SAMPLES


def _repeat(reading, number, visit, total):
    """``visit`` every block."""
    if reading.fixed and reading.samples <= SAMPLES:
        return visit(0, total)
    rounds = (-(-reading.samples // SAMPLES)) ** 2 if reading.fixed else jnp.max(number, initial=0)
    return jax.lax.fori_loop(0, rounds, visit, total)


def _fold(number, function, total):
    """function(i, total) for each i, unrolled but on TPU."""

    def unrolled(total):
        for i in range(number):
            total = function(i, total)
        return total

    return jax.lax.platform_dependent(total, tpu=lambda total: jax.lax.fori_loop(0, number, function, total), default=unrolled)


def _split(k, across):
    across = jnp.maximum(across, 1)
    return k // across, k % across


def _nothing(y, x):
    return (y.nothing() | x.nothing())[..., None]


def _block(reading, strips, y, x, ky, kx, side):
    """What block (ky, kx) of side x side samples or cells reads: the table's rows and their weights, two [n, q, readings]; of samples four readings each.

    Of a maximum, the last sample or cell is read again where a bin ends; of an average it then has no weight.
    """
    if reading.reduction == "cells":
        ys, xs = (axis.block(k, side)[..., None] for axis, k in ((y, ky), (x, kx)))
        wys = wxs = None
    elif reading.reduction == "average" and not reading.fixed:
        (ys, wys), (xs, wxs) = ((array[..., None] for array in axis.cells(k, side)) for axis, k in ((y, ky), (x, kx)))
    else:
        (ys, wys, real_y), (xs, wxs, real_x) = y.points(ky, side), x.points(kx, side)
        if reading.reduction == "average":
            wys, wxs = (jnp.where(real[..., None], w / axis.number[..., None], 0.0) for w, real, axis in ((wys, real_y, y), (wxs, real_x, x)))
    # fused into what is done per channel, all this would be computed again for each of them; the sums and products that are left cost less than the memory
    ys, wys, xs, wxs = jax.lax.optimization_barrier((strips.start[:, None, None, None] + ys * strips.width[:, None, None, None], wys, xs, wxs))
    each = [(v, u, t, s) for v in range(side) for u in range(side) for t in range(ys.shape[-1]) for s in range(xs.shape[-1])]
    rows = jnp.stack([ys[:, :, v, t] + xs[:, :, u, s] for v, u, t, s in each], axis=-1)
    return rows, None if wys is None else jnp.stack([wys[:, :, v, t] * wxs[:, :, u, s] for v, u, t, s in each], axis=-1)


def _take(table, row):
    rows = from_bits(as_bits(table).at[row].get(mode="promise_in_bounds"), table.dtype)
    return rows.astype(computing(table.dtype))


def _weighted(table, row, weight):
    return _take(table, row) * weight[..., None].astype(computing(table.dtype))


def _add(total, row, gradient):
    return total.at[row].add(gradient, mode="promise_in_bounds")


def _add_elements(total, row, gradient):
    return total.at[row, jnp.arange(total.shape[1])].add(gradient, mode="drop")
