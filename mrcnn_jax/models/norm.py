"""The normalisation layers a detector is trained with."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.typing import Array, Bool, Float

DEVICE_AXIS = "devices"
"""Name of the mapped axis over all devices, for everything that is averaged across them."""


class FrozenBatchNorm(nn.Module):
    """Batch norm as a fixed affine map, the paper's way to fine-tune a pretrained network on few images a device.

    All four vectors stand in the collection "frozen": neither gradients nor weight decay ever reach them.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, real=None):
        def vector(name, fill):
            return self.variable("frozen", name, lambda: jnp.full(x.shape[-1], fill, jnp.float32)).value

        scale = vector("scale", 1.0) * jax.lax.rsqrt(vector("var", 1.0) + self.epsilon)
        shift = vector("bias", 0.0) - vector("mean", 0.0) * scale
        return x * scale.astype(self.dtype) + shift.astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch norm over the images, or the RoIs, of all devices.

    ``real`` says which entries of the first axis count: the slots of RoIs that there are not would otherwise have a say in the mean. The
    devices' sums are added up, so that each entry counts alike and a device without any does no harm, which Flax's own layer, averaging the
    devices' means, does not do.
    """

    epsilon: float = 1e-5
    train: bool = False
    dtype: Any = jnp.float32
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], real: Bool[Array, "N"] | None = None) -> Float[Array, "N H W C"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running = [self.variable("batch_stats", name, fill, (channels,), jnp.float32) for name, fill in (("mean", jnp.zeros), ("var", jnp.ones))]
        mean, var = (statistic.value for statistic in running)
        if self.train:
            counted = jnp.ones(x.shape[0]) if real is None else real.astype(jnp.float32)
            values, weights = x.astype(jnp.float32), counted[:, None, None, None]
            sums = [jnp.sum(weights * power, axis=(0, 1, 2)) for power in (values, values**2)]
            number, *sums = jax.lax.psum([counted.sum() * x.shape[1] * x.shape[2], *sums], DEVICE_AXIS)
            mean, square = (total / jnp.maximum(number, 1) for total in sums)
            var = jnp.maximum(square - mean**2, 0)
            for statistic, now in zip(running, (mean, var), strict=True):
                moved = self.momentum * statistic.value + (1 - self.momentum) * jax.lax.stop_gradient(now)
                statistic.value = jnp.where(number > 0, moved, statistic.value)
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return x * factor.astype(self.dtype) + (bias - mean * factor).astype(self.dtype)


class Identity(nn.Module):
    """No normalisation."""

    def __call__(self, x, real=None):
        return x


class GroupNorm(nn.Module):
    """32 groups (Wu & He, 2018), or as many as divide a narrow layer's channels."""

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, real=None):
        return nn.GroupNorm(math.gcd(32, x.shape[-1]), epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)


def normalisation(kind: str, epsilon: float, train: bool, dtype: Any):
    """The layer class for a norm's name in the configuration: call it with a ``name``.

    The layer takes the features and, where some entries of their first axis are empty, which are real; only batch norm asks.
    """
    if kind == "frozen":
        return partial(FrozenBatchNorm, epsilon=epsilon, dtype=dtype)
    if kind == "batch":
        return partial(BatchNorm, epsilon=epsilon, train=train, dtype=dtype)
    if kind == "group":
        return partial(GroupNorm, epsilon=epsilon, dtype=dtype)
    return Identity
