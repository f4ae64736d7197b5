"""RoIWarp (Dai et al. 2016, as Mask R-CNN compares it in table 2c): RoIAlign of RoIs that were rounded to whole cells first."""

from functools import partial

import jax
from jaxtyping import Array, Float

from mrcnn_jax.ops.roi_align import align
from mrcnn_jax.ops.roi_pool import round_half_away
from mrcnn_jax.ops.roi_table import Rois, on_one_map, pair


@partial(jax.jit, static_argnames=("output_size", "spatial_scale", "sampling_ratio", "reduction"))
def roi_warp(
    features: Float[Array, "H W C"],
    boxes: Float[Array, "N 4"],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    reduction: str = "average",
) -> Float[Array, "N PH PW C"]:
    """RoIWarp from one feature map: the corners are rounded as RoIPool's, then read as RoIAlign with ``aligned=False`` reads them.

    Arguments and errors are those of ``roi_align``. The boxes get no gradient, as the rounding stands between.
    """
    return warp(*on_one_map(features, boxes, spatial_scale), pair(output_size), sampling_ratio, reduction)


def warp(table: Float[Array, "R C"], rois: Rois, output_size: tuple[int, int], sampling_ratio: int, reduction: str) -> Float[Array, "N PH PW C"]:
    """RoIWarp of RoIs on the maps of a table."""
    return align(table, rois._replace(boxes=jax.lax.stop_gradient(round_half_away(rois.boxes))), output_size, sampling_ratio, False, reduction)
