"""Position-sensitive RoI pooling (R-FCN, FCIS): each part of a RoI is read from a feature map of its own."""

from functools import partial

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.boxes import at_least_float32
from mrcnn_jax.ops.checks import check_shape
from mrcnn_jax.ops.roi.align import align_by_definition
from mrcnn_jax.ops.roi.bins import MAX_COORDINATE, belongs, clip_coordinates, touched_cells
from mrcnn_jax.ops.roi.gather import accumulation_dtype
from mrcnn_jax.ops.roi.implementations import pool_one_map
from mrcnn_jax.ops.roi.spec import PoolSpec, make_spec
from mrcnn_jax.typing import Array, Float


def ps_align_by_definition(
    features: Float[Array, "H W C"], boxes: Float[Array, "N 4"], spec: PoolSpec
) -> Float[Array, "N PH PW c"]:
    """Computes RoIAlign of every map, of boxes in cells, and takes each bin from the map of its part."""
    pooled = align_by_definition(features, boxes, spec)
    return _own_parts(pooled, spec.groups)


def ps_pool_by_definition(
    features: Float[Array, "H W C"], boxes: Float[Array, "N 4"], spec: PoolSpec
) -> Float[Array, "N PH PW c"]:
    """Averages the cells that each bin of a box, in cells, touches; a bin without cells is 0."""
    x1, y1, x2, y2 = clip_coordinates(boxes).T
    height, width, _ = features.shape
    rows = _weights(y1, y2, height, height - spec.unread_cells, spec.output_size[0])
    columns = _weights(x1, x2, width, width - spec.unread_cells, spec.output_size[1])
    cells = features.astype(accumulation_dtype(features.dtype))
    total = jnp.einsum("nph,nqw,hwc->npqc", rows, columns, cells, precision=jax.lax.Precision.HIGHEST)
    number = rows.sum(axis=2)[:, :, None, None] * columns.sum(axis=2)[:, None, :, None]
    pooled = jnp.where(number > 0, total / jnp.maximum(number, 1), 0)
    return _own_parts(pooled.astype(features.dtype), spec.groups)


def _own_parts(pooled, groups):
    """Bin (p, q) of the map in whose part it lies, [N, PH, PW, c], from the bins of all maps."""
    number, bins, columns, _ = pooled.shape
    pooled = pooled.reshape(number, bins, columns, groups, groups, -1)
    p, q = jnp.arange(bins)[:, None], jnp.arange(columns)[None]
    return pooled[:, p, q, p * groups // bins, q * groups // columns]


def _weights(start, end, cells, limit, bins):
    """1 for the cells along an axis that each bin touches, [N, bins, cells]."""
    begin, end = touched_cells(
        start, end, jnp.full_like(start, limit, jnp.int32), jnp.arange(bins)[None], bins
    )
    return belongs(begin, end, cells).astype(start.dtype)


@partial(jax.jit, static_argnames=("output_size", "spatial_scale", "rounding", "implementation"))
def ps_roi_pool(
    features: Float[Array, "*B H W k k c"],
    boxes: Float[Array, "N _"],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    rounding: str = "pixels",
    implementation: str | None = None,
) -> Float[Array, "N PH PW c"]:
    """Averages whole cells in each bin of RoIs, of the one of k x k maps that belongs to the bin's part.

    Bin (p, q) of PH x PW reads map (p k // PH, q k // PW): the first map sees the top left part of a RoI, the
    last its bottom right. It averages the cells that it touches, so that neighbouring bins may share some.
    Boxes get no gradient because of the rounding.

    torchvision and the code of FCIS order channels differently: theirs, [.., c k k], are
    ``channels.reshape(H, W, c, k, k).transpose(0, 1, 3, 4, 2)`` here.

    Args:
        features: of one image, [H, W, k, k, c], or of several, [B, H, W, k, k, c].
        boxes: RoIs in image pixels: [N, 4], x1, y1, x2, y2; or for several images [N, 5], with the image's
            index first (the nearest if there is none of this index). Coordinates as for ``roi_align``.
        output_size: bins along y and x, or one number for both; multiples of k.
        spatial_scale: feature cells per image pixel.
        rounding: "pixels" rounds corners to whole pixels, halves away from 0; RoIs include the pixel at x2,
            y2, and are at least 0.1 cells long (FCIS). "cells" rounds corners to whole cells; RoIs are at
            least one cell long, and the last row and column of a map are never read (torchvision).
        implementation: one of ``roi_implementations("align", "average", 0)`` or "reference"; None is the
            default of the platform.

    Returns:
        The pooled features, in the dtype of the features.

    Raises:
        ValueError: for a shape, rounding or implementation that is not allowed.

    References:
        Dai et al., "R-FCN", 2016, section 2; Li et al., "Fully convolutional instance-aware semantic
        segmentation", 2017.
    """
    if rounding not in ("pixels", "cells"):
        raise ValueError(f'rounding must be "pixels" or "cells", not {rounding!r}')
    boxes, limit = jax.lax.stop_gradient(at_least_float32(boxes)), MAX_COORDINATE / spatial_scale
    # limited in pixels: scaled to cells and back, half a pixel would not always stay one
    images, corners = boxes[:, :-4], jnp.clip(jnp.nan_to_num(boxes[:, -4:]), -limit, limit)
    if rounding == "pixels":
        ends = jnp.array([[0, 0, 1, 1]], corners.dtype)
        corners, shortest = (jax.lax.round(corners) + ends) * spatial_scale, 0.1
    else:
        corners, shortest = jax.lax.round(corners * spatial_scale), 1.0
    start, end = corners[:, :2], jnp.maximum(corners[:, 2:], corners[:, :2] + shortest)
    spec = make_spec("align", "average", 0, False, output_size)
    spec = spec._replace(whole_cells=True, unread_cells=int(rounding == "cells"))
    boxes = jnp.concatenate([images, start, end], axis=1)
    return _pool_parts(spec, ps_pool_by_definition, implementation, features, boxes, 1.0)


@partial(jax.jit, static_argnames=("output_size", "spatial_scale", "sampling_ratio", "implementation"))
def ps_roi_align(
    features: Float[Array, "*B H W k k c"],
    boxes: Float[Array, "N _"],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    implementation: str | None = None,
) -> Float[Array, "N PH PW c"]:
    """Averages bilinear samples in each bin of RoIs, of the one of k x k maps that belongs to the bin's part.

    ``ps_roi_pool`` without any rounding: samples lie as in ``roi_align`` with ``half_pixel``. With the order
    of channels given there, and k x k bins, this is torchvision's ps_roi_align.

    Args:
        features: as for ``ps_roi_pool``.
        boxes: likewise; they get a gradient.
        output_size: bins along y and x, or one number for both; multiples of k.
        spatial_scale: feature cells per image pixel.
        sampling_ratio: samples per bin and axis; 0 is adaptive, as for ``roi_align``.
        implementation: one of ``roi_implementations("align", "average", sampling_ratio)``; None is the
            default of the platform.

    Returns:
        The pooled features, in the dtype of the features.

    Raises:
        ValueError: for a shape, sampling ratio or implementation that is not allowed.

    References:
        He et al., "Mask R-CNN", 2017, section 3 (RoIAlign); Dai et al., "R-FCN", 2016, section 2 (maps of
        parts).
    """
    spec = make_spec("align", "average", sampling_ratio, True, output_size)
    return _pool_parts(spec, ps_align_by_definition, implementation, features, boxes, spatial_scale)


def _pool_parts(spec, definition, implementation, features, boxes, spatial_scale):
    features = jnp.asarray(features)
    groups = features.shape[-2]
    check_shape("features", features, "...", "H", "W", groups, groups, "c", note="k x k maps, channels last")
    if any(bins % groups for bins in spec.output_size):
        raise ValueError(f"output_size must be multiples of k = {groups}, not {spec.output_size}")
    maps = features.reshape(*features.shape[:-3], -1)
    return pool_one_map(spec._replace(groups=groups), definition, implementation, maps, boxes, spatial_scale)
