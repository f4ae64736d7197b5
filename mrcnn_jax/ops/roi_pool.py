"""RoIPool (Fast R-CNN, section 2.1): the largest value of each bin of whole cells."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mrcnn_jax.ops.roi_table import Rois, in_groups, on_one_map, pair, rounds

FARTHEST = 2.0**20  # cells; still exact in float32 and far from the end of int32
SIDE = 4  # cells of a block, along each axis


@partial(jax.jit, static_argnames=("output_size", "spatial_scale"))
def roi_pool(
    features: Float[Array, "H W C"], boxes: Float[Array, "N 4"], output_size: int | tuple[int, int], spatial_scale: float = 1.0
) -> Float[Array, "N PH PW C"]:
    """RoIPool from one feature map, as in torchvision and Fast R-CNN's released code.

    A RoI's corners are rounded to whole cells (see ``round_half_away``), and both end cells belong to it. Bin p of P over n cells takes the cells from
    floor(p n / P) up to, not including, ceil((p + 1) n / P), so that neighbouring bins may share cells. Bins without a cell on the map are 0.

    Args:
        features: one image's features, channels last.
        boxes: RoIs in image pixels; farther than 2**20 cells from the map's origin they end there.
        output_size: bins along y and x, or one number for both.
        spatial_scale: feature pixels per image pixel.
    The gradient of a bin goes to its first largest cell, row by row. The boxes get none, as the rounding stands between.
    """
    return pool(*on_one_map(features, boxes, spatial_scale), pair(output_size))


def pool(table: Float[Array, "R C"], rois: Rois, output_size: tuple[int, int]) -> Float[Array, "N PH PW C"]:
    """RoIPool of RoIs on the maps of a table."""
    corners = jnp.clip(round_half_away(jnp.nan_to_num(rois.boxes)), -FARTHEST, FARTHEST).astype(jnp.int32)
    rows = _edges(corners[:, 1], corners[:, 3], rois.height, output_size[0])
    columns = _edges(corners[:, 0], corners[:, 2], rois.width, output_size[1])
    down, across = (-(-jnp.max(end - begin, axis=1) // SIDE) for begin, end in (rows, columns))
    return _largest(table, (rois.start, rois.width, across, rows, columns), down * across)


def round_half_away(values: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The nearest whole number, of two equally near ones the one farther from 0, as C's ``round``."""
    size = jnp.abs(values)
    whole = jnp.floor(size)
    return jnp.sign(values) * (whole + (size - whole >= 0.5).astype(values.dtype))


def _edges(first, last, limit, bins):
    """Begin and end (not included) of each bin's cells along one axis, on the map: two [N, bins]."""
    count = jnp.maximum(last - first + 1, 1)[:, None]
    index = jnp.arange(bins, dtype=jnp.int32)
    begin = first[:, None] + index * count // bins
    end = first[:, None] - -(index + 1) * count // bins
    return jnp.clip(begin, 0, limit[:, None]), jnp.clip(end, 0, limit[:, None])


@jax.custom_vjp
def _largest(table, maps, number):
    """The largest cell of each bin, 0 where it has none: block by block of SIDE x SIDE cells, as many as the RoI's largest bin has."""

    def pool(carry, number, maps):
        def compare(k, best):
            for row in _block(maps, k):
                best = jnp.maximum(best, table.at[row].get(mode="promise_in_bounds"))
            return best

        shape = (number.shape[0], maps[3][0].shape[1], maps[4][0].shape[1], table.shape[1])
        best = jax.lax.fori_loop(0, rounds(number), compare, jnp.full(shape, -jnp.inf, table.dtype))
        return carry, jnp.where(_empty(maps), 0, best)

    return in_groups(pool, None, number, maps)[1]


def _largest_forward(table, maps, number):
    best = _largest(table, maps, number)
    return best, (table, maps, number, best)


def _largest_backward(residuals, gradient):
    """Each bin's gradient goes to its first largest cell, found by its value."""
    table, maps, number, best = residuals
    nowhere = jnp.iinfo(jnp.int32).max

    def scatter(total, number, maps, best, gradient):
        def find(k, first):
            for row in _block(maps, k):
                value = table.at[row].get(mode="promise_in_bounds")
                first = jnp.where((value == best) | jnp.isnan(value), jnp.minimum(first, row[..., None]), first)
            return first

        first = jax.lax.fori_loop(0, rounds(number), find, jnp.full(best.shape, nowhere))
        first = jnp.where(_empty(maps), nowhere, first)  # and so dropped
        return total.at[first, jnp.arange(table.shape[1])].add(gradient, mode="drop"), None

    return in_groups(scatter, jnp.zeros_like(table), number, maps, best, gradient)[0], None, None


_largest.defvjp(_largest_forward, _largest_backward)


def _block(maps, k):
    """The table's rows at which the cells of block number k of each bin lie: SIDE x SIDE arrays [N, PH, PW].

    Where a bin ends its last cell is taken again, which no maximum minds. So that XLA fuses the gathers, each is one of its own.
    """
    start, width, across, (top, bottom), (left, right) = maps
    across = jnp.maximum(across, 1)
    for dy in range(SIDE):
        y = jnp.clip(top + (k // across * SIDE + dy)[:, None], 0, jnp.maximum(bottom - 1, 0))
        for dx in range(SIDE):
            x = jnp.clip(left + (k % across * SIDE + dx)[:, None], 0, jnp.maximum(right - 1, 0))
            yield start[:, None, None] + y[:, :, None] * width[:, None, None] + x[:, None, :]


def _empty(maps):
    *_, (top, bottom), (left, right) = maps
    return ((top >= bottom)[:, :, None] | (left >= right)[:, None, :])[..., None]
