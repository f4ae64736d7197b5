"""RoIAlign as matrix products, the form that much other JAX code has: from every level all RoIs are read, with dense one-hot weights."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def one_hot_align(
    pyramid: Sequence[Float[Array, "B _h _w C"]],
    boxes: Float[Array, "B N 4"],
    levels: Int[Array, "B N"],
    strides: Sequence[int],
    bins: int,
    samples: int = 2,
) -> Float[Array, "B N bins bins C"]:
    """The average of samples x samples points in each bin: ``mrcnn_jax.ops.pool_rois`` of operation "align", aligned, in another way.

    Nothing is gathered. Each level costs the same whether many RoIs lie on it or none, because those of other levels are read with weights of 0;
    the levels are added up. Matrix products are done in the precision that XLA takes by default.
    """
    read = jax.vmap(_read, in_axes=(0, 0, 0, None, None))
    return sum(
        read(features, boxes / stride - 0.5, levels == level, bins, samples)
        for level, (features, stride) in enumerate(zip(pyramid, strides, strict=True))
    )


def _read(
    features: Float[Array, "H W C"], boxes: Float[Array, "N 4"], own: Bool[Array, "N"], bins: int, samples: int
) -> Float[Array, "N bins bins C"]:
    """What all RoIs read from one level, 0 for those that are not its own."""
    height, width, _ = features.shape
    down = _weights(boxes[:, 1], boxes[:, 3], height, bins, samples) * own[:, None, None]
    across = _weights(boxes[:, 0], boxes[:, 2], width, bins, samples)
    return jnp.einsum("nph,hwc,nqw->npqc", down.astype(features.dtype), features, across.astype(features.dtype))


def _weights(begin: Float[Array, "N"], end: Float[Array, "N"], cells: int, bins: int, samples: int) -> Float[Array, "N bins cells"]:
    """How much of each cell along one axis the samples of a bin take on average."""
    sample = (jnp.arange(bins * samples, dtype=begin.dtype) + 0.5) / samples  # in bins
    position = begin[:, None] + sample * ((end - begin) / bins)[:, None]
    inside = (position >= -1) & (position <= cells)
    position = jnp.clip(position, 0, cells - 1)
    low = jnp.floor(position)
    fraction = (position - low)[..., None]
    low, high = low.astype(jnp.int32), jnp.minimum(low.astype(jnp.int32) + 1, cells - 1)
    weights = jax.nn.one_hot(low, cells, dtype=begin.dtype) * (1 - fraction) + jax.nn.one_hot(high, cells, dtype=begin.dtype) * fraction
    return jnp.where(inside[..., None], weights, 0).reshape(-1, bins, samples, cells).mean(axis=2)
