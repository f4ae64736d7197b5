"""Choice of the implementation of a RoI operation, and the gradient that the fast implementations share.

All implementations compute the same numbers except for rounding; each is the fastest on some platform.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.boxes import at_least_float32
from mrcnn_jax.ops.checks import check_shape
from mrcnn_jax.ops.manual_axes import vary_alike
from mrcnn_jax.ops.roi import matmul, tuning
from mrcnn_jax.ops.roi.bins import round_to_cells
from mrcnn_jax.ops.roi.gather import accumulation_dtype
from mrcnn_jax.ops.roi.spec import PoolSpec, make_spec
from mrcnn_jax.ops.roi.tiles import (
    Maps,
    Rois,
    flat_gradients,
    flatten_levels,
    join_levels,
    pool_tiles,
    split_levels,
)
from mrcnn_jax.runtime import target_platform
from mrcnn_jax.typing import Array, Float, Int

Definition = Callable[[Float[Array, "H W C"], Float[Array, "N 4"], PoolSpec], Float[Array, "N PH PW c"]]
"""A readable implementation: pools RoIs, in cells, from one map."""


def roi_implementations(
    operation: str, reduction: str = "average", sampling_ratio: int = 2
) -> tuple[str, ...]:
    """Returns the implementations of an operation, as the argument ``implementation`` takes them.

    - "gather": gathers cells from all maps, joined, for all RoIs at once; the gradient is scattered.
    - "tiled": gathers cells map by map, for as many RoIs at a time as keep the working set in a CPU's cache.
    - "matmul": two products with matrices of sampling weights for each RoI; averages only.
    - "reference": the definition (``align.py``, ``pool.py``, ``warp.py``), slow and differentiable any number
      of times, also forwards; not for adaptive sampling.

    Args:
        operation: "align", "pool" or "warp".
        reduction: "average" or "max"; only "max" for "pool".
        sampling_ratio: samples per bin and axis; 0 is adaptive.
    """
    return _implementations(make_spec(operation, reduction, sampling_ratio, True, 1))


def default_implementation(
    operation: str, reduction: str = "average", sampling_ratio: int = 2, platform: str | None = None
) -> str:
    """Returns the implementation used when none is given.

    Args:
        operation: "align", "pool" or "warp".
        reduction: "average" or "max"; only "max" for "pool".
        sampling_ratio: samples per bin and axis; 0 is adaptive.
        platform: "cpu", "gpu" or "tpu"; None is the one that programs are traced for
            (``runtime.compiling_for``).
    """
    return _default(make_spec(operation, reduction, sampling_ratio, True, 1), platform or target_platform())


def pool_pyramid(
    spec: PoolSpec,
    definition: Definition,
    implementation: str | None,
    pyramid: Maps,
    boxes: Float[Array, "n 4"],
    levels: Int[Array, "n"],
    images: Int[Array, "n"],
) -> Float[Array, "n PH PW c"]:
    """Pools RoIs, each from one level of its image's pyramid.

    Args:
        spec: the operation.
        definition: computes it where ``implementation`` is "reference".
        implementation: one of ``roi_implementations``, or None for the target platform's.
        pyramid: feature maps of all images.
        boxes: RoIs in cells of their map.
        levels: index of each RoI's map; the nearest if there is none of this index.
        images: index of each RoI's image, likewise.
    """
    allowed = _implementations(spec)
    if implementation not in (*allowed, None):
        names = ", ".join(map(repr, allowed))
        raise ValueError(f"implementation of this operation must be {names} or None, not {implementation!r}")
    if not jnp.issubdtype(pyramid[0].dtype, jnp.floating):
        raise ValueError(f"features must be floating point numbers, not {pyramid[0].dtype}")
    batch, channels = pyramid[0].shape[0], spec.channels(pyramid[0].shape[-1])
    if 0 in (levels.size, channels):
        return jnp.zeros((levels.size, *spec.output_size, channels), pyramid[0].dtype)
    if any(0 in features.shape for features in pyramid):
        shapes = [features.shape for features in pyramid]
        raise ValueError(f"features must have a cell in each map to pool RoIs from, not {shapes}")
    levels, images = jnp.clip(levels, 0, len(pyramid) - 1), jnp.clip(images, 0, batch - 1)
    if implementation == "reference":
        return _pool_by_definition(spec, definition, pyramid, boxes, levels, images)
    boxes = round_to_cells(boxes, spec.box_gradient) if spec.round_boxes else boxes
    boxes, levels, images, *pyramid = vary_alike(boxes, levels, images, *pyramid)
    implementation = implementation or _default(spec, target_platform())
    return _pool_fast(spec, implementation, tuple(pyramid), Rois(boxes, levels, images))


def pool_one_map(
    spec: PoolSpec,
    definition: Definition,
    implementation: str | None,
    features: Float[Array, "*B H W C"],
    boxes: Float[Array, "N _"],
    spatial_scale: float,
) -> Float[Array, "N PH PW c"]:
    """Pools RoIs, in image pixels, from the map of one image or of several; see ``roi_align``."""
    features, boxes = jnp.asarray(features), at_least_float32(boxes)
    if features.ndim == 4:
        check_shape("boxes", boxes, "N", 5, note="image, x1, y1, x2, y2 for features [B, H, W, C]")
        images, boxes = jnp.nan_to_num(boxes[:, 0]).astype(jnp.int32), boxes[:, 1:]
    else:
        check_shape("features", features, "H", "W", "C", note="one image, channels last")
        check_shape("boxes", boxes, "N", 4, note="x1, y1, x2, y2 in image pixels")
        images, features = jnp.zeros_like(boxes[:, 0], jnp.int32), features[None]
    levels = jnp.zeros_like(images)
    return pool_pyramid(
        spec, definition, implementation, (features,), boxes * spatial_scale, levels, images
    )


def _implementations(spec):
    if spec.reduction == "average":
        has_definition = spec.is_fixed or spec.whole_cells
        return ("gather", "tiled", "matmul", *(("reference",) if has_definition else ()))
    return ("gather", "tiled", *(("reference",) if spec.is_fixed or spec.reduction == "cells" else ()))


def _default(spec, platform):
    """The fastest implementation by the measurements and estimates in benchmarks/results/ROI_OPS.md."""
    if platform == "tpu" and spec.reduction == "average":
        return "matmul"
    return "gather" if platform == "gpu" else "tiled"


def _pool_by_definition(spec, definition, pyramid, boxes, levels, images):
    """Every RoI from every map, of which that of its own level and image is kept."""
    pooled, number = 0.0, jnp.arange(levels.size)
    for level, features in enumerate(pyramid):
        here = jax.vmap(lambda features: definition(features, boxes, spec))(features)[images, number]
        pooled = jnp.where((levels == level)[:, None, None, None], here, pooled)
    return pooled


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pool_fast(spec, implementation, maps, rois):
    return _pool(spec, implementation, maps, rois)


def _pool_fast_forward(spec, implementation, maps, rois):
    moving = rois.boxes if rois.boxes.perturbed else None  # in training no gradient of the boxes is used
    maps, rois, moving = jax.tree.map(lambda primal: primal.value, (maps, rois, moving))
    pooled = _pool(spec, implementation, maps, rois)
    return pooled, (maps, rois, moving, pooled if spec.reduction == "cells" else None)


def _pool_fast_backward(spec, implementation, residuals, gradient):
    maps, rois, moving, pooled = residuals
    of_maps = _gradients(spec, implementation, maps, rois, pooled, gradient)
    of_boxes = None if moving is None else _gradient_of_boxes(spec, maps, rois, gradient)
    return of_maps, Rois(of_boxes, None, None)


_pool_fast.defvjp(_pool_fast_forward, _pool_fast_backward, symbolic_zeros=True)


@partial(jax.jit, static_argnums=(0, 1))
def _pool(spec, implementation, maps, rois):
    if implementation == "matmul":
        return matmul.pool(spec, maps, rois)
    flat = _flatten(spec, implementation, maps)
    size = _all_rows(spec, rois)
    if implementation == "tiled" and not (spec.is_fixed and len(flat) == 1):
        size = _rows_of(tuning.TILE_BYTES_FIXED if spec.is_fixed else tuning.TILE_BYTES_ADAPTIVE, spec, maps)
    elif not spec.is_fixed:
        size = -(-size // tuning.ADAPTIVE_GROUPS)
    if implementation == "tiled":
        shape = rois.level.shape[0], *spec.output_size, spec.channels(maps[0].shape[-1])
        empty = partial(jnp.full_like, maps[0], jnp.nan, shape=shape)
        return _isolated(partial(pool_tiles, spec, flat, rois, size), empty, jnp.isnan(rois.boxes).all())
    return pool_tiles(spec, flat, rois, size)


@partial(jax.jit, static_argnums=(0, 1))
def _gradients(spec, implementation, maps, rois, pooled, gradient):
    if implementation == "matmul":
        return tuple(matmul.gradients(spec, maps, rois, gradient))
    flat = _flatten(spec, implementation, maps)
    size = _all_rows(spec, rois)
    if implementation == "tiled":
        size = _rows_of(tuning.TILE_BYTES_GRADIENT, spec, maps)
    elif not spec.is_fixed:
        size = -(-size // tuning.ADAPTIVE_GROUPS)
    totals = flat_gradients(spec, flat, rois, pooled, gradient, size, by_element=implementation == "gather")
    return tuple(
        level.astype(maps[0].dtype)
        for own, total in zip(flat, totals, strict=True)
        for level in split_levels(spec, own, total)
    )


def _isolated(pool, empty, never):
    """Runs ``pool`` in a branch of its own.

    Otherwise XLA fuses the bins into whatever reads them and, on a CPU, recomputes them for each layout
    that a convolution and its gradient ask for.
    """
    return jax.lax.cond(never, empty, pool)


def _gradient_of_boxes(spec, maps, rois, gradient):
    """Moves one coordinate of all boxes at once, which changes only each box's own bins.

    Compiled only where the gradient of boxes is used.
    """
    if spec.reduction == "cells":
        return jnp.zeros_like(rois.boxes)

    def pooled(boxes):
        return _pool(spec, "gather", maps, rois._replace(boxes=boxes))

    def along(coordinate):
        change = jnp.zeros_like(rois.boxes).at[:, coordinate].set(1)
        _, effect = jax.jvp(pooled, (rois.boxes,), (change,))
        dtype = accumulation_dtype(effect.dtype)
        return jnp.sum(effect.astype(dtype) * gradient.astype(dtype), axis=(1, 2, 3)).astype(rois.boxes.dtype)

    return jax.lax.map(along, jnp.arange(4)).T


def _flatten(spec, implementation, maps):
    small = sum(features.size * features.dtype.itemsize for features in maps) <= tuning.JOINED_PYRAMID_BYTES
    return (flatten_levels if implementation == "tiled" and not small else join_levels)(spec, maps)


def _all_rows(spec, rois):
    return rois.level.shape[0] * spec.output_size[0]


def _rows_of(num_bytes, spec, maps):
    """Number of rows of bins that take ``num_bytes``, at least one."""
    itemsize = jnp.dtype(accumulation_dtype(maps[0].dtype)).itemsize
    return max(1, num_bytes // (spec.output_size[1] * spec.channels(maps[0].shape[-1]) * itemsize))
