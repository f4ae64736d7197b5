"""Gradients of flat features from those of rows of bins, by scattering what ``gather`` reads."""

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.roi import tuning
from mrcnn_jax.ops.roi.bins import BinRows, bins_of_rows
from mrcnn_jax.ops.roi.gather import (
    accumulation_dtype,
    block_reads,
    block_size,
    empty_bins,
    fold,
    repeat_blocks,
    split_block,
    take,
    weighted,
)
from mrcnn_jax.ops.roi.spec import PoolSpec
from mrcnn_jax.typing import Array, Float


def add_gradient(
    spec: PoolSpec,
    total: Float[Array, "F C"],
    features: Float[Array, "F C"],
    rows: BinRows,
    pooled: Float[Array, "n q C"] | None,
    gradient: Float[Array, "n q C"],
    by_element: bool,
) -> Float[Array, "F C"]:
    """Adds to ``total`` the gradient of the flat features from the gradient of rows of bins.

    Args:
        spec: the operation.
        total: the gradient of the features so far.
        features: flat features, one cell a row.
        rows: the bins.
        pooled: the pooled bins; only needed for the reduction "cells".
        gradient: of the pooled bins.
        by_element: how the gradient of a maximum is scattered. True: each channel's part to its own maximum,
            where one element costs a CPU many times as much as one in a row. False: a row of channels to
            every cell that a bin reads, 0 in the channels whose maximum is elsewhere.
    """
    y, x = bins_of_rows(spec, rows)
    gradient = jnp.where(empty_bins(y, x), 0, gradient).astype(total.dtype)
    if spec.reduction == "average":
        return _add_averages(spec, total, rows, y, x, gradient)
    if spec.reduction == "max":
        return _add_maximal_samples(spec, total, features, rows, y, x, gradient, by_element)
    return _add_maximal_cells(spec, total, features, rows, y, x, pooled, gradient, by_element)


def _add_averages(spec, total, rows, y, x, gradient):
    size = block_size(spec)
    across = x.num_blocks(size)

    def visit(k, total):
        cells, weights = block_reads(spec, rows, y, x, *split_block(k, across), size, unrolled=False)

        def add(i, total):
            return _add_rows(total, cells[i], gradient * weights[i][..., None].astype(total.dtype))

        return jax.lax.fori_loop(0, cells.shape[0], add, total)

    return repeat_blocks(spec, y.num_blocks(size) * across, visit, total)


def _add_maximal_samples(spec, total, features, rows, y, x, gradient, by_element):
    """To the first largest sample of each bin and channel, found by comparing the samples again."""
    across = x.num_blocks(1)
    number = spec.sampling_ratio**2 if spec.is_fixed else jnp.max(y.num_blocks(1) * across, initial=0)

    def sample(k):
        cells, weights = block_reads(spec, rows, y, x, *split_block(k, across), 1)
        return cells, weights.astype(total.dtype)

    def compare(k, found):
        best, chosen = found
        cells, weights = sample(k)
        value = sum(weighted(features, cells[j], weights[j]) for j in range(4))
        better = (k == 0) | (value > best) | jnp.isnan(value)  # NaN stays visible
        if by_element:
            candidate = cells[..., None], weights[..., None]
        else:
            candidate = (jnp.full((1, 1, 1, 1), k),)
        chosen = tuple(
            jnp.where(better, new, old) for new, old in zip(candidate, chosen, strict=True)
        )
        return jnp.where(better, value, best), chosen

    dtypes, reads = ((jnp.int32, total.dtype), 4) if by_element else ((jnp.int32,), 1)
    none = tuple(jnp.zeros_like(gradient, dtype, (reads, *gradient.shape)) for dtype in dtypes)
    start = jnp.zeros_like(gradient, accumulation_dtype(features.dtype)), none
    _, chosen = jax.lax.fori_loop(0, number, compare, start)
    if by_element:
        cells, weights = chosen
        def add_elements(j, total):
            return _add_elements(total, cells[j], gradient * weights[j])

        return jax.lax.fori_loop(0, 4, add_elements, total)
    winner = chosen[0][0]

    def add_sample(k, total):
        cells, weights = sample(k)
        part = jnp.where(winner == k, gradient, 0)

        def add_rows(j, total):
            return _add_rows(total, cells[j], part * weights[j][..., None])

        return jax.lax.fori_loop(0, 4, add_rows, total)

    return jax.lax.fori_loop(0, number, add_sample, total)


def _add_maximal_cells(spec, total, features, rows, y, x, pooled, gradient, by_element):
    """To the first largest cell of each bin and channel, found by its value."""
    size = tuning.CELLS_PER_BLOCK
    across = x.num_blocks(size)
    none = jnp.iinfo(jnp.int32).max

    def find(k, first):
        cells, _ = block_reads(spec, rows, y, x, *split_block(k, across), size)

        def earliest(i, first):
            value = take(features, cells[i])
            is_maximum = (value == pooled) | jnp.isnan(value)
            return jnp.where(is_maximum, jnp.minimum(first, cells[i][..., None]), first)

        return fold(cells.shape[0], earliest, first)

    num_blocks = jnp.max(y.num_blocks(size) * across, initial=0)
    first = jax.lax.fori_loop(0, num_blocks, find, jnp.full_like(gradient, none, jnp.int32))
    if by_element:
        return _add_elements(
            total, jnp.where(empty_bins(y, x), none, first), gradient
        )  # out of bounds is dropped
    across = x.num_blocks(1)

    def add(k, total):
        ky, kx = split_block(k, across)
        cell = block_reads(spec, rows, y, x, ky, kx, 1)[0][0]
        once = (ky[:, None] < y.end - y.begin) & (kx[:, None] < x.end - x.begin)
        return _add_rows(total, cell, jnp.where(once[..., None] & (first == cell[..., None]), gradient, 0))

    return jax.lax.fori_loop(0, jnp.max(y.num_blocks(1) * across, initial=0), add, total)


def _add_rows(total, cell, gradient):
    return total.at[cell].add(gradient, mode="promise_in_bounds")


def _add_elements(total, cell, gradient):
    return total.at[cell, jnp.arange(total.shape[1])[None, None]].add(gradient, mode="drop")
