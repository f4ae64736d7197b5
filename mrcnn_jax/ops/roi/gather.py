"""Pooled features of rows of bins by gathering the cells that they sample, block by block of samples.

The reads of a block are unrolled, each a gather of its own, which XLA fuses on CPU and GPU into one loop that
writes only the result: as one gather, or as an einsum, the features read would go through memory first,
sixteen times the result. On TPU, where gathers are fused with nothing, they run in a loop for the same
reason.
"""

from collections.abc import Callable
from itertools import product

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.roi import tuning
from mrcnn_jax.ops.roi.bins import BinRows, Bins, bins_of_rows
from mrcnn_jax.ops.roi.spec import PoolSpec
from mrcnn_jax.runtime import target_platform
from mrcnn_jax.typing import Array, Bool, Float, Int


def pool_bin_rows(spec: PoolSpec, features: Float[Array, "F C"], rows: BinRows) -> Float[Array, "n q C"]:
    """Pools rows of bins.

    Args:
        spec: the operation.
        features: flat features, one cell a row.
        rows: the bins, with the offsets of their maps in the flat features.
    """
    y, x = bins_of_rows(spec, rows)
    size = block_size(spec)
    across = x.num_blocks(size)
    dtype = accumulation_dtype(features.dtype)
    initial = 0.0 if spec.reduction == "average" else -jnp.inf
    shape = rows.row.shape[0], spec.output_size[1], features.shape[-1]
    start = jnp.full_like(features, initial, dtype, shape)

    def visit(k, total):
        cells, weights = block_reads(spec, rows, y, x, *split_block(k, across), size)

        def read(i):
            return weighted(features, cells[i], weights[i])

        def add(i, total):
            if spec.reduction == "average":
                return total + read(i)
            if spec.reduction == "cells":
                return maximum_first_wins(total, take(features, cells[i]))
            return maximum_first_wins(total, sum(read(4 * i + j) for j in range(4)))

        return fold(cells.shape[0] // (4 if spec.reduction == "max" else 1), add, total)

    total = repeat_blocks(spec, y.num_blocks(size) * across, visit, start)
    return jnp.where(empty_bins(y, x), 0, total).astype(features.dtype)


def max_reads(spec: PoolSpec, rows: BinRows) -> Int[Array, "n"]:
    """Returns the number of cells, or samples, of the largest bin of each row."""
    y, x = bins_of_rows(spec, rows)
    return y.num_blocks(1) * x.num_blocks(1)


@jax.custom_jvp
def maximum_first_wins(first: Float[Array, "*n"], second: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns the elementwise maximum; of two equal numbers the first gets the gradient."""
    return jnp.maximum(first, second)


@maximum_first_wins.defjvp
def _maximum_first_wins_jvp(values, tangents):
    (first, second), (of_first, of_second) = values, tangents
    return maximum_first_wins(first, second), jnp.where(second > first, of_second, of_first)


def accumulation_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype in which features are weighted and summed: at least float32."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype


def as_bits(array: Array) -> Array:
    """Reinterprets 16-bit numbers as integers.

    To read or write a part of an array of 16-bit floats, XLA's CPU compiler converts all of it to float32 and
    back.
    """
    return jax.lax.bitcast_convert_type(array, jnp.uint16) if array.dtype.itemsize == 2 else array


def from_bits(bits: Array, dtype: jnp.dtype) -> Array:
    """Reverts ``as_bits`` to numbers of a dtype."""
    return jax.lax.bitcast_convert_type(bits, dtype) if jnp.dtype(dtype).itemsize == 2 else bits


def block_size(spec: PoolSpec) -> int:
    """Returns the side of a block, in cells or samples."""
    if spec.whole_cells:
        return tuning.AVERAGED_CELLS_PER_BLOCK
    if spec.reduction == "cells" or (spec.reduction == "average" and not spec.is_fixed):
        return tuning.CELLS_PER_BLOCK
    return min(tuning.SAMPLES_PER_BLOCK, spec.sampling_ratio) if spec.is_fixed else tuning.SAMPLES_PER_BLOCK


def repeat_blocks(
    spec: PoolSpec, num_blocks: Int[Array, "n"], visit: Callable[[Array, Array], Array], total: Array
) -> Array:
    """Applies ``visit(k, total)`` to every block k."""
    if spec.is_fixed and spec.sampling_ratio <= tuning.SAMPLES_PER_BLOCK:
        return visit(0, total)
    fixed = (-(-spec.sampling_ratio // tuning.SAMPLES_PER_BLOCK)) ** 2
    return jax.lax.fori_loop(0, fixed if spec.is_fixed else jnp.max(num_blocks, initial=0), visit, total)


def fold(number: int, function: Callable[[int, Array], Array], total: Array) -> Array:
    """Applies ``function(i, total)`` for each i, unrolled except on TPU."""
    if target_platform() == "tpu":
        return jax.lax.fori_loop(0, number, function, total)
    for i in range(number):
        total = function(i, total)
    return total


def split_block(k: Array | int, across: Int[Array, "n"]) -> tuple[Int[Array, "n"], Int[Array, "n"]]:
    """Returns the block's index along y and along x."""
    across = jnp.maximum(across, 1)
    return k // across, k % across


def empty_bins(y: Bins, x: Bins) -> Bool[Array, "n q 1"]:
    """Returns the bins that sample nothing."""
    return (y.is_empty() | x.is_empty())[..., None]


def block_reads(
    spec: PoolSpec, rows: BinRows, y: Bins, x: Bins, ky: Int[Array, "n"], kx: Int[Array, "n"], size: int,
    unrolled: bool = True,
) -> tuple[Int[Array, "r n q"], Float[Array, "r n q"] | None]:
    """Returns the flat cells that block (ky, kx) of size x size samples or cells reads, and their weights.

    A sample reads four cells. Past the end of a bin its last read repeats, with weight 0 in an average.
    ``unrolled`` reads are computed one by one, to be fused into their gathers; otherwise all at once, as XLA
    compiles a kernel for each that it cannot fuse.
    """
    if spec.reduction == "cells":
        ys, xs = (axis.cells(k, size)[..., None] for axis, k in ((y, ky), (x, kx)))
        y_weights = x_weights = None
    elif spec.reduction == "average" and not spec.is_fixed:
        (ys, y_weights), (xs, x_weights) = (
            (array[..., None] for array in axis.cell_block(k, size)) for axis, k in ((y, ky), (x, kx))
        )
    else:
        (ys, y_weights, y_valid), (xs, x_weights, x_valid) = (
            y.sample_block(ky, size),
            x.sample_block(kx, size),
        )
        if spec.reduction == "average":
            y_weights, x_weights = (
                jnp.where(valid[..., None], weights / axis.num_samples[..., None], 0.0)
                for weights, valid, axis in ((y_weights, y_valid, y), (x_weights, x_valid, x))
            )
    # fused into what is done per channel, all of this would be computed again for each channel
    ys = rows.offset[:, None, None, None] + ys * rows.width[:, None, None, None]
    if spec.groups > 1:  # each cell has groups x groups rows of the flat features, one for each map
        own_row, own_column = (
            index * spec.groups // bins
            for index, bins in zip((rows.row, jnp.arange(xs.shape[1])), spec.output_size, strict=True)
        )
        ys = ys * spec.groups**2 + own_row[:, None, None, None] * spec.groups
        xs = xs * spec.groups**2 + own_column[None, :, None, None]
    ys, y_weights, xs, x_weights = jax.lax.optimization_barrier((ys, y_weights, xs, x_weights))
    outer = _outer_unrolled if unrolled else _outer
    weights = None if y_weights is None else outer(jnp.multiply, y_weights, x_weights)
    return outer(jnp.add, ys, xs), weights


def _outer(combine, y, x):
    """Combines [n, p, sample, read of the sample] of both axes to [reads of the block, n, p]."""
    y, x = (jnp.moveaxis(axis, (2, 3), (0, 1)) for axis in (y, x))
    both = combine(y[:, None, :, None], x[None, :, None])
    return both.reshape(-1, *both.shape[4:])


def _outer_unrolled(combine, y, x):
    each = product(range(y.shape[2]), range(x.shape[2]), range(y.shape[3]), range(x.shape[3]))
    return jnp.stack([combine(y[:, :, v, t], x[:, :, u, s]) for v, u, t, s in each])


def take(features: Float[Array, "F C"], cell: Int[Array, "n q"]) -> Float[Array, "n q C"]:
    """Gathers cells, in the accumulation dtype."""
    cells = from_bits(as_bits(features).at[cell].get(mode="promise_in_bounds"), features.dtype)
    return cells.astype(accumulation_dtype(features.dtype))


def weighted(
    features: Float[Array, "F C"], cell: Int[Array, "n q"], weight: Float[Array, "n q"]
) -> Float[Array, "n q C"]:
    """Gathers cells and multiplies them by their weights."""
    return take(features, cell) * weight[..., None].astype(accumulation_dtype(features.dtype))
