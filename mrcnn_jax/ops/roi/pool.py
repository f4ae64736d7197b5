"""RoIPool (Fast R-CNN, section 2.1): the maximum of whole cells in each bin."""

from functools import partial

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.roi.bins import belongs, cell_ranges, clip_coordinates
from mrcnn_jax.ops.roi.implementations import pool_one_map
from mrcnn_jax.ops.roi.spec import PoolSpec, make_spec
from mrcnn_jax.typing import Array, Float


def pool_by_definition(
    features: Float[Array, "H W C"], boxes: Float[Array, "N 4"], spec: PoolSpec
) -> Float[Array, "N PH PW C"]:
    """Computes RoIPool of boxes in cells: the largest of all cells that belong to a bin."""
    height, width, channels = features.shape
    x1, y1, x2, y2 = jax.lax.round(clip_coordinates(boxes)).astype(jnp.int32).T
    rows = _members(y1, y2, height, spec.output_size[0])[:, :, None, :, None]
    columns = _members(x1, x2, width, spec.output_size[1])[:, None, :, None, :]
    members = (rows & columns).reshape(len(boxes), *spec.output_size, height * width, 1)

    cells = features.reshape(height * width, channels)
    first = jnp.where(members, cells[None, None, None], -jnp.inf).argmax(axis=3)  # of equal cells the first
    pooled = cells[first, jnp.arange(channels)[None, None, None]]
    return jnp.where(members.any(axis=3), pooled, 0)  # a bin without cells on the map is 0


def _members(first, last, cells, bins):
    """Returns whether each cell along an axis belongs to each bin, [N, bins, cells]."""
    begin, end = cell_ranges(first, last, jnp.full_like(first, cells), jnp.arange(bins)[None], bins)
    return belongs(begin, end, cells)


@partial(jax.jit, static_argnames=("output_size", "spatial_scale", "implementation"))
def roi_pool(
    features: Float[Array, "*B H W C"],
    boxes: Float[Array, "N _"],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    implementation: str | None = None,
) -> Float[Array, "N PH PW C"]:
    """Pools RoIs from the feature map of one image, or of several, by RoIPool.

    The corners of a RoI are rounded to whole cells, halves away from 0, and both end cells belong to it. Bin
    p of P over n cells takes the cells from floor(p n / P) up to, excluding, ceil((p + 1) n / P), so
    neighbouring bins may share cells. Bins without a cell on the map are 0. All of this is as in torchvision
    and the released code of Fast R-CNN.

    The gradient of a bin goes to its first largest cell, row by row. Boxes get none because of the rounding.

    Args:
        features: of one image, [H, W, C], or of several, [B, H, W, C], channels last.
        boxes: RoIs in image pixels: [N, 4], x1, y1, x2, y2; or for several images [N, 5], as in torchvision,
            with the image's index first (the nearest if there is none of this index). NaN coordinates count
            as 0, and those beyond 2**20 cells as that.
        output_size: bins along y and x, or one number for both.
        spatial_scale: feature cells per image pixel.
        implementation: one of ``roi_implementations``; None is the default of the platform.

    Returns:
        The pooled features, in the dtype of the features.

    Raises:
        ValueError: for a shape or implementation that is not allowed.

    References:
        Girshick, "Fast R-CNN", 2015, section 2.1.
    """
    spec = make_spec("pool", "max", 0, False, output_size)
    return pool_one_map(spec, pool_by_definition, implementation, features, boxes, spatial_scale)
