"""Masks: training targets of the mask branch, boxes around masks, overlaps."""

import math

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.boxes import at_least_float32
from mrcnn_jax.ops.checks import check_shape
from mrcnn_jax.typing import Array, Float, Shaped


def crop_masks(
    masks: Shaped[Array, "N H W"],
    mask_boxes: Shaped[Array, "N 4"],
    boxes: Shaped[Array, "N 4"],
    size: int,
    sampling_ratio: int = 2,
    half_pixel: bool = True,
    border: float = 0.0,
) -> Float[Array, "N size size"]:
    """Crops each mask to a box and resamples it to ``size`` x ``size`` bins by bilinear sampling.

    With whole images as ``mask_boxes``, ``sampling_ratio`` 0 and ``border`` 0.5 this is the mask target of
    torchvision (``half_pixel`` False) and, where it is at least 0.5, of Detectron2 (``half_pixel`` True).
    Sampling is separable, so both axes are small matrix products, without gather and scatter.

    Args:
        masks: 0 to 1; mask n fills the rectangle mask_boxes[n] (the whole image, or the object's own box) and
            is 0 outside.
        mask_boxes: in the same pixel frame as ``boxes``, of any real type.
        boxes: rectangles to crop, likewise.
        size: bins a side.
        sampling_ratio: samples per bin and axis; 0 takes ceil(cells of the box / bins) as the libraries do,
            at most as many as a box of twice the mask's size needs.
        half_pixel: False samples half a cell further, and boxes are at least one cell wide (see
            ``roi_align``).
        border: number of cells beyond its rectangle for which a mask keeps its border values; 0.5 in
            RoIAlign.

    Raises:
        ValueError: for masks or boxes of other shapes.
    """
    check_shape("masks", masks, "N", "H", "W")
    check_shape("mask_boxes", mask_boxes, masks.shape[0], 4)
    check_shape("boxes", boxes, masks.shape[0], 4)
    mask_boxes, boxes = at_least_float32(mask_boxes), at_least_float32(boxes)
    _, height, width = masks.shape
    mask_size = jnp.maximum(mask_boxes[:, 2:] - mask_boxes[:, :2], 1e-4)
    scale = jnp.asarray([[width, height]], boxes.dtype) / mask_size
    start = (boxes[:, :2] - mask_boxes[:, :2]) * scale
    extent = (boxes[:, 2:] - boxes[:, :2]) * scale
    if not half_pixel:
        start, extent = start + 0.5, jnp.maximum(extent, 1.0)
    rows = _sampling_matrix(start[:, 1], extent[:, 1], height, size, sampling_ratio, border)
    columns = _sampling_matrix(start[:, 0], extent[:, 0], width, size, sampling_ratio, border)
    return jnp.einsum("nph,nhw,nqw->npq", rows, masks.astype(boxes.dtype), columns)


def masks_to_boxes(masks: Shaped[Array, "*n H W"]) -> Float[Array, "*n 4"]:
    """Computes the smallest box around the non-zero pixels of each mask; (0, 0, 0, 0) if there are none.

    A box ends after its last pixel: x2 - x1 is the number of columns, one more than in torchvision.

    Raises:
        ValueError: for masks of fewer than two dimensions.
    """
    check_shape("masks", masks, "...", "H", "W")
    pixels = jnp.asarray(masks).astype(bool)
    rows, columns = pixels.any(axis=-1), pixels.any(axis=-2)
    y1, x1 = (jnp.argmax(line, axis=-1) for line in (rows, columns))
    y2, x2 = (line.shape[-1] - jnp.argmax(line[..., ::-1], axis=-1) for line in (rows, columns))
    boxes = jnp.stack([x1, y1, x2, y2], axis=-1).astype(jnp.float32)
    return jnp.where(rows.any(axis=-1)[..., None], boxes, 0)


def mask_iou(a: Shaped[Array, "N H W"], b: Shaped[Array, "M H W"]) -> Float[Array, "N M"]:
    """Computes the intersection over union of the non-zero pixels of all pairs of masks; 0 for empty ones.

    Pixels are counted in float32, exactly up to 2**24.

    Raises:
        ValueError: for masks of other shapes, or of different sizes.
    """
    check_shape("a", a, "N", "H", "W")
    check_shape("b", b, "M", *a.shape[1:])
    pixels = math.prod(a.shape[1:])
    a, b = (jnp.asarray(masks).astype(bool).reshape(len(masks), pixels) for masks in (a, b))
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    overlap = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    union = a.sum(axis=1)[:, None] + b.sum(axis=1)[None, :] - overlap
    return overlap / jnp.maximum(union, 1)


def _sampling_matrix(start, extent, cells, bins, samples, border):
    """Weights of all cells in each bin, [N, bins, cells]; a cell's value lies at its centre."""
    if samples:
        slots = samples
        count = jnp.full_like(start, samples)
    else:
        slots = max(1, -(-2 * cells // bins))
        count = jnp.clip(jnp.ceil(extent / bins), 1, slots)
    slot = jnp.arange(slots, dtype=start.dtype)[None]
    step = (extent / bins)[:, None]
    bin_start = start[:, None] + jnp.arange(bins, dtype=start.dtype)[None] * step
    position = bin_start[..., None] + ((slot + 0.5) / count[:, None] * step)[:, None, :]
    # the outermost cells count fully up to the mask's border, not only up to their centres
    nearest = jnp.clip(position, 0.5, cells - 0.5)
    valid = (position >= -border) & (position <= cells + border) & (slot < count[:, None])[:, None, :]
    centres = (jnp.arange(cells, dtype=start.dtype) + 0.5)[None, None, None]
    weight = jnp.where(valid[..., None], jnp.maximum(1 - jnp.abs(nearest[..., None] - centres), 0), 0)
    return weight.sum(axis=2) / count[:, None, None]
