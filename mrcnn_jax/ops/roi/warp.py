"""RoIWarp (Dai et al., 2016; Mask R-CNN, table 2c): RoIAlign of RoIs rounded to whole cells."""

from functools import partial

import jax

from mrcnn_jax.ops.roi.align import align_by_definition
from mrcnn_jax.ops.roi.bins import round_to_cells
from mrcnn_jax.ops.roi.implementations import pool_one_map
from mrcnn_jax.ops.roi.spec import PoolSpec, make_spec
from mrcnn_jax.typing import Array, Float


def warp_by_definition(
    features: Float[Array, "H W C"], boxes: Float[Array, "N 4"], spec: PoolSpec
) -> Float[Array, "N PH PW C"]:
    """Computes RoIWarp of boxes in cells: RoIAlign without half a pixel of boxes rounded to whole cells."""
    return align_by_definition(features, round_to_cells(boxes, spec.box_gradient), spec)


@partial(
    jax.jit,
    static_argnames=(
        "output_size",
        "spatial_scale",
        "sampling_ratio",
        "reduction",
        "box_gradient",
        "implementation",
    ),
)
def roi_warp(
    features: Float[Array, "*B H W C"],
    boxes: Float[Array, "N _"],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    reduction: str = "average",
    box_gradient: bool = False,
    implementation: str | None = None,
) -> Float[Array, "N PH PW C"]:
    """Pools RoIs from the feature map of one image, or of several, by RoIWarp.

    The corners are rounded as in RoIPool, then sampled as by ``roi_align`` with ``half_pixel=False``. Because
    of the rounding boxes have no gradient of their own; with ``box_gradient`` they get the one of
    ``roi_align`` at the rounded box, as if nothing had been rounded (straight-through), for networks that
    learn through their boxes. It has reverse mode, as that of ``roi_align``; forward mode needs
    ``implementation="reference"``.

    Args:
        features: of one image, [H, W, C], or of several, [B, H, W, C], channels last.
        boxes: RoIs in image pixels: [N, 4], x1, y1, x2, y2; or for several images [N, 5], as in torchvision,
            with the image's index first (the nearest if there is none of this index). NaN coordinates count
            as 0, and those beyond 2**20 cells as that.
        output_size: bins along y and x, or one number for both.
        spatial_scale: feature cells per image pixel.
        sampling_ratio: samples per bin and axis; 0 is adaptive, see ``roi_align``.
        reduction: "average" or "max" over the samples of a bin.
        box_gradient: passes the gradient of the samples straight through the rounding to the boxes.
        implementation: one of ``roi_implementations``; None is the default of the platform.

    Returns:
        The pooled features, in the dtype of the features.

    Raises:
        ValueError: for a shape, reduction, sampling ratio or implementation that is not allowed.

    References:
        Dai et al., "Instance-aware semantic segmentation via multi-task network cascades", 2016.
    """
    spec = make_spec("warp", reduction, sampling_ratio, False, output_size, box_gradient)
    return pool_one_map(spec, warp_by_definition, implementation, features, boxes, spatial_scale)
