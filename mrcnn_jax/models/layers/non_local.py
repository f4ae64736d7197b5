"""Non-local block (Wang et al., 2018)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mrcnn_jax.typing import Array, Float


class NonLocalBlock(nn.Module):
    """Attention of every position to all positions, in the embedded Gaussian form with half the channels.

    phi and g are max-pooled 2x2, the paper's subsampling. W starts at 0, which leaves a pretrained network
    unchanged at first.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Computes x + W(softmax(theta(x) phi(x)^T) g(x))."""
        batch, height, width, channels = x.shape
        inner = max(1, channels // 2)

        def embedding(name, pool):
            normal = nn.initializers.normal(0.01)
            y = nn.Dense(inner, kernel_init=normal, dtype=self.dtype, name=name)(x)
            if pool and min(height, width) > 1:
                y = nn.max_pool(y, (2, 2), (2, 2))
            return y.reshape(batch, -1, inner)

        theta, phi, g = embedding("theta", False), embedding("phi", True), embedding("g", True)
        weights = nn.softmax(jnp.einsum("bic,bjc->bij", theta, phi).astype(jnp.float32) / jnp.sqrt(inner))
        y = jnp.einsum("bij,bjc->bic", weights.astype(self.dtype), g).reshape(batch, height, width, inner)
        return x + nn.Dense(channels, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="out")(y)
