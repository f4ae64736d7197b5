"""Maps cut into strips, for processors that compute on vectors of images and channels.

A TPU lays images out along the 8 rows of its vector registers, and channels along their 128 columns. A
convolution of two images leaves three quarters of each register empty. Cut into four strips, which count as
images, they fill it; convolutions of more than one cell then need the edges of the neighbouring strips.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mrcnn_jax.runtime import target_platform
from mrcnn_jax.typing import Array, Float

SUBLANES = 8
"""Rows of a TPU's vector registers."""


@dataclass(frozen=True)
class Strips:
    """Number of strips into which each map is cut, and the axis of [B, H, W, C] that is cut."""

    number: int = 1
    axis: int = 2

    def split(self, x: Float[Array, "B H W C"]) -> Float[Array, "N h w C"]:
        """Returns the first strip of each image, then the second, and so on: N = ``number`` B."""
        if self.number == 1:
            return x
        batch, *sides, channels = x.shape
        sides[self.axis - 1 : self.axis] = [self.number, sides[self.axis - 1] // self.number]
        parts = jnp.moveaxis(x.reshape(batch, *sides, channels), self.axis, 0)
        return parts.reshape(self.number * batch, *parts.shape[2:])

    def join(self, x: Float[Array, "N h w C"]) -> Float[Array, "B H W C"]:
        """Returns the maps whose strips these are."""
        if self.number == 1:
            return x
        parts = jnp.moveaxis(x.reshape(self.number, -1, *x.shape[1:]), 0, self.axis)
        sides = list(x.shape[1:3])
        sides[self.axis - 1] *= self.number
        return parts.reshape(len(x) // self.number, *sides, x.shape[-1])

    def pad(self, x: Float[Array, "N h w C"], width: int) -> Float[Array, "N y x C"]:
        """Adds the ``width`` nearest cells of both neighbours to each strip; 0 beyond the map."""
        side, batch = x.shape[self.axis], len(x) // self.number
        first, last = (jax.lax.slice_in_dim(x, *ends, axis=self.axis)
                       for ends in ((0, width), (side - width, side)))  # fmt: skip
        outside = jnp.zeros_like(first[:batch])
        before, after = jnp.concatenate([outside, last[:-batch]]), jnp.concatenate([first[batch:], outside])
        return jnp.concatenate([before, x, after], axis=self.axis)


WHOLE = Strips()


def strips_of(x: Any, stride: int = 1) -> Strips:
    """Returns the strips that fill the registers of a TPU; whole maps where none do, and elsewhere.

    Args:
        x: the maps, [B, H, W, C], which are cut along their longer side.
        stride: of the convolutions that follow; a strip has a multiple of it.
    """
    batch, height, width, _ = x.shape
    axis, side = (1, height) if height > width else (2, width)
    number = SUBLANES // batch
    fills = number > 1 and number * batch == SUBLANES and side % (number * stride) == 0
    return Strips(number, axis) if target_platform() == "tpu" and fills else WHOLE
