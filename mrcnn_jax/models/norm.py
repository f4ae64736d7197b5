"""Normalisation layers. Each takes features, and optionally which entries of their first axis are valid."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.distributed import DEVICE_AXIS
from mrcnn_jax.typing import Array, Bool, Float

Features = Float[Array, "N H W C"]
Valid = Bool[Array, "N"] | None
"""Slots that hold an image or RoI; None is all of them."""


class FrozenBatchNorm(nn.Module):
    """Batch norm as a fixed affine map, for fine-tuning a pretrained network with few images per device.

    Its four vectors are in the collection "frozen", where neither gradients nor weight decay reach them.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features, valid: Valid = None) -> Features:
        """Computes (x - mean) / sqrt(var + epsilon) * scale + bias."""

        def vector(name, fill):
            return self.variable("frozen", name, lambda: jnp.full(x.shape[-1], fill, jnp.float32)).value

        scale = vector("scale", 1.0) * jax.lax.rsqrt(vector("var", 1.0) + self.epsilon)
        shift = vector("bias", 0.0) - vector("mean", 0.0) * scale
        return _affine(x, scale, shift, self.dtype)


class BatchNorm(nn.Module):
    """Batch norm over the valid images or RoIs of all devices.

    Sums, not means, are added over the devices: each entry counts alike, and a device without valid entries
    does no harm. Flax's own layer averages the devices' means.
    """

    epsilon: float = 1e-5
    train: bool = False
    dtype: Any = jnp.float32
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Features, valid: Valid = None) -> Features:
        """Normalises by statistics of the batch if ``train``, updating the running ones; else by these."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        mean, var = running_mean.value, running_var.value
        if self.train:
            weights = jnp.ones(x.shape[0]) if valid is None else valid.astype(jnp.float32)
            count, mean, var = _batch_statistics(x.astype(jnp.float32), weights)
            for running, batch in ((running_mean, mean), (running_var, var)):
                update = self.momentum * running.value + (1 - self.momentum) * jax.lax.stop_gradient(batch)
                running.value = jnp.where(count > 0, update, running.value)
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return _affine(x, factor, bias - mean * factor, self.dtype)


def _affine(x, scale, shift, dtype):
    scale, shift = (vector.astype(dtype).reshape(1, 1, 1, -1) for vector in (scale, shift))
    return x * scale + shift


def _batch_statistics(x, weights):
    """Returns count, mean and variance over all axes but the last and over the devices."""
    count, weights = weights.sum() * x.shape[1] * x.shape[2], weights[:, None, None, None]
    sums = [jnp.sum(weights * power, axis=(0, 1, 2)) for power in (x, x**2)]
    count, *sums = jax.lax.psum([count, *sums], DEVICE_AXIS)
    mean, mean_square = (total / jnp.maximum(count, 1) for total in sums)
    return count, mean, jnp.maximum(mean_square - mean**2, 0)


class Identity(nn.Module):
    """No normalisation."""

    def __call__(self, x: Features, valid: Valid = None) -> Features:
        """Returns x."""
        return x


class GroupNorm(nn.Module):
    """Group norm of 32 groups (Wu & He, 2018), or of as many as divide a narrow layer's channels."""

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features, valid: Valid = None) -> Features:
        """Normalises each entry by itself."""
        groups = math.gcd(32, x.shape[-1])
        return nn.GroupNorm(groups, epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)


def make_norm(kind: str, epsilon: float, train: bool, dtype: Any):
    """Returns the layer class of a norm in the configuration, to be called with a ``name``."""
    if kind == "frozen":
        return partial(FrozenBatchNorm, epsilon=epsilon, dtype=dtype)
    if kind == "batch":
        return partial(BatchNorm, epsilon=epsilon, train=train, dtype=dtype)
    if kind == "group":
        return partial(GroupNorm, epsilon=epsilon, dtype=dtype)
    return Identity
