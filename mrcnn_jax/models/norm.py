"""The normalisation layers a detector is trained with."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

DEVICES = "devices"
"""Name of the mapped axis over all devices, for everything that is averaged across them."""


class FrozenBatchNorm(nn.Module):
    """Batch norm as a fixed affine map, the paper's way to fine-tune a pretrained network on few images a device.

    All four vectors stand in the collection "frozen": neither gradients nor weight decay ever reach them.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        def vector(name, fill):
            return self.variable("frozen", name, lambda: jnp.full(x.shape[-1], fill, jnp.float32)).value

        scale = vector("scale", 1.0) * jax.lax.rsqrt(vector("var", 1.0) + self.epsilon)
        shift = vector("bias", 0.0) - vector("mean", 0.0) * scale
        return x * scale.astype(self.dtype) + shift.astype(self.dtype)


class Identity(nn.Module):
    """No normalisation."""

    def __call__(self, x):
        return x


class GroupNorm(nn.Module):
    """32 groups (Wu & He, 2018), or as many as divide a narrow layer's channels."""

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        return nn.GroupNorm(math.gcd(32, x.shape[-1]), epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)


def normalisation(kind: str, epsilon: float, train: bool, dtype: Any):
    """The layer class for a norm's name in the configuration: call it with a ``name``."""
    if kind == "frozen":
        return partial(FrozenBatchNorm, epsilon=epsilon, dtype=dtype)
    if kind == "batch":
        return partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=epsilon, axis_name=DEVICES, dtype=dtype)
    if kind == "group":
        return partial(GroupNorm, epsilon=epsilon, dtype=dtype)
    return Identity
