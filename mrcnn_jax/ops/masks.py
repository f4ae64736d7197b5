"""Training targets of the mask branch: each RoI's part of its object's mask."""

import jax.numpy as jnp

from mrcnn_jax.typing import Array, Float


def crop_masks(
    masks: Float[Array, "N H W"],
    frames: Float[Array, "N 4"],
    boxes: Float[Array, "N 4"],
    size: int,
    sampling_ratio: int = 2,
    aligned: bool = True,
    border: float = 0.0,
) -> Float[Array, "N size size"]:
    """What lies of each mask inside each box, as shares of size x size bins.

    Args:
        masks: 0 to 1; mask n fills the rectangle frames[n] and is 0 outside it (the whole image, or the object's own box).
        frames, boxes: in one and the same pixel frame.
        sampling_ratio: bilinear samples per bin and axis; 0 takes ceil(cells of the box / bins) of them, as the libraries do, up to the
            number that a box of twice the frame's size needs.
        aligned: False reads half a cell further and gives a box at least one cell (see roi_align).
        border: how many cells beyond its frame a mask still reads its border; RoIAlign's own rule is 0.5.
    With whole images as frames, sampling_ratio 0 and border 0.5 this is torchvision's mask target (aligned False) and, where it is at least
    0.5, Detectron2's (aligned True). Sampling is separable, so both axes are small matrix products: no gather, and no scatter.
    """
    _, height, width = masks.shape
    frame_size = jnp.maximum(frames[:, 2:] - frames[:, :2], 1e-4)
    scale = jnp.asarray([width, height], boxes.dtype) / frame_size
    start = (boxes[:, :2] - frames[:, :2]) * scale
    extent = (boxes[:, 2:] - boxes[:, :2]) * scale
    if not aligned:
        start, extent = start + 0.5, jnp.maximum(extent, 1.0)
    rows = _sampling_matrix(start[:, 1], extent[:, 1], height, size, sampling_ratio, border)
    columns = _sampling_matrix(start[:, 0], extent[:, 0], width, size, sampling_ratio, border)
    return jnp.einsum("nph,nhw,nqw->npq", rows, masks.astype(boxes.dtype), columns)


def _sampling_matrix(start, extent, cells, bins, samples, border):
    """[N, bins, cells]: what each cell gives to each bin, when a cell's value lies at its centre and falls off linearly to the next."""
    if samples:
        slots = samples
        count = jnp.full_like(start, samples)
    else:
        slots = max(1, -(-2 * cells // bins))
        count = jnp.clip(jnp.ceil(extent / bins), 1, slots)
    slot = jnp.arange(slots, dtype=start.dtype)
    bin_start = start[:, None] + jnp.arange(bins, dtype=start.dtype) * (extent / bins)[:, None]
    position = bin_start[..., None] + ((slot + 0.5) / count[:, None] * (extent / bins)[:, None])[:, None, :]
    # the outermost cells count fully up to the frame's edge: a mask ends at its frame, not at its last centre
    nearest = jnp.clip(position, 0.5, cells - 0.5)
    counted = (position >= -border) & (position <= cells + border) & (slot < count[:, None])[:, None, :]
    centres = jnp.arange(cells, dtype=start.dtype) + 0.5
    weight = jnp.where(counted[..., None], jnp.maximum(1 - jnp.abs(nearest[..., None] - centres), 0), 0)
    return weight.sum(axis=2) / count[:, None, None]
