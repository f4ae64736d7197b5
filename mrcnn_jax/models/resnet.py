"""ResNet (He et al., 2016): the bottom-up half of the backbone."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mrcnn_jax.config import BackboneConfig
from mrcnn_jax.models.norm import normalisation

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
BASIC = ("resnet18", "resnet34")
MSRA = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Block(nn.Module):
    """A residual block: two 3x3 convolutions (basic), or 1x1, 3x3, 1x1 with four times the channels at the end (bottleneck)."""

    channels: int
    stride: int
    bottleneck: bool
    stride_in_1x1: bool
    norm: Callable
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w c"]:
        def conv(name, x, channels, size, stride=1):
            x = nn.Conv(channels, (size, size), (stride, stride), padding=size // 2, use_bias=False, kernel_init=MSRA, dtype=self.dtype, name=name)(x)
            return self.norm(name=f"{name}_norm")(x)

        if self.bottleneck:
            first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
            y = nn.relu(conv("conv1", x, self.channels, 1, first))
            y = nn.relu(conv("conv2", y, self.channels, 3, second))
            y = conv("conv3", y, 4 * self.channels, 1)
        else:
            y = nn.relu(conv("conv1", x, self.channels, 3, self.stride))
            y = conv("conv2", y, self.channels, 3)
        if x.shape != y.shape:
            x = conv("shortcut", x, y.shape[-1], 1, self.stride)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Images, normalised, to the features C2 to C5 (strides 4 to 32).

    The first ``freeze_stages`` of stem, res2, .., res5 pass no gradient; their weights are left out of the optimiser too (training.optimizer).
    """

    config: BackboneConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool = False) -> list[Float[Array, "B _h _w _c"]]:
        config = self.config
        norm = normalisation(config.norm, config.norm_epsilon, train, self.dtype)
        bottleneck = config.name not in BASIC
        x = nn.Conv(config.width, (7, 7), (2, 2), padding=3, use_bias=False, kernel_init=MSRA, dtype=self.dtype, name="stem")(images)
        x = nn.relu(norm(name="stem_norm")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        features = []
        for index, depth in enumerate(DEPTHS[config.name]):
            if index < config.freeze_stages:
                x = jax.lax.stop_gradient(x)
            for block in range(depth):
                stride = 2 if block == 0 and index > 0 else 1
                x = Block(config.width * 2**index, stride, bottleneck, config.stride_in_1x1, norm, self.dtype, name=f"res{index + 2}_{block}")(x)
            features.append(x)
        return [jax.lax.stop_gradient(x) if index + 1 < config.freeze_stages else x for index, x in enumerate(features)]


def frozen_modules(config: BackboneConfig) -> tuple[str, ...]:
    """Prefixes of the names of the frozen stages' modules."""
    return ("stem", "res2", "res3", "res4", "res5")[: config.freeze_stages]
