"""Non-local block (Wang et al., 2018): every position attends to all positions of the feature map."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mrcnn_jax.typing import Array, Float


class NonLocalBlock(nn.Module):
    """x + W(softmax(theta(x) phi(x)^T) g(x)), the embedded Gaussian form with half the channels inside.

    phi and g are max-pooled 2x2, the paper's subsampling. W starts at 0, so that a pretrained network is unchanged at first.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        batch, height, width, channels = x.shape
        inner = max(1, channels // 2)

        def embedding(name, pool):
            y = nn.Dense(inner, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype, name=name)(x)
            if pool and min(height, width) > 1:
                y = nn.max_pool(y, (2, 2), (2, 2))
            return y.reshape(batch, -1, inner)

        theta, phi, g = embedding("theta", False), embedding("phi", True), embedding("g", True)
        weights = nn.softmax(jnp.einsum("bic,bjc->bij", theta, phi).astype(jnp.float32) / jnp.sqrt(inner))
        y = jnp.einsum("bij,bjc->bic", weights.astype(self.dtype), g).reshape(batch, height, width, inner)
        y = nn.Dense(channels, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="out")(y)
        return x + y
