"""RoIWarp (Dai et al., 2016; Mask R-CNN, table 2c): RoIAlign of RoIs that are first rounded to whole cells."""

from functools import partial

import jax

from mrcnn_jax.ops.roi.align import align_by_definition
from mrcnn_jax.ops.roi.implementations import check_one_map, pool_one_map
from mrcnn_jax.ops.roi.sampling import round_half_away
from mrcnn_jax.ops.roi.spec import make_spec
from mrcnn_jax.typing import Array, Float


def round_boxes(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Rounds boxes in cells to whole cells, halves away from 0; they get no gradient."""
    return jax.lax.stop_gradient(round_half_away(boxes))


@partial(
    jax.jit,
    static_argnames=("output_size", "spatial_scale", "sampling_ratio", "reduction", "implementation"),
)
def roi_warp(
    features: Float[Array, "H W C"],
    boxes: Float[Array, "N 4"],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    reduction: str = "average",
    implementation: str | None = None,
) -> Float[Array, "N PH PW C"]:
    """Pools RoIs from one feature map by RoIWarp.

    The corners are rounded as in RoIPool, then sampled as by ``roi_align`` with ``half_pixel=False``. Boxes get no
    gradient because of the rounding.

    Args:
        features: one image's features, channels last.
        boxes: RoIs (x1, y1, x2, y2) in image pixels.
        output_size: bins along y and x, or one number for both.
        spatial_scale: feature cells per image pixel.
        sampling_ratio: samples per bin and axis; 0 is adaptive, see ``roi_align``.
        reduction: "average" or "max" over the samples of a bin.
        implementation: one of ``roi_implementations``; None is the default of the platform.

    Returns:
        The pooled features, in the dtype of the features.

    Raises:
        ValueError: for a shape, reduction, sampling ratio or implementation that is not allowed.

    References:
        Dai et al., "Instance-aware semantic segmentation via multi-task network cascades", 2016.
    """
    features, boxes = check_one_map(features, boxes)
    spec = make_spec("warp", reduction, sampling_ratio, False, output_size)
    boxes = round_boxes(boxes * spatial_scale)
    return pool_one_map(spec, align_by_definition, implementation, features, boxes)
