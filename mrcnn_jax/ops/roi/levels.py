"""Which features a RoI gets: its pyramid level, and one RoI operation over the levels of all images at once."""

from collections.abc import Sequence

import jax.numpy as jnp

from mrcnn_jax.ops.roi.operations import operate
from mrcnn_jax.ops.roi.tiles import Maps, Rois
from mrcnn_jax.typing import Array, Float, Int


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
    form: str | None = None,
) -> Float[Array, "B N PH PW C"]:
    """RoIAlign, RoIPool or RoIWarp in which each RoI reads one level of its own image's pyramid, and no other.

    Args:
        pyramid: feature maps of all images, level by level; a single one will do.
        boxes: RoIs in image pixels; farther than 2**20 cells from a map's origin they end there.
        levels: counted from 0 at pyramid[0], whose stride is strides[0].
        strides: image pixels per feature pixel of each level.
        output_size: bins along y and x, or one number for both.
        operation: "align", "pool" or "warp"; see ``roi_align``, ``roi_pool``, ``roi_warp``.
        reduction: "average" or "max" over the samples of a bin. RoIPool takes the largest cell and knows only "max".
        sampling_ratio: samples per bin and axis, 0 for as many as the RoI needs; without meaning for "pool".
        aligned: see ``roi_align``; without meaning for "pool" and "warp".
        form: how it is computed, see ``roi_forms``; None is what is fastest on the platform.
    Raises ValueError for an operation, reduction, number of samples or form that does not exist.
    """
    boxes, levels = jnp.asarray(boxes), jnp.asarray(levels)
    batch, number = boxes.shape[:2]
    scales = 1.0 / jnp.asarray(strides, boxes.dtype)
    image = jnp.repeat(jnp.arange(batch, dtype=jnp.int32), number)
    rois = Rois((boxes * scales[levels][..., None]).reshape(-1, 4), levels.reshape(-1), image)
    pooled = operate(operation, reduction, sampling_ratio, aligned, output_size, form, tuple(map(jnp.asarray, pyramid)), rois)
    return pooled.reshape(batch, number, *pooled.shape[1:])


def on_one_map(features: Float[Array, "H W C"], boxes: Float[Array, "N 4"], spatial_scale: float) -> tuple[Maps, Rois]:
    """A single map as a pyramid of one image, and RoIs on it from boxes in image pixels."""
    nothing = jnp.zeros(boxes.shape[0], jnp.int32)
    return (jnp.asarray(features)[None],), Rois(jnp.asarray(boxes) * spatial_scale, nothing, nothing)
