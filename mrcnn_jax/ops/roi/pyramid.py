"""RoI operations on feature pyramids: each RoI is pooled from one level of its own image."""

from collections.abc import Sequence

import jax.numpy as jnp

from mrcnn_jax.ops.boxes import at_least_float32
from mrcnn_jax.ops.checks import check_shape
from mrcnn_jax.ops.roi.align import align_by_definition
from mrcnn_jax.ops.roi.implementations import pool_pyramid
from mrcnn_jax.ops.roi.pool import pool_by_definition
from mrcnn_jax.ops.roi.spec import make_spec
from mrcnn_jax.ops.roi.warp import warp_by_definition
from mrcnn_jax.typing import Array, Float, Int

DEFINITIONS = {"align": align_by_definition, "pool": pool_by_definition, "warp": warp_by_definition}


def pool_rois(
    pyramid: Sequence[Float[Array, "B _h _w C"]],
    boxes: Float[Array, "B N 4"],
    levels: Int[Array, "B N"],
    strides: Sequence[int],
    output_size: int | tuple[int, int],
    operation: str = "align",
    reduction: str = "average",
    sampling_ratio: int = 2,
    half_pixel: bool = True,
    box_gradient: bool = False,
    implementation: str | None = None,
) -> Float[Array, "B N PH PW C"]:
    """Pools RoIs by RoIAlign, RoIPool or RoIWarp, each from one level of its own image's pyramid.

    Args:
        pyramid: feature maps of all images, level by level, channels last; a single one is allowed.
        boxes: RoIs (x1, y1, x2, y2) in image pixels; coordinates beyond 2**20 cells are clipped to that.
        levels: index into ``pyramid`` of each RoI, counted from 0; known only at run time, so one that does
            not exist is not refused but counts as the nearest.
        strides: image pixels per feature cell of each level.
        output_size: bins along y and x, or one number for both.
        operation: "align", "pool" or "warp"; see ``roi_align``, ``roi_pool``, ``roi_warp``.
        reduction: "average" or "max" over the samples of a bin; only "max" for "pool".
        sampling_ratio: samples per bin and axis, 0 for adaptive; unused for "pool".
        half_pixel: see ``roi_align``; unused for "pool" and "warp".
        box_gradient: see ``roi_warp``; unused for "align", whose boxes always have one, and "pool".
        implementation: one of ``roi_implementations``; None is the default of the platform.

    Returns:
        The pooled features, in the dtype of the features.

    Raises:
        ValueError: for a shape, operation, reduction, sampling ratio or implementation that is not allowed.

    References:
        Lin et al., "Feature pyramid networks for object detection", 2017, section 4.2; He et al., "Mask
        R-CNN", 2017, section 3.
    """
    _check(pyramid, boxes, levels, strides)
    boxes, levels = at_least_float32(boxes), jnp.asarray(levels)
    spec = make_spec(operation, reduction, sampling_ratio, half_pixel, output_size, box_gradient)
    scales = 1.0 / jnp.asarray(strides, boxes.dtype)
    batch, number = levels.shape
    levels = jnp.clip(levels, 0, len(pyramid) - 1).astype(jnp.int32)  # narrow types would overflow
    boxes = (boxes * scales[levels][..., None]).reshape(-1, 4)
    images = jnp.repeat(jnp.arange(batch, dtype=jnp.int32), number)
    pyramid = tuple(map(jnp.asarray, pyramid))
    pooled = pool_pyramid(
        spec, DEFINITIONS[operation], implementation, pyramid, boxes, levels.reshape(-1), images
    )
    return pooled.reshape(batch, number, *pooled.shape[1:])


def _check(pyramid, boxes, levels, strides):
    if len(pyramid) == 0:
        raise ValueError("pyramid must have at least one feature map")
    if len(strides) != len(pyramid):
        raise ValueError(f"strides must be {len(pyramid)}, one for each map of pyramid, not {len(strides)}")
    check_shape("pyramid[0]", pyramid[0], "B", "H", "W", "C", note="channels last")
    batch, *_, channels = pyramid[0].shape
    for level, features in enumerate(pyramid):
        check_shape(f"pyramid[{level}]", features, batch, "H", "W", channels, note="channels last")
    check_shape("boxes", boxes, batch, "N", 4, note="x1, y1, x2, y2 in image pixels")
    check_shape("levels", levels, *boxes.shape[:2])
    if not jnp.issubdtype(levels.dtype, jnp.integer):
        raise ValueError(f"levels must be integers that count from 0, not {levels.dtype}")
