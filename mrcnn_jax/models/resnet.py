"""ResNet (He et al., 2016) and ResNeXt (Xie et al., 2017): the bottom-up half of the backbone."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.config import BackboneConfig
from mrcnn_jax.config.model import BASIC
from mrcnn_jax.models.layers.grouped_convolution import grouped_convolution
from mrcnn_jax.models.layers.non_local import NonLocalBlock
from mrcnn_jax.models.norm import normalisation
from mrcnn_jax.typing import Array, Bool, Float

DEPTHS = {
    "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)
}  # fmt: skip
"""Blocks of res2 to res5."""
MSRA = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Block(nn.Module):
    """A residual block: two 3x3 convolutions (basic), or 1x1, 3x3 in groups, 1x1 with four times the channels at the end (bottleneck)."""

    channels: int
    stride: int
    dilation: int
    config: BackboneConfig
    norm: Callable
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], real: Bool[Array, "B"] | None = None) -> Float[Array, "B h w c"]:
        config = self.config

        def conv(name, x, channels, size, stride=1, groups=1):
            dilation = self.dilation if size == 3 else 1
            x = nn.Conv(channels, (size, size), (stride, stride), padding=size // 2 * dilation, kernel_dilation=dilation, feature_group_count=groups,
                        conv_general_dilated=grouped_convolution, use_bias=False, kernel_init=MSRA, dtype=self.dtype, name=name)(x)  # fmt: skip
            return self.norm(name=f"{name}_norm")(x, real)

        if config.name in BASIC:
            y = nn.relu(conv("conv1", x, self.channels, 3, self.stride))
            y = conv("conv2", y, self.channels, 3)
        else:
            inner = self.channels * config.group_width // 64 * config.groups
            first, second = (self.stride, 1) if config.stride_in_1x1 else (1, self.stride)
            y = nn.relu(conv("conv1", x, inner, 1, first))
            y = nn.relu(conv("conv2", y, inner, 3, second, config.groups))
            y = conv("conv3", y, 4 * self.channels, 1)
        if x.shape != y.shape:
            x = conv("shortcut", x, y.shape[-1], 1, self.stride)
        return nn.relu(x + y)


def stage(
    number: int, x: Float[Array, "B H W C"], config: BackboneConfig, stride: int, train: bool, dtype: Any, remat: bool, dilation: int = 1, real=None
):
    """The blocks of res2, .., res5, as children of the module that calls it; the first reduces the resolution by ``stride``.

    ``remat``: blocks are computed again in the backward pass. ``real``: which entries of x are not empty slots (see models.heads).
    """
    block_class = nn.remat(Block) if remat else Block
    norm = normalisation(config.norm, config.norm_epsilon, train, dtype)
    depth = DEPTHS[config.name][number - 2]
    for block in range(depth):
        if config.non_local and number == 4 and block == depth - 1:
            x = NonLocalBlock(dtype, name="res4_non_local")(x)
        x = block_class(config.width * 2 ** (number - 2), stride if block == 0 else 1, dilation, config, norm, dtype, name=f"res{number}_{block}")(x, real)
    return x


class ResNet(nn.Module):
    """Images, normalised, to the outputs of res2, .., res5 (strides 4 to 32; res5 at 16 where it is dilated; up to res4 where res5 is a head).

    The first ``freeze_stages`` of stem, res2, .., res5 pass no gradient; their weights are left out of the optimiser too (training.optimizer).
    """

    config: BackboneConfig
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool = False) -> list[Float[Array, "B _h _w _c"]]:
        config = self.config
        norm = normalisation(config.norm, config.norm_epsilon, train, self.dtype)
        x = nn.Conv(config.width, (7, 7), (2, 2), padding=3, use_bias=False, kernel_init=MSRA, dtype=self.dtype, name="stem")(images)
        x = nn.relu(norm(name="stem_norm")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        features = []
        for number in range(2, 5 if config.features == "c4" else 6):
            if number - 1 <= config.freeze_stages:
                x = jax.lax.stop_gradient(x)
            dilated = number == 5 and config.features == "dc5"
            x = stage(number, x, config, 1 if number == 2 or dilated else 2, train, self.dtype, self.remat, dilation=2 if dilated else 1)
            features.append(x)
        return [jax.lax.stop_gradient(x) if index + 1 < config.freeze_stages else x for index, x in enumerate(features)]


class Res5(nn.Module):
    """res5 over the features of each RoI: the head of c4 (section 3, figure 4, left)."""

    config: BackboneConfig
    stride: int
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, rois: Float[Array, "N PH PW C"], real: Bool[Array, "N"] | None = None, train: bool = False) -> Float[Array, "N ph pw c"]:
        return stage(5, rois, self.config, self.stride, train, self.dtype, self.remat, real=real)


def frozen_modules(config: BackboneConfig) -> tuple[str, ...]:
    """Prefixes of the names of the frozen stages' modules."""
    return ("stem", "res2", "res3", "res4", "res5")[: config.freeze_stages]
