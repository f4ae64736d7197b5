"""Averages of RoIAlign as matrix products: a bin is a weighted sum over the rows of its map and then over the columns, and the weights are matrices.

Each RoI reads its whole map, but with no gather: the form for processors that are built for matrix products. Some RoIs of one map are taken at a time, so that
what lies between the two products stays small. A feature that is not a finite number spoils all RoIs on its map, as its weight of 0 does not hide it.
"""

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.roi.gather import computing
from mrcnn_jax.ops.roi.sampling import Reading, axes_of_rois
from mrcnn_jax.ops.roi.tiles import Maps, Plan, Rois, arrange
from mrcnn_jax.typing import Array, Float

CHUNK = 32  # RoIs


def pool(reading: Reading, maps: Maps, rois: Rois) -> Float[Array, "N PH PW C"]:
    """The RoIs' bins."""
    plan = _plan(maps, rois)
    pooled = jnp.zeros((*plan.members.shape, *reading.bins, maps[0].shape[-1]), maps[0].dtype)
    for level, features in enumerate(maps):

        def visit(chunk, pooled, features=features):
            image, down, across = _chunk(reading, features, rois, plan.members[chunk])
            own = jax.lax.dynamic_index_in_dim(features, image, keepdims=False)
            if features.shape[2] >= features.shape[1]:  # the longer side first leaves less to do
                bins = _product("nph,nqhc->npqc", down, _product("nqw,hwc->nqhc", across, own))
            else:
                bins = _product("nqw,npwc->npqc", across, _product("nph,hwc->npwc", down, own))
            return pooled.at[chunk].set(bins)

        pooled = jax.lax.fori_loop(*_chunks(plan, maps, level), visit, pooled)
    return pooled.reshape(-1, *pooled.shape[2:])[plan.place]


def gradients(reading: Reading, maps: Maps, rois: Rois, gradient: Float[Array, "N PH PW C"]) -> list[Float[Array, "B _h _w C"]]:
    """The gradient of every map from that of the RoIs' bins."""
    plan = _plan(maps, rois)
    totals = []
    for level, features in enumerate(maps):

        def visit(chunk, total, features=features):
            member = plan.members[chunk]
            image, down, across = _chunk(reading, features, rois, member)
            bins = jnp.where((member >= 0)[:, None, None, None], gradient[member], 0)
            if features.shape[2] >= features.shape[1]:
                part = _product("nqw,nqhc->hwc", across, _product("nph,npqc->nqhc", down, bins), total.dtype)
            else:
                part = _product("nph,npwc->hwc", down, _product("nqw,npqc->npwc", across, bins), total.dtype)
            return total.at[image].add(part)

        total = jax.lax.fori_loop(*_chunks(plan, maps, level), visit, jnp.zeros(features.shape, computing(features.dtype)))
        totals.append(total.astype(features.dtype))
    return totals


def _plan(maps: Maps, rois: Rois) -> Plan:
    images = maps[0].shape[0]
    return arrange(rois.level * images + rois.image, len(maps) * images, min(CHUNK, max(1, rois.level.shape[0])))


def _chunks(plan, maps, level):
    images = maps[0].shape[0]
    return plan.begin[level * images], plan.begin[(level + 1) * images]


def _chunk(reading, features, rois, member):
    """The image of a chunk, and the weights of all cells in its bins along y and x, [n, PH, H] and [n, PW, W]."""
    _, height, width, _ = features.shape
    boxes = jnp.where((member >= 0)[:, None], rois.boxes[member], 0)
    y, x = axes_of_rois(reading, boxes, jnp.full_like(member, height), jnp.full_like(member, width))
    return rois.image[member[0]], *(axis.dense(limit, reading.samples).astype(features.dtype) for axis, limit in ((y, height), (x, width)))


def _product(equation, weights, features, dtype=None):
    """In the features' numbers, added up in at least float32."""
    precision = jax.lax.Precision.HIGHEST if computing(features.dtype) == features.dtype else None
    product = jnp.einsum(equation, weights, features, precision=precision, preferred_element_type=computing(features.dtype))
    return product.astype(dtype or features.dtype)
