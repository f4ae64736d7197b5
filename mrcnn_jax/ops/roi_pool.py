"""RoIPool (Fast R-CNN, section 2.1): the largest value of each bin of whole cells."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mrcnn_jax.ops.roi_table import Rois, on_one_map, pair, read_largest

FARTHEST = 2.0**20  # cells; still exact in float32 and far from the end of int32


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
    tall, wide = (jnp.max(end - begin, axis=1) for begin, end in (rows, columns))
    return read_largest(_cell, output_size, table, (), (rois.start, rois.width, wide, rows, columns), tall * wide)


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


def _cell(geometry, maps, k):
    """Cell number k of each bin, row by row over the largest extent of the RoI's bins."""
    start, width, wide, rows, columns = maps
    start, width, wide = (array[:, None, None, None] for array in (start, width, jnp.maximum(wide, 1)))
    y = rows[0][:, :, None, None] + k // wide
    x = columns[0][:, None, :, None] + k % wide
    inside = (y < rows[1][:, :, None, None]) & (x < columns[1][:, None, :, None])
    row = jnp.where(inside, start + y * width + x, start)
    return (row,), (jnp.ones(row.shape),), inside
