"""RoIWarp (Dai et al. 2016, as Mask R-CNN compares it in table 2c): RoIAlign of RoIs that were rounded to whole cells first."""

from functools import partial

import jax

from mrcnn_jax.ops.roi.levels import on_one_map
from mrcnn_jax.ops.roi.operations import operate
from mrcnn_jax.typing import Array, Float


@partial(jax.jit, static_argnames=("output_size", "spatial_scale", "sampling_ratio", "reduction", "form"))
def roi_warp(
    features: Float[Array, "H W C"],
    boxes: Float[Array, "N 4"],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    reduction: str = "average",
    form: str | None = None,
) -> Float[Array, "N PH PW C"]:
    """RoIWarp from one feature map: the corners are rounded as RoIPool's, then read as RoIAlign with ``aligned=False`` reads them.

    Arguments and errors are those of ``roi_align``. The boxes get no gradient, as the rounding stands between.
    """
    return operate("warp", reduction, sampling_ratio, False, output_size, form, *on_one_map(features, boxes, spatial_scale))
