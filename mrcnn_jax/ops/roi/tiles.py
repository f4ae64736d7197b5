"""Pooling of rows of bins, all at once or tile by tile; a tile's rows read one map and have similar sizes."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.roi import tuning
from mrcnn_jax.ops.roi.bins import BinRows, bins_of_rois
from mrcnn_jax.ops.roi.gather import accumulation_dtype, as_bits, from_bits, max_reads, pool_bin_rows
from mrcnn_jax.ops.roi.gradients import add_gradient
from mrcnn_jax.ops.roi.spec import PoolSpec
from mrcnn_jax.typing import Array, Float, Int

Maps = tuple[Float[Array, "B _h _w C"], ...]


class Rois(NamedTuple):
    """N RoIs, each on one of the maps and in one of the images."""

    boxes: Float[Array, "N 4"]  # in cells of its map
    level: Int[Array, "N"]  # index of the map
    image: Int[Array, "N"]


class FlatMaps(NamedTuple):
    """Feature maps as flat features, image by image; a cell is a row, or one for each of its groups' maps."""

    features: Float[Array, "F C"]
    image_stride: int  # cells of an image
    levels: tuple[tuple[int, int, int], ...]  # of each map: offset within the image, height and width


class TilePlan(NamedTuple):
    """Assignment of units, such as rows of bins, to tiles of equal size."""

    slots: Int[Array, "tiles size"]  # unit in each slot, -1 for none
    begin: Int[Array, "groups+1"]  # first tile of each group, and the number of all tiles
    inverse: Int[Array, "units"]  # flat slot of each unit


def flatten_levels(spec: PoolSpec, maps: Maps) -> list[FlatMaps]:
    """Flattens each map on its own."""
    flat = []
    for features in maps:
        _, height, width, channels = features.shape
        rows = features.reshape(-1, spec.channels(channels))
        flat.append(FlatMaps(rows, height * width, ((0, height, width),)))
    return flat


def join_levels(spec: PoolSpec, maps: Maps) -> list[FlatMaps]:
    """Flattens all maps into one array, in which the maps of an image lie end to end."""
    if len(maps) == 1:
        return flatten_levels(spec, maps)
    batch, channels = maps[0].shape[0], maps[0].shape[-1]
    joined = jnp.concatenate([features.reshape(batch, -1, channels) for features in maps], axis=1)
    # fused into the gather, the concatenation would be searched again for every element that is read
    joined = jax.lax.optimization_barrier(joined)
    levels, begin = [], 0
    for features in maps:
        levels.append((begin, *features.shape[1:3]))
        begin += features.shape[1] * features.shape[2]
    return [FlatMaps(joined.reshape(-1, spec.channels(channels)), begin, tuple(levels))]


def split_levels(
    spec: PoolSpec, flat: FlatMaps, values: Float[Array, "F _c"]
) -> list[Float[Array, "B _h _w C"]]:
    """Splits an array in the order of the flat features into maps."""
    values = values.reshape(-1, flat.image_stride, values.shape[-1] * spec.groups**2)
    return [
        values[:, begin : begin + h * w].reshape(-1, h, w, values.shape[-1]) for begin, h, w in flat.levels
    ]


def pool_tiles(spec: PoolSpec, flat: Sequence[FlatMaps], rois: Rois, size: int) -> Float[Array, "N PH PW C"]:
    """Pools the RoIs, ``size`` rows of bins at a time."""
    if _is_single_tile(spec, flat, rois, size):
        pooled = pool_bin_rows(spec, flat[0].features, _bin_rows(spec, rois, flat[0], _all_rows(spec, rois)))
    else:
        plan = _plan(spec, flat, rois, size)
        dtype, channels = flat[0].features.dtype, flat[0].features.shape[1]
        shape = (*plan.slots.shape, spec.output_size[1], channels)
        pooled = as_bits(jnp.zeros_like(flat[0].features, shape=shape))
        for group, own in enumerate(flat):

            def visit(tile, pooled, own=own):
                bins = pool_bin_rows(spec, own.features, _bin_rows(spec, rois, own, plan.slots[tile]))
                return pooled.at[tile].set(as_bits(bins))

            pooled = jax.lax.fori_loop(plan.begin[group], plan.begin[group + 1], visit, pooled)
        pooled = from_bits(pooled.reshape(-1, *pooled.shape[2:])[plan.inverse], dtype)
    return pooled.reshape(-1, *spec.output_size, pooled.shape[-1])


def flat_gradients(
    spec: PoolSpec,
    flat: Sequence[FlatMaps],
    rois: Rois,
    pooled: Float[Array, "N PH PW C"] | None,
    gradient: Float[Array, "N PH PW C"],
    size: int,
    by_element: bool,
) -> list[Float[Array, "F C"]]:
    """Computes the gradient of flat features from that of the pooled RoIs, ``size`` rows of bins at a time.

    ``pooled`` and ``by_element`` are those of ``gradients.add_gradient``.
    """
    gradient, pooled = (
        None if array is None else array.reshape(-1, *array.shape[2:]).astype(accumulation_dtype(array.dtype))
        for array in (gradient, pooled)
    )
    totals = [jnp.zeros_like(own.features, accumulation_dtype(own.features.dtype)) for own in flat]
    if _is_single_tile(spec, flat, rois, size):
        rows = _bin_rows(spec, rois, flat[0], _all_rows(spec, rois))
        return [add_gradient(spec, totals[0], flat[0].features, rows, pooled, gradient, by_element)]
    plan = _plan(spec, flat, rois, size)
    for group, own in enumerate(flat):

        def visit(tile, total, by_element=by_element, own=own):
            slot = plan.slots[tile]
            values = None if pooled is None else pooled[slot]
            part = jnp.where((slot >= 0)[:, None, None], gradient[slot], 0)
            return add_gradient(
                spec, total, own.features, _bin_rows(spec, rois, own, slot), values, part, by_element
            )

        begin, end = plan.begin[group], plan.begin[group + 1]
        if spec.reduction == "cells" and not by_element:  # tiles are in the order of their bins' sizes
            small = begin + _num_small_tiles(spec, rois, own, plan.slots, begin, end)
            totals[group] = jax.lax.fori_loop(small, end, partial(visit, by_element=True), totals[group])
            end = small
        totals[group] = jax.lax.fori_loop(begin, end, visit, totals[group])
    return totals


def make_tiles(
    group: Int[Array, "N"], num_groups: int, size: int, units: int = 1, cost: Int[Array, "N"] | None = None
) -> TilePlan:
    """Assigns the units of RoIs to tiles of ``size`` slots, each with units of one group.

    Args:
        group: of each RoI.
        num_groups: number of groups.
        size: slots of a tile.
        units: of each RoI, in consecutive slots.
        cost: sorts the RoIs of a group in ascending order.
    """
    count = group.shape[0]
    order = jnp.argsort(group if cost is None else group * 2**20 + jnp.minimum(cost, 2**20 - 1))
    number = jnp.zeros(num_groups, jnp.int32).at[group].add(1)
    before = jnp.cumulative_sum(number, dtype=jnp.int32, include_initial=True)
    begin = jnp.cumulative_sum(-(-number * units // size), dtype=jnp.int32, include_initial=True)
    own = group[order]
    rank = jnp.arange(count, dtype=jnp.int32) - before[own]
    inverse = jnp.zeros(count, jnp.int32).at[order].set(begin[own] * size + rank * units)
    inverse = (inverse[:, None] + jnp.arange(units, dtype=jnp.int32)[None, :]).reshape(-1)
    slots = jnp.full((count * units // size + num_groups) * size, -1, jnp.int32)
    slots = slots.at[inverse].set(jnp.arange(count * units, dtype=jnp.int32))
    return TilePlan(slots.reshape(-1, size), begin, inverse)


def _is_single_tile(spec, flat, rois, size):
    return spec.is_fixed and len(flat) == 1 and size >= rois.level.shape[0] * spec.output_size[0]


def _all_rows(spec, rois):
    return jnp.arange(rois.level.shape[0] * spec.output_size[0], dtype=jnp.int32)


def _plan(spec, flat, rois, size):
    sides = jnp.asarray([(height, width) for own in flat for _, height, width in own.levels], jnp.int32)
    cost = None
    if not spec.is_fixed:
        y, x = bins_of_rois(spec, rois.boxes, *sides[rois.level].T)
        cost = y.num_blocks(1) * x.num_blocks(1)
    group = rois.level if len(flat) > 1 else jnp.zeros_like(rois.level)
    size = min(size, rois.level.shape[0] * spec.output_size[0])
    return make_tiles(group, len(flat), size, spec.output_size[0], cost)


def _bin_rows(spec, rois, flat, slot):
    """The rows of bins of a tile; a slot without one holds a row of an empty RoI."""
    valid, slot = slot >= 0, jnp.maximum(slot, 0)
    roi, row = slot // spec.output_size[0], slot % spec.output_size[0]
    boxes, image = jnp.where(valid[:, None], rois.boxes[roi], 0), jnp.where(valid, rois.image[roi], 0)
    if len(flat.levels) == 1:
        begin, height, width = (jnp.full_like(image, number) for number in flat.levels[0])
    else:
        begin, height, width = jnp.asarray(flat.levels, jnp.int32)[rois.level[roi]].T
    return BinRows(boxes, row, image * flat.image_stride + begin, height, width)


def _num_small_tiles(spec, rois, flat, slots, begin, end):
    cells = jax.vmap(lambda slot: jnp.max(max_reads(spec, _bin_rows(spec, rois, flat, slot))))(slots)
    tile = jnp.arange(cells.shape[0], dtype=jnp.int32)
    is_small = (tile >= begin) & (tile < end) & (cells <= tuning.SCATTERED_ROW_CELLS)
    return jnp.sum(is_small, dtype=jnp.int32)
