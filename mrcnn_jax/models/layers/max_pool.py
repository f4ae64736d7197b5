"""The stem's max pooling, with a gradient that is fast on a CPU."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.runtime import target_platform
from mrcnn_jax.typing import Array, Float

_TAPS = tuple((row, column) for row in range(3) for column in range(3))
_SEEN_BY = (((1, 0),), ((2, 0), (0, 1)))
"""For an even and an odd row of the input: (row in the window, step to the window) of the windows with it."""


def max_pool(x: Float[Array, "N H W C"]) -> Float[Array, "N h w C"]:
    """Computes the maximum of 3x3 windows of stride 2, padding 1; its gradient goes to the first largest.

    For the gradient, XLA writes indices of four times the size of the map on CPU and scatters one number at
    a time. There, the position of each maximum in its window is kept, and every input adds up those of the
    one to four windows that it is in; it has no forward-mode derivative.
    """

    height, width = x.shape[1:3]

    def pool(x):
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))

    def forward(x):
        y = pool(x)
        return y, _positions(x, y)

    def backward(positions, cotangent):
        return (_gradient(positions, cotangent)[:, :height, :width],)

    if target_platform() != "cpu":
        return pool(x)
    pooled = jax.custom_vjp(pool)
    pooled.defvjp(forward, backward)
    return pooled(x)


def _positions(x, y):
    """Returns the position, 0 to 8, of each window's first maximum; 9 where there is none, as of NaN."""
    sides = zip(x.shape[1:3], y.shape[1:3], strict=True)
    edges = [(0, 0, 0), *((1, 2 * windows - side, 0) for side, windows in sides), (0, 0, 0)]
    x = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), edges)
    rows, columns = (2 * windows - 1 for windows in y.shape[1:3])
    position = jnp.full(y.shape, len(_TAPS), jnp.uint8)
    for index, (row, column) in reversed(tuple(enumerate(_TAPS))):
        seen = x[:, row : row + rows : 2, column : column + columns : 2]
        position = jnp.where(seen == y, jnp.uint8(index), position)
    return position


def _gradient(position, cotangent):
    """Returns the gradient of the input, with an even number of rows and columns."""
    number, rows, columns, channels = cotangent.shape
    edges = (0, 0), (0, 1), (0, 1), (0, 0)
    position = jnp.pad(position, edges, constant_values=len(_TAPS))
    cotangent = jnp.pad(cotangent, edges)

    def of(row, column):
        (in_row, down), (in_column, right) = row, column
        window = slice(None), slice(down, down + rows), slice(right, right + columns)
        return jnp.where(position[window] == _TAPS.index((in_row, in_column)), cotangent[window], 0)

    def inputs(row, column):
        return sum(of(*each) for each in [(r, c) for r in _SEEN_BY[row] for c in _SEEN_BY[column]])

    cells = jnp.stack([jnp.stack([inputs(a, b) for b in range(2)], axis=3) for a in range(2)], axis=2)
    return cells.reshape(number, 2 * rows, 2 * columns, channels)
