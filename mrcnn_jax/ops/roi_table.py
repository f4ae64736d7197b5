"""How the RoI operations read features: a table of rows, and sums and maxima over as many readings as each RoI's bins hold.

Adaptive RoIAlign and RoIPool read more often in the bins of a large RoI than in those of a small one. The shapes stay fixed nevertheless: reading number k
of all bins is done at once, and only the number of rounds, the trip count of a loop, depends on the boxes. RoIs of similar need go through it together.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

MOST_GROUPS = 32  # more would follow the RoIs' needs more closely, but leave an accelerator too little to do at once
SMALLEST_GROUP = 8


class Rois(NamedTuple):
    """N RoIs, each on its own map of a table whose rows are the cells of all maps, map by map and row by row."""

    start: Int[Array, "N"]  # the table's row at which the map begins
    height: Int[Array, "N"]  # of the map
    width: Int[Array, "N"]
    boxes: Float[Array, "N 4"]  # in cells of the map


# ``reading(geometry, maps, k)`` describes reading number k of every bin: the rows it takes, each with a weight, and which bins have that many readings.
# Its arrays are [N, PH, PW, 1] for k of shape [N, 1, 1, 1], and [N, PH, PW, C] for a k that differs between bins and channels. ``geometry`` holds the floating
# point arrays [N] on which the weights depend, ``maps`` whatever integers [N, ...] there are besides.
Reading = Callable[[Any, Any, Int[Array, "N _p _q _c"]], tuple[tuple[Array, ...], tuple[Array, ...], Array]]


def on_one_map(features: Float[Array, "H W C"], boxes: Float[Array, "N 4"], spatial_scale: float) -> tuple[Float[Array, "HW C"], Rois]:
    """The table of a single map, and RoIs on it from boxes in image pixels."""
    height, width, channels = features.shape
    zeros = jnp.zeros(boxes.shape[0], jnp.int32)
    return features.reshape(height * width, channels), Rois(zeros, zeros + height, zeros + width, boxes * spatial_scale)


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Bins along y and x."""
    return (size, size) if isinstance(size, int) else tuple(size)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def read_sum(
    reading: Reading, bins: tuple[int, int], table: Float[Array, "R C"], geometry, maps, number: Int[Array, "N"]
) -> Float[Array, "N PH PW C"]:
    """Sum over the first number[n] readings of each bin; differentiable in the table and in the geometry."""

    def pool(carry, number, geometry, maps):
        def add(k, total):
            rows, weights, real = _describe(reading, geometry, maps, k)
            return total + jnp.where(real, _weighted(table, rows, weights), 0)

        return carry, jax.lax.fori_loop(0, rounds(number), add, _zeros(table, number, bins)).astype(table.dtype)

    return in_groups(pool, None, number, geometry, maps)[1]


def _read_sum_forward(reading, bins, table, geometry, maps, number):
    return read_sum(reading, bins, table, geometry, maps, number), (table, geometry, maps, number)


def _read_sum_backward(reading, bins, residuals, gradient):
    table, geometry, maps, number = residuals

    def to_table(total, number, geometry, maps, gradient):
        return jax.lax.fori_loop(0, rounds(number), lambda k, total: _scatter(total, _describe(reading, geometry, maps, k), gradient), total), None

    def to_geometry(carry, number, geometry, maps, gradient):
        def add(k, total):
            return jax.tree.map(jnp.add, total, _to_geometry(reading, table, geometry, maps, k, gradient))

        return carry, jax.lax.fori_loop(0, rounds(number), add, jax.tree.map(jnp.zeros_like, geometry))

    # two loops, so that the second is dropped where nobody asks for it
    to_table, _ = in_groups(to_table, jnp.zeros_like(table), number, geometry, maps, gradient)
    _, to_geometry = in_groups(to_geometry, None, number, geometry, maps, gradient)
    return to_table, to_geometry, None, None


read_sum.defvjp(_read_sum_forward, _read_sum_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def read_largest(
    reading: Reading, bins: tuple[int, int], table: Float[Array, "R C"], geometry, maps, number: Int[Array, "N"]
) -> Float[Array, "N PH PW C"]:
    """Largest of the first number[n] readings of each bin and channel, 0 where there is none; the gradient goes to the first largest."""
    return _find_largest(reading, bins, table, geometry, maps, number)[0]


def _find_largest(reading, bins, table, geometry, maps, number):
    """The largest reading and which one it is, -1 for none."""

    def pool(carry, number, geometry, maps):
        def compare(k, found):
            best, which = found
            rows, weights, real = _describe(reading, geometry, maps, k)
            value = _weighted(table, rows, weights)
            better = real & ((which < 0) | (value > best) | jnp.isnan(value))  # what is not a number stays visible
            return jnp.where(better, value, best), jnp.where(better, k, which)

        nothing = _zeros(table, number, bins)
        best, which = jax.lax.fori_loop(0, rounds(number), compare, (nothing, jnp.full(nothing.shape, -1, jnp.int32)))
        return carry, (best.astype(table.dtype), which)

    return in_groups(pool, None, number, geometry, maps)[1]


def _read_largest_forward(reading, bins, table, geometry, maps, number):
    largest, which = _find_largest(reading, bins, table, geometry, maps, number)
    return largest, (table, geometry, maps, number, which)


def _read_largest_backward(reading, bins, residuals, gradient):
    table, geometry, maps, number, which = residuals

    def to_table(total, number, geometry, maps, which, gradient):
        return _scatter(total, reading(geometry, maps, jnp.maximum(which, 0)), jnp.where(which < 0, 0, gradient)), None

    def to_geometry(carry, number, geometry, maps, which, gradient):
        return carry, _to_geometry(reading, table, geometry, maps, jnp.maximum(which, 0), jnp.where(which < 0, 0, gradient))

    to_table, _ = in_groups(to_table, jnp.zeros_like(table), number, geometry, maps, which, gradient)
    _, to_geometry = in_groups(to_geometry, None, number, geometry, maps, which, gradient)
    return to_table, to_geometry, None, None


read_largest.defvjp(_read_largest_forward, _read_largest_backward)


def in_groups(function, carry, number, *arrays):
    """``lax.scan`` of function(carry, number, *arrays) over groups of RoIs of similar number; what it returns for the RoIs is put back in their order."""
    count = number.shape[0]
    size = max(-(-count // MOST_GROUPS), SMALLEST_GROUP)
    groups = -(-count // size)
    order = jnp.argsort(number)

    def group(array):  # filled up with RoIs that read nothing
        padding = [(0, groups * size - count)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array[order], padding).reshape(groups, size, *array.shape[1:])

    carry, results = jax.lax.scan(lambda carry, group: function(carry, *group), carry, jax.tree.map(group, (number, *arrays)))
    place = jnp.argsort(order)
    return carry, jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[place], results)


def rounds(number: Int[Array, "N"]) -> Int[Array, ""]:
    """How often a loop over the readings of all these RoIs must turn."""
    return jnp.max(number, initial=0)


def _zeros(table, number, bins):
    return jnp.zeros((number.shape[0], *bins, table.shape[1]), _computing(table.dtype))


def _computing(dtype):
    """In which numbers features are weighted and added up."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def _describe(reading, geometry, maps, k):
    """Reading number k of all bins, for all channels alike."""
    count = jax.tree.leaves(maps)[0].shape[0]
    # fused into what is done per channel, the rows and weights would be computed again for each of them
    return jax.lax.optimization_barrier(reading(geometry, maps, jnp.full((count, 1, 1, 1), k, jnp.int32)))


def _cells(table, rows):
    if rows.shape[-1] == 1:
        return table.at[rows[..., 0]].get(mode="promise_in_bounds")
    return table.at[rows, jnp.arange(table.shape[1])].get(mode="promise_in_bounds")


def _weighted(table, rows, weights):
    dtype = _computing(table.dtype)
    return sum(_cells(table, row).astype(dtype) * weight.astype(dtype) for row, weight in zip(rows, weights, strict=True))


def _scatter(total, described, gradient):
    rows, weights, real = described
    for row, weight in zip(rows, weights, strict=True):
        at = total.at[row[..., 0]] if row.shape[-1] == 1 else total.at[row, jnp.arange(total.shape[1])]
        total = at.add(jnp.where(real, gradient * weight.astype(gradient.dtype), 0), mode="promise_in_bounds")
    return total


def _to_geometry(reading, table, geometry, maps, k, gradient):
    """What the geometry gets through the weights of reading number k."""
    k = jnp.broadcast_to(k, (gradient.shape[0], 1, 1, 1)) if jnp.ndim(k) == 0 else k
    rows, _, real = reading(geometry, maps, k)
    weights, backward = jax.vjp(lambda geometry: reading(geometry, maps, k)[1], geometry)

    def to_weight(row, weight):
        product = jnp.where(real, _cells(table, row).astype(weight.dtype) * gradient.astype(weight.dtype), 0)
        return product if weight.shape == product.shape else product.sum(axis=-1, keepdims=True)

    return backward(tuple(to_weight(row, weight) for row, weight in zip(rows, weights, strict=True)))[0]
