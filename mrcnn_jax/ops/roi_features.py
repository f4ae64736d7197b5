"""Which features a RoI gets: its pyramid level, and one RoI operation over the levels of all images at once."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mrcnn_jax.ops.roi_align import align
from mrcnn_jax.ops.roi_pool import pool
from mrcnn_jax.ops.roi_table import Rois, pair
from mrcnn_jax.ops.roi_warp import warp


def assign_levels(
    boxes: Float[Array, "*n 4"], lowest: int = 2, highest: int = 5, canonical_size: float = 224.0, canonical_level: int = 4, epsilon: float = 1e-6
) -> Int[Array, "*n"]:
    """Pyramid level of each box, floor(canonical_level + log2(sqrt(area) / canonical_size)), within [lowest, highest] (FPN, equation 1).

    ``epsilon`` is added outside the logarithm: 1e-6 is torchvision's rule, 0 Detectron2's. Boxes without area go to the lowest level.
    """
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    size = jnp.sqrt(jnp.maximum(width, 0) * jnp.maximum(height, 0))
    level = jnp.floor(canonical_level + jnp.log2(jnp.maximum(size, 1e-8) / canonical_size) + epsilon)
    return jnp.clip(level, lowest, highest).astype(jnp.int32)


def pool_rois(
    pyramid: Sequence[Float[Array, "B _h _w C"]],
    boxes: Float[Array, "B N 4"],
    levels: Int[Array, "B N"],
    strides: Sequence[int],
    output_size: int | tuple[int, int],
    operation: str = "align",
    reduction: str = "average",
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Float[Array, "B N PH PW C"]:
    """RoIAlign, RoIPool or RoIWarp in which each RoI reads one level of its own image's pyramid, in one go for all.

    The levels of all images lie end to end as rows of one table of C channels; a RoI's level and image only shift the rows that it reads, so
    no level is touched by a RoI that is not its own.

    Args:
        pyramid: feature maps of all images, level by level; a single one will do.
        boxes: RoIs in image pixels.
        levels: counted from 0 at pyramid[0], whose stride is strides[0].
        strides: image pixels per feature pixel of each level.
        output_size: bins along y and x, or one number for both.
        operation: "align", "pool" or "warp"; see ``roi_align``, ``roi_pool``, ``roi_warp``.
        reduction: "average" or "max" over the samples of a bin. RoIPool takes the largest cell and knows only "max".
        sampling_ratio: samples per bin and axis, 0 for as many as the RoI needs; without meaning for "pool".
        aligned: see ``roi_align``; without meaning for "pool" and "warp".
    Raises ValueError for an operation, reduction or number of samples that does not exist.
    """
    if operation == "pool" and reduction != "max":
        raise ValueError(f'RoIPool has the reduction "max" only, not {reduction!r}')
    table, rois = _on_pyramid(pyramid, boxes, levels, strides)
    match operation:
        case "align":
            pooled = align(table, rois, pair(output_size), sampling_ratio, aligned, reduction)
        case "pool":
            pooled = pool(table, rois, pair(output_size))
        case "warp":
            pooled = warp(table, rois, pair(output_size), sampling_ratio, reduction)
        case _:
            raise ValueError(f'operation must be "align", "pool" or "warp", not {operation!r}')
    return pooled.reshape(*boxes.shape[:2], *pooled.shape[1:])


def _on_pyramid(pyramid, boxes, levels, strides):
    """The table of all images' levels, image by image, and the RoIs on it."""
    batch = boxes.shape[0]
    maps = [level.reshape(batch, -1, level.shape[-1]) for level in pyramid]
    # fused into the gather, the concatenation would be searched again for every element that is read
    table = maps[0] if len(maps) == 1 else jax.lax.optimization_barrier(jnp.concatenate(maps, axis=1))
    rows = table.shape[1]
    heights = jnp.asarray([level.shape[1] for level in pyramid], jnp.int32)
    widths = jnp.asarray([level.shape[2] for level in pyramid], jnp.int32)
    starts = jnp.cumulative_sum(heights * widths, include_initial=True)[:-1]
    scales = 1.0 / jnp.asarray(strides, boxes.dtype)
    start = starts[levels] + rows * jnp.arange(batch, dtype=jnp.int32)[:, None]
    boxes = boxes * scales[levels][..., None]
    return table.reshape(batch * rows, -1), Rois(*(array.reshape(-1) for array in (start, heights[levels], widths[levels])), boxes.reshape(-1, 4))
