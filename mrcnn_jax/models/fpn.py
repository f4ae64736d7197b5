"""Feature pyramid network (Lin et al., 2017)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mrcnn_jax.models.layers.convolution import Conv
from mrcnn_jax.models.layers.strips import WHOLE, strips_of
from mrcnn_jax.models.norm import make_norm
from mrcnn_jax.runtime import target_platform
from mrcnn_jax.typing import Array, Float

XAVIER = nn.initializers.xavier_uniform()


class FPN(nn.Module):
    """Lateral 1x1 convolutions, nearest-neighbour top-down additions and 3x3 output convolutions.

    P6 is every second cell of P5.
    """

    channels: int
    norm: str = "none"
    norm_epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Sequence[Float[Array, "B _h _w _c"]], train: bool = False
    ) -> list[Float[Array, "B _h _w C"]]:
        """Computes P2 to P6 from C2 to C5."""
        norm = make_norm(self.norm, self.norm_epsilon, train, self.dtype)

        def conv(name, x, size, strips):
            bias = self.norm == "none"
            conv = Conv(self.channels, (size, size), padding=size // 2, use_bias=bias, kernel_init=XAVIER,
                        dtype=self.dtype, name=name)  # fmt: skip
            return norm(name=f"{name}_norm")(conv(x, strips))

        pyramid, above = [], None
        for level, feature in reversed(list(enumerate(features, start=2))):
            strips = WHOLE if self.norm == "group" else strips_of(feature)
            x = conv(f"lateral{level}", strips.split(feature), 1, strips)
            if above is not None:
                fits = above.shape[strips.axis] % strips.number == 0
                x += upsample(strips.split(above)) if fits else strips.split(upsample(above))
            above = strips.join(x)
            pyramid.insert(0, strips.join(conv(f"output{level}", x, 3, strips)))
        return [*pyramid, pyramid[-1][:, ::2, ::2]]


def upsample(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Repeats each cell along both sides; on TPU as products, as copies and their sums are slow there."""
    if target_platform() != "tpu":
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    rows, columns = (jnp.repeat(jnp.eye(side, dtype=x.dtype), 2, axis=1) for side in x.shape[1:3])
    return jnp.einsum("bhwc,hy,wx->byxc", x, rows, columns, precision="highest")
