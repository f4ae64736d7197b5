"""Rows of bins on feature maps, all at once or piece by piece: a piece lies on one table, and its RoIs have similar needs."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.roi.gather import add_gradient, as_bits, computing, from_bits, most_cells, pool
from mrcnn_jax.ops.roi.sampling import Reading, Strips, axes_of_rois
from mrcnn_jax.typing import Array, Float, Int

# cells of a bin, up to which a CPU adds up the gradient of a maximum faster with a pass over rows of channels for each of them than element by element
FEW_CELLS = 48

Maps = tuple[Float[Array, "B _h _w C"], ...]


class Rois(NamedTuple):
    """N RoIs, each on one of the maps and in one of the images."""

    boxes: Float[Array, "N 4"]  # in cells of its map
    level: Int[Array, "N"]  # which of the maps
    image: Int[Array, "N"]


class Table(NamedTuple):
    """Maps as rows of channels, image by image, and the RoIs that are on them."""

    rows: Float[Array, "R C"]
    of_image: int  # rows
    levels: tuple[tuple[int, int, int], ...]  # of each map: the row of the image at which it begins, its height and width


class Plan(NamedTuple):
    """Which units, such as rows of bins, a piece takes."""

    members: Int[Array, "pieces size"]  # -1 for none
    begin: Int[Array, "groups"]  # pieces before each group, and at the end all
    place: Int[Array, "units"]  # of each unit, in the members one after another


def table_of_each(maps: Maps) -> list[Table]:
    """A table for every map."""
    tables = []
    for features in maps:
        _, height, width, channels = features.shape
        tables.append(Table(features.reshape(-1, channels), height * width, ((0, height, width),)))
    return tables


def table_of_all(maps: Maps) -> list[Table]:
    """One table, in which the maps of an image lie end to end."""
    if len(maps) == 1:
        return table_of_each(maps)
    batch, channels = maps[0].shape[0], maps[0].shape[-1]
    # fused into the gather, the concatenation would be searched again for every element that is read
    rows = jax.lax.optimization_barrier(jnp.concatenate([features.reshape(batch, -1, channels) for features in maps], axis=1))
    levels, begin = [], 0
    for features in maps:
        levels.append((begin, *features.shape[1:3]))
        begin += features.shape[1] * features.shape[2]
    return [Table(rows.reshape(-1, channels), begin, tuple(levels))]


def apart(table: Table, gradient: Float[Array, "R C"]) -> list[Float[Array, "B _h _w C"]]:
    """The maps of an array of a table's rows."""
    gradient = gradient.reshape(-1, table.of_image, gradient.shape[-1])
    return [gradient[:, begin : begin + h * w].reshape(-1, h, w, gradient.shape[-1]) for begin, h, w in table.levels]


def pool_rows(reading: Reading, tables: Sequence[Table], rois: Rois, size: int) -> Float[Array, "N PH PW C"]:
    """The RoIs' bins, ``size`` rows of bins at a time."""
    if _at_once(reading, tables, rois, size):
        pooled = pool(reading, tables[0].rows, _strips(reading, rois, tables[0], _everyone(reading, rois)))
    else:
        plan = _plan(reading, tables, rois, size)
        dtype = tables[0].rows.dtype
        pooled = as_bits(jnp.zeros((*plan.members.shape, reading.bins[1], tables[0].rows.shape[1]), dtype))
        for group, table in enumerate(tables):

            def visit(piece, pooled, table=table):
                return pooled.at[piece].set(as_bits(pool(reading, table.rows, _strips(reading, rois, table, plan.members[piece]))))

            pooled = jax.lax.fori_loop(plan.begin[group], plan.begin[group + 1], visit, pooled)
        pooled = from_bits(pooled.reshape(-1, *pooled.shape[2:])[plan.place], dtype)
    return pooled.reshape(-1, *reading.bins, pooled.shape[-1])


def table_gradients(
    reading: Reading, tables: Sequence[Table], rois: Rois, pooled: Float[Array, "N PH PW C"] | None, gradient: Float[Array, "N PH PW C"],
    size: int, scatter: str,
) -> list[Float[Array, "R C"]]:  # fmt: skip
    """The gradient of every table from that of the RoIs' bins, ``size`` rows of bins at a time; see ``roi_reading.add_gradient``."""
    gradient, pooled = (None if array is None else array.reshape(-1, *array.shape[2:]).astype(computing(array.dtype)) for array in (gradient, pooled))
    totals = [jnp.zeros(table.rows.shape, computing(table.rows.dtype)) for table in tables]
    if _at_once(reading, tables, rois, size):
        strips = _strips(reading, rois, tables[0], _everyone(reading, rois))
        return [add_gradient(reading, totals[0], tables[0].rows, strips, pooled, gradient, scatter)]
    plan = _plan(reading, tables, rois, size)
    for group, table in enumerate(tables):

        def visit(piece, total, scatter=scatter, table=table):
            member = plan.members[piece]
            own = None if pooled is None else pooled[member]
            part = jnp.where((member >= 0)[:, None, None], gradient[member], 0)
            return add_gradient(reading, total, table.rows, _strips(reading, rois, table, member), own, part, scatter)

        begin, end = plan.begin[group], plan.begin[group + 1]
        if reading.reduction == "cells" and scatter == "rows":  # those with few come first
            few = begin + _pieces_with_few_cells(reading, rois, table, plan.members, begin, end)
            totals[group] = jax.lax.fori_loop(few, end, lambda piece, total, visit=visit: visit(piece, total, "elements"), totals[group])
            end = few
        totals[group] = jax.lax.fori_loop(begin, end, visit, totals[group])
    return totals


def arrange(group: Int[Array, "N"], groups: int, size: int, units: int = 1, need: Int[Array, "N"] | None = None) -> Plan:
    """Pieces of ``size`` units that belong to one group each, by growing need where it is given. Every RoI makes that many units, one after another."""
    count = group.shape[0]
    order = jnp.argsort(group if need is None else group * 2**20 + jnp.minimum(need, 2**20 - 1))
    number = jnp.zeros(groups, jnp.int32).at[group].add(1)
    before = jnp.cumulative_sum(number, dtype=jnp.int32, include_initial=True)
    begin = jnp.cumulative_sum(-(-number * units // size), dtype=jnp.int32, include_initial=True)
    own = group[order]
    rank = jnp.arange(count, dtype=jnp.int32) - before[own]
    place = jnp.zeros(count, jnp.int32).at[order].set(begin[own] * size + rank * units)
    place = (place[:, None] + jnp.arange(units, dtype=jnp.int32)).reshape(-1)
    members = jnp.full((count * units // size + groups) * size, -1, jnp.int32).at[place].set(jnp.arange(count * units, dtype=jnp.int32))
    return Plan(members.reshape(-1, size), begin, place)


def _at_once(reading, tables, rois, size):
    return reading.fixed and len(tables) == 1 and size >= rois.level.shape[0] * reading.bins[0]


def _everyone(reading, rois):
    return jnp.arange(rois.level.shape[0] * reading.bins[0], dtype=jnp.int32)


def _plan(reading, tables, rois, size):
    sides = jnp.asarray([(height, width) for table in tables for _, height, width in table.levels], jnp.int32)
    need = None
    if not reading.fixed:
        y, x = axes_of_rois(reading, rois.boxes, *sides[rois.level].T)
        need = y.count(1) * x.count(1)
    group = rois.level if len(tables) > 1 else jnp.zeros_like(rois.level)
    return arrange(group, len(tables), min(size, rois.level.shape[0] * reading.bins[0]), reading.bins[0], need)


def _strips(reading, rois, table, member):
    """The rows of bins of a piece; nobody's are those of an empty RoI."""
    real, member = member >= 0, jnp.maximum(member, 0)
    roi, row = member // reading.bins[0], member % reading.bins[0]
    boxes, image = jnp.where(real[:, None], rois.boxes[roi], 0), jnp.where(real, rois.image[roi], 0)
    if len(table.levels) == 1:
        begin, height, width = (jnp.full_like(image, number) for number in table.levels[0])
    else:
        begin, height, width = jnp.asarray(table.levels, jnp.int32)[rois.level[roi]].T
    return Strips(boxes, row, image * table.of_image + begin, height, width)


def _pieces_with_few_cells(reading, rois, table, members, begin, end):
    most = jax.vmap(lambda member: jnp.max(most_cells(reading, _strips(reading, rois, table, member))))(members)
    piece = jnp.arange(most.shape[0], dtype=jnp.int32)
    return jnp.sum((piece >= begin) & (piece < end) & (most <= FEW_CELLS), dtype=jnp.int32)
