"""RoIAlign (Mask R-CNN, section 3): bilinear reading of features at regularly spaced points of each RoI, nothing quantised."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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


@partial(jax.jit, static_argnames=("output_size", "spatial_scale", "sampling_ratio", "aligned"))
def roi_align(
    features: Float[Array, "H W C"],
    boxes: Float[Array, "N 4"],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Float[Array, "N PH PW C"]:
    """RoIAlign with averaging from one feature map.

    Args:
        features: one image's features, channels last.
        boxes: RoIs in image pixels.
        output_size: bins along y and x, or one number for both.
        spatial_scale: feature pixels per image pixel.
        sampling_ratio: samples per bin and axis, at least 1.
        aligned: image coordinate x is read at feature coordinate x * spatial_scale - 0.5, where a cell's value lies at its centre
            (Detectron2's ROIAlignV2). False is the original code's reading: no half pixel, and RoIs at least one feature pixel wide.
    Samples more than one cell outside the map read 0, as in Detectron; those less far outside read the border.
    """
    height, width, _ = features.shape
    zeros = jnp.zeros(boxes.shape[0], jnp.int32)
    return _gather_align(
        features.reshape(height * width, -1), boxes * spatial_scale, zeros, zeros + height, zeros + width, _pair(output_size), sampling_ratio, aligned
    )


def multilevel_roi_align(
    pyramid: Sequence[Float[Array, "B _h _w C"]],
    boxes: Float[Array, "B N 4"],
    levels: Int[Array, "B N"],
    strides: Sequence[int],
    output_size: int | tuple[int, int],
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Float[Array, "B N PH PW C"]:
    """RoIAlign in which each RoI reads one level of its own image's pyramid, in one gather for all.

    The levels of all images lie end to end as rows of one table of C channels; a RoI's level and image only shift the rows that it reads, so
    no level is touched by a RoI that is not its own. ``levels`` counts from 0 at pyramid[0], whose stride is strides[0].
    """
    batch, count, _ = boxes.shape
    table = jnp.concatenate([level.reshape(batch, -1, level.shape[-1]) for level in pyramid], axis=1)
    # fused into the gather, the concatenation would be searched again for every element that is read
    table = jax.lax.optimization_barrier(table)
    rows = table.shape[1]
    heights = jnp.asarray([level.shape[1] for level in pyramid], jnp.int32)
    widths = jnp.asarray([level.shape[2] for level in pyramid], jnp.int32)
    starts = jnp.cumulative_sum(heights * widths, include_initial=True)[:-1]
    scales = 1.0 / jnp.asarray(strides, boxes.dtype)
    start = starts[levels] + rows * jnp.arange(batch, dtype=jnp.int32)[:, None]
    pooled = _gather_align(
        table.reshape(batch * rows, -1),
        (boxes * scales[levels][..., None]).reshape(-1, 4),
        *(array.reshape(-1) for array in (start, heights[levels], widths[levels])),
        _pair(output_size),
        sampling_ratio,
        aligned,
    )
    return pooled.reshape(batch, count, *pooled.shape[1:])


def _gather_align(table, boxes, start, height, width, output_size, samples, aligned):
    """Averaged bilinear samples of boxes, given in feature pixels, from maps of height x width rows that begin at row ``start``."""
    if aligned:
        boxes = boxes - 0.5
        size = boxes[:, 2:] - boxes[:, :2]
    else:
        size = jnp.maximum(boxes[:, 2:] - boxes[:, :2], 1.0)
    y, wy = _taps(boxes[:, 1], size[:, 1], height, output_size[0], samples)
    x, wx = _taps(boxes[:, 0], size[:, 0], width, output_size[1], samples)
    return _read(table, start, width, y, wy, x, wx)


@jax.custom_vjp
def _read(table, start, width, y, wy, x, wx):
    """Sum over the taps (t, s) of bin (p, q): wy[n, p, t] wx[n, q, s] table[start[n] + y[n, p, t] width[n] + x[n, q, s]].

    The taps are unrolled so that XLA fuses every gather into one loop that writes the output and nothing else: as one gather, or as an einsum,
    the [N, PH, taps, PW, taps, C] samples would go through memory, 16 times the output. The gradient scatters tap by tap for the same reason.
    """
    out = 0
    for row, weight in _each_tap(start, width, y, wy, x, wx):
        out += table.at[row].get(mode="promise_in_bounds") * weight.astype(table.dtype)[..., None]
    return out


def _each_tap(start, width, y, wy, x, wx):
    for t in range(y.shape[2]):
        for s in range(x.shape[2]):
            row = start[:, None, None] + y[:, :, None, t] * width[:, None, None] + x[:, None, :, s]
            yield row, wy[:, :, None, t] * wx[:, None, :, s]


def _read_forward(table, *taps):
    return _read(table, *taps), (table, taps)


def _read_backward(residuals, gradient):
    table, (start, width, y, wy, x, wx) = residuals
    taps = y.shape[2], x.shape[2]

    def add_tap(index, total):
        t, s = index // taps[1], index % taps[1]
        y_t, wy_t, x_s, wx_s = y[:, :, t], wy[:, :, t], x[:, :, s], wx[:, :, s]
        row = start[:, None, None] + y_t[:, :, None] * width[:, None, None] + x_s[:, None, :]
        weight = (wy_t[:, :, None] * wx_s[:, None, :]).astype(gradient.dtype)
        return total.at[row].add(gradient * weight[..., None], mode="promise_in_bounds")

    to_table = jax.lax.fori_loop(0, taps[0] * taps[1], add_tap, jnp.zeros_like(table))
    # what the boxes get through the weights; compiled only where somebody asks for it
    products = [jnp.sum(table.at[row].get(mode="promise_in_bounds") * gradient, axis=-1) for row, _ in _each_tap(start, width, y, wy, x, wx)]
    products = jnp.stack(products, axis=-1).reshape(*gradient.shape[:3], *taps).astype(wy.dtype)
    to_wy = jnp.einsum("npqts,nqs->npt", products, wx)
    to_wx = jnp.einsum("npqts,npt->nqs", products, wy)
    return to_table, None, None, None, to_wy, None, to_wx


_read.defvjp(_read_forward, _read_backward)


def _taps(start, size, limit, bins, samples):
    """Cells that each bin reads along one axis, and their weights: [N, bins, 2 * samples], two cells a sample."""
    offsets = (jnp.arange(bins * samples, dtype=start.dtype) + 0.5) / samples
    position = start[:, None] + offsets * (size / bins)[:, None]
    last = (limit - 1)[:, None]
    inside = (position >= -1.0) & (position <= limit[:, None].astype(position.dtype))
    position = jnp.clip(position, 0.0, last.astype(position.dtype))
    low = jnp.floor(position).astype(jnp.int32)
    high = jnp.minimum(low + 1, last)
    fraction = position - low.astype(position.dtype)
    weight = jnp.where(inside, 1.0 / samples, 0.0)
    cells = jnp.stack([low, high], axis=-1)
    weights = jnp.stack([weight * (1 - fraction), weight * fraction], axis=-1)
    shape = (start.shape[0], bins, 2 * samples)
    return cells.reshape(shape), weights.reshape(shape)


def _pair(size):
    return (size, size) if isinstance(size, int) else tuple(size)
