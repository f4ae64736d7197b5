"""RoI averages as matrix products: a bin is a weighted sum over rows, then over columns of its map.

Each RoI reads its whole map, but without a gather: the implementation for processors built for matrix
products. A few RoIs of one map and image are taken at a time, so that the intermediate product stays small. A
feature that is not finite spoils all RoIs on its map, as a weight of 0 does not hide it.
"""

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.roi import tuning
from mrcnn_jax.ops.roi.bins import bins_of_rois
from mrcnn_jax.ops.roi.gather import accumulation_dtype
from mrcnn_jax.ops.roi.spec import PoolSpec
from mrcnn_jax.ops.roi.tiles import Maps, Rois, make_tiles
from mrcnn_jax.typing import Array, Float


def pool(spec: PoolSpec, maps: Maps, rois: Rois) -> Float[Array, "N PH PW c"]:
    """Pools the RoIs."""
    plan = _make_tiles(spec, maps, rois)
    shape = (*plan.slots.shape, *spec.output_size, spec.channels(maps[0].shape[-1]))
    pooled = jnp.zeros_like(maps[0], shape=shape)
    for level, features in enumerate(maps):

        def visit(tile, pooled, features=features):
            image, rows, columns = _weights(spec, features, rois, plan.slots[tile])
            own = jax.lax.dynamic_index_in_dim(features, image, keepdims=False)
            if spec.groups > 1:
                bins = _pool_groups(spec, rows, columns, own)
            elif features.shape[2] >= features.shape[1]:  # reducing the longer side first is cheaper
                bins = _product("nph,nqhc->npqc", rows, _product("nqw,hwc->nqhc", columns, own))
            else:
                bins = _product("nqw,npwc->npqc", columns, _product("nph,hwc->npwc", rows, own))
            return pooled.at[tile].set(bins)

        pooled = jax.lax.fori_loop(*_tiles_of_level(plan, maps, level), visit, pooled)
    return pooled.reshape(-1, *pooled.shape[2:])[plan.inverse]


def gradients(
    spec: PoolSpec, maps: Maps, rois: Rois, gradient: Float[Array, "N PH PW c"]
) -> list[Float[Array, "B _h _w C"]]:
    """Computes the gradient of every map from that of the pooled RoIs."""
    plan = _make_tiles(spec, maps, rois)
    totals = []
    for level, features in enumerate(maps):

        def visit(tile, total, features=features):
            slot = plan.slots[tile]
            image, rows, columns = _weights(spec, features, rois, slot)
            bins = jnp.where((slot >= 0)[:, None, None, None], gradient[slot], 0)
            if spec.groups > 1:
                part = _gradient_of_groups(spec, rows, columns, bins, total.dtype)
            elif features.shape[2] >= features.shape[1]:
                part = _product("nqw,nqhc->hwc", columns, _product("nph,npqc->nqhc", rows, bins), total.dtype)
            else:
                part = _product("nph,npwc->hwc", rows, _product("nqw,npqc->npwc", columns, bins), total.dtype)
            return total.at[image].add(part)

        total = jnp.zeros_like(features, accumulation_dtype(features.dtype))
        total = jax.lax.fori_loop(*_tiles_of_level(plan, maps, level), visit, total)
        totals.append(total.astype(features.dtype))
    return totals


def _pool_groups(spec, rows, columns, features):
    """Position-sensitive bins: rows and columns of each group read its own map."""
    number, groups = rows.shape[0], spec.groups
    features = features.reshape(*features.shape[:2], groups, groups, -1)
    rows, columns = (axis.reshape(number, groups, -1, axis.shape[-1]) for axis in (rows, columns))
    bins = _product("nkqw,hwgkc->nhgkqc", columns, features)
    return _product("ngph,nhgkqc->ngpkqc", rows, bins).reshape(number, *spec.output_size, -1)


def _gradient_of_groups(spec, rows, columns, bins, dtype):
    number, groups = rows.shape[0], spec.groups
    rows, columns = (axis.reshape(number, groups, -1, axis.shape[-1]) for axis in (rows, columns))
    bins = bins.reshape(number, groups, rows.shape[2], groups, columns.shape[2], -1)
    part = _product("nkqw,nhgkqc->hwgkc", columns, _product("ngph,ngpkqc->nhgkqc", rows, bins), dtype)
    return part.reshape(*part.shape[:2], -1)


def _make_tiles(spec, maps, rois):
    images = maps[0].shape[0]
    size = min(-(-tuning.MATMUL_ROIS // spec.groups), max(1, rois.level.shape[0]))
    return make_tiles(rois.level * images + rois.image, len(maps) * images, size)


def _tiles_of_level(plan, maps, level):
    images = maps[0].shape[0]
    return plan.begin[level * images], plan.begin[(level + 1) * images]


def _weights(spec, features, rois, slot):
    """The image of a tile, and the weights of cells in bins along y, [n, PH, H], and x, [n, PW, W]."""
    _, height, width, _ = features.shape
    boxes = jnp.where((slot >= 0)[:, None], rois.boxes[slot], 0)
    axes = bins_of_rois(spec, boxes, jnp.full_like(slot, height), jnp.full_like(slot, width))
    rows, columns = (
        axis.weight_matrix(limit, spec.sampling_ratio).astype(features.dtype)
        for axis, limit in zip(axes, (height, width), strict=True)
    )
    return rois.image[slot[0]], rows, columns


def _product(equation, weights, features, dtype=None):
    """An einsum in the dtype of the features, accumulated in at least float32."""
    accumulated = accumulation_dtype(features.dtype)
    precision = jax.lax.Precision.HIGHEST if accumulated == features.dtype else None
    product = jnp.einsum(equation, weights, features, precision=precision, preferred_element_type=accumulated)
    return product.astype(dtype or features.dtype)
