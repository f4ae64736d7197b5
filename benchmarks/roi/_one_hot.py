"""RoIAlign by dense one-hot weight matrices, as in much other JAX code: every level pools all RoIs."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mrcnn_jax.typing import Array, Float, Int


def one_hot_align(
    pyramid: Sequence[Float[Array, "B _h _w C"]],
    boxes: Float[Array, "B N 4"],
    levels: Int[Array, "B N"],
    strides: Sequence[int],
    bins: int,
    samples: int = 2,
) -> Float[Array, "B N bins bins C"]:
    """Computes what ``mrcnn_jax.ops.pool_rois`` computes for "align" with half a pixel, without gathers.

    Each level costs the same whatever number of RoIs lie on it: those of other levels have weights of 0, and
    the levels are summed. Matrix products use XLA's default precision.
    """
    pool = jax.vmap(_pool, in_axes=(0, 0, 0, None, None))
    return sum(
        pool(features, boxes / stride - 0.5, levels == level, bins, samples)
        for level, (features, stride) in enumerate(zip(pyramid, strides, strict=True))
    )


def _pool(features, boxes, on_level, bins, samples):
    """Pools all RoIs from one level; 0 for those of other levels."""
    height, width, _ = features.shape
    rows = _weights(boxes[:, 1], boxes[:, 3], height, bins, samples) * on_level[:, None, None]
    columns = _weights(boxes[:, 0], boxes[:, 2], width, bins, samples)
    return jnp.einsum(
        "nph,hwc,nqw->npqc", rows.astype(features.dtype), features, columns.astype(features.dtype)
    )


def _weights(begin, end, cells, bins, samples):
    """Mean weight of each cell along one axis in the samples of each bin, [N, bins, cells]."""
    sample = ((jnp.arange(bins * samples, dtype=begin.dtype) + 0.5) / samples)[None]  # in bins
    position = begin[:, None] + sample * ((end - begin) / bins)[:, None]
    inside = (position >= -1) & (position <= cells)
    position = jnp.clip(position, 0, cells - 1)
    low = jnp.floor(position)
    fraction = (position - low)[..., None]
    low, high = low.astype(jnp.int32), jnp.minimum(low.astype(jnp.int32) + 1, cells - 1)
    low, high = (jax.nn.one_hot(index, cells, dtype=begin.dtype) for index in (low, high))
    weights = jnp.where(inside[..., None], low * (1 - fraction) + high * fraction, 0)
    return weights.reshape(-1, bins, samples, cells).mean(axis=2)
