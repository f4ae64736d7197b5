"""The forms in which RoI operations are computed: different ways to the same numbers, each the fastest somewhere."""

from functools import partial

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.roi import matmul as roi_matmul
from mrcnn_jax.ops.roi.gather import computing
from mrcnn_jax.ops.roi.sampling import Reading
from mrcnn_jax.ops.roi.tiles import Maps, Rois, apart, pool_rows, table_gradients, table_of_all, table_of_each
from mrcnn_jax.typing import Array, Float

FORMS = ("gather", "sorted", "pieces", "matmul")
SCATTER = {"gather": "elements", "sorted": "sorted", "pieces": "rows"}
PLATFORMS = ("cpu", "gpu", "tpu")

# of the form "pieces": bytes of bins that are read at a time, where all read equally often and where not, and of gradients that are added up at a time
PIECE_OF_EQUALS = 2**22
PIECE = 2**20
PIECE_OF_GRADIENT = 2**18
SMALL = 2**24  # bytes of a pyramid that is sooner copied into one table than programs for each of its maps are compiled
GROUPS = 4  # of similar needs, that "gather" takes one after another


def forms(reading: Reading) -> tuple[str, ...]:
    """Those that compute a reading."""
    if reading.reduction != "average":
        return ("gather", "pieces")
    return FORMS if reading.fixed else ("gather", "pieces", "matmul")


def default(reading: Reading, platform: str) -> str:
    """The form that is taken where none is asked for, by the measurements and estimates in benchmarks/results."""
    if platform == "tpu" and reading.reduction == "average":
        return "matmul"
    return "gather" if platform == "gpu" else "pieces"


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def read(reading: Reading, form: str | None, maps: Maps, rois: Rois) -> Float[Array, "N PH PW C"]:
    """The RoIs' bins, in one of the forms or the platform's own; differentiable in maps and boxes."""
    return _choose(partial(_pool, reading), reading, form, maps, rois)


def _read_forward(reading, form, maps, rois):
    pooled = read(reading, form, maps, rois)
    return pooled, (maps, rois, pooled if reading.reduction == "cells" else None)


def _read_backward(reading, form, residuals, gradient):
    maps, rois, pooled = residuals
    to_maps = _choose(partial(_gradients, reading), reading, form, maps, rois, pooled, gradient)
    return to_maps, Rois(_gradient_of_boxes(reading, maps, rois, gradient), None, None)


read.defvjp(_read_forward, _read_backward)


def _choose(function, reading, form, *arguments):
    if form is not None:
        return function(form, *arguments)
    chosen = {platform: default(reading, platform) for platform in PLATFORMS}
    usual = chosen["gpu"]
    others = {platform: partial(function, own) for platform, own in chosen.items() if own != usual}
    return jax.lax.platform_dependent(*arguments, **others, default=partial(function, usual))


# traced once for all programs that use it, as each is traced for every platform
@partial(jax.jit, static_argnums=(0, 1))
def _pool(reading, form, maps, rois):
    if form == "matmul":
        return roi_matmul.pool(reading, maps, rois)
    tables = _tables(form, maps)
    size = _everyone(reading, rois)
    if form == "pieces" and not (reading.fixed and len(tables) == 1):
        size = _rows(reading, maps, PIECE_OF_EQUALS if reading.fixed else PIECE)
    elif not reading.fixed:
        size = -(-size // GROUPS)
    if form == "pieces":
        return _by_itself(partial(pool_rows, reading, tables, rois, size), jnp.isnan(rois.boxes).all())
    return pool_rows(reading, tables, rois, size)


@partial(jax.jit, static_argnums=(0, 1))
def _gradients(reading, form, maps, rois, pooled, gradient):
    if form == "matmul":
        return tuple(roi_matmul.gradients(reading, maps, rois, gradient))
    tables = _tables(form, maps)
    size = _everyone(reading, rois)
    if form == "pieces":
        size = _rows(reading, maps, PIECE_OF_GRADIENT)
    elif not reading.fixed:
        size = -(-size // GROUPS)
    totals = table_gradients(reading, tables, rois, pooled, gradient, size, SCATTER[form])
    return tuple(level.astype(maps[0].dtype) for table, total in zip(tables, totals, strict=True) for level in apart(table, total))


def _by_itself(bins, nowhere):
    """In a branch, for XLA otherwise fuses the bins into whatever reads them, and on a CPU computes them anew for each layout that a convolution and its gradient want."""
    like = jax.eval_shape(bins)
    return jax.lax.cond(nowhere, lambda: jnp.full(like.shape, jnp.nan, like.dtype), bins)


def _gradient_of_boxes(reading, maps, rois, gradient):
    """A change of one coordinate of all boxes at once shows each what it does to its own bins. Compiled only where somebody asks for it."""
    if reading.reduction == "cells":
        return jnp.zeros_like(rois.boxes)

    def pooled(boxes):
        return _pool(reading, "gather", maps, rois._replace(boxes=boxes))

    def along(coordinate):
        change = jnp.broadcast_to(jax.nn.one_hot(coordinate, 4, dtype=rois.boxes.dtype), rois.boxes.shape)
        _, effect = jax.jvp(pooled, (rois.boxes,), (change,))
        return jnp.sum(effect.astype(computing(effect.dtype)) * gradient.astype(computing(effect.dtype)), axis=(1, 2, 3)).astype(rois.boxes.dtype)

    return jax.lax.map(along, jnp.arange(4)).T


def _tables(form, maps):
    small = sum(features.size * features.dtype.itemsize for features in maps) <= SMALL
    return table_of_each(maps) if form == "pieces" and not small else table_of_all(maps)


def _everyone(reading, rois):
    return rois.level.shape[0] * reading.bins[0]


def _rows(reading, maps, size):
    """How many rows of bins hold that many bytes."""
    return max(1, size // (reading.bins[1] * maps[0].shape[-1] * jnp.dtype(computing(maps[0].dtype)).itemsize))
