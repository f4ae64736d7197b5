"""RoIPool (Fast R-CNN, section 2.1): the largest value of each bin of whole cells."""

from functools import partial

import jax

from mrcnn_jax.ops.roi.levels import on_one_map
from mrcnn_jax.ops.roi.operations import operate
from mrcnn_jax.typing import Array, Float


@partial(jax.jit, static_argnames=("output_size", "spatial_scale", "form"))
def roi_pool(
    features: Float[Array, "H W C"],
    boxes: Float[Array, "N 4"],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    form: str | None = None,
) -> Float[Array, "N PH PW C"]:
    """RoIPool from one feature map, as in torchvision and Fast R-CNN's released code.

    A RoI's corners are rounded to whole cells, halves away from 0, and both end cells belong to it. Bin p of P over n cells takes the cells from
    floor(p n / P) up to, not including, ceil((p + 1) n / P), so that neighbouring bins may share cells. Bins without a cell on the map are 0.

    Args:
        features: one image's features, channels last.
        boxes: RoIs in image pixels; farther than 2**20 cells from the map's origin they end there.
        output_size: bins along y and x, or one number for both.
        spatial_scale: feature pixels per image pixel.
        form: how it is computed, see ``roi_forms``; None is what is fastest on the platform.
    The gradient of a bin goes to its first largest cell, row by row. The boxes get none, as the rounding stands between.
    """
    return operate("pool", "max", 0, False, output_size, form, *on_one_map(features, boxes, spatial_scale))
