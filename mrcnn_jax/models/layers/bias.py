"""Addition of a bias per channel, whose gradient is fast on a CPU."""

import jax
import jax.numpy as jnp

from mrcnn_jax.runtime import target_platform
from mrcnn_jax.typing import Array, Float


def add_bias(x: Float[Array, "N H W C"], bias: Float[Array, "C"]) -> Float[Array, "N H W C"]:
    """Adds a bias to each channel.

    On CPU its gradient, a sum over positions, is a matrix product with ones: XLA's own sum of a large map
    takes 4 times as long. The product of a single row would add all numbers one by one, with 30 times the
    rounding error; of 8 rows it is added by blocks.
    """

    def add(x, bias):
        return x + bias.reshape(1, 1, 1, -1)

    def backward(_, cotangent):
        flat = cotangent.reshape(-1, cotangent.shape[-1])
        return cotangent, (jnp.ones((8, len(flat)), flat.dtype) @ flat)[0]

    if target_platform() != "cpu" or x.dtype not in (jnp.float32, jnp.float64):
        return add(x, bias)
    biased = jax.custom_vjp(add)
    biased.defvjp(lambda x, bias: (add(x, bias), None), backward)
    return biased(x, bias)
